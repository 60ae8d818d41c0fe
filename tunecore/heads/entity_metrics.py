"""Precision, recall and F1 of spans, counted as rows come in.

The counts are those of conlleval (Tjong Kim Sang, Buchholz 2000): a span is right when type, first and last word are.
The package seqeval computes the same from all tags in memory; here three integers a type are the whole state, so
that ranks add up. The tests hold one against the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tunecore.heads.tags import Span
from tunecore.types import Record

Read = Callable[[Sequence[Any], Record], tuple[Sequence[str], Sequence[str]]]
"""(raw outputs of a row, the row) -> (its true tags, the predicted ones)."""


class EntityMetrics:
    """Micro precision, recall and F1 of spans, the share of right tags, and a report by type.

    A ratio with nothing below the line counts as 0.

    Args:
        read: true and predicted tags of a row.
        spans: the spans that tags mark.
    """

    def __init__(self, read: Read, spans: Callable[[Sequence[str]], Iterable[Span]]) -> None:
        self._read, self._spans = read, spans
        self.words = self.right_words = 0
        self.counts: dict[str, Counter[str]] = {"right": Counter(), "predicted": Counter(), "true": Counter()}

    def update_row(self, raw: Sequence[Any], record: Record, row_id: int) -> None:
        """Count the spans of one row."""
        self.add(*self._read(raw, record))

    def add(self, true: Sequence[str], predicted: Sequence[str]) -> None:
        """Count the spans of one sequence of tags against those of another of its length."""
        self.words += len(true)
        self.right_words += sum(a == b for a, b in zip(true, predicted, strict=True))
        asked, given = set(self._spans(true)), set(self._spans(predicted))
        for name, spans in (("right", asked & given), ("predicted", given), ("true", asked)):
            self.counts[name].update(span.type for span in spans)

    def merge(self, others: Sequence[Any]) -> None:
        """Add the counts of other ranks."""
        for other in others:
            self.words += other["words"]
            self.right_words += other["right_words"]
            for name, counter in self.counts.items():
                counter.update(other[name])

    def state(self) -> dict[str, Any]:
        """The counts, by type."""
        counts = {name: dict(counter) for name, counter in self.counts.items()}
        return {"words": self.words, "right_words": self.right_words, **counts}

    def compute(self) -> dict[str, Any]:
        """``precision``, ``recall`` and ``f1`` over all spans, ``f1_macro`` (the mean over types that occur),
        ``accuracy`` of tags, and ``report``: the same with ``support`` (true spans) by type.
        """
        right, predicted, true = (self.counts[name] for name in ("right", "predicted", "true"))
        kinds = sorted(predicted.keys() | true.keys())
        report = {kind: _scores(right[kind], predicted[kind], true[kind]) for kind in kinds}
        overall = _scores(right.total(), predicted.total(), true.total())
        overall.pop("support")
        return {
            **overall,
            "f1_macro": sum(scores["f1"] for scores in report.values()) / len(report) if report else 0.0,
            "accuracy": self.right_words / self.words if self.words else 0.0,
            "report": report,
        }


def _scores(right: int, predicted: int, true: int) -> dict[str, float]:
    return {
        "precision": right / predicted if predicted else 0.0,
        "recall": right / true if true else 0.0,
        "f1": 2 * right / (predicted + true) if predicted + true else 0.0,
        "support": true,
    }
