"""Philox against its published answers, and streams as pure functions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunecore.data.streams import PhiloxStream, derive_key, philox4x32

ids = st.integers(-(2**63), 2**63 - 1)


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF,) * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers_of_random123(counter, key, answer):
    assert philox4x32(np.array([counter], dtype=np.uint32), key)[0].tolist() == answer


def test_blocks_do_not_depend_on_their_neighbours():
    counters = np.arange(40, dtype=np.uint32).reshape(10, 4)
    whole = philox4x32(counters, (7, 9))
    assert all((philox4x32(counters[i : i + 1], (7, 9))[0] == whole[i]).all() for i in range(10))


@settings(max_examples=30, deadline=None)
@given(ids, st.lists(ids, max_size=3), st.text(max_size=5), st.lists(st.integers(0, 700), max_size=5))
def test_a_stream_is_one_sequence_however_it_is_drawn(seed, row, purpose, sizes):
    whole = PhiloxStream(seed, *row, purpose=purpose).uniform(sum(sizes))
    stream = PhiloxStream(seed, *row, purpose=purpose)
    parts = [stream.uniform(n) for n in sizes]
    assert np.array_equal(np.concatenate([*parts, np.empty(0)]), whole)
    assert ((whole >= 0) & (whole < 1)).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(-(2**40), 2**40), st.integers(1, 2**32), st.integers(0, 50))
def test_integers_stay_in_range(low, width, n):
    drawn = PhiloxStream(1, purpose="i").integers(low, low + width, n)
    assert drawn.dtype == np.int64 and len(drawn) == n
    assert ((drawn >= low) & (drawn < low + width)).all()


@pytest.mark.parametrize(("low", "high"), [(3, 3), (4, 3), (0, 2**32 + 1)])
def test_integers_refuse_a_bad_range(low, high):
    with pytest.raises(ValueError, match="range"):
        PhiloxStream(0).integers(low, high, 1)


def test_integers_and_uniforms_are_even():
    counts = np.bincount(PhiloxStream(3).integers(0, 7, 70_000), minlength=7)
    assert np.abs(counts - 10_000).max() < 500  # five standard deviations
    uniform = PhiloxStream(4).uniform(100_000)
    assert abs(uniform.mean() - 0.5) < 0.005 and abs(uniform.var() - 1 / 12) < 0.002


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 300), ids)
def test_permutation_is_a_bijection(n, seed):
    assert np.array_equal(np.sort(PhiloxStream(seed).permutation(n)), np.arange(n))


def test_children_depend_on_their_purpose_and_not_on_the_parents_draws():
    fresh, used = PhiloxStream(5, 1), PhiloxStream(5, 1)
    used.uniform(1000)
    assert np.array_equal(fresh.child("a").uniform(9), used.child("a").uniform(9))
    draws = [s.uniform(4).tolist() for s in (fresh, fresh.child("a"), fresh.child("b"), fresh.child("a").child("a"))]
    assert len({tuple(d) for d in draws}) == 4


def test_ids_purposes_and_their_borders_all_count():
    keys = [(1,), (1, 0), (0, 1), (1, 0, 0)]
    streams = [*(PhiloxStream(*key) for key in keys), PhiloxStream(1, purpose="0")]
    assert len({tuple(s.uniform(2)) for s in streams}) == len(streams)


def test_streams_and_keys_are_the_same_for_ever():
    assert derive_key(1, 2, 3) == 356430166102522627
    assert PhiloxStream(1, 2, purpose="x").integers(0, 1000, 4).tolist() == [183, 744, 473, 987]


@settings(max_examples=50, deadline=None)
@given(ids, st.lists(ids, max_size=4))
def test_keys_fit_a_torch_seed(seed, numbers):
    assert 0 <= derive_key(seed, *numbers) < 2**63
