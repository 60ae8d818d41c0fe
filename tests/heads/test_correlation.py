"""Correlations against torchmetrics, and ranks against the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef

from tunecore.heads.correlation import pearson, ranks, spearman

series = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=30)


@settings(deadline=None)
@given(series)
def test_correlations_are_those_of_torchmetrics(pairs):
    first, second = np.asarray(pairs, dtype=np.float64).T
    assume(np.ptp(first) and np.ptp(second))
    tensors = torch.from_numpy(first.copy()), torch.from_numpy(second.copy())
    assert pearson(first, second) == pytest.approx(float(pearson_corrcoef(*tensors)), abs=1e-6)
    # torchmetrics adds 1e-6 below the line.
    assert spearman(first, second) == pytest.approx(float(spearman_corrcoef(*tensors)), abs=1e-4)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=20))
def test_equal_values_share_the_mean_of_their_ranks(values):
    array = np.asarray(values, dtype=np.float64)
    want = [1 + sum(v < x for v in values) + (values.count(x) - 1) / 2 for x in values]
    assert ranks(array).tolist() == want


def test_undefined_correlations_are_zero():
    constant, rising = np.ones(4), np.arange(4.0)
    assert pearson(constant, rising) == spearman(rising, constant) == 0.0
    assert pearson(np.ones(1), np.ones(1)) == pearson(np.ones(0), np.ones(0)) == 0.0
    assert spearman(rising, rising * 1e300) == pytest.approx(1.0)
