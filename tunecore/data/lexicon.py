"""Lists of words and phrases that a user gives: a text file, one entry a line."""

from __future__ import annotations

import os
from pathlib import Path

from tunecore.data.clean import Cleaner, CleaningOptions
from tunecore.errors import DataError


def read_lexicon(path: str | os.PathLike[str], option: str, cleaning: CleaningOptions | None = None) -> list[str]:
    """The entries of a file, once each, in order; brought to the form the text is brought to.

    Args:
        path: UTF-8 text, one entry a line; empty lines are passed over.
        option: what names the file, for error messages.
        cleaning: the corpus's; normal form and control characters are taken from it.

    Raises:
        DataError: the file is missing, is not UTF-8, or has no entry.
    """
    name = f"{option} {os.fspath(path)!r}"
    options = CleaningOptions() if cleaning is None else cleaning
    cleaner = Cleaner(CleaningOptions(normalization=options.normalization, remove_controls=options.remove_controls))
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}", hint="Check the path.") from error
    entries: dict[str, None] = {}
    for number, line in enumerate(raw.splitlines(), start=1):
        try:
            entry = cleaner.clean(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"{name}: line {number} is not UTF-8", hint="Convert the file to UTF-8.") from error
        if entry is not None:
            entries[entry] = None
    if not entries:
        raise DataError(f"{name}: the file has no entry", hint="Write one word or phrase a line.")
    return list(entries)
