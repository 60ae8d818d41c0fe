"""Regression: one number, or several, for a text or for a pair of texts.

The model is a plain ``...ForSequenceClassification`` of transformers whose config says ``regression`` (see
``tunecore.heads.sequence_head``), as a cross-encoder for similarity is.

Shape letters: B sequences in the batch, N of them with numbers, C numbers a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunecore.errors import ConfigError, DataError
from tunecore.heads.columns import column, number
from tunecore.heads.ranges import check_in_range, check_range
from tunecore.heads.regression_metrics import RegressionMetrics
from tunecore.heads.sequence_head import SequenceHead
from tunecore.types import Family, Prediction, Record

NAME = "regression"


@dataclass(frozen=True, kw_only=True)
class RegressionOptions:
    """Options of regression."""

    text: str = "text"
    """Column with the text."""
    text_pair: str | None = None
    """Column with the second text of a pair; None reads single texts."""
    label: str | tuple[str, ...] = "label"
    """Column with the number, or with a list of as many numbers in every row. Several columns are one number each."""
    loss: Literal["mse", "huber"] = "mse"
    """mse is the squared error; huber is half of it up to ``huber_delta`` and grows as a line beyond, so that outliers
    pull less."""
    huber_delta: float = 1.0
    """Where the line begins, in the unit the model learns."""
    min: float | None = None
    """Least value of a label. With ``max`` the model learns (label - min) / (max - min), from 0 to 1; predictions and
    metrics stay in the unit of the labels. None learns the labels as they are."""
    max: float | None = None
    """Greatest value of a label."""

    def __post_init__(self) -> None:
        if self.loss not in ("mse", "huber"):
            raise ConfigError(f"{NAME}.loss is {self.loss!r}; it must be mse or huber")
        if not self.huber_delta > 0:
            raise ConfigError(f"{NAME}.huber_delta is {self.huber_delta}; it must be greater than 0")
        check_range(self.min, self.max, NAME)
        if not isinstance(self.label, str) and len(set(self.label)) != max(len(self.label), 1):
            raise ConfigError(f"{NAME}.label names {', '.join(self.label) or 'no column'}; each column once")


class Regression(SequenceHead):
    """The head ``regression``; its one loss has the same name."""

    name = NAME
    losses: tuple[str, ...] = (NAME,)
    default_metric = "spearman"

    def __init__(self, options: RegressionOptions) -> None:
        self.options = options
        self.names: tuple[str, ...] = ()
        """Of the numbers of a row."""
        self.low, self.scale = 0.0, 1.0
        if options.min is not None and options.max is not None:
            self.low, self.scale = options.min, options.max - options.min

    def prepare(self, records: Sequence[Record]) -> Mapping[str, Any]:
        """Look at the numbers of the training rows: {"labels": [a name for each number of a row]}.

        Raises:
            DataError: a text or number is missing, a number is NaN or outside the range, rows have other numbers of
                them (file, row and column are named), or all rows have the same.
        """
        if not records:
            raise DataError("there are no training rows")
        first = self._numbers(records[0])
        label = self.options.label
        if isinstance(label, str):
            self.names = (label,) if len(first) == 1 else tuple(f"{label}_{i}" for i in range(len(first)))
        else:
            self.names = tuple(label)
        differ = False
        for record in records:
            self.texts(record)
            differ |= self.target(record) != self.target(records[0])
        if not differ:
            raise DataError(
                f"every training row has {first[0] if len(first) == 1 else first} in {self._columns()} of "
                f"{records[0].file}; there is nothing to learn",
                hint="Give rows with different numbers, or another column by the option label.",
            )
        return {"labels": list(self.names)}

    def load(self, facts: Mapping[str, Any]) -> None:
        """Take the names of the numbers of a saved model."""
        self.names = tuple(str(label) for label in facts["labels"])

    def config_fields(self) -> Mapping[str, Any]:
        """What makes transformers compute the same loss."""
        names = dict(enumerate(self.names))
        return {"id2label": names, "label2id": {name: i for i, name in names.items()}, "problem_type": NAME}

    def target(self, record: Record) -> float | list[float]:
        """What the model learns of a row: a number, or [C]."""
        numbers = self._numbers(record)
        if len(numbers) != len(self.names):
            raise DataError(
                f"{record.file}:{record.row}: {len(numbers)} numbers in {self._columns()}; there must be "
                f"{len(self.names)}"
            )
        scaled = [(value - self.low) / self.scale for value in numbers]
        return scaled[0] if len(scaled) == 1 else scaled

    def build(self, model: PreTrainedModel, family: Family) -> nn.Module | None:
        """Return None: the transformers class has the layer.

        Raises:
            ConfigError: the model gives another number of values than a row has.
        """
        if len(self.names) != int(model.config.num_labels):
            raise ConfigError(f"the model gives {model.config.num_labels} numbers, but a row has {len(self.names)}")
        return None

    def loss_of(self, logits_NC: Tensor, labels: Tensor) -> tuple[Tensor, None]:
        """Squared or Huber error, the mean over the numbers of a row."""
        labels_NC = labels.to(logits_NC.dtype).view_as(logits_NC)
        if self.options.loss == "huber":
            losses_NC = F.huber_loss(logits_NC, labels_NC, reduction="none", delta=self.options.huber_delta)
        else:
            losses_NC = (logits_NC - labels_NC).square()
        return losses_NC.mean(-1).sum(), None

    def decode(self, raw: Sequence[Any], record: Record | None, row_id: int) -> Prediction:
        """The number, or the list of them, in the unit of the labels; several have their names in ``scores``."""
        (values_C,) = raw
        numbers = (torch.as_tensor(values_C).double() * self.scale + self.low).tolist()
        if len(numbers) == 1:
            return Prediction(label=numbers[0], row_id=row_id)
        return Prediction(label=numbers, scores=dict(zip(self.names, numbers, strict=True)), row_id=row_id)

    def metrics(self) -> RegressionMetrics:
        return RegressionMetrics(self.names, NAME, self.low, self.scale)

    def _columns(self) -> str:
        label = self.options.label
        return f"column {label!r}" if isinstance(label, str) else f"columns {', '.join(map(repr, label))}"

    def _numbers(self, record: Record) -> list[float]:
        """The numbers of a row, in the unit of the data."""
        label = self.options.label
        if isinstance(label, str):
            value = column(record, label, "label", NAME)
            values = list(value) if isinstance(value, list | tuple | np.ndarray) else [value]
            found = [number(one, record, label) for one in values]
            if not found:
                raise DataError(f"{record.file}:{record.row}: the number (column {label!r}) is missing")
        else:
            found = [number(column(record, name, "label", NAME), record, name) for name in label]
        for value in found:
            check_in_range(value, self.options.min, self.options.max, record, self._columns())
        return found
