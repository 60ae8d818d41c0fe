"""Multiple choice: which of a question's choices is right.

Each choice is read together with the question and gets one number; the choices of a question are one group, told apart
by a softmax over that group (SWAG, Zellers et al. 2018, arXiv:1808.05326; RACE, Lai et al. 2017, arXiv:1704.04683), and
questions may have different numbers of them. The model is a ``...ForMultipleChoice`` of transformers, or one with a
linear layer of its own where the family has no such class.

Shape letters: B sequences (choices) in the batch, N questions with a label, K choices of a question at most, E hidden
width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunecore.errors import ConfigError, DataError
from tunecore.heads.columns import column, example_of, is_missing, text, text_missing
from tunecore.heads.token_layer import own_layer
from tunecore.types import Example, Family, Forward, LossSum, PackedBatch, Prediction, Record, Stream, Targets

NAME = "multiple_choice"


@dataclass(frozen=True, kw_only=True)
class MultipleChoiceOptions:
    """Options of multiple_choice."""

    context: str | None = None
    """Column with what the question is about (a passage), read before it; None where there is none."""
    question: str | None = "question"
    """Column with the question, or with the beginning that each choice goes on; None where the context is all."""
    choices: str | tuple[str, ...] = "choices"
    """Column with the list of choices, or the columns with one choice each; the last ones may be empty."""
    label: str = "label"
    """Column with the right one: its number, its letter (A is the first), or its text."""
    first_label: int = 0
    """The number of the first choice."""

    def __post_init__(self) -> None:
        if self.context is None and self.question is None:
            raise ConfigError(f"{NAME}.context and {NAME}.question are both left out; choices need one of them")
        if not isinstance(self.choices, str) and (len(self.choices) < 2 or len(set(self.choices)) < len(self.choices)):
            raise ConfigError(f"{NAME}.choices names {', '.join(self.choices)}; at least two columns, each once")


class ChoiceMetrics:
    """Accuracy over questions."""

    def __init__(self, head: MultipleChoice) -> None:
        self._head = head
        self.rows = self.right = 0

    def update_row(self, raw: Sequence[Any], record: Record, row_id: int) -> None:
        """Count one question: the highest number wins, the first of equals."""
        self.rows += 1
        self.right += int(np.argmax([float(score) for score in raw])) == self._head.right_choice(record)

    def merge(self, others: Sequence[Any]) -> None:
        """Add the counts of other ranks."""
        for rows, right in others:
            self.rows += int(rows)
            self.right += int(right)

    def state(self) -> list[int]:
        return [self.rows, self.right]

    def compute(self) -> dict[str, Any]:
        """``accuracy``."""
        return {"accuracy": self.right / max(self.rows, 1)}


class MultipleChoice:
    """The head ``multiple_choice``; its one loss has the same name."""

    name = NAME
    losses: tuple[str, ...] = (NAME,)
    reads: tuple[str, ...] = ("sequence_rows",)
    default_metric = "accuracy"
    needs_facts = False

    def __init__(self, options: MultipleChoiceOptions) -> None:
        self.options = options
        self._files: set[str] = set()
        named = options.question or options.context or ""
        self.row_columns = (named, options.choices) if isinstance(options.choices, str) else (named,)

    def prepare(self, records: Sequence[Record]) -> Mapping[str, Any]:
        """Check the training rows; there is nothing to remember.

        Raises:
            DataError: a column is missing, a question has fewer than two choices, or a label is none of them (file and
                row are named).
        """
        if not records:
            raise DataError("there are no training rows")
        for record in records:
            self.right_choice(record)
        return {}

    def load(self, facts: Mapping[str, Any]) -> None:
        """There is nothing to take."""

    def reject(self, record: Record, *, labelled: bool) -> str | None:
        """Why a row cannot be used: its context or question is missing."""
        columns = (("context", self.options.context), ("question", self.options.question))
        return text_missing(record, [(o, name) for o, name in columns if name is not None], NAME, self._files)

    def examples(
        self, record: Record, row_id: int, tokenizer: Any, max_length: int, *, labelled: bool
    ) -> list[Example]:
        """One example a choice, all of one group: (context, question and choice), or (question, choice).

        The first carries the target: the place of the right choice. The longer text is cut first.

        Raises:
            DataError: as ``prepare``.
        """
        context, question = (
            None if name is None else text(record, name, option, NAME)
            for option, name in (("context", self.options.context), ("question", self.options.question))
        )
        first = question if context is None else context
        begins = f"{question} " if context is not None and question is not None else ""
        made = [
            example_of(tokenizer, str(first), begins + choice, max_length, row_id=row_id, group=row_id)
            for choice in self.choices(record)
        ]
        if labelled:
            made[0] = replace(made[0], targets={NAME: Targets.of_sequence(self.right_choice(record))})
        return made

    def build(self, model: PreTrainedModel, family: Family) -> nn.Module | None:
        """Dropout and a linear layer [E] -> [1] on the pooled row, or None where the class has this head."""
        return own_layer(model, getattr(family, "choice_head", None), 1)

    def loss(self, forward: Forward, module: nn.Module | None, stream: Stream | None) -> Mapping[str, LossSum]:
        """Cross-entropy over the choices of each question in fp32, summed over questions."""
        targets = forward.batch.targets.get(NAME)
        if targets is None:
            return {NAME: LossSum(forward.sequence_rows()[:0].float().sum(), 0)}
        places_NK = _places(forward.batch, targets.index).to(targets.labels.device)
        scores_NK = self.predict(forward, module)[places_NK.clamp(min=0)].masked_fill(places_NK < 0, float("-inf"))
        total = F.cross_entropy(scores_NK, targets.labels, reduction="sum")
        correct = (scores_NK.detach().argmax(-1) == targets.labels).sum()
        return {NAME: LossSum(total, int(targets.labels.shape[0]), correct)}

    def predict(self, forward: Forward, module: nn.Module | None) -> Tensor:
        """One number a choice: [B], fp32."""
        rows_BE = forward.sequence_rows()
        if module is not None:
            scores_B1 = module(forward.family.pooled(forward.model, rows_BE))
        else:
            family: Any = forward.family  # build() returned None only where it has the layer
            scores_B1 = family.choice_head(forward.model, rows_BE)
        return scores_B1.float().squeeze(-1)

    def decode(self, raw: Sequence[Any], record: Record | None, row_id: int) -> Prediction:
        """The text of the most likely choice with its probability, and those of all (of equal texts, the sum)."""
        assert record is not None, "the choices are those of the row"
        choices = self.choices(record)
        probabilities = torch.tensor([float(score) for score in raw]).softmax(-1).tolist()
        best = max(range(len(choices)), key=probabilities.__getitem__)
        scores: dict[str, float] = {}
        for choice, probability in zip(choices, probabilities, strict=True):
            scores[choice] = scores.get(choice, 0.0) + probability
        return Prediction(label=choices[best], score=probabilities[best], scores=scores, row_id=row_id)

    def metrics(self) -> ChoiceMetrics:
        return ChoiceMetrics(self)

    def choices(self, record: Record) -> list[str]:
        """The choices of a row.

        Raises:
            DataError: there are fewer than two, or one is no text.
        """
        return [choice for choice, _ in self._choices(record)]

    def right_choice(self, record: Record) -> int:
        """Which of its choices is right, counted from 0.

        Raises:
            DataError: the label is missing or names none of them.
        """
        choices, name = self._choices(record), self.options.label
        value = column(record, name, "label", NAME)
        where = f"{record.file}:{record.row}: the label (column {name!r})"
        if is_missing(value) or (isinstance(value, str) and not value.strip()):
            raise DataError(f"{where} is missing")
        if isinstance(value, float | np.floating) and float(value).is_integer():
            value = int(value)
        wanted = str(value).strip()
        for place, (_, called) in enumerate(choices):
            if called == wanted:
                return place
        # The text last: choices may be numbers or letters themselves.
        number = int(wanted) - self.options.first_label if wanted.removeprefix("-").isdecimal() else None
        if number is None and len(wanted) == 1 and wanted.isascii() and wanted.isalpha():
            number = ord(wanted.upper()) - ord("A")
        if number is not None and 0 <= number < len(choices):
            return number
        texts = [choice for choice, _ in choices]
        if texts.count(str(value)) == 1:
            return texts.index(str(value))
        raise DataError(
            f"{where} is {value!r}, which is none of the {len(choices)} choices",
            hint=f"Labels are numbers from {self.options.first_label} (option first_label), letters from A, or texts.",
        )

    def _choices(self, record: Record) -> list[tuple[str, str | None]]:
        """Each choice with what the row itself calls it, if anything."""
        names = self.options.choices
        called: Sequence[Any] | None = None
        if isinstance(names, str):
            found = column(record, names, "choices", NAME)
            if isinstance(found, Mapping) and "text" in found:  # ARC's: {"text": [...], "label": ["A", ...]}
                found, called = found["text"], found.get("label")
            if not isinstance(found, list | tuple | np.ndarray):
                raise DataError(
                    f"{record.file}:{record.row}: the choices (column {names!r}) are {found!r}, not a list",
                    hint="Columns of one choice each are named by the option choices: [choice0, choice1].",
                )
        else:
            given = [column(record, name, "choices", NAME) for name in names]
            found = given[: next((i for i, value in enumerate(given) if is_missing(value) or value == ""), len(given))]
            if any(not is_missing(value) and value != "" for value in given[len(found) :]):
                raise DataError(f"{record.file}:{record.row}: column {names[len(found)]!r} is empty, not the last")
        for value in found:
            if not isinstance(value, str):
                raise DataError(f"{record.file}:{record.row}: the choice {value!r} is no text")
        if len(found) < 2:
            raise DataError(f"{record.file}:{record.row}: {len(found)} choice(s); at least two are needed")
        if called is None or len(called) != len(found):
            return [(str(value), None) for value in found]
        return [(str(value), str(label)) for value, label in zip(found, called, strict=True)]


def _places(batch: PackedBatch, index: Tensor) -> Tensor:
    """Where the choices of each question lie in the batch, in their order: int64 [N, K], -1 beyond its last."""
    by_row: dict[int, list[tuple[int, int]]] = {}
    for place, (row, part) in enumerate(zip(batch.row_ids, batch.parts, strict=True)):
        by_row.setdefault(row, []).append((part, place))
    rows = [[place for _, place in sorted(by_row[batch.row_ids[first]])] for first in index.tolist()]
    most = max(map(len, rows))
    return torch.tensor([row + [-1] * (most - len(row)) for row in rows], dtype=torch.int64)
