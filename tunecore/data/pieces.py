"""Texts in pieces of a tokenizer, with their places in the text, and the examples that are laid out of them.

Heads that answer in words or characters need both: what the model reads, and where in the text it came from.
Shape letters: P pieces of a text, W words, L tokens of one example.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tunecore.data.special_layout import Template, probe_template
from tunecore.data.tokenizer import text_backend
from tunecore.types import Example, IntArray, Targets

_SURROGATES = re.compile("[\ud800-\udfff]")


class Pieces(NamedTuple):
    """Pieces of a text: ``ids`` int64 [P], and the characters ``starts`` to ``stops`` (one past) of each, int64 [P]."""

    ids: IntArray
    starts: IntArray
    stops: IntArray


class WordPieces(NamedTuple):
    """Pieces of words: ``ids`` int64 [P], those of word w at ``ends[w]`` to ``ends[w + 1]`` (int64 [W + 1])."""

    ids: IntArray
    ends: IntArray

    @property
    def sizes(self) -> IntArray:
        """Pieces of each word, 1 at least: int64 [W]."""
        sizes_W: IntArray = np.diff(self.ends)
        return sizes_W


class PieceEncoder:
    """Cuts texts into pieces and lays them out as the tokenizer's own template does.

    Never cut, never padded; "[SEP]" written in a text is text.

    Args:
        tokenizer: a fast tokenizer of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.single, self.pair = probe_template(tokenizer, False), probe_template(tokenizer, True)
        self._backend = text_backend(tokenizer)
        self._has_segments = "token_type_ids" in tokenizer.model_input_names and any(self.pair.segments)
        known = (tokenizer.unk_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        self._filler = next((int(i) for i in known if i is not None), 0)

    def pieces(self, text: str) -> Pieces:
        """The pieces of a text."""
        encoded = self._backend.encode(_SURROGATES.sub("\ufffd", text), add_special_tokens=False)
        places: IntArray = np.asarray(encoded.offsets, dtype=np.int64).reshape(-1, 2)
        return Pieces(np.asarray(encoded.ids, dtype=np.int64), places[:, 0], places[:, 1])

    def words(self, words: Sequence[str]) -> WordPieces:
        """The pieces of words, as they stand in a text with single blanks between them.

        A piece belongs to the word that its last character is of, or that follows it. A word that the tokenizer drops
        whole (control characters) becomes one unknown piece, so that each has one at least.
        """
        if not words:
            return WordPieces(np.empty(0, np.int64), np.zeros(1, np.int64))
        pieces = self.pieces(" ".join(words))
        stops_W = np.cumsum([len(word) + 1 for word in words]) - 1
        # The words that end before the piece does: the blank between two words counts with the second.
        word_P = np.minimum(np.searchsorted(stops_W, pieces.stops), len(words) - 1)
        word_P = np.maximum.accumulate(word_P)
        sizes_W = np.bincount(word_P, minlength=len(words))
        empty = np.flatnonzero(sizes_W == 0)
        ids = np.insert(pieces.ids, np.searchsorted(word_P, empty), self._filler)
        ends = np.concatenate(([0], np.cumsum(np.maximum(sizes_W, 1))))
        return WordPieces(ids, ends)

    def example(
        self, row_id: int, first: IntArray, second: IntArray | None = None,
        targets: Mapping[str, Targets] | None = None,
    ) -> Example:
        """One text or two among the tokenizer's special tokens; one filler where that makes nothing at all."""
        template = self.single if second is None else self.pair
        parts = (
            np.asarray(template.before, np.int64), first, np.asarray(template.between, np.int64),
            np.empty(0, np.int64) if second is None else second, np.asarray(template.after, np.int64),
        )
        ids = np.concatenate(parts)
        if not len(ids):
            return Example(row_id=row_id, input_ids=np.asarray([self._filler], np.int64))
        types = np.repeat(np.asarray(template.segments, np.int64), [len(part) for part in parts])
        has_types = self._has_segments and bool(types.any())
        return Example(
            row_id=row_id, input_ids=ids, token_type_ids=types if has_types else None, targets=dict(targets or {})
        )


def offset_of_second(template: Template, first: int) -> int:
    """Where the second text begins in an example whose first has so many pieces."""
    return len(template.before) + first + len(template.between)
