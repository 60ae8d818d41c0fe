"""Thin readers of txt, jsonl, csv, tsv and parquet files that know file and row.

Each also reads ``.gz`` files and members of ``.zip`` archives. A row that cannot be parsed is yielded with
``Malformed`` fields, so that it is counted and named (``tunecore.data.sources``) instead of ending the file.
A row's number is the line it starts on (from 1), or its place in a parquet file (from 1).
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tunecore.data.files import open_binary, read_whole, text_lines
from tunecore.data.surrogates import LONE_SURROGATE, has_lone_surrogate
from tunecore.errors import ConfigError, DataError
from tunecore.types import Record

TEXT = "text"
"""The column of sources that have only one."""
_PARQUET_ROWS = 1024
_LONGEST_FIELD = 1 << 30


class Malformed(dict[str, Any]):
    """The fields of a row that could not be parsed: none; ``reason`` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Options of txt files."""

    documents: Literal["file", "blank_line", "line"] = "file"
    """What a document is: the file, what stands between blank lines, or a line."""
    max_chars: int = 16_000_000
    """A longer document is cut at the next line end into several, so that memory stays flat."""

    def __post_init__(self) -> None:
        if self.documents not in ("file", "blank_line", "line"):
            raise ConfigError(f"txt.documents is {self.documents!r}; it must be file, blank_line or line")
        if self.max_chars < 1:
            raise ConfigError(f"txt.max_chars is {self.max_chars}; it must be at least 1")


class TextSource:
    """Plain text; every line end becomes a line feed."""

    suffixes: tuple[str, ...] = (".txt",)

    def __init__(self, options: TextOptions) -> None:
        self.options = options

    def read(self, path: str) -> Iterator[Record]:
        """Documents as records {"text": ...}."""
        mode = self.options.documents
        held: list[str] = []
        size = start = 0
        for number, line in text_lines(path):
            line = line.replace("\r\n", "\n")
            is_blank = not line.strip()
            if is_blank and (mode != "file" or not held):
                if held:
                    yield Record({TEXT: "".join(held)}, path, start)
                    held, size = [], 0
                continue
            start = start if held else number
            held.append(line)
            size += len(line)
            if mode == "line" or size > self.options.max_chars:
                yield Record({TEXT: "".join(held)}, path, start)
                held, size = [], 0
        if held:
            yield Record({TEXT: "".join(held)}, path, start)


@dataclass(frozen=True, kw_only=True)
class JsonLinesOptions:
    """Options of jsonl files: none."""


class JsonLinesSource:
    """One JSON object a line (or a string, which becomes {"text": ...})."""

    suffixes: tuple[str, ...] = (".jsonl", ".ndjson")

    def __init__(self, options: JsonLinesOptions) -> None:
        self.options = options

    def read(self, path: str) -> Iterator[Record]:
        """Objects as records; blank lines are passed over."""
        for number, line in text_lines(path):
            if line.strip():
                yield Record(_json_fields(line), path, number)


def _json_fields(line: str) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Malformed(f"not JSON: {error}")
    if "\\u" in line and has_lone_surrogate(value):
        return Malformed(LONE_SURROGATE)
    if isinstance(value, str):
        return {TEXT: value}
    return value if isinstance(value, dict) else Malformed(f"a JSON {type(value).__name__}, not an object")


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Options of csv and tsv files."""

    suffixes: tuple[str, ...] | None = None
    """Endings of the files that are read so, such as [.txt]; None is the reader's name (.csv, .tsv)."""
    columns: tuple[str, ...] | None = None
    """Names of the columns of a file without a header; None reads them from the first row."""
    delimiter: str | None = None
    """Character between fields; None is a comma in csv, a tab in tsv."""
    quoting: bool | None = None
    """Whether double quotes enclose fields; None is yes in csv, no in tsv (as GLUE's files are written)."""

    def __post_init__(self) -> None:
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise ConfigError(f"delimiter is {self.delimiter!r}; it must be one character")
        if self.columns is not None and len(set(self.columns)) != len(self.columns):
            raise ConfigError(f"columns {', '.join(self.columns)}: a name stands there twice")
        for suffix in self.suffixes or ():
            if suffix != os.path.splitext(f"x{suffix}")[1].lower():
                raise ConfigError(f"suffixes has {suffix!r}; write a dot and the ending in small letters, such as .txt")


