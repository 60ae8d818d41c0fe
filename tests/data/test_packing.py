"""Packing: nothing lost, nothing split, nothing beyond the limit, positions and targets where they belong."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunecore.data.packing import ROUND_TO, pack
from tunecore.errors import DataError
from tunecore.types import Example, Targets


def example(row_id, length, group=-1, types=False, targets=None):
    ids = np.arange(length) + 1000 * (row_id + 1)
    segments = (np.arange(length) % 2).astype(np.int64) if types else None
    return Example(row_id=row_id, input_ids=ids, token_type_ids=segments, targets=targets or {}, group=group)


lengths = st.lists(st.integers(1, 60), min_size=0, max_size=25)


@settings(max_examples=80, deadline=None)
@given(lengths, st.integers(1, 100), st.integers(1, 6), st.integers(0, 3), st.data())
def test_every_example_arrives_whole_and_once(sizes, max_tokens, micro, offset, data):
    groups = data.draw(st.lists(st.integers(-1, 4), min_size=len(sizes), max_size=len(sizes)))
    examples = [example(i, n, g) for i, (n, g) in enumerate(zip(sizes, groups, strict=True))]
    batches = pack(examples, max_tokens=max_tokens, position_offset=offset, pad_id=9, min_micro_batches=micro)
    assert sorted(r for b in batches for r in b.row_ids) == list(range(len(sizes)))
    where = {}
    for number, batch in enumerate(batches):
        cu = batch.layout.cu_seqlens.tolist()
        total = batch.input_ids.shape[1]
        assert batch.input_ids.shape == batch.position_ids.shape == (1, total)
        assert total % 8 == 0 and cu[0] == 0 and cu[-1] == total
        assert batch.layout.cu_seqlens.dtype == torch.int32 and batch.layout.row_ids.dtype == torch.int64
        assert batch.layout.max_seqlen == max(b - a for a, b in pairwise(cu))
        assert batch.num_tokens == sum(sizes[r] for r in batch.row_ids)
        assert batch.layout.row_ids.tolist()[: batch.num_sequences] == list(batch.row_ids)
        for i, (a, b) in enumerate(pairwise(cu)):
            assert batch.position_ids[0, a:b].tolist() == list(range(offset, offset + b - a))
            if i < batch.num_sequences:
                row = batch.row_ids[i]
                where[row] = number
                assert batch.input_ids[0, a:b].tolist() == examples[row].input_ids.tolist()
            else:
                assert batch.layout.row_ids[i] == -1 and (batch.input_ids[0, a:b] == 9).all() and b - a < 8
        together = {groups[r] if groups[r] >= 0 else -1000 - r for r in batch.row_ids}
        assert total <= max(max_tokens, ROUND_TO) or len(together) == 1
    for g in set(groups) - {-1}:
        assert len({where[i] for i, other in enumerate(groups) if other == g}) == 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 20), st.integers(1, 30))
def test_rows_are_parted_evenly_into_at_least_the_micro_batches_asked_for(rows, micro):
    batches = pack(
        [example(i, 3) for i in range(rows)], max_tokens=1000, position_offset=0, pad_id=0, min_micro_batches=micro
    )
    sizes = [b.num_sequences for b in batches]
    assert len(batches) == min(rows, micro)
    assert not sizes or max(sizes) - min(sizes) <= 1


def test_first_fit_fills_earlier_batches():
    batches = pack([example(i, n) for i, n in enumerate([10, 12, 6, 4])], max_tokens=16, position_offset=0, pad_id=0)
    assert [b.row_ids for b in batches] == [(0, 2), (1, 3)]


def test_targets_move_with_their_sequence():
    first = example(0, 5, targets={"a": Targets(np.array([1, 4]), np.array([7, 8])), "s": Targets.of_sequence(2)})
    second = example(1, 3)
    third = example(2, 4, targets={"s": Targets.of_sequence(5), "a": Targets(np.array([0]), np.array([9]))})
    (batch,) = pack([first, second, third], max_tokens=64, position_offset=0, pad_id=0)
    assert batch.targets["a"].index.tolist() == [1, 4, 8] and batch.targets["a"].labels.tolist() == [7, 8, 9]
    assert batch.targets["s"].index.tolist() == [0, 2] and batch.targets["s"].labels.tolist() == [2, 5]
    assert batch.targets["a"].level == "token" and batch.targets["s"].level == "sequence"
    assert batch.num_targets == {"a": 3, "s": 2}
    assert batch.input_ids[0, batch.targets["a"].index[2]] == third.input_ids[0]


def test_float_and_vector_labels_keep_their_type():
    examples = [example(i, 2, targets={"v": Targets.of_sequence([0.5, i])}) for i in range(2)]
    examples[0].targets["r"] = Targets.of_sequence(0.25)
    (batch,) = pack(examples, max_tokens=64, position_offset=0, pad_id=0)
    assert batch.targets["v"].labels.tolist() == [[0.5, 0.0], [0.5, 1.0]]
    assert batch.targets["r"].labels.dtype == torch.float32 and batch.targets["r"].labels.shape == (1,)


def test_segments_are_given_when_any_example_has_them():
    (plain,) = pack([example(0, 3)], max_tokens=64, position_offset=0, pad_id=0)
    (mixed,) = pack([example(0, 3), example(1, 4, types=True)], max_tokens=64, position_offset=0, pad_id=0)
    assert plain.token_type_ids is None
    assert mixed.token_type_ids[0].tolist() == [0, 0, 0, 0, 1, 0, 1, 0]


def test_the_same_examples_pack_the_same_twice():
    examples = [example(i, 1 + 7 * i % 13) for i in range(20)]
    first, second = (pack(examples, max_tokens=32, position_offset=0, pad_id=0) for _ in range(2))
    assert [b.row_ids for b in first] == [b.row_ids for b in second]


def test_an_example_longer_than_the_limit_has_a_batch_of_its_own():
    batches = pack([example(0, 4), example(1, 50), example(2, 4)], max_tokens=16, position_offset=0, pad_id=0)
    assert [b.row_ids for b in batches] == [(0, 2), (1,)]


def test_bad_examples_are_named():
    with pytest.raises(DataError, match="row 7: the example has no tokens"):
        pack([example(7, 0)], max_tokens=8, position_offset=0, pad_id=0)
    mixed = [
        example(0, 2, targets={"a": Targets.of_sequence(1)}),
        example(3, 2, targets={"a": Targets(np.array([1]), np.array([1]))}),
    ]
    with pytest.raises(DataError, match="row 3: loss 'a' has both"):
        pack(mixed, max_tokens=64, position_offset=0, pad_id=0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.floats(0, 1)), min_size=1, max_size=12), st.integers(8, 60))
def test_prefixes_stay_with_their_sequences_and_the_filler_is_causal(rows, max_tokens):
    examples = [replace(example(i, n), prefix_len=round(n * share)) for i, (n, share) in enumerate(rows)]
    for batch in pack(examples, max_tokens=max_tokens, position_offset=0, pad_id=0):
        prefixes = batch.layout.prefix_lens
        assert prefixes.dtype == torch.int32 and len(prefixes) == len(batch.layout.cu_seqlens) - 1
        wanted = [examples[row].prefix_len for row in batch.row_ids]
        assert prefixes.tolist() == wanted + [0] * (len(prefixes) - len(wanted))


@pytest.mark.parametrize("prefixes", [(2, None), (None, 2), (2, 9), (-1, 2)])
def test_prefixes_of_only_some_examples_or_beyond_their_length_are_refused(prefixes):
    examples = [replace(example(i, 3), prefix_len=prefix) for i, prefix in enumerate(prefixes)]
    with pytest.raises(DataError, match=r"row [01]: prefix_len is (None|9|-1) for 3 tokens"):
        pack(examples, max_tokens=64, position_offset=0, pad_id=0)
    assert pack([example(0, 3)], max_tokens=64, position_offset=0, pad_id=0)[0].layout.prefix_lens is None


def test_further_parts_of_a_row_are_dropped_by_numbers_of_their_own():
    """Attention drops by row id: choices of a question, or the texts of a pair, would share their masks."""
    parts = [replace(example(row, 8), part=part) for row in (3, 4) for part in (0, 1, 2)]
    (batch,) = pack(parts, max_tokens=1024, position_offset=0, pad_id=0)
    assert batch.row_ids == (3, 3, 3, 4, 4, 4)
    found = batch.layout.row_ids.tolist()
    assert (found[0], found[3]) == (3, 4)
    assert len(set(found)) == 6 and all(0 <= one < 2**31 for one in found)
