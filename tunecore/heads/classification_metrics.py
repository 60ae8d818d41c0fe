"""Classification metrics from one confusion matrix: streaming, and mergeable over ranks by addition.

Shape letters: B sequences in the batch, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tunecore.types import IntArray, PackedBatch

Matrix = NDArray[np.float64]


class ClassificationMetrics:
    """Accuracy, F1 (macro, micro), Matthews correlation, confusion matrix and per-class report.

    Everything follows from the confusion matrix int64 [C, C] (rows: true class, columns: predicted), so batches
    and ranks add up exactly. A ratio with nothing below the line counts as 0, as in scikit-learn.

    Args:
        labels: class names in order.
        target: name of the batch targets to compare with.
    """

    def __init__(self, labels: Sequence[str], target: str) -> None:
        self.labels = list(labels)
        self.target = target
        self.matrix: IntArray = np.zeros((len(self.labels), len(self.labels)), dtype=np.int64)

    def update(self, raw: Tensor, batch: PackedBatch) -> None:
        """Count the most likely classes of logits [B, C] against the labels of the batch."""
        targets = batch.targets.get(self.target)
        if targets is None:
            return
        predicted = raw.index_select(0, targets.index).argmax(-1).cpu().numpy()
        np.add.at(self.matrix, (targets.labels.cpu().numpy(), predicted), 1)

    def merge(self, others: Sequence[Any]) -> None:
        """Add the confusion matrices of other ranks."""
        for other in others:
            self.matrix += np.asarray(other, dtype=np.int64).reshape(self.matrix.shape)

    def state(self) -> list[list[int]]:
        """The confusion matrix as nested lists."""
        return [[int(n) for n in row] for row in self.matrix]

    def compute(self) -> dict[str, Any]:
        """Scalars, ``confusion_matrix`` (nested lists), its ``labels`` and a ``report`` by label.

        The report has precision, recall, f1 and support (rows of that class) of each label.

        ``f1`` is the F1 of the second class where there are two (the positive one), else the macro average. The
        macro average is over classes that occur, as true or as predicted ones.
        """
        matrix = self.matrix.astype(np.float64)
        hits, true, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
        total = float(matrix.sum())
        f1, report = by_label(self.labels, hits, predicted, true)
        occurs = true + predicted > 0
        macro = float(f1[occurs].mean()) if occurs.any() else 0.0
        accuracy = float(hits.sum() / total) if total else 0.0
        return {
            "accuracy": accuracy,
            "f1": float(f1[1]) if len(self.labels) == 2 else macro,
            "f1_macro": macro,
            "f1_micro": accuracy,  # with one label a row, micro precision, recall and F1 all are the accuracy
            "mcc": _matthews(hits, true, predicted, total),
            "confusion_matrix": self.state(),
            "labels": list(self.labels),
            "report": report,
        }


def by_label(
    labels: Sequence[str], hits: Matrix, given: Matrix, true: Matrix
) -> tuple[Matrix, dict[str, dict[str, float]]]:
    """(F1 of each label [C], its report) from counts [C]: rightly given, given, true."""
    f1 = ratio(2 * hits, given + true)
    columns = {"precision": ratio(hits, given), "recall": ratio(hits, true), "f1": f1}
    report: dict[str, dict[str, float]] = {
        label: {**{name: float(values[i]) for name, values in columns.items()}, "support": int(true[i])}
        for i, label in enumerate(labels)
    }
    return f1, report


def ratio(above: Matrix, below: Matrix) -> Matrix:
    """``above / below``; 0 where nothing is below."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _matthews(hits: Matrix, true: Matrix, predicted: Matrix, total: float) -> float:
    """Matthews correlation for C classes (Gorodkin 2004, the R_K statistic); 0 where it is undefined."""
    covariance = hits.sum() * total - true @ predicted
    spread = (total**2 - predicted @ predicted) * (total**2 - true @ true)
    return float(covariance / np.sqrt(spread)) if spread > 0 else 0.0