class TableSource:
    """Comma- or tab-separated values with a header. Every field is a str."""

    def __init__(self, options: TableOptions, suffix: str, delimiter: str, quoting: bool) -> None:
        self.suffixes: tuple[str, ...] = options.suffixes or (suffix,)
        self.options = options
        self.delimiter = delimiter if options.delimiter is None else options.delimiter
        self.quoting = quoting if options.quoting is None else options.quoting

    def read(self, path: str) -> Iterator[Record]:
        """Rows as records; blank lines are passed over, a row with too few or too many fields is malformed."""
        header = self.options.columns
        for number, fields in self._rows(path):
            if isinstance(fields, str):
                yield Record(Malformed(fields), path, number)
            elif not fields or fields == [""]:
                continue
            elif header is None:
                header = _header(path, fields)
            elif len(fields) != len(header):
                yield Record(Malformed(f"{len(fields)} fields where the header has {len(header)}"), path, number)
            else:
                yield Record(dict(zip(header, fields, strict=True)), path, number)

    def _rows(self, path: str) -> Iterator[tuple[int, list[str] | str]]:
        """(first line, fields), or (first line, reason) of a row the csv module refuses."""
        if not self.quoting:
            for number, line in text_lines(path):
                yield number, line.rstrip("\r\n").split(self.delimiter)
            return
        # The default limit of 128 KiB a field is smaller than a document; it can only be set for the process.
        csv.field_size_limit(_LONGEST_FIELD)
        reader = csv.reader((line for _, line in text_lines(path)), delimiter=self.delimiter, strict=True)
        while True:
            number = reader.line_num + 1
            try:
                yield number, next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                # The module's own words are about how Python opens files.
                carriage = "new-line character" in str(error)
                why = "a carriage return in it; lines must end in LF or CRLF" if carriage else str(error)
                yield number, f"not well-formed: {why}"


def _header(path: str, fields: list[str]) -> tuple[str, ...]:
    names = [field.strip() for field in fields]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{path}:1: the header names {', '.join(map(repr, twice))} twice; columns found: {', '.join(names)}",
            hint="Rename a column; for a file without a header set data.sources: {csv: {columns: [...]}}.",
        )
    return tuple(names)


@dataclass(frozen=True, kw_only=True)
class ParquetOptions:
    """Options of parquet files: none."""


class ParquetSource:
    """Apache Parquet, a group of rows at a time."""

    suffixes: tuple[str, ...] = (".parquet",)

    def __init__(self, options: ParquetOptions) -> None:
        self.options = options

    def read(self, path: str) -> Iterator[Record]:
        """Rows as records.

        Raises:
            DataError: the file is not parquet, or damaged.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        with open_binary(path) as stream:
            # Archives give streams that cannot seek backwards cheaply; their members are read whole.
            source = stream if isinstance(stream, io.BufferedReader) else io.BytesIO(read_whole(path, stream))
            number = 0
            try:
                for batch in pq.ParquetFile(source).iter_batches(batch_size=_PARQUET_ROWS):
                    for fields in batch.to_pylist():
                        number += 1
                        yield Record(fields, path, number)
            except (pa.ArrowException, ValueError, OverflowError) as error:  # values that are none of Python's, too
                raise DataError(f"{path}: not a readable parquet file (after row {number}): {error}") from error


def csv_source(options: TableOptions) -> TableSource:
    """The reader of csv files."""
    return TableSource(options, ".csv", ",", True)


def tsv_source(options: TableOptions) -> TableSource:
    """The reader of tsv files."""
    return TableSource(options, ".tsv", "\t", False)
