"""Metrics of rows with any number of labels: streaming counts, mergeable over ranks by addition.

Shape letters: B sequences in the batch, N of them with labels, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tunecore.heads.classification_metrics import by_label, ratio
from tunecore.types import PackedBatch


class MultiLabelMetrics:
    """F1 (micro, macro, by row), exact matches and a report by label.

    A ratio with nothing below the line counts as 0, as in scikit-learn: a row without labels that is given none has
    the F1 0, though it is an exact match.

    Args:
        labels: names in order.
        target: name of the batch targets to compare with.
        threshold: the probability from which a label is given.
    """

    def __init__(self, labels: Sequence[str], target: str, threshold: float) -> None:
        self.labels = list(labels)
        self.target, self.threshold = target, threshold
        self.counts: NDArray[np.float64] = np.zeros((3, len(self.labels)))
        """Given rightly, given, true: of each label [3, C]."""
        self.rows: NDArray[np.float64] = np.zeros(3)
        """Rows, those that match exactly, the sum of their F1."""

    def update(self, raw: Tensor, batch: PackedBatch) -> None:
        """Count logits [B, C] against the labels [N, C] of the batch."""
        targets = batch.targets.get(self.target)
        if targets is None:
            return
        given = (raw.index_select(0, targets.index).sigmoid() >= self.threshold).cpu().numpy()
        true = targets.labels.cpu().numpy() > 0.5
        hits = given & true
        self.counts += np.stack([hits.sum(0), given.sum(0), true.sum(0)])
        f1 = ratio(2.0 * hits.sum(1), 1.0 * given.sum(1) + true.sum(1))
        self.rows += (len(true), (given == true).all(1).sum(), f1.sum())

    def merge(self, others: Sequence[Any]) -> None:
        """Add the counts of other ranks."""
        for counts, rows in others:
            self.counts += np.asarray(counts)
            self.rows += np.asarray(rows)

    def state(self) -> list[Any]:
        """The counts as nested lists."""
        return [self.counts.tolist(), self.rows.tolist()]

    def compute(self) -> dict[str, Any]:
        """Scalars, and a ``report`` with precision, recall, f1 and support of each label.

        ``f1_macro`` is over labels that occur, as true or as given ones.
        """
        hits, given, true = self.counts
        f1, report = by_label(self.labels, hits, given, true)
        occurs = given + true > 0
        total = self.counts.sum(1)
        rows, exact, f1_of_rows = (float(x) for x in self.rows)
        return {
            "f1_micro": float(ratio(2 * total[:1], total[1:2] + total[2:])[0]),
            "f1_macro": float(f1[occurs].mean()) if occurs.any() else 0.0,
            "f1_samples": f1_of_rows / max(rows, 1.0),
            "precision_micro": float(ratio(total[:1], total[1:2])[0]),
            "recall_micro": float(ratio(total[:1], total[2:])[0]),
            "exact_match": exact / max(rows, 1.0),
            "report": report,
        }
