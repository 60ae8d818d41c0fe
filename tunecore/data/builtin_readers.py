"""The built-in sources by name, and readers by the suffix of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tunecore.data.conll import ConllOptions, ConllSource
from tunecore.data.json_rows import JsonOptions, JsonSource
from tunecore.data.readers import (
    JsonLinesOptions,
    JsonLinesSource,
    ParquetOptions,
    ParquetSource,
    TableOptions,
    TextOptions,
    TextSource,
    csv_source,
    tsv_source,
)
from tunecore.types import Source

SOURCES: dict[str, tuple[Callable[[Any], Source], type]] = {
    "text": (TextSource, TextOptions),
    "json": (JsonSource, JsonOptions),
    "jsonl": (JsonLinesSource, JsonLinesOptions),
    "csv": (csv_source, TableOptions),
    "tsv": (tsv_source, TableOptions),
    "parquet": (ParquetSource, ParquetOptions),
    "conll": (ConllSource, ConllOptions),
}
"""Name -> (factory, Options), as they are registered."""


def by_suffix(sources: Iterable[Source]) -> dict[str, Source]:
    """Suffix -> source, the later one where two claim a suffix (so that a plugin can replace a built-in)."""
    return {suffix: source for source in sources for suffix in source.suffixes}


def builtin_sources() -> dict[str, Source]:
    """The built-in sources with their default options, by suffix."""
    return by_suffix(factory(options()) for factory, options in SOURCES.values())
