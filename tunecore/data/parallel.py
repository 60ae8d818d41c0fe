"""Parallel text: files that belong together line by line, read as one table whose columns are their names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest

from tunecore.data.files import text_lines
from tunecore.errors import DataError
from tunecore.types import Record


def read_parallel(path: str, files: Mapping[str, str]) -> Iterator[Record]:
    """Line n of every file as one record {name: line}; its place is ``path`` and n.

    Args:
        path: what the user named, ``train.{en,de}``.
        files: name -> file, as ``tunecore.data.files.parallel_files`` gives them.

    Raises:
        DataError: a file has fewer lines than the others, or cannot be read.
    """
    for number, lines in enumerate(zip_longest(*map(text_lines, files.values())), start=1):
        ended = [file for file, line in zip(files.values(), lines, strict=True) if line is None]
        if ended:
            raise DataError(
                f"{ended[0]} ends before line {number}, which the other file of {path} has",
                hint="Line n of each file must be the same text; align the files again.",
            )
        yield Record({name: line[1].rstrip("\r\n") for name, line in zip(files, lines, strict=True)}, path, number)
