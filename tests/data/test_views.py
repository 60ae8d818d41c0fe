"""Whose turn it is: shares in every window, no state, and the seed's only part is where the rhythm begins."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunecore.data.views import view_of_step

weights = st.lists(st.floats(0.01, 100), min_size=1, max_size=5)


@settings(max_examples=150, deadline=None)
@given(weights, st.integers(0, 2**40), st.integers(0, 10**9), st.integers(1, 200))
def test_every_window_has_each_views_share(values, seed, start, length):
    shares = {f"v{i}": value for i, value in enumerate(values)}
    seen = [view_of_step(shares, seed, step) for step in range(start, start + length)]
    for view, value in shares.items():
        apart = abs(seen.count(view) - length * value / sum(values))
        assert apart < (1 if view == "v0" else len(values)) + 1e-6


@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 100), st.floats(0.01, 100), st.integers(0, 10**6))
def test_two_views_interleave_as_evenly_as_can_be(one, other, seed):
    """Windows of one length never differ by more than one step of a view, brute force over all windows."""
    turns = [view_of_step({"a": one, "b": other}, seed, step) == "a" for step in range(120)]
    counts = [0, *accumulate(turns)]
    for length in (1, 2, 3, 7, 20, 50):
        inside = {counts[i + length] - counts[i] for i in range(len(counts) - length)}
        assert max(inside) - min(inside) <= 1


def test_equal_weights_take_strict_turns():
    turns = [view_of_step({"a": 2.0, "b": 2.0}, 5, step) for step in range(100)]
    assert all(before != after for before, after in pairwise(turns))


def test_one_view_has_every_step():
    assert {view_of_step({"only": 0.3}, 1, step) for step in range(20)} == {"only"}


@pytest.mark.parametrize("step", [0, 1, 10**6])
def test_the_seed_only_shifts(step):
    found = {view_of_step({"a": 1.0, "b": 3.0}, seed, step) for seed in range(40)}
    assert found == {"a", "b"}
