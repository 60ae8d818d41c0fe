"""Rows of words and their tags: what columns may hold, and why a row cannot be used."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tunecore.data.sources import missing_columns, missing_reason
from tunecore.data.words import split_words
from tunecore.errors import DataError
from tunecore.types import Record

_BETWEEN_BLANKS = re.compile(r"\S+")


class WordRow(NamedTuple):
    """The words of a row, and where they stand in ``text``: (first character, one past the last)."""

    text: str
    words: tuple[str, ...]
    offsets: tuple[tuple[int, int], ...]


def read_words(record: Record, tokens: str, text: str) -> WordRow:
    """The words of a row: those of the column ``tokens``, else of the running text in the column ``text``.

    Raises:
        DataError: it has neither; file, row and the columns found are named.
    """
    if tokens in record.fields:
        value = record.fields[tokens]
        if isinstance(value, str):
            return _placed(value, [found.span() for found in _BETWEEN_BLANKS.finditer(value)])
        if _is_list(value) and all(isinstance(word, str) for word in value):
            ends = np.cumsum([len(word) + 1 for word in value], dtype=np.int64).tolist()
            offsets = tuple((end - len(word) - 1, end - 1) for word, end in zip(value, ends, strict=True))
            return WordRow(" ".join(value), tuple(value), offsets)
        raise DataError(f"{record.file}:{record.row}: {tokens}: {_kind_of_words(value)}")
    if text in record.fields:
        value = record.fields[text]
        if not isinstance(value, str):
            raise DataError(f"{record.file}:{record.row}: {text}: {type(value).__name__}, not text")
        return _placed(value, split_words(value))
    raise missing_columns(record, [tokens])


def _placed(text: str, offsets: Sequence[tuple[int, int]]) -> WordRow:
    return WordRow(text, tuple(text[start:end] for start, end in offsets), tuple(offsets))


def tags_of(record: Record, tags: str) -> list[str]:
    """The tags of a row as names; whole numbers as they are written."""
    value = record.fields[tags]
    return value.split() if isinstance(value, str) else [str(tag) for tag in value]


def rejected(record: Record, tokens: str, tags: str | None, text: str, files: set[str]) -> str | None:
    """Why a row cannot be used; None where it can.

    Args:
        record: the row.
        tokens: column of words.
        tags: column of tags; None where none are needed.
        text: column of running text, which serves where no tags are needed.
        files: files of which a row had the columns; this one's joins them.

    Raises:
        DataError: the first row of its file lacks a column.
    """
    words = text if tags is None and tokens not in record.fields else tokens
    wanted = [words] if tags is None else [words, tags]
    lacking = [column for column in wanted if column not in record.fields]
    if lacking:
        if record.file not in files:
            raise missing_columns(record, [tokens] if tags is None else [tokens, tags])
        return f"{lacking[0]}: missing"
    files.add(record.file)
    value = record.fields[words]
    reason = missing_reason(value) if isinstance(value, str) or not _is_list(value) else _kind_of_words(value)
    if reason is not None or tags is None:
        return None if reason is None else f"{words}: {reason}"
    given = record.fields[tags]
    if not isinstance(given, str):
        reason = _kind_of_tags(given)
    if reason is None and len(read_words(record, tokens, text).words) != len(tags_of(record, tags)):
        reason = f"another number than {words}"
    return None if reason is None else f"{tags}: {reason}"


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def _kind_of_words(value: Any) -> str | None:
    if not _is_list(value):
        return f"{type(value).__name__}, not a list of words"
    if not len(value):
        return "empty"
    other = next((word for word in value if not isinstance(word, str)), None)
    return None if other is None and None not in value else f"a list with {type(other).__name__}, not of words"


def _kind_of_tags(value: Any) -> str | None:
    if value is None:
        return "missing"
    if not _is_list(value):
        return f"{type(value).__name__}, not a list of tags"
    other = [tag for tag in value if isinstance(tag, bool) or not isinstance(tag, str | int | np.integer)]
    return f"a list with {type(other[0]).__name__}, not of names or whole numbers" if other else None
