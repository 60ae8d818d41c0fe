"""Columns of the CoNLL shared tasks: a word a line with its tags, an empty line after each sentence.

As in CoNLL-2002 and 2003 (Tjong Kim Sang 2002; Tjong Kim Sang, De Meulder 2003), WNUT and most files of tagged words
since.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tunecore.data.files import text_lines
from tunecore.data.readers import Malformed
from tunecore.errors import ConfigError
from tunecore.types import Record

TOKENS, TAGS = "tokens", "tags"
"""Columns of a record: the words of a sentence and their tags."""
_DOCUMENT = "-DOCSTART-"


@dataclass(frozen=True, kw_only=True)
class ConllOptions:
    """Options of files of tagged words."""

    columns: tuple[str, ...] | None = None
    """Names of the columns from the left (tokens, pos, tags); None names the first tokens and the last tags, and
    leaves out what stands between."""
    delimiter: str | None = None
    """Character between columns; None is a tab in lines that have one, else blanks."""
    encoding: str = "utf-8"
    """How characters are written: utf-8, latin-1 ..."""
    suffixes: tuple[str, ...] = (".conll", ".bio", ".iob", ".iob2", ".train", ".testa", ".testb")
    """Endings of files that are read so; .train, .testa and .testb are those of the shared tasks (esp.train)."""

    def __post_init__(self) -> None:
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise ConfigError(f"conll.delimiter is {self.delimiter!r}; it must be one character")
        if self.columns is not None and (not self.columns or len(set(self.columns)) < len(self.columns)):
            raise ConfigError(f"conll.columns {', '.join(self.columns)}: there must be one at least, and none twice")
        if not self.suffixes or not all(suffix.startswith(".") for suffix in self.suffixes):
            raise ConfigError(f"conll.suffixes is {self.suffixes!r}; each must begin with a dot, such as .conll")
        try:
            keeps_ascii = "a\n".encode(self.encoding) == b"a\n"
        except (LookupError, UnicodeError) as error:
            raise ConfigError(f"conll.encoding {self.encoding!r} is unknown", hint="Write utf-8 or latin-1.") from error
        if not keeps_ascii:
            raise ConfigError(f"conll.encoding {self.encoding!r} does not write ASCII as itself; convert the file")


class ConllSource:
    """Sentences as records {"tokens": [...], "tags": [...]}, or of the columns named; their row is the first line."""

    def __init__(self, options: ConllOptions) -> None:
        self.options = options
        self.suffixes = options.suffixes

    def read(self, path: str) -> Iterator[Record]:
        """Sentences; lines that begin with -DOCSTART- are passed over, and part sentences as an empty line does."""
        held: list[list[str]] = []
        start = 0
        for number, line in text_lines(path, self.options.encoding):
            line = line.rstrip("\r\n")
            if line.strip() and not line.startswith(_DOCUMENT):
                start = start if held else number
                held.append(self._split(line))
            elif held:
                yield Record(self._fields(held, start), path, start)
                held = []
        if held:
            yield Record(self._fields(held, start), path, start)

    def _split(self, line: str) -> list[str]:
        delimiter = self.options.delimiter or ("\t" if "\t" in line else None)
        if delimiter is not None:
            return [field.strip(" ") for field in line.split(delimiter)]
        return [field for field in line.split(" ") if field]  # other blanks may be words

    def _fields(self, lines: list[list[str]], start: int) -> Mapping[str, Any]:
        wanted = self.options.columns
        fewest, most = min(map(len, lines)), max(map(len, lines))
        needed = len(wanted) if wanted is not None else min(2, most)
        if fewest < needed:
            short = start + next(i for i, fields in enumerate(lines) if len(fields) < needed)
            return Malformed(f"line {short} has {fewest} of the {needed} columns wanted")
        if wanted is not None:
            return {name: [fields[i] for fields in lines] for i, name in enumerate(wanted)}
        tokens = [fields[0] for fields in lines]
        return {TOKENS: tokens} if most == 1 else {TOKENS: tokens, TAGS: [fields[-1] for fields in lines]}
