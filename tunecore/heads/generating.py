"""What heads share whose answer is a text: loss over the vocabulary, options of generation, metrics, texts cut.

Shape letters: L tokens of a text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from tunecore.data.sources import missing_reason
from tunecore.errors import ConfigError, DataError
from tunecore.generation import GenerationOptions
from tunecore.heads.text_metrics import RESULTS, TextMetrics, TextMetricsOptions
from tunecore.ops.vocabulary import check_loss_options, vocabulary_loss
from tunecore.types import Forward, Generated, LossSum, Prediction, Record, Stream


@dataclass(frozen=True, kw_only=True)
class GeneratingOptions(TextMetricsOptions, GenerationOptions):
    """Options of heads that write texts."""

    owner: ClassVar[str] = "head"

    generate: bool = True
    """Let evaluations measure what the model writes; without, or without metrics, they measure loss and token
    accuracy alone."""
    generate_rows: int | None = 200
    """Most held-out rows, evenly spread, that an evaluation in training writes answers to; None takes all.
    ``Engine.evaluate`` and ``tunecore evaluate`` always take all."""
    label_smoothing: float = 0.0
    """In training: probability mass spread evenly over the vocabulary. Losses of evaluations are without it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_loss_options(self.owner, self.label_smoothing, 0.0)
        if self.generate_rows is not None and self.generate_rows < 1:
            raise ConfigError(f"{self.owner}.generate_rows is {self.generate_rows}; it must be at least 1, or null")


class GeneratingHead:
    """A base for heads whose answer is a text; ``name`` is that of its one loss, too.

    A head adds ``examples``, ``prompt``, ``build``, and ``references``: the right texts of a row.

    Raises:
        ConfigError: a metric is unknown, or its package is not installed.
    """

    name: ClassVar[str]
    losses: tuple[str, ...]
    reads = ("targets",)
    generate = True
    needs_facts = False
    language_model = True

    def __init__(self, options: GeneratingOptions) -> None:
        options.check_metrics()
        self.options = options
        self.generation: GenerationOptions = options
        writes = options.generate and bool(options.metrics)
        self.generate_rows = options.generate_rows if writes else 0
        self.default_metric = RESULTS[options.metrics[0]][0] if writes else "-loss"
        self._cut: Counter[str] = Counter()
        self._files: set[str] = set()

    def prepare(self, records: Sequence[Record]) -> Mapping[str, Any]:
        """Nothing has to be known beforehand: {}.

        Raises:
            DataError: there are no rows.
        """
        if not records:
            raise DataError("there are no training rows")
        return {}

    def load(self, facts: Mapping[str, Any]) -> None:
        """Take nothing."""

    def loss(self, forward: Forward, module: nn.Module | None, stream: Stream | None) -> Mapping[str, LossSum]:
        """Cross-entropy of the tokens of the right text, summed."""
        smoothing = self.options.label_smoothing if torch.is_grad_enabled() else 0.0
        return {self.name: vocabulary_loss(forward, self.name, label_smoothing=smoothing, z_loss=0.0)}

    def predict(self, forward: Forward, module: nn.Module | None) -> Any:
        """Not called: the model answers by text."""
        raise ConfigError(f"{self.name} answers by text; it has no output for each sequence of a forward")

    def decode(self, raw: Sequence[Generated], record: Record | None, row_id: int) -> Prediction:
        """The text that was written."""
        (answer,) = raw
        return Prediction(label=answer.text.strip(), row_id=row_id)

    def references(self, record: Record) -> list[str]:
        """The right texts of a row."""
        raise NotImplementedError

    def metrics(self) -> TextMetrics:
        return TextMetrics(self.options, self.references)

    def unusable(self, record: Record, columns: Mapping[str, str]) -> str | None:
        """Why a row cannot be used: one of its ``columns`` (option -> column) holds no text; None where it can.

        Raises:
            DataError: a file has no such column. A json object that lacks a key others of its file have is a bad row.
        """
        for option, column in columns.items():
            if column not in record.fields and record.file in self._files:
                return f"{column}: missing"
            value = column_of(record, column, option, self.name)
            if texts_of(value) is None:
                self._files.add(record.file)
                return f"{column}: {why_unusable(value)}"
        self._files.add(record.file)
        return None

    def row_notes(self) -> str | None:
        """How many texts were cut since it was last asked."""
        notes = [f"{what}: {count}" for what, count in self._cut.items()]
        self._cut.clear()
        return "; ".join(notes) or None

    def encoded(self, tokenizer: Any, text: str, length: int, what: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        """A text with the tokenizer's special tokens: int64 [L], cut at its end to ``length``, and counted."""
        ids = tokenizer(text, verbose=False)["input_ids"]
        if len(ids) > length:
            self._cut[f"{what} cut to {length} tokens"] += 1
            ids = tokenizer(text, truncation=True, max_length=length)["input_ids"]
        return np.asarray(ids, dtype=np.int64)


def column_of(record: Record, column: str, option: str, head: str) -> Any:
    """The value of a column.

    Raises:
        DataError: there is no such column; those there are, are listed.
    """
    if column not in record.fields:
        raise DataError(
            f"{record.file}:{record.row}: there is no column {column!r}; "
            f"columns found: {', '.join(map(str, record.fields)) or '(none)'}",
            hint=f"Name the right one by the option {option} of the head {head}.",
        )
    return record.fields[column]


def texts_of(value: Any) -> list[str] | None:
    """A text as a list of one, a list of texts as it is; None for anything else, or where one is empty."""
    texts = list(value) if isinstance(value, list | tuple) else [value]
    return texts if texts and all(missing_reason(text) is None for text in texts) else None


def texts_in(record: Record, column: str, option: str, head: str) -> list[str]:
    """The texts of a column.

    Raises:
        DataError: there is no such column, or it holds no text; file and row are named.
    """
    value = column_of(record, column, option, head)
    texts = texts_of(value)
    if texts is None:
        raise DataError(f"{record.file}:{record.row}: column {column!r} holds no text: {why_unusable(value)}")
    return texts


def why_unusable(value: Any) -> str:
    """Why :func:`texts_of` gives None."""
    if isinstance(value, list | tuple):
        return next((str(reason) for text in value if (reason := missing_reason(text))), "empty list")
    return str(missing_reason(value))
