"""Words of running text, with their places, for models that were trained on texts already parted into words.

Parted as treebanks and CoNLL files are, as far as no language has to be known: at blanks, and at punctuation at the
edges of what stands between them. Numbers, addresses, abbreviations and hyphenated words stay whole.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from tunecore.data.segmenters import Characters

_CHUNK = re.compile(r"\S+")
_ADDRESS = re.compile(r"(?i)(?:[a-z][a-z0-9+.-]*://|www\.)[^\s]+")
_CLITIC = re.compile(r"(?i)['\u2019](?:s|re|ve|ll|d|m)")
_INITIAL = re.compile(r"(?:[^\W\d_]\.)+")
"""U.S., e.g., the J. of J. Smith."""

_PAIRS = {")": "(", "]": "[", "}": "{"}


def split_words(text: str) -> list[tuple[int, int]]:
    """The words of a text: (first character, one past the last), ascending; blanks belong to none."""
    return [place for start, stop in _chunks(text) for place in _parts(text, start, stop)]


def _chunks(text: str) -> Iterator[tuple[int, int]]:
    """What stands between blanks; in scripts without blanks every character."""
    singles = dict(Characters().words(text))
    for chunk in _CHUNK.finditer(text):
        start = at = chunk.start()
        while at < chunk.end():
            if at in singles:
                if start < at:
                    yield start, at
                yield at, singles[at]
                start = at = singles[at]
            else:
                at += 1
        if start < at:
            yield start, at


def _parts(text: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
    if _CLITIC.fullmatch(text, start, stop):
        yield start, stop
        return
    while start < stop and _is_mark(text[start]) and not _opens_name(text, start, stop):
        end = _run(text, start, stop)
        yield start, end
        start = end
    after: list[tuple[int, int]] = []
    while start < stop and _is_mark(text[stop - 1]):
        if _INITIAL.fullmatch(text, start, stop) or _closes(text, start, stop):
            break
        begin = stop - 1
        while begin > start and text[begin - 1] == text[begin]:
            begin -= 1
        after.append((begin, stop))
        stop = begin
    clitic = next((at for at in (stop - 2, stop - 3) if at > start and _CLITIC.fullmatch(text, at, stop)), stop)
    if start < stop:
        yield start, clitic
    if clitic < stop:
        yield clitic, stop
    yield from reversed(after)


def _run(text: str, start: int, stop: int) -> int:
    """The end of a run of one mark ("...", "--")."""
    end = start + 1
    while end < stop and text[end] == text[start]:
        end += 1
    return end


def _opens_name(text: str, start: int, stop: int) -> bool:
    """Whether the mark belongs to what follows, as in @name and #topic."""
    return text[start] in "@#" and start + 1 < stop and text[start + 1].isalnum()


def _closes(text: str, start: int, stop: int) -> bool:
    """Whether the last mark belongs to what it ends: word(s), the path of an address."""
    mark = text[stop - 1]
    opened = _PAIRS.get(mark)
    return (opened is not None and opened in text[start:stop]) or (
        mark == "/" and _ADDRESS.match(text, start, stop) is not None
    )


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"
