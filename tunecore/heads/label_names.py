"""The labels of a task: found in the training rows or given, in order, and which of them a row has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tunecore.errors import ConfigError, DataError
from tunecore.heads.columns import is_missing
from tunecore.types import Record


class LabelNames:
    """Label names in order.

    Args:
        head: the head they belong to, for messages.
        column: where rows have them, for messages.
        given: the names where an option fixes them; whole numbers in the data then count into this list.
    """

    def __init__(self, head: str, column: str, given: Sequence[Any] | None) -> None:
        self.head, self.column = head, column
        self.given = None if given is None else tuple(str(label) for label in given)
        self.names: tuple[str, ...] = ()
        self._number: dict[str, int] = {}
        if self.given is not None:
            self.take(self.given)

    def take(self, names: Sequence[str]) -> None:
        """Let these be the labels."""
        self.names = tuple(names)
        self._number = {label: i for i, label in enumerate(self.names)}
        if not any(_is_number(label) for label in self.names):
            self._number.update({str(i): i for i in range(len(self.names))})

    def load(self, facts: Mapping[str, Any]) -> None:
        """Take the labels of a saved model.

        Raises:
            ConfigError: the names given by option are more or fewer.
        """
        labels = tuple(str(label) for label in facts["labels"])
        if self.given is not None and len(self.given) != len(labels):
            raise ConfigError(
                f"option labels of {self.head} has {len(self.given)} names, but the model has {len(labels)} classes: "
                f"{', '.join(labels)}"
            )
        self.take(labels if self.given is None else self.given)

    def place(self, label: str, record: Record) -> int:
        """Which label this is.

        Raises:
            DataError: it is none of them; file, row and the known ones are named.
        """
        try:
            return self._number[label]
        except KeyError:
            raise DataError(
                f"{record.file}:{record.row}: unknown label {label!r} (column {self.column!r}); "
                f"known: {', '.join(self.names)}"
            ) from None

    def check_classes(self, num_labels: int) -> None:
        """Hold the number of labels against that of a model's classes.

        Raises:
            ConfigError: they differ.
        """
        if len(self.names) != num_labels:
            raise ConfigError(
                f"the model has {num_labels} classes, but there are {len(self.names)} labels: {', '.join(self.names)}"
            )


def label_name(value: Any, record: Record, column: str) -> str:
    """The label of a row as a name.

    Raises:
        DataError: it is missing, or neither a name nor a whole number.
    """
    if isinstance(value, float) and value.is_integer():  # how a table stores whole numbers with gaps
        value = int(value)
    if is_missing(value) or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{record.file}:{record.row}: the label (column {column!r}) is missing")
    if not isinstance(value, str | int | np.integer):
        raise DataError(
            f"{record.file}:{record.row}: the label (column {column!r}) is {value!r}; "
            "it must be a name or a whole number"
        )
    return str(value).strip()


def in_order(labels: Mapping[str, Any]) -> tuple[str, ...]:
    """Sorted by value where all are whole numbers, else by name."""
    if all(_is_number(label) for label in labels):
        return tuple(sorted(labels, key=int))
    return tuple(sorted(labels))


def check_given(labels: Sequence[Any] | None, head: str) -> None:
    """Check the option ``labels``.

    Raises:
        ConfigError: fewer than two names, or one twice.
    """
    if labels is None:
        return
    names = [str(label) for label in labels]
    if len(names) < 2:
        raise ConfigError(f"option labels of {head} has {len(names)} names; at least two are needed")
    if len(set(names)) < len(names):
        twice = sorted({label for label in names if names.count(label) > 1})
        raise ConfigError(f"option labels of {head} names {', '.join(twice)} more than once")


def check_weights(weights: Sequence[float] | str | None, labels: Sequence[Any] | None, head: str, option: str) -> None:
    """Check an option that is "balanced" or one weight a label.

    Raises:
        ConfigError: another word, a negative weight, or as many as there are no labels given.
    """
    if weights is None or weights == "balanced":
        return
    if isinstance(weights, str):
        raise ConfigError(f"{head}.{option} is {weights!r}; it must be balanced, or one number for each label")
    if not all(weight > 0 for weight in weights):
        raise ConfigError(f"{head}.{option} is {list(weights)}; every weight must be greater than 0")
    if labels is None or len(labels) != len(weights):
        raise ConfigError(
            f"{head}.{option} has {len(weights)} weights, but the option labels names {len(labels or ())}",
            hint="Weights stand in the order of the labels, so name those too.",
        )


def _is_number(label: str) -> bool:
    return label.removeprefix("-").isdecimal()
