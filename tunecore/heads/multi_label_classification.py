"""Multi-label classification: any number of labels for a text, or for a pair of texts.

The model is a plain ``...ForSequenceClassification`` of transformers whose config says ``multi_label_classification``
(see ``tunecore.heads.sequence_head``): each label is given or not, by a sigmoid of its own.

Shape letters: B sequences in the batch, N of them with labels, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tunecore.errors import ConfigError, DataError
from tunecore.heads.columns import column, is_missing, number
from tunecore.heads.label_names import LabelNames, check_given, check_weights, in_order, label_name
from tunecore.heads.multi_label_metrics import MultiLabelMetrics
from tunecore.heads.sequence_head import LabelledHead
from tunecore.types import Prediction, Record

NAME = "multi_label_classification"


@dataclass(frozen=True, kw_only=True)
class MultiLabelClassificationOptions:
    """Options of multi_label_classification."""

    text: str = "text"
    """Column with the text."""
    text_pair: str | None = None
    """Column with the second text of a pair; None classifies single texts."""
    label: str | tuple[str, ...] = "label"
    """Column with the labels of a row: a list, or a text of names with the separator between them; empty is none.
    Several columns are one label each, called as the column, and hold 1 or 0."""
    separator: str = ","
    """What stands between the labels of a row where the column holds text."""
    labels: tuple[str, ...] | None = None
    """Label names in order. Whole numbers in the data then count into this list (0 is the first). None takes the
    labels of the training rows, sorted (numbers by value), or the columns in their order."""
    threshold: float = 0.5
    """The probability from which a label is given."""
    positive_weights: Literal["balanced"] | tuple[float, ...] | None = None
    """Weight of the rows that have a label in its loss, in the order of labels; balanced makes those that have it weigh
    as much as those that have not (rows without / rows with it, over the training rows)."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ConfigError(f"{NAME}.threshold is {self.threshold}; it must be between 0 and 1")
        if not self.separator:
            raise ConfigError(f"{NAME}.separator is empty")
        check_given(self.labels, NAME)
        check_weights(self.positive_weights, self.labels, NAME, "positive_weights")
        if not isinstance(self.label, str):
            check_given(self.label, NAME)
            if self.labels is not None:
                raise ConfigError(f"{NAME}.labels is set, but the columns {', '.join(self.label)} are the labels")


class MultiLabelClassification(LabelledHead):
    """The head ``multi_label_classification``; its one loss has the same name."""

    name = NAME
    losses: tuple[str, ...] = (NAME,)
    default_metric = "f1_micro"

    def __init__(self, options: MultiLabelClassificationOptions) -> None:
        self.options = options
        columns = options.label
        given = options.labels if isinstance(columns, str) else columns
        self._labels = LabelNames(NAME, columns if isinstance(columns, str) else ", ".join(columns), given)
        self.positive_weights: list[float] | None = None

    def prepare(self, records: Sequence[Record]) -> Mapping[str, Any]:
        """Find the labels of the training rows: {"labels": [names in order]}, and "positive_weights" where asked for.

        Raises:
            DataError: a text or the labels are missing (file, row and the columns found), a label is not among those
                given, or there are fewer than two.
        """
        if not records:
            raise DataError("there are no training rows")
        rows = []
        for record in records:
            self.texts(record)
            rows.append(self._labels_of(record))
        if self._labels.given is None:
            found = dict.fromkeys(label for row in rows for label in row)
            if len(found) < 2:
                raise DataError(
                    f"the training rows have the labels {list(found)} (column {self._labels.column!r} of "
                    f"{records[0].file}); there must be at least two",
                    hint="Give another column by the option label, or all names by the option labels.",
                )
            self._labels.take(in_order(found))
        given = self.options.positive_weights
        true_C = np.sum([self.target(record) for record in records], axis=0)
        facts: dict[str, Any] = {"labels": list(self.labels)}
        if given is not None:
            balanced = [float((len(records) - n) / n) if 0 < n < len(records) else 1.0 for n in true_C]
            facts["positive_weights"] = balanced if given == "balanced" else [float(weight) for weight in given]
        return facts

    def load(self, facts: Mapping[str, Any]) -> None:
        """Take the labels of a saved model, and their weights.

        Raises:
            ConfigError: the option ``labels`` says otherwise in number.
        """
        self._labels.load(facts)
        self.positive_weights = facts.get("positive_weights")

    def config_fields(self) -> Mapping[str, Any]:
        """What makes transformers compute the same loss."""
        names = dict(enumerate(self.labels))
        return {"id2label": names, "label2id": {name: i for i, name in names.items()}, "problem_type": NAME}

    def target(self, record: Record) -> list[float]:
        """1 for the labels a row has, else 0: [C]."""
        places = {self._labels.place(label, record) for label in self._labels_of(record)}
        return [float(i in places) for i in range(len(self.labels))]

    def loss_of(self, logits_NC: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy, the mean over labels; a row is right where all of its labels are."""
        weights_C = None if self.positive_weights is None else logits_NC.new_tensor(self.positive_weights)
        losses_NC = F.binary_cross_entropy_with_logits(
            logits_NC, labels.to(logits_NC.dtype), pos_weight=weights_C, reduction="none"
        )
        given_NC = logits_NC.detach().sigmoid() >= self.options.threshold
        return losses_NC.mean(-1).sum(), (given_NC == (labels > 0.5)).all(-1).sum()

    def decode(self, raw: Sequence[Any], record: Record | None, row_id: int) -> Prediction:
        """The list of labels at or above the threshold, and the probability of every label."""
        (logits_C,) = raw
        probabilities = torch.as_tensor(logits_C).float().sigmoid().tolist()
        scores = dict(zip(self.labels, probabilities, strict=True))
        given = [label for label, score in scores.items() if score >= self.options.threshold]
        return Prediction(label=given, scores=scores, row_id=row_id)

    def metrics(self) -> MultiLabelMetrics:
        return MultiLabelMetrics(self.labels, NAME, self.options.threshold)

    def _labels_of(self, record: Record) -> list[str]:
        """The labels of a row as names."""
        name = self.options.label
        if not isinstance(name, str):
            return [label for label in name if self._has(record, label)]
        value = column(record, name, "label", NAME)
        if isinstance(value, str):
            value = [part for part in value.split(self.options.separator) if part.strip()]
        elif isinstance(value, np.ndarray | tuple):
            value = list(value)
        if is_missing(value):
            raise DataError(f"{record.file}:{record.row}: the labels (column {name!r}) are missing; no label is []")
        if not isinstance(value, list):
            value = [value]
        return [label_name(label, record, name) for label in value]

    @staticmethod
    def _has(record: Record, label: str) -> bool:
        """Whether the column of a label says 1."""
        value = number(column(record, label, "label", NAME), record, label)
        if value not in (0.0, 1.0):
            raise DataError(f"{record.file}:{record.row}: the label (column {label!r}) is {value}; it must be 0 or 1")
        return value == 1.0
