"""How often a model prefers the right sentence of a pair, over all pairs and by phenomenon."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from tunecore.types import Record


class MinimalPairMetrics:
    """Accuracy over pairs and by group, as BLiMP reports it (Warstadt et al. 2020, arXiv:1912.00582).

    A pair is right where the good sentence has the strictly higher score. State and merge are counts, so ranks add up
    exactly.

    Args:
        group_of: the group of a row (its phenomenon); None where it has none.
    """

    def __init__(self, group_of: Callable[[Record], str | None]) -> None:
        self._group_of = group_of
        self._counts: dict[str | None, list[int]] = {}

    def update_row(self, raw: Sequence[Any], record: Record, row_id: int) -> None:
        """Count a row from the scores [2] (good, bad) of its sequences, which add up to those of its sentences."""
        good, bad = torch.stack([torch.as_tensor(part) for part in raw]).double().sum(0).tolist()
        counts = self._counts.setdefault(self._group_of(record), [0, 0])
        counts[0] += good > bad
        counts[1] += 1

    def merge(self, others: Sequence[Any]) -> None:
        """Add the counts of other ranks."""
        for other in others:
            for group, right, pairs in other:
                counts = self._counts.setdefault(group, [0, 0])
                counts[0] += right
                counts[1] += pairs

    def state(self) -> list[list[Any]]:
        """[group, right, pairs] of every group."""
        return [[group, *counts] for group, counts in self._counts.items()]

    def compute(self) -> dict[str, Any]:
        """``accuracy`` over pairs; where rows have groups also ``accuracy_macro``, the mean over groups, and a
        ``report``: group -> {accuracy, support}, sorted.
        """
        right, pairs = (sum(counts[i] for counts in self._counts.values()) for i in (0, 1))
        results: dict[str, Any] = {"accuracy": right / pairs if pairs else 0.0}
        named = {group: counts for group, counts in self._counts.items() if group is not None}
        if named:
            report = {
                group: {"accuracy": named[group][0] / named[group][1], "support": named[group][1]}
                for group in sorted(named)
            }
            results["accuracy_macro"] = sum(line["accuracy"] for line in report.values()) / len(report)
            results["report"] = report
        return results
