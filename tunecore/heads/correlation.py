"""Correlation of two series of numbers: Pearson's, and Spearman's over average ranks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Series = NDArray[np.float64]


def pearson(first: Series, second: Series) -> float:
    """Pearson's correlation of two series [N]; 0 where one of them is constant, which leaves it undefined."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    first, second = first - first.mean(), second - second.mean()
    size = np.sqrt((first @ first) * (second @ second))
    return float(np.clip(first @ second / size, -1.0, 1.0)) if size > 0 else 0.0


def spearman(first: Series, second: Series) -> float:
    """Spearman's correlation: Pearson's of the ranks; 0 where it is undefined."""
    return pearson(ranks(first), ranks(second))


def ranks(values: Series) -> Series:
    """Ranks from 1 of a series [N]; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
