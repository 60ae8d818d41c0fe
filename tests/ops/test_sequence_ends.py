"""Where sequences end: of a GPU read once a tensor, and again after it was written to. The CPU stands in for one."""

from __future__ import annotations

import copy
import gc
import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunecore.data.packing import pack
from tunecore.errors import NativeError
from tunecore.ops import attention, sequence_ends
from tunecore.ops.sequence_ends import SequenceEnds, same_sequence_ends
from tunecore.training.to_device import to_device
from tunecore.types import Example


def ends(*numbers):
    return torch.tensor(numbers, dtype=torch.int32)


@pytest.fixture(autouse=True)
def like_a_gpu(monkeypatch):
    """Nothing of the CPU is read each time."""
    monkeypatch.setattr(sequence_ends, "_READ_EACH_TIME", ())


@pytest.fixture
def reads(monkeypatch):
    """How often the numbers of a tensor were asked for on the host."""
    seen, tolist = [], torch.Tensor.tolist

    def noted(x):
        seen.append(x)
        return tolist(x)

    monkeypatch.setattr(torch.Tensor, "tolist", noted)
    return seen


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 20)))
def test_they_are_the_sum_and_the_largest_of_the_lengths(lengths):
    cu_seqlens = ends(0, *itertools.accumulate(lengths))
    assert sequence_ends.sequence_ends(cu_seqlens) == SequenceEnds(True, sum(lengths), max(lengths, default=0))


@pytest.mark.parametrize("numbers", [(1, 3), (0, 5, 4), (-1, 2)])
def test_numbers_that_do_not_rise_from_0_are_said_to_be_so(numbers):
    assert not sequence_ends.sequence_ends(ends(*numbers)).rising


def test_a_tensor_is_read_once_and_again_where_it_was_written_to(reads):
    cu_seqlens = ends(0, 3, 8)
    for _ in range(3):
        assert sequence_ends.sequence_ends(cu_seqlens).longest == 5
    assert len(reads) == 1
    cu_seqlens[1] = 2
    assert sequence_ends.sequence_ends(cu_seqlens).longest == 6
    cu_seqlens.view(-1)[1:2].add_(2)  # a view of it has the same version
    assert sequence_ends.sequence_ends(cu_seqlens).longest == 4
    assert len(reads) == 3
    twin = copy.deepcopy(cu_seqlens)
    twin[2] = 20
    assert sequence_ends.sequence_ends(twin).tokens == 20, "a copy knows nothing"


def test_what_is_kept_goes_with_the_tensor():
    gc.collect()
    before = len(sequence_ends._known)
    many = [ends(0, n) for n in range(50)]
    assert [sequence_ends.sequence_ends(x).tokens for x in many] == list(range(50))
    assert len(sequence_ends._known) == before + 50
    del many
    gc.collect()
    assert len(sequence_ends._known) == before


def test_tensors_of_inference_mode_whose_writes_nobody_counts_are_read_each_time():
    with torch.inference_mode():
        cu_seqlens = ends(0, 3)
        assert sequence_ends.sequence_ends(cu_seqlens).tokens == 3
        cu_seqlens[1] = 4
        assert sequence_ends.sequence_ends(cu_seqlens).tokens == 4


def test_a_copy_takes_over_what_the_original_held(reads):
    original = ends(0, 3, 8)
    other = original.clone()
    same_sequence_ends(other, original)
    assert sequence_ends.sequence_ends(other) == SequenceEnds(True, 8, 5)
    assert [x is original for x in reads] == [True]


def test_a_moved_batch_is_never_read_where_it_is_computed(monkeypatch, reads):
    """A device that copies: what came from it is not looked at by any layer, encoder, decoder or between them."""
    rows = [Example(i, torch.arange(5 + i).numpy(), decoder_input_ids=torch.arange(3 + i).numpy()) for i in range(3)]
    (batch,) = pack(rows, max_tokens=256, position_offset=0, pad_id=0, view="seq2seq")
    to = torch.Tensor.to
    with monkeypatch.context() as copying:
        copying.setattr(torch.Tensor, "to", lambda x, *args, **kwargs: to(x, *args, **kwargs).clone())
        layout = to_device(batch, torch.device("cpu")).layout
    assert layout.cu_seqlens is not batch.layout.cu_seqlens
    encoder, decoder = (layout.cu_seqlens, layout.max_seqlen), (layout.decoder_cu_seqlens, layout.decoder_max_seqlen)
    for (queries, most_queries), (keys, most_keys) in itertools.product((encoder, decoder), repeat=2):
        q, k = torch.randn(int(queries[-1]), 2, 8), torch.randn(int(keys[-1]), 2, 8)
        attention(q, k, k, queries, keys, most_queries, most_keys)
    assert {id(x) for x in reads} == {id(batch.layout.cu_seqlens), id(batch.layout.decoder_cu_seqlens)}


def test_the_cpu_is_read_each_time_so_that_what_numpy_wrote_is_seen(monkeypatch):
    monkeypatch.undo()
    q, cu_seqlens = torch.randn(8, 1, 8), ends(0, 3, 8)
    attention(q, q, q, cu_seqlens, cu_seqlens, 8, 8)
    cu_seqlens.numpy()[1] = 9
    with pytest.raises(NativeError, match="rising from 0 to the 8 tokens of q"):
        attention(q, q, q, cu_seqlens, cu_seqlens, 9, 9)


def test_attention_refuses_what_was_written_after_it_looked():
    q, cu_seqlens = torch.randn(8, 1, 8), ends(0, 3, 8)
    attention(q, q, q, cu_seqlens, cu_seqlens, 5, 5)
    cu_seqlens[1] = 9
    with pytest.raises(NativeError, match=r"rising from 0 to the 8 tokens of q, got \[0, 9, 8\]"):
        attention(q, q, q, cu_seqlens, cu_seqlens, 9, 9)
