"""Exact match and F1 of answers, as SQuAD's official evaluation counts them, counted as rows come in.

Rajpurkar et al. 2016 (arXiv:1606.05250) and 2018 (arXiv:1806.03822); the normalisation of texts (case, punctuation,
articles, blanks) and the F1 of words are those of torchmetrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tunecore.types import Record


class Answered(NamedTuple):
    """What is predicted for a row, and what is true; "" and [] are "no answer"."""

    predicted: str
    true: Sequence[str]
    answer: str = ""
    """The best answer, whether it was predicted or not."""
    margin: float | None = None
    """By how much "no answer" scores higher than ``answer``; None where it may not be predicted."""


Read = Callable[[Sequence[Any], Record], Answered]
"""(raw outputs of a row, the row) -> what is said and true of it."""


class AnswerMetrics:
    """Means over rows of the best match with any true answer; a row without an answer matches only "no answer".

    Args:
        read: what is predicted and true of a row.
    """

    def __init__(self, read: Read) -> None:
        from torchmetrics.functional.text.squad import squad  # slow to import, and only evaluation needs it

        self._squad: Callable[..., Any] = squad
        self._read = read
        self.sums: dict[str, list[float]] = {"answerable": [0, 0.0, 0.0], "no_answer": [0, 0.0, 0.0]}
        """Kind of row -> how many, and the sums of their exact matches and F1."""
        self.margins: list[list[float]] = []
        """Of each row that could have had no answer: margin, F1 of the answer, F1 of "no answer"."""

    def update_row(self, raw: Sequence[Any], record: Record, row_id: int) -> None:
        """Count one row."""
        self.add(self._read(raw, record))

    def add(self, row: Answered) -> None:
        """Count one row."""
        sums = self.sums["answerable" if row.true else "no_answer"]
        for place, value in enumerate((1, *self._scores(row.predicted, row.true))):
            sums[place] += value
        if row.margin is not None:
            f1 = [self._scores(text, row.true)[1] for text in (row.answer, "")]
            self.margins.append([row.margin, *f1])

    def _scores(self, predicted: str, true: Sequence[str]) -> tuple[float, float]:
        """Exact match and F1 of one text."""
        answers = {"text": list(true) or [""], "answer_start": [0] * max(1, len(true))}
        scores = self._squad({"id": "", "prediction_text": predicted}, {"id": "", "answers": answers})
        return float(scores["exact_match"]) / 100, float(scores["f1"]) / 100

    def merge(self, others: Sequence[Any]) -> None:
        """Add the sums of other ranks."""
        for other in others:
            for kind, sums in self.sums.items():
                self.sums[kind] = [a + b for a, b in zip(sums, other["sums"][kind], strict=True)]
            self.margins += other["margins"]

    def state(self) -> dict[str, Any]:
        """The sums by kind of row, and the margins."""
        return {"sums": {kind: list(sums) for kind, sums in self.sums.items()}, "margins": list(self.margins)}

    def compute(self) -> dict[str, Any]:
        """``exact_match`` and ``f1`` (0 to 1) over all rows; of both kinds of rows also those of the answerable ones
        (``exact_match_answerable``, ``f1_answerable``) and ``accuracy_no_answer``, the share found to have none; where
        "no answer" may be predicted, ``best_f1`` and the ``best_null_threshold`` that gives it.
        """
        answerable, without = self.sums.values()
        rows, exact, f1 = (a + b for a, b in zip(answerable, without, strict=True))
        found = {"exact_match": exact / rows if rows else 0.0, "f1": f1 / rows if rows else 0.0}
        if answerable[0] and without[0]:
            found["exact_match_answerable"] = answerable[1] / answerable[0]
            found["f1_answerable"] = answerable[2] / answerable[0]
            found["accuracy_no_answer"] = without[1] / without[0]
        if self.margins:
            found["best_f1"], found["best_null_threshold"] = best_threshold(self.margins)
        return found


def best_threshold(margins: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The highest mean F1 over all thresholds, and the lowest threshold that gives it.

    Args:
        margins: of each row the margin of "no answer", the F1 of the answer and that of "no answer". With threshold t
            a row has no answer where its margin is above t.
    """
    table_N3 = np.asarray(sorted(margins, key=lambda row: row[0]), dtype=np.float64)
    margin_N, answer_N, none_N = table_N3.T
    total = np.concatenate(([0.0], np.cumsum(answer_N))) + np.concatenate((np.cumsum(none_N[::-1])[::-1], [0.0]))
    # Rows of one margin go together: a threshold lies below all, or at the last row of its margin.
    cuts = np.flatnonzero(np.append(margin_N[1:] != margin_N[:-1], True)) + 1
    best = max([0, *cuts.tolist()], key=lambda cut: total[cut])
    threshold = margin_N[best - 1] if best else math.nextafter(float(margin_N[0]), -math.inf)
    return float(total[best] / len(table_N3)), float(threshold)
