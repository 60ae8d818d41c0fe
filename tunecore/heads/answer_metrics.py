"""Exact match and F1 of answers, as SQuAD's official evaluation counts them, counted as rows come in.

Rajpurkar et al. 2016 (arXiv:1606.05250) and 2018 (arXiv:1806.03822); the normalisation of texts (case, punctuation,
articles, blanks) and the F1 of words are those of torchmetrics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tunecore.types import Record

Read = Callable[[Sequence[Any], Record], tuple[str, list[str]]]
"""(raw outputs of a row, the row) -> (the predicted text, the true ones); "" and [] are "no answer"."""


class AnswerMetrics:
    """Means over rows of the best match with any true answer; a row without an answer matches only "no answer".

    Args:
        read: predicted and true texts of a row.
    """

    def __init__(self, read: Read) -> None:
        from torchmetrics.functional.text.squad import squad  # slow to import, and only evaluation needs it

        self._squad: Callable[..., Any] = squad
        self._read = read
        self.sums: dict[str, list[float]] = {"answerable": [0, 0.0, 0.0], "no_answer": [0, 0.0, 0.0]}
        """Kind of row -> how many, and the sums of their exact matches and F1."""

    def update_row(self, raw: Sequence[Any], record: Record, row_id: int) -> None:
        """Count one row."""
        self.add(*self._read(raw, record))

    def add(self, predicted: str, true: Sequence[str]) -> None:
        """Count a predicted text against the true ones."""
        answers = {"text": list(true) or [""], "answer_start": [0] * max(1, len(true))}
        scores = self._squad({"id": "", "prediction_text": predicted}, {"id": "", "answers": answers})
        sums = self.sums["answerable" if true else "no_answer"]
        for place, value in enumerate((1, float(scores["exact_match"]) / 100, float(scores["f1"]) / 100)):
            sums[place] += value

    def merge(self, others: Sequence[Any]) -> None:
        """Add the sums of other ranks."""
        for other in others:
            for kind, sums in self.sums.items():
                self.sums[kind] = [a + b for a, b in zip(sums, other[kind], strict=True)]

    def state(self) -> dict[str, list[float]]:
        """The sums, by kind of row."""
        return {kind: list(sums) for kind, sums in self.sums.items()}

    def compute(self) -> dict[str, Any]:
        """``exact_match`` and ``f1`` (0 to 1) over all rows; of both kinds of rows also those of the answerable ones
        (``exact_match_answerable``, ``f1_answerable``) and ``accuracy_no_answer``, the share found to have none.
        """
        answerable, without = self.sums.values()
        rows, exact, f1 = (a + b for a, b in zip(answerable, without, strict=True))
        found = {"exact_match": exact / rows if rows else 0.0, "f1": f1 / rows if rows else 0.0}
        if answerable[0] and without[0]:
            found["exact_match_answerable"] = answerable[1] / answerable[0]
            found["f1_answerable"] = answerable[2] / answerable[0]
            found["accuracy_no_answer"] = without[1] / without[0]
        return found
