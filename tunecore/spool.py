"""What a user hands over: paths and globs as they are; iterables and dataset objects written to a file once.

From there on data in memory is a file like any other: a run that is resumed reads the same bytes, and memory stays
flat.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tunecore.data.sources import expand_paths
from tunecore.data.spool_folder import spooled
from tunecore.data.surrogates import has_lone_surrogate
from tunecore.errors import DataError

Data = str | os.PathLike[str] | Iterable[Any]
"""A path or glob, a sequence of those, or an iterable of texts (str) or rows (dict)."""


def is_paths(data: Data) -> bool:
    """Whether ``data`` names files: a str or Path, or a sequence whose first item is a Path, an existing file or
    folder, or a pattern that matches one. Any other iterable is texts or rows.
    """
    if isinstance(data, str | os.PathLike):
        return True
    if not isinstance(data, Sequence) or not data:
        return False
    first = data[0]
    if isinstance(first, os.PathLike):
        return True
    # A text is hardly ever the name of an existing file; over-long names make the system call fail.
    return isinstance(first, str) and len(first) < 1024 and "\n" not in first and _names_files(first)


def _names_files(pattern: str) -> bool:
    try:
        return os.path.exists(pattern) or bool(expand_paths([pattern]))
    except (DataError, OSError, ValueError):
        return False


def as_paths(data: Data, spool: Path, name: str) -> tuple[str, ...]:
    """The paths of ``data``; what is in memory is written to ``spool/NAME.jsonl`` first.

    Class numbers of a ``datasets`` object (its features tell) are written as names.

    Raises:
        DataError: an item is neither a str nor a mapping, or there is none; or the data is several sets or a table
            of columns.
    """
    _refuse_columns(data, name)
    if is_paths(data):
        items = [data] if isinstance(data, str | os.PathLike) else list(data)
        return tuple(os.fspath(item) for item in items)
    spool.mkdir(parents=True, exist_ok=True)
    path = spool / f"{name}.jsonl"
    count, named = 0, _class_columns(data)
    with spooled(path) as made, open(made, "w", encoding="utf-8") as file:
        for count, item in enumerate(data, start=1):  # type: ignore[arg-type]
            row = dict(_row(item, name, count))
            row |= {column: _named(row[column], names) for column, names in named.items() if column in row}
            line = json.dumps(row, ensure_ascii=False, default=_plain)
            if has_lone_surrogate(line):  # the reader counts and names such a row, if it can read it
                line = json.dumps(row, default=_plain)
            file.write(line + "\n")
        if count == 0:
            raise DataError(f"{name}: the data given holds no row")
    return (str(path),)


def _refuse_columns(data: Any, name: str) -> None:
    """Raise for what iterates over names instead of rows: a ``DatasetDict``, a dict of columns, a data frame."""
    if isinstance(data, Mapping):
        sets = ", ".join(map(repr, data))
        raise DataError(
            f"{name}: the data given is a {type(data).__name__} with {sets}, not rows",
            hint="Give one of them: data['train'], for one. Columns become rows by [dict(text=t, ...) for t in ...].",
        )
    if hasattr(data, "iterrows"):
        raise DataError(f"{name}: a data frame is not rows", hint='Give data.to_dict("records"), or a file of it.')


def _class_columns(data: Any) -> dict[str, tuple[str, ...]]:
    """Column -> class names, for those that a ``datasets`` object keeps as numbers (ClassLabel, or lists of it)."""
    features = getattr(data, "features", None)
    found = {}
    for column, feature in features.items() if isinstance(features, Mapping) else ():
        names = getattr(getattr(feature, "feature", feature), "names", None)
        if names:
            found[str(column)] = tuple(map(str, names))
    return found


def class_names(data: Any, column: str) -> list[str] | None:
    """The names of a column's classes in their order, where ``data`` is a ``datasets`` object that has them."""
    names = _class_columns(data).get(column)
    return None if names is None else list(names)


def _named(value: Any, names: tuple[str, ...]) -> Any:
    """The name of a class number, -1 being no class; of a list, those of its items."""
    if isinstance(value, list | tuple | np.ndarray):
        return [_named(item, names) for item in value]
    if isinstance(value, int | np.integer) and value < len(names):
        return names[value] if value >= 0 else None
    return value


def _row(item: Any, name: str, count: int) -> Mapping[str, Any]:
    if isinstance(item, str):
        return {"text": item}
    if isinstance(item, Mapping):
        return dict(item)
    raise DataError(f"{name}: item {count} is {type(item).__name__}; give str or dict")


def _plain(value: Any) -> Any:
    """JSON for the scalars of numpy and torch."""
    if hasattr(value, "item"):
        return value.item()
    raise DataError(f"a value of type {type(value).__name__} cannot be kept as JSON")


@contextmanager
def temporary_paths(data: Data, name: str) -> Iterator[tuple[str, ...]]:
    """The paths of ``data`` for as long as the context lasts."""
    with TemporaryDirectory(prefix="tunecore-") as folder:
        yield as_paths(data, Path(folder), name)
