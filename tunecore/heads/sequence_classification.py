"""Sequence classification: one label for a text, or for a pair of texts.

The model is a plain ``...ForSequenceClassification`` of transformers: its own pooler, dropout and classifier run on
the rows each sequence is read from, and what is saved loads there as it is.

Shape letters: B sequences in the batch, L tokens of one example, E hidden width, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunecore.errors import ConfigError, DataError
from tunecore.heads.classification_metrics import ClassificationMetrics
from tunecore.types import Example, Family, Forward, IntArray, LossSum, Prediction, Record, Stream, Targets

NAME = "sequence_classification"


@dataclass(frozen=True, kw_only=True)
class SequenceClassificationOptions:
    """Options of sequence_classification."""

    text: str = "text"
    """Column with the text."""
    text_pair: str | None = None
    """Column with the second text of a pair; None classifies single texts."""
    label: str = "label"
    """Column with the label: a name, or a whole number."""
    labels: tuple[str, ...] | None = None
    """Label names in order. Whole numbers in the data then count into this list (0 is the first). None takes the
    labels of the training rows, sorted (numbers by value)."""
    label_smoothing: float = 0.0
    """Probability mass spread evenly over the classes."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"{NAME}.label_smoothing is {self.label_smoothing}; it must be at least 0 and below 1")
        if self.labels is not None:
            _check_labels(tuple(str(label) for label in self.labels), "option labels")


class SequenceClassification:
    """The head ``sequence_classification``; its one loss has the same name."""

    name = NAME
    losses: tuple[str, ...] = (NAME,)
    reads = ("sequence_rows",)
    default_metric = "accuracy"

    def __init__(self, options: SequenceClassificationOptions) -> None:
        self.options = options
        self.labels: tuple[str, ...] = ()
        self._number: dict[str, int] = {}
        if options.labels is not None:
            self._take(tuple(str(label) for label in options.labels))

    def _take(self, labels: tuple[str, ...]) -> None:
        self.labels = labels
        self._number = {label: i for i, label in enumerate(labels)}
        if not any(_is_number(label) for label in labels):
            self._number.update({str(i): i for i in range(len(labels))})

    def prepare(self, records: Sequence[Record]) -> Mapping[str, Any]:
        """Find the labels of the training rows: {"labels": [names in order]}.

        Raises:
            DataError: a text or label is missing (file, row and the columns found), a label is not among the
                option ``labels``, or all rows have the same label.
        """
        if not records:
            raise DataError("there are no training rows")
        found: dict[str, Record] = {}
        for record in records:
            self._texts(record)
            found.setdefault(self._label(record), record)
        if self.options.labels is not None:
            for label, record in found.items():
                self._class(label, record)
        elif len(found) < 2:
            raise DataError(
                f"every training row has the label {next(iter(found))!r} (column {self.options.label!r} of "
                f"{records[0].file}); there is nothing to tell apart",
                hint="Give rows of at least two labels, or another column by the option label.",
            )
        else:
            self._take(_in_order(found))
        return {"labels": list(self.labels)}

    def load(self, facts: Mapping[str, Any]) -> None:
        """Take the labels of a saved model.

        Raises:
            ConfigError: the option ``labels`` says otherwise in number.
        """
        labels = tuple(str(label) for label in facts["labels"])
        given = self.options.labels
        if given is not None and len(given) != len(labels):
            raise ConfigError(
                f"option labels of {NAME} has {len(given)} names, but the model has {len(labels)} classes: "
                f"{', '.join(labels)}"
            )
        self._take(labels if given is None else tuple(str(label) for label in given))

    def examples(
        self, record: Record, row_id: int, tokenizer: Any, max_length: int, *, labelled: bool
    ) -> list[Example]:
        """One example of at most ``max_length`` tokens; of a pair the longer text is cut first.

        Raises:
            DataError: a text or label is missing, or the label is unknown (file, row and the known labels).
        """
        first, second = self._texts(record)
        encoded = tokenizer(first, second, truncation="longest_first", max_length=max_length)
        ids: IntArray = np.asarray(encoded["input_ids"], dtype=np.int64)
        segments = encoded.get("token_type_ids")
        if len(ids) == 0:  # an empty text and a tokenizer that adds no special tokens (gpt2)
            ids, segments = np.asarray([_filler(tokenizer)], dtype=np.int64), None
        targets = {}
        if labelled:
            targets[NAME] = Targets.of_sequence(self._class(self._label(record), record))
        types = None if segments is None else np.asarray(segments, dtype=np.int64)
        return [Example(row_id=row_id, input_ids=ids, token_type_ids=types, targets=targets)]

    def build(self, model: PreTrainedModel, family: Family) -> nn.Module | None:
        """Return None: the transformers class has the classifier.

        Raises:
            ConfigError: the model has another number of classes than there are labels.
        """
        if len(self.labels) != int(model.config.num_labels):
            raise ConfigError(
                f"the model has {model.config.num_labels} classes, but there are {len(self.labels)} labels: "
                f"{', '.join(self.labels)}"
            )
        return None

    def loss(self, forward: Forward, module: nn.Module | None, stream: Stream | None) -> Mapping[str, LossSum]:
        """Cross-entropy in fp32, summed over the sequences that carry a label."""
        targets = forward.batch.targets.get(NAME)
        rows_BE = forward.sequence_rows()
        if targets is None:
            return {NAME: LossSum(rows_BE[:0].float().sum(), 0)}
        logits_BC = forward.family.sequence_head(forward.model, rows_BE).float().index_select(0, targets.index)
        smoothing = self.options.label_smoothing
        total = F.cross_entropy(logits_BC, targets.labels, reduction="sum", label_smoothing=smoothing)
        correct = (logits_BC.detach().argmax(-1) == targets.labels).sum()
        return {NAME: LossSum(total, int(targets.labels.shape[0]), correct)}

    def predict(self, forward: Forward, module: nn.Module | None) -> Tensor:
        """Logits [B, C], fp32."""
        return forward.family.sequence_head(forward.model, forward.sequence_rows()).float()

    def decode(self, raw: Sequence[Any], record: Record | None, row_id: int) -> Prediction:
        """The most likely label with its probability, and those of all labels."""
        (logits_C,) = raw
        probabilities = torch.as_tensor(logits_C).float().softmax(-1).tolist()
        scores = dict(zip(self.labels, probabilities, strict=True))
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        return Prediction(label=self.labels[best], score=probabilities[best], scores=scores, row_id=row_id)

    def metrics(self) -> ClassificationMetrics:
        return ClassificationMetrics(self.labels, NAME)

    def _texts(self, record: Record) -> tuple[str, str | None]:
        first = _text(record, self.options.text, "text")
        pair = self.options.text_pair
        return first, None if pair is None else _text(record, pair, "text_pair")

    def _label(self, record: Record) -> str:
        """The label of a row as a name."""
        column = self.options.label
        value = _column(record, column, "label")
        if isinstance(value, float) and value.is_integer():  # how a table stores whole numbers with gaps
            value = int(value)
        if _is_missing(value) or (isinstance(value, str) and not value.strip()):
            raise DataError(f"{record.file}:{record.row}: the label (column {column!r}) is missing")
        if not isinstance(value, str | int | np.integer):
            raise DataError(
                f"{record.file}:{record.row}: the label (column {column!r}) is {value!r}; "
                "it must be a name or a whole number"
            )
        return str(value).strip()

    def _class(self, label: str, record: Record) -> int:
        try:
            return self._number[label]
        except KeyError:
            raise DataError(
                f"{record.file}:{record.row}: unknown label {label!r} (column {self.options.label!r}); "
                f"known: {', '.join(self.labels)}"
            ) from None


