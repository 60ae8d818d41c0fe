"""Rows of many files, read in order, checked and counted: a bad row is named, never silent, never fatal unless asked.

The way to read anything: ``read_records(expand_paths(paths))``, then ``documents`` (pretraining) or
``usable_records`` (fine-tuning).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tunecore.data.builtin_readers import SOURCES, builtin_sources, by_suffix
from tunecore.data.files import expand_paths, parallel_files, suffix_of
from tunecore.data.parallel import read_parallel
from tunecore.data.readers import TEXT, Malformed
from tunecore.errors import DataError, unknown_name
from tunecore.types import Record, Source

__all__ = [
    "SOURCES", "OnBadRow", "ReadSummary", "builtin_sources", "by_suffix", "documents", "expand_paths",
    "missing_columns", "missing_reason", "pair_columns", "read_records", "text_column", "text_pairs", "usable_records",
]

OnBadRow = Literal["skip", "raise"]
TEXT_PAIR = "text_pair"
"""The column of the second text where none is named."""
_PLACES_KEPT = 5
_log = logging.getLogger(__name__)


@dataclass
class ReadSummary:
    """What was read and what was left out; ``as_dict`` is JSON for reports."""

    files: int = 0
    rows: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    """Reason -> rows left out."""
    places: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> the first few places, "file:row"."""

    @property
    def num_skipped(self) -> int:
        return sum(self.skipped.values())

    def skip(self, record: Record, reason: str, on_bad_row: OnBadRow, detail: str | None = None) -> None:
        """Count a bad row.

        Raises:
            DataError: ``on_bad_row`` is "raise"; file, row and reason are named.
        """
        if on_bad_row == "raise":
            raise DataError(
                f"{record.file}:{record.row}: {detail or reason}",
                hint="Mend the row, or leave such rows out with data.on_bad_row: skip.",
            )
        self.skipped[reason] = self.skipped.get(reason, 0) + 1
        places = self.places.setdefault(reason, [])
        if len(places) < _PLACES_KEPT:
            places.append(f"{record.file}:{record.row}" + (f" ({detail})" if detail and detail != reason else ""))

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable counts."""
        return {"files": self.files, "rows": self.rows, "skipped": dict(self.skipped), "skipped_places": self.places}

    def describe(self) -> str:
        """One line for a person."""
        line = f"{self.rows} rows of {self.files} files"
        reasons = [f"{n} {reason} (first: {self.places[reason][0]})" for reason, n in sorted(self.skipped.items())]
        return f"{line}; skipped {'; '.join(reasons)}" if reasons else line

    def warn(self) -> None:
        """One line of the log where rows were left out: a bad row is never silent."""
        if self.skipped:
            _log.warning("%s", self.describe())


def read_records(
    paths: Sequence[str], sources: Mapping[str, Source] | None = None, *, summary: ReadSummary | None = None,
    on_bad_row: OnBadRow = "skip",
) -> Iterator[Record]:
    """The rows of files named by ``expand_paths``, in order; malformed ones are counted in ``summary``.

    Args:
        paths: files, as ``expand_paths`` returns them.
        sources: suffix -> source; None takes the built-ins.
        summary: counts files, rows and skipped rows.
        on_bad_row: what a row that cannot be parsed does.

    Raises:
        DataError: a file cannot be read, its kind is unknown, or a row is bad and ``on_bad_row`` is "raise".
    """
    sources = builtin_sources() if sources is None else sources
    summary = ReadSummary() if summary is None else summary
    for path in paths:
        parallel, source = parallel_files(path), sources.get(suffix_of(path))
        if source is None and not parallel:
            raise DataError(f"{path}: {unknown_name('kind of file', suffix_of(path), sources)}")
        summary.files += 1
        for record in read_parallel(path, parallel) if source is None or parallel else source.read(path):
            summary.rows += 1
            if isinstance(record.fields, Malformed):
                summary.skip(record, "malformed", on_bad_row, record.fields.reason)
            else:
                yield record


def missing_reason(value: Any) -> str | None:
    """Why a text cannot be used: missing (None), NaN, empty, or not text; None when it can.

    The word "NaN" or "nan" alone is NaN as well: that is how tables of text carry it.
    """
    if value is None:
        return "missing"
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    if not isinstance(value, str):
        return f"{type(value).__name__}, not text"
    stripped = value.strip()
    if not stripped:
        return "empty"
    return "NaN" if stripped in ("NaN", "nan") else None


def text_column(record: Record, column: str | None) -> str:
    """The column that holds the text: the one asked for, else "text", else the only one.

    Raises:
        DataError: there is none; the columns found are listed.
    """
    if column is None:
        if TEXT in record.fields:
            return TEXT
        if len(record.fields) == 1:
            return next(iter(record.fields))
    elif column in record.fields:
        return column
    raise missing_columns(record, [column or TEXT])


def missing_columns(record: Record, columns: Sequence[str]) -> DataError:
    """The error for columns a file does not have."""
    lacking = ", ".join(repr(c) for c in columns if c not in record.fields)
    found = ", ".join(map(str, record.fields)) or "(none)"
    return DataError(
        f"{record.file}:{record.row}: no column {lacking}; columns found: {found}",
        hint="Name the column (data.text and data.text_pair in pretraining, the head's column options in fine-tuning). "
        "A file without a header needs data.sources: {csv: {columns: [...]}}.",
    )


def documents(
    records: Iterable[Record], column: str | None = None, *, summary: ReadSummary | None = None,
    on_bad_row: OnBadRow = "skip",
) -> Iterator[tuple[str, Record]]:
    """(text, record) of every row whose text can be used; the others are counted in ``summary``.

    Raises:
        DataError: a file has no such column, or a row is bad and ``on_bad_row`` is "raise".
    """
    summary = ReadSummary() if summary is None else summary
    file, name, seen = None, "", False
    for record in records:
        if record.file != file:
            file, seen = record.file, False
        if not seen or name not in record.fields:
            # A json object may lack a key that others of its file have; that is a bad row, not a missing column.
            if seen:
                summary.skip(record, f"{name}: missing", on_bad_row)
                continue
            name, seen = text_column(record, column), True
        reason = missing_reason(record.fields[name])
        if reason is None:
            yield record.fields[name], record
        else:
            summary.skip(record, f"{name}: {reason}", on_bad_row)


def pair_columns(record: Record, first: str | None, second: str | None) -> tuple[str, str]:
    """The columns of the two texts: those asked for, else "text" and "text_pair", else the only two.

    Raises:
        DataError: a column is missing; the columns found are listed.
    """
    found = list(record.fields)
    if len(found) == 2 and (first is None or second is None) and TEXT_PAIR not in found:
        given = first if first is not None else second
        if given is None:
            return found[0], found[1]
        if given in found:
            other = found[1 - found.index(given)]
            return (given, other) if first is not None else (other, given)
    columns = TEXT if first is None else first, TEXT_PAIR if second is None else second
    if any(column not in record.fields for column in columns):
        raise missing_columns(record, columns)
    return columns


def text_pairs(
    records: Iterable[Record], first: str | None = None, second: str | None = None, *,
    summary: ReadSummary | None = None, on_bad_row: OnBadRow = "skip",
) -> Iterator[tuple[str, str]]:
    """(first text, second text) of every row that has both; the others are counted in ``summary``.

    Raises:
        DataError: a file has no such columns, or a row is bad and ``on_bad_row`` is "raise".
    """
    summary = ReadSummary() if summary is None else summary
    file, columns = None, ("", "")
    for record in records:
        if record.file != file:
            file, columns = record.file, pair_columns(record, first, second)
        texts = [record.fields.get(name) for name in columns]
        reasons = [f"{name}: {why}" for name, text in zip(columns, texts, strict=True) if (why := missing_reason(text))]
        if reasons:
            summary.skip(record, reasons[0], on_bad_row)
        else:
            yield str(texts[0]), str(texts[1])


def usable_records(
    records: Iterable[Record], texts: Sequence[str], others: Sequence[str] = (), *,
    summary: ReadSummary | None = None, on_bad_row: OnBadRow = "skip",
) -> Iterator[Record]:
    """Rows whose text columns hold text; columns ``others`` must exist in each file but may hold anything.

    Raises:
        DataError: a file lacks a column, or a row is bad and ``on_bad_row`` is "raise".
    """
    summary = ReadSummary() if summary is None else summary
    columns = (*texts, *others)
    file = None
    for record in records:
        if record.file != file:
            if any(column not in record.fields for column in columns):
                raise missing_columns(record, columns)
            file = record.file
        reasons = {name: missing_reason(record.fields.get(name)) for name in texts}
        bad = next(((name, reason) for name, reason in reasons.items() if reason), None)
        if bad is None:
            yield record
        else:
            summary.skip(record, f"{bad[0]}: {bad[1]}", on_bad_row)
