"""Batches that grow: every step's rows in closed form against walking there step by step."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunecore.data.order import BatchSizes, Permutation, rows_of_step, steps_per_epoch

SIZES = st.builds(
    lambda start, grown, warmup: BatchSizes(start + grown, start, warmup),
    st.integers(1, 9), st.integers(0, 60), st.integers(0, 40),
)  # fmt: skip


def size_at(sizes, step):
    """By hand: how many doublings fit, and which share of the warm-up has passed."""
    if sizes.start is None or step >= sizes.warmup:
        return sizes.size
    doublings = [sizes.start * 2**k for k in range(10) if sizes.start * 2**k < sizes.size]
    begun = [size for k, size in enumerate(doublings) if step >= k * sizes.warmup // len(doublings)]
    return begun[-1] if begun else sizes.size


def walk(sizes, n, steps):
    """(epoch, start, stop) of each step, one after the other."""
    epoch = start = 0
    for step in range(steps):
        stop = min(start + size_at(sizes, step), n)
        yield epoch, start, stop
        epoch, start = (epoch + 1, 0) if stop == n else (epoch, stop)


@settings(max_examples=150, deadline=None)
@given(SIZES, st.integers(1, 120))
def test_every_step_is_where_walking_leads(sizes, n):
    walked = list(walk(sizes, n, 120))
    assert [sizes.rows_of_step(n, step) for step in range(120)] == walked
    epochs = [sizes.epoch_at(n, step) for step in range(120)]
    assert all(a < b for a, b in pairwise(epochs))
    if len(sizes.stages) > 1:
        assert epochs == [epoch + start / n for epoch, start, _ in walked]


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 120), st.integers(0, 2**31))
def test_an_epoch_holds_every_row_once(sizes, n, seed):
    rows: dict[int, list[int]] = {}
    for step in range(150):
        epoch, part = rows_of_step(n, sizes, seed, step)
        rows.setdefault(epoch, []).extend(part.tolist())
    *whole, _ = rows  # the last may not be over
    for epoch in whole:
        assert sorted(rows[epoch]) == list(range(n))
        assert rows[epoch] == Permutation(n, seed, epoch)[:].tolist()


@given(st.integers(1, 300), st.integers(1, 40), st.floats(0.1, 5.0))
def test_without_a_warmup_it_is_what_it_was(n, size, epochs):
    sizes, per_epoch = BatchSizes(size), steps_per_epoch(n, size)
    assert sizes.stages == ((0, size),) == BatchSizes(size, size, 7).stages == BatchSizes(size, 1, 0).stages
    for step in (0, 1, per_epoch - 1, per_epoch, 3 * per_epoch + 1):
        epoch, position = divmod(step, per_epoch)
        assert sizes.rows_of_step(n, step) == (epoch, position * size, min(n, (position + 1) * size))
        assert sizes.epoch_at(n, step) == step / per_epoch
        assert np.array_equal(rows_of_step(n, size, 3, step)[1], rows_of_step(n, sizes, 3, step)[1])
    assert sizes.steps_of(n, epochs) == max(1, math.ceil(epochs * per_epoch))


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 80), st.sampled_from([0.3, 0.5, 1.0, 1.7, 2.0, 4.0]))
def test_as_many_steps_as_the_epochs_need(sizes, n, epochs):
    steps = sizes.steps_of(n, epochs)
    assert sizes.epoch_at(n, steps) >= epochs or len(sizes.stages) == 1
    assert steps == 1 or sizes.epoch_at(n, steps - 1) < epochs


def test_a_warmup_by_hand():
    sizes = BatchSizes(32, 4, 9)
    assert sizes.stages == ((0, 4), (3, 8), (6, 16), (9, 32))
    assert BatchSizes(10, 4, 5).stages == ((0, 4), (2, 8), (5, 10))
    assert BatchSizes(8, 1, 2).stages == ((0, 1), (0, 2), (1, 4), (2, 8))  # no step is left for the first
    assert BatchSizes(8, 1, 0).stages == BatchSizes(8, 8, 5).stages == ((0, 8),)
    assert [sizes.rows_of_step(50, step)[1:] for step in range(8)] == [
        (0, 4), (4, 8), (8, 12), (12, 20), (20, 28), (28, 36), (36, 50), (0, 16),
    ]  # fmt: skip


@pytest.mark.parametrize("given", [(0,), (4, 5), (4, 0), (4, 2, -1)])
def test_sizes_out_of_range(given):
    with pytest.raises(ValueError, match="no batch sizes"):
        BatchSizes(*given)
