"""Metrics of predicted numbers: kept row by row, because ranks need all; mergeable over ranks of a run.

Shape letters: B sequences in the batch, N of them with numbers, C numbers a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tunecore.heads.correlation import pearson, spearman
from tunecore.types import PackedBatch

Rows = NDArray[np.float64]


class RegressionMetrics:
    """Pearson's and Spearman's correlation, mean squared and mean absolute error, in the unit of the labels.

    With several numbers a row each is the mean over them, and ``each`` has them one by one.

    Args:
        names: of the numbers, in order.
        target: name of the batch targets to compare with.
        low: what an output of 0 stands for.
        scale: what a difference of 1 between outputs stands for.
    """

    def __init__(self, names: Sequence[str], target: str, low: float = 0.0, scale: float = 1.0) -> None:
        self.names = list(names)
        self.target, self.low, self.scale = target, low, scale
        self._predicted: list[Rows] = []
        self._true: list[Rows] = []

    def update(self, raw: Tensor, batch: PackedBatch) -> None:
        """Keep outputs [B, C] and labels [N, C] of a batch."""
        targets = batch.targets.get(self.target)
        if targets is None:
            return
        for kept, values in ((self._predicted, raw.index_select(0, targets.index)), (self._true, targets.labels)):
            kept.append(values.double().cpu().numpy().reshape(-1, len(self.names)) * self.scale + self.low)

    def merge(self, others: Sequence[Any]) -> None:
        """Add the rows of other ranks."""
        for predicted, true in others:
            self._predicted.append(np.asarray(predicted, dtype=np.float64).reshape(-1, len(self.names)))
            self._true.append(np.asarray(true, dtype=np.float64).reshape(-1, len(self.names)))

    def state(self) -> list[list[list[float]]]:
        """Predictions and labels as nested lists."""
        return [rows.tolist() for rows in self._rows()]

    def compute(self) -> dict[str, Any]:
        """The scalars, and ``each`` where there are several numbers a row."""
        predicted, true = self._rows()
        each = {name: _measures(predicted[:, i], true[:, i]) for i, name in enumerate(self.names)}
        first = next(iter(each.values()))
        means = {what: float(np.mean([measures[what] for measures in each.values()])) for what in first}
        return means | ({"each": each} if len(self.names) > 1 else {})

    def _rows(self) -> tuple[Rows, Rows]:
        nothing = np.zeros((0, len(self.names)))
        return np.concatenate([nothing, *self._predicted]), np.concatenate([nothing, *self._true])


def _measures(predicted: Rows, true: Rows) -> dict[str, float]:
    """The metrics of one number, over rows [N]."""
    errors = predicted - true
    count = max(len(errors), 1)
    return {
        "pearson": pearson(predicted, true),
        "spearman": spearman(predicted, true),
        "mse": float(errors @ errors) / count,
        "mae": float(np.abs(errors).sum()) / count,
    }
