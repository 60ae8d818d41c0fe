"""Where sentences begin: one simple rule, the same everywhere and on every machine.

A sentence ends after ``.``, ``!``, ``?`` or an ellipsis, and closing quotes or brackets that follow, when white space
and then a capital, a letter of a script without capitals, a digit, or an opening quote or bracket come next; after an
empty line; and after a full stop of a script that has its own (CJK, Devanagari, Ethiopic, Burmese, Khmer), with or
without white space. Arabic, Urdu and Armenian marks end a sentence as ``?`` and ``.`` do. A full stop does not end one
after a short list of abbreviations (Mr., e.g., vol. ...) or a single capital (J. Smith), unless an empty line follows.
The white space between two sentences belongs to the second, so that pieces joined again are the text.
"""

from __future__ import annotations

import re
from itertools import pairwise

_STOPS = ".!?\u2026\u061f\u06d4\u0589"  # and Arabic question mark, Urdu and Armenian full stop
_FULL_STOPS = "\u3002\uff01\uff1f\uff61\u0964\u0965\u1362\u1367\u104b\u17d4\u17d5"
_CLOSING = "\"'\u2019\u201d\u00bb)\\]"
_OPENING = "\"'\u2018\u201c\u00ab(\\["
_BOUNDARY = re.compile(
    rf"(?P<stop>[{_STOPS}]+)[{_CLOSING}]*(?=\s+[{_OPENING}\u00a1\u00bf_*\u2014-]*[^\W_a-z])"
    rf"|[{_FULL_STOPS}]+[{_CLOSING}\u300b\u300d\u300f\u3011\uff09]*(?=\s*\S)"
    r"|(?=\n[^\S\n]*\n\s*\S)"
)
_ABBREVIATIONS = frozenset(
    (
        "mr", "mrs", "ms", "messrs", "mme", "mlle", "dr", "prof", "st", "rev", "hon", "gen", "col", "capt", "lt",
        "sgt", "sr", "jr", "esq", "vs", "cf", "viz", "etc", "al", "ed", "eds", "vol", "vols", "nos", "pp", "fig",
        "figs", "sec", "ch", "eq", "e.g", "i.e", "a.m", "p.m", "u.s", "u.k", "jan", "feb", "mar", "apr", "jun", "jul",
        "aug", "sep", "sept", "oct", "nov", "dec",
    )
)
_LAST_WORD = re.compile(r"[\w.]*\Z")
_LONGEST_ABBREVIATION = 12


def sentence_ends(text: str) -> list[int]:
    """Offsets at which a sentence ends and the next begins (with its white space); the text's end is left out.

    Ascending, each in (0, len(text)).
    """
    ends: list[int] = []
    for match in _BOUNDARY.finditer(text):
        end = match.end()
        if match["stop"] == "." and _is_abbreviation(text, match.start()) and not _ends_paragraph(text, end):
            continue
        if end > 0 and (not ends or end > ends[-1]):
            ends.append(end)
    return ends


def split_sentences(text: str) -> list[str]:
    """The sentences of ``text``; joined they are the text again."""
    edges = [0, *sentence_ends(text), len(text)]
    return [text[a:b] for a, b in pairwise(edges) if b > a]


def _is_abbreviation(text: str, stop: int) -> bool:
    match = _LAST_WORD.search(text, max(0, stop - _LONGEST_ABBREVIATION), stop)
    word = match.group() if match else ""
    return word.lower() in _ABBREVIATIONS or (len(word) == 1 and word.isupper() and word != "I")


def _ends_paragraph(text: str, end: int) -> bool:
    return re.match(r"\s*\n\s*\n", text[end : end + 8]) is not None


def split_long(text: str, longest: int) -> list[str]:
    """Cut ``text`` into pieces of at most ``longest`` characters; joined they are the text again.

    Cuts fall in a piece's second half, before the last empty line there, else the last line end, else the last space,
    else after the last full stop of a script without spaces, else at its end.
    """
    pieces: list[str] = []
    start = 0
    while len(text) - start > longest:
        stop = start + longest
        half = start + longest // 2
        cuts = (text.rfind(mark, half, stop) for mark in ("\n\n", "\n", " "))
        cut = next((c for c in cuts if c > start), 0) or 1 + max(text.rfind(mark, half, stop) for mark in _FULL_STOPS)
        cut = cut if cut > start else stop
        pieces.append(text[start:cut])
        start = cut
    pieces.append(text[start:])
    return pieces
