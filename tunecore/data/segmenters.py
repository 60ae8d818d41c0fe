"""Where words begin in scripts without spaces: for the column ``word_starts``, on which whole words are masked.

Tokenizers part words at spaces and punctuation. In a stretch of Chinese, Japanese, Thai, Lao, Khmer or Burmese there
are none, and a segmenter says where words begin:

- ``characters``: every character is a word (with the marks that belong to it); needs nothing.
- ``lexicon``: the longest word of a list, else a single character.
- ``jieba``: the package of that name for Chinese (``pip install tunecore[zh]``), with a list of further words.
- ``tokenizer``: the tokenizer's own splitting (WordPiece parts Chinese characters; byte-level BPE parts nothing).

Text of other scripts is never touched.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import re
from collections.abc import Collection, Iterable, Iterator
from itertools import accumulate, pairwise
from typing import Any, Protocol

from tunecore.config import SegmenterName
from tunecore.errors import ConfigError

_SPACELESS = (
    "\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303b\u2e80-\u2fdf\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Han
    "\U00020000-\U0003ffff"
    "\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f\u3105-\u312f"  # kana, bopomofo
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e80-\u0edf\u1000-\u109f\u1780-\u17d3\u17d7-\u17dd"  # Thai, Lao, Burmese, Khmer
)
_RUN = re.compile(f"[{_SPACELESS}]+")
# Combining marks of these scripts, the long-vowel sign and iteration marks belong to the character before them.
_ATTACHED = re.compile(
    "[\u3005\u303b\u3099-\u309e\u30fc-\u30fe\uff70\uff9e\uff9f"
    "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece"
    "\u102b-\u103e\u1056-\u1059\u105e-\u1060\u1062-\u1064\u1067-\u106d\u1071-\u1074\u1082-\u108d\u108f\u109a-\u109d"
    "\u17b4-\u17d3\u17dd]"
)


class Segmenter(Protocol):
    """Says where words begin in text without spaces."""

    key: str
    """What decides its answers, for the name of a cached corpus."""

    def words(self, text: str) -> list[tuple[int, int]]:
        """The words of the stretches without spaces: (first character, one past the last), ascending; each stretch is
        covered without a gap.
        """
        ...


class Characters:
    """Every character is a word, with the marks that belong to it."""

    key = "characters"

    def words(self, text: str) -> list[tuple[int, int]]:
        return [word for run in _RUN.finditer(text) for word in _spans(run.start(), self.split(run.group()))]

    def split(self, run: str) -> Iterable[str]:
        """The words of a stretch without spaces; joined they are the stretch."""
        starts = [i for i, character in enumerate(run) if i == 0 or not _ATTACHED.match(character)]
        return (run[a:b] for a, b in zip(starts, [*starts[1:], len(run)], strict=True))


class LongestMatch(Characters):
    """The longest word of a list that fits, from left to right; where none does, a single character.

    Args:
        words: the list.
    """

    def __init__(self, words: Collection[str]) -> None:
        self._words = frozenset(words)
        self._longest = max(map(len, words), default=1)
        self.key = f"lexicon {_digest(words)}"

    def split(self, run: str) -> Iterator[str]:
        at = 0
        while at < len(run):
            sizes = range(min(self._longest, len(run) - at), 1, -1)
            size = next((n for n in sizes if run[at : at + n] in self._words), 1)
            while at + size < len(run) and _ATTACHED.match(run[at + size]):
                size += 1
            yield run[at : at + size]
            at += size


class Jieba(Characters):
    """Words of the package jieba.

    Args:
        words: further words it should know.

    Raises:
        ConfigError: the package is not installed.
    """

    def __init__(self, words: Collection[str] = ()) -> None:
        try:
            jieba = importlib.import_module("jieba")
        except ImportError as error:
            raise ConfigError(
                "data.segmenter is jieba, and the package jieba is not installed",
                hint="pip install 'tunecore[zh]', or set data.segmenter: characters (or lexicon, with data.lexicon).",
            ) from error
        jieba.setLogLevel(logging.WARNING)
        self._tokenizer: Any = jieba.Tokenizer()
        for word in words:
            self._tokenizer.add_word(word)
        self.key = f"jieba {jieba.__version__} {_digest(words)}"

    def split(self, run: str) -> Iterable[str]:
        return self._tokenizer.cut(run)


class TokenizersOwn:
    """Leaves everything to the tokenizer's own splitting."""

    key = "tokenizer"

    def words(self, text: str) -> list[tuple[int, int]]:
        return []


def make_segmenter(name: SegmenterName, words: Collection[str] = ()) -> Segmenter:
    """The segmenter of that name, with the words of ``data.lexicon``.

    Raises:
        ConfigError: a package it needs is not installed, or it needs words and has none.
    """
    if name == "lexicon":
        if not words:
            raise ConfigError("data.segmenter is lexicon, and there are no words", hint="Name a file in data.lexicon.")
        return LongestMatch(words)
    if name == "jieba":
        return Jieba(words)
    return TokenizersOwn() if name == "tokenizer" else Characters()


def _spans(start: int, words: Iterable[str]) -> Iterator[tuple[int, int]]:
    return pairwise(accumulate((len(word) for word in words if word), initial=start))


def _digest(words: Collection[str]) -> str:
    joined = "\n".join(sorted(words)).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(joined, digest_size=8).hexdigest()
