"""Packing for encoder-decoder models: two rows with the same sequences, counted together."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunecore.data.packing import pack
from tunecore.errors import DataError
from tunecore.types import Example, Targets


def example(row_id, encoder, decoder, targets=None):
    decoder_ids = None if decoder is None else 5000 + 100 * row_id + np.arange(decoder)
    ids = 1000 + 100 * row_id + np.arange(encoder)
    return Example(row_id=row_id, input_ids=ids, decoder_input_ids=decoder_ids, targets=targets or {})


sizes = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=20)


@settings(max_examples=80, deadline=None)
@given(sizes, st.integers(1, 150), st.integers(1, 5), st.integers(0, 3))
def test_both_rows_hold_every_example_whole_and_stay_below_the_limit(lengths, max_tokens, micro, offset):
    examples = [example(i, *n, {"a": Targets(np.array([n[1] - 1]), np.array([i]))}) for i, n in enumerate(lengths)]
    batches = pack(examples, max_tokens=max_tokens, position_offset=offset, pad_id=9, min_micro_batches=micro)
    assert sorted(r for b in batches for r in b.row_ids) == list(range(len(lengths)))
    for batch in batches:
        layout = batch.layout
        stacks = (
            (batch.input_ids, batch.position_ids, layout.cu_seqlens, layout.max_seqlen),
            (batch.decoder_input_ids, batch.decoder_position_ids, layout.decoder_cu_seqlens, layout.decoder_max_seqlen),
        )
        for which, (ids, positions, cu_seqlens, longest) in enumerate(stacks):
            cu = cu_seqlens.tolist()
            total = ids.shape[1]
            assert ids.shape == positions.shape == (1, total) and total % 8 == 0 and cu[-1] == total
            assert cu_seqlens.dtype == torch.int32 and len(cu) - 1 == len(layout.row_ids)
            assert longest == max(b - a for a, b in pairwise(cu))
            for i, (a, b) in enumerate(pairwise(cu)):
                assert positions[0, a:b].tolist() == list(range(offset, offset + b - a))
                if i < batch.num_sequences:
                    made = examples[batch.row_ids[i]]
                    want = made.decoder_input_ids if which else made.input_ids
                    assert ids[0, a:b].tolist() == want.tolist()
                else:
                    assert layout.row_ids[i] == -1 and (ids[0, a:b] == 9).all() and b - a < 8
        assert batch.num_tokens == sum(sum(lengths[r]) for r in batch.row_ids)
        assert batch.num_targets == {"a": len(batch.row_ids)}
        last = torch.tensor([5000 + 100 * r + lengths[r][1] - 1 for r in batch.row_ids])
        assert torch.equal(batch.decoder_input_ids[0, batch.targets["a"].index], last), "targets index the decoder"
        tokens = batch.input_ids.shape[1] + batch.decoder_input_ids.shape[1]
        assert tokens <= max(max_tokens, 16) or batch.num_sequences == 1


def test_a_batch_moves_whole():
    (batch,) = pack([example(0, 3, 4)], max_tokens=64, position_offset=0, pad_id=0)
    moved = batch.to("meta")
    assert moved.decoder_input_ids.device.type == moved.decoder_position_ids.device.type == "meta"
    assert moved.layout.decoder_cu_seqlens.device.type == "meta" and moved.layout.decoder_max_seqlen == 4


def test_bad_examples_are_named():
    options = {"max_tokens": 64, "position_offset": 0, "pad_id": 0}
    with pytest.raises(DataError, match="rows 2 and 3: one has decoder_input_ids"):
        pack([example(2, 3, 4), example(3, 3, None)], **options)
    with pytest.raises(DataError, match="row 5: the example has no tokens"):
        pack([example(5, 3, 0)], **options)
