"""What heads read of a row: columns, texts and numbers; and one or two texts as an example.

Shape letter: L tokens of one example.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tunecore.data.sources import missing_reason
from tunecore.errors import DataError
from tunecore.types import Example, IntArray, Record


def column(record: Record, name: str, option: str, head: str) -> Any:
    """The value of a column.

    Raises:
        DataError: there is no such column; file, row, the columns found and the option are named.
    """
    if name not in record.fields:
        raise DataError(
            f"{record.file}:{record.row}: there is no column {name!r}; "
            f"columns found: {', '.join(map(str, record.fields)) or '(none)'}",
            hint=f"Name the right one by the option {option} of the head {head}.",
        )
    return record.fields[name]


def text(record: Record, name: str, option: str, head: str) -> str:
    """The text in a column.

    Raises:
        DataError: there is no such column, or no text in it.
    """
    value = column(record, name, option, head)
    if is_missing(value):
        raise DataError(f"{record.file}:{record.row}: the text (column {name!r}) is missing or NaN")
    if not isinstance(value, str):
        raise DataError(
            f"{record.file}:{record.row}: column {name!r} is {value!r} ({type(value).__name__}), not a text"
        )
    return value


def text_missing(record: Record, columns: Sequence[tuple[str, str]], head: str, files: set[str]) -> str | None:
    """Why one of the texts of a row cannot be used; None where all can.

    Args:
        record: the row.
        columns: (option, column) of each text.
        head: for messages.
        files: those whose columns were seen; a row of such a file that lacks one is a bad row, not a missing column.

    Raises:
        DataError: the first row of a file lacks a column.
    """
    for option, name in columns:
        if name not in record.fields and record.file in files:
            return f"{name}: missing"
        reason = missing_reason(column(record, name, option, head))
        if reason is not None:
            return f"{name}: {reason}"
    files.add(record.file)
    return None


def number(value: Any, record: Record, name: str) -> float:
    """A finite number, also one written as text.

    Raises:
        DataError: it is missing, NaN, infinite or no number; file, row and column are named.
    """
    where = f"{record.file}:{record.row}: the number (column {name!r})"
    if value is None or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{where} is missing")
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise DataError(f"{where} is {value!r}, which is no number") from None
    except OverflowError:
        raise DataError(f"{where} has too many digits") from None
    if not math.isfinite(found):
        raise DataError(f"{where} is {found}; it must be finite")
    return found


def is_missing(value: Any) -> bool:
    """Whether a table has nothing there: None, or NaN."""
    return value is None or (isinstance(value, float | np.floating) and math.isnan(value))


def example_of(tokenizer: Any, first: str, second: str | None, max_length: int, **more: Any) -> Example:
    """One or two texts laid out by the tokenizer, at most ``max_length`` tokens; the longer one is cut first.

    Args:
        tokenizer: of transformers.
        first: the text.
        second: the second text of a pair.
        max_length: special tokens included.
        more: further fields of the example.
    """
    encoded = tokenizer(first, second, truncation="longest_first", max_length=max_length)
    ids: IntArray = np.asarray(encoded["input_ids"], dtype=np.int64)
    segments = encoded.get("token_type_ids")
    if len(ids) == 0:  # an empty text and a tokenizer that adds no special tokens (gpt2)
        ids, segments = np.asarray([_filler(tokenizer)], dtype=np.int64), None
    types = None if segments is None else np.asarray(segments, dtype=np.int64)
    return Example(input_ids=ids, token_type_ids=types, **more)


def _filler(tokenizer: Any) -> int:
    """A token that stands for an empty text."""
    for token in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id):
        if token is not None:
            return int(token)
    return 0
