"""Text regression: one number for a text, by least squares on standardised labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tunecore.errors import DataError
from tunecore.types import Example, Forward, LossSum, PackedBatch, Prediction, Record, Stream, Targets


@dataclass(frozen=True)
class TextRegressionOptions:
    """Options of text_regression."""

    text: str = "text"
    """Column with the text."""
    label: str = "label"
    """Column with the number."""


class SquaredErrors:
    """Mean squared and mean absolute error in the unit of the labels; ranks add up."""

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std = mean, std
        self.sums = np.zeros(3)

    def update(self, raw: Tensor, batch: PackedBatch) -> None:
        targets = batch.targets["text_regression"]
        errors = (raw[targets.index] - targets.labels).double().cpu().numpy() * self.std
        self.sums += (len(errors), (errors**2).sum(), np.abs(errors).sum())

    def merge(self, others: Sequence[Sequence[float]]) -> None:
        for other in others:
            self.sums += other

    def state(self) -> list[float]:
        return self.sums.tolist()

    def compute(self) -> dict[str, float]:
        count, squared, absolute = (float(x) for x in self.sums)
        return {"mse": squared / max(count, 1.0), "mae": absolute / max(count, 1.0)}


class TextRegression:
    """The head ``text_regression``: a linear layer on the pooled row of each text."""

    name, losses, default_metric = "text_regression", ("text_regression",), "-mse"

    def __init__(self, options: TextRegressionOptions) -> None:
        self.options = options
        self.mean, self.std = 0.0, 1.0

    def prepare(self, records: Sequence[Record]) -> Mapping[str, Any]:
        numbers = [self._number(record) for record in records]
        self.load({"mean": float(np.mean(numbers)), "std": float(np.std(numbers)) or 1.0})
        return {"mean": self.mean, "std": self.std}

    def load(self, facts: Mapping[str, Any]) -> None:
        self.mean, self.std = facts["mean"], facts["std"]

    def _number(self, record: Record) -> float:
        try:
            value = float(record.fields[self.options.label])
        except (KeyError, TypeError, ValueError):
            value = np.nan
        if not np.isfinite(value):
            raise DataError(f"{record.file}:{record.row}: no number in the column {self.options.label!r}")
        return value

    def examples(
        self, record: Record, row_id: int, tokenizer: Any, max_length: int, *, labelled: bool
    ) -> list[Example]:
        text = record.fields.get(self.options.text)
        if not isinstance(text, str):
            raise DataError(f"{record.file}:{record.row}: no text in the column {self.options.text!r}")
        ids = np.asarray(tokenizer(text, truncation=True, max_length=max_length)["input_ids"], dtype=np.int64)
        targets = {}
        if labelled:
            targets[self.name] = Targets.of_sequence((self._number(record) - self.mean) / self.std)
        return [Example(row_id=row_id, input_ids=ids, targets=targets)]

    def build(self, model: Any, family: Any) -> nn.Module:
        return nn.Linear(model.config.hidden_size, 1)

    def loss(self, forward: Forward, module: nn.Module, stream: Stream | None) -> Mapping[str, LossSum]:
        targets = forward.batch.targets[self.name]
        errors = self.predict(forward, module)[targets.index] - targets.labels
        return {self.name: LossSum(errors.square().sum(), len(errors))}

    def predict(self, forward: Forward, module: nn.Module) -> Tensor:
        pooled = forward.family.pooled(forward.model, forward.sequence_rows())
        return module(pooled).squeeze(-1).float()

    def decode(self, raw: Sequence[Any], record: Record | None, row_id: int) -> Prediction:
        (value,) = raw
        return Prediction(label=float(torch.as_tensor(value)) * self.std + self.mean, row_id=row_id)

    def metrics(self) -> SquaredErrors:
        return SquaredErrors(self.mean, self.std)
