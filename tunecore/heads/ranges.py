"""The range of a label that is a number: the options ``min`` and ``max``."""

from __future__ import annotations

from tunecore.errors import ConfigError, DataError
from tunecore.types import Record


def check_range(low: float | None, high: float | None, head: str) -> None:
    """Check the options ``min`` and ``max``.

    Raises:
        ConfigError: only one is set, or they are not in order.
    """
    if (low is None) != (high is None):
        raise ConfigError(f"{head}.min is {low} and {head}.max is {high}; set both or neither")
    if low is not None and high is not None and not low < high:
        raise ConfigError(f"{head}.min is {low} and {head}.max is {high}; min must be below max")


def check_in_range(value: float, low: float | None, high: float | None, record: Record, columns: str) -> None:
    """Check a label against its range.

    Raises:
        DataError: it lies outside; file, row and column are named.
    """
    if (low is not None and value < low) or (high is not None and value > high):
        raise DataError(
            f"{record.file}:{record.row}: {value} ({columns}) lies outside {low} to {high}",
            hint="Set the options min and max to the range of the labels.",
        )
