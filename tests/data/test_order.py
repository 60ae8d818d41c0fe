"""The order of rows: a bijection for any n, the same however it is cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunecore.data.order import Permutation, rows_of_step, steps_per_epoch


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.integers(1, 300), st.integers(4090, 9000)), st.integers(0, 2**63 - 1), st.integers(-1, 10**6))
def test_every_row_comes_once(n, seed, epoch):
    assert np.array_equal(np.sort(Permutation(n, seed, epoch)[:]), np.arange(n))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([5, 4096, 4097, 70_001]), st.data())
def test_a_slice_an_array_and_an_int_agree(n, data):
    order = Permutation(n, 3, 1)
    start = data.draw(st.integers(0, n - 1))
    stop = data.draw(st.integers(start, min(n, start + 50)))
    whole = order[:]
    assert np.array_equal(order[start:stop], whole[start:stop])
    assert np.array_equal(order[np.arange(start, stop)], whole[start:stop])
    assert order[start].tolist() == [whole[start]]


@pytest.mark.parametrize("n", [10, 5000])
def test_epochs_and_seeds_differ_and_positions_are_even(n):
    orders = np.stack([Permutation(n, 0, epoch)[:] for epoch in range(200)])
    assert len({tuple(order) for order in orders}) == 200
    assert not np.array_equal(orders[0], Permutation(n, 1, 0)[:])
    # Where row 0 lands is uniform: mean and spread of 200 positions, at five standard deviations.
    positions = np.argmin(orders, axis=1) / n
    assert abs(positions.mean() - 0.5 * (n - 1) / n) < 5 * np.sqrt(1 / 12 / 200)
    # Neighbours do not stay neighbours.
    assert (np.abs(np.diff(orders, axis=1)) == 1).mean() < 0.3


def test_a_large_order_takes_no_memory():
    order = Permutation(10**15, 7, 0)
    rows = order[10**14 : 10**14 + 1000]
    assert len(set(rows.tolist())) == 1000 and rows.min() >= 0 and rows.max() < 10**15


@pytest.mark.parametrize("bad", [-1, 10])
def test_positions_outside_are_refused(bad):
    with pytest.raises(IndexError):
        Permutation(10, 0, 0)[bad]


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="at least one row"):
        Permutation(0, 0, 0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(1, 50), st.integers(0, 2**31))
def test_the_steps_of_an_epoch_hold_every_row_once(n, batch_size, seed):
    per_epoch = steps_per_epoch(n, batch_size)
    for epoch in (0, 3):
        steps = [rows_of_step(n, batch_size, seed, epoch * per_epoch + s) for s in range(per_epoch)]
        assert {e for e, _ in steps} == {epoch}
        assert all(len(rows) == batch_size for _, rows in steps[:-1]) and len(steps[-1][1]) > 0
        assert np.array_equal(np.sort(np.concatenate([rows for _, rows in steps])), np.arange(n))