def _column(record: Record, column: str, option: str) -> Any:
    if column not in record.fields:
        raise DataError(
            f"{record.file}:{record.row}: there is no column {column!r}; "
            f"columns found: {', '.join(map(str, record.fields)) or '(none)'}",
            hint=f"Name the right one by the option {option} of the head {NAME}.",
        )
    return record.fields[column]


def _text(record: Record, column: str, option: str) -> str:
    value = _column(record, column, option)
    if _is_missing(value):
        raise DataError(f"{record.file}:{record.row}: the text (column {column!r}) is missing or NaN")
    if not isinstance(value, str):
        raise DataError(
            f"{record.file}:{record.row}: column {column!r} is {value!r} ({type(value).__name__}), not a text"
        )
    return value


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float | np.floating) and math.isnan(value))


def _is_number(label: str) -> bool:
    return label.removeprefix("-").isdecimal()


def _in_order(labels: Mapping[str, Record]) -> tuple[str, ...]:
    """Sorted by value where all are whole numbers, else by name."""
    if all(_is_number(label) for label in labels):
        return tuple(sorted(labels, key=int))
    return tuple(sorted(labels))


def _check_labels(labels: tuple[str, ...], what: str) -> None:
    if len(labels) < 2:
        raise ConfigError(f"{what} of {NAME} has {len(labels)} names; at least two are needed")
    if len(set(labels)) < len(labels):
        twice = sorted({label for label in labels if labels.count(label) > 1})
        raise ConfigError(f"{what} of {NAME} names {', '.join(twice)} more than once")


def _filler(tokenizer: Any) -> int:
    """A token that stands for an empty text."""
    for token in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id):
        if token is not None:
            return int(token)
    return 0
