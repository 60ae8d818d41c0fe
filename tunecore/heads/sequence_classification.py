"""Sequence classification: one label for a text, or for a pair of texts.

The model is a plain ``...ForSequenceClassification`` of transformers (see ``tunecore.heads.sequence_head``).

Shape letters: B sequences in the batch, N of them with a label, C classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tunecore.errors import ConfigError, DataError
from tunecore.heads.classification_metrics import ClassificationMetrics
from tunecore.heads.columns import column
from tunecore.heads.label_names import LabelNames, check_given, check_weights, in_order, label_name
from tunecore.heads.sequence_head import CLASSIFICATION, LabelledHead
from tunecore.types import Prediction, Record

NAME = CLASSIFICATION


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
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None
    """Weight of the rows of each class in the loss, in the order of labels; balanced makes every class weigh alike
    (rows / (classes * rows of the class), over the training rows)."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"{NAME}.label_smoothing is {self.label_smoothing}; it must be at least 0 and below 1")
        check_given(self.labels, NAME)
        check_weights(self.class_weights, self.labels, NAME, "class_weights")


class SequenceClassification(LabelledHead):
    """The head ``sequence_classification``; its one loss has the same name."""

    name = NAME
    losses: tuple[str, ...] = (NAME,)
    default_metric = "accuracy"

    def __init__(self, options: SequenceClassificationOptions) -> None:
        self.options = options
        self._labels = LabelNames(NAME, options.label, options.labels)
        self.class_weights: list[float] | None = None

    def prepare(self, records: Sequence[Record]) -> Mapping[str, Any]:
        """Find the labels of the training rows: {"labels": [names in order]}, and "class_weights" where asked for.

        Raises:
            DataError: a text or label is missing (file, row and the columns found), a label is not among the
                option ``labels``, or all rows have the same label.
        """
        if not records:
            raise DataError("there are no training rows")
        found: dict[str, Record] = {}
        counts: Counter[str] = Counter()
        for record in records:
            self.texts(record)
            label = self._label(record)
            found.setdefault(label, record)
            counts[label] += 1
        if self.options.labels is None:
            if len(found) < 2:
                raise DataError(
                    f"every training row has the label {next(iter(found))!r} (column {self.options.label!r} of "
                    f"{records[0].file}); there is nothing to tell apart",
                    hint="Give rows of at least two labels, or another column by the option label.",
                )
            self._labels.take(in_order(found))
        rows = [0] * len(self.labels)
        for label, record in found.items():
            rows[self._labels.place(label, record)] += counts[label]
        facts: dict[str, Any] = {"labels": list(self.labels)}
        if self.options.class_weights is not None:
            given, total = self.options.class_weights, sum(rows)
            balanced = [total / (len(rows) * max(count, 1)) for count in rows]
            facts["class_weights"] = balanced if given == "balanced" else [float(weight) for weight in given]
        return facts

    def load(self, facts: Mapping[str, Any]) -> None:
        """Take the labels of a saved model, and the weights of its classes.

        Raises:
            ConfigError: the option ``labels`` says otherwise in number.
        """
        self._labels.load(facts)
        self.class_weights = facts.get("class_weights")

    def target(self, record: Record) -> int:
        """The class of a row."""
        return self._labels.place(self._label(record), record)

    def loss_of(self, logits_NC: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy, each row times the weight of its class."""
        weights_C = None if self.class_weights is None else logits_NC.new_tensor(self.class_weights)
        total = F.cross_entropy(
            logits_NC, labels, weights_C, reduction="sum", label_smoothing=self.options.label_smoothing
        )
        return total, (logits_NC.detach().argmax(-1) == labels).sum()

    def decode(self, raw: Sequence[Any], record: Record | None, row_id: int) -> Prediction:
        """The most likely label with its probability, and those of all labels."""
        (logits_C,) = raw
        probabilities = torch.as_tensor(logits_C).float().softmax(-1).tolist()
        scores = dict(zip(self.labels, probabilities, strict=True))
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        return Prediction(label=self.labels[best], score=probabilities[best], scores=scores, row_id=row_id)

    def metrics(self) -> ClassificationMetrics:
        return ClassificationMetrics(self.labels, NAME)

    def _label(self, record: Record) -> str:
        """The label of a row as a name."""
        name = self.options.label
        return label_name(column(record, name, "label", NAME), record, name)
