"""How the words of a row lie in its examples: windows between words, each word read where it has most context.

Shape letters: L tokens of one example, W words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunecore.data.pieces import PieceEncoder, WordPieces
from tunecore.data.windows import Window, cut_windows, most_context
from tunecore.types import IntArray


class PlacedWord(NamedTuple):
    """A word that is read from an example: its number, the place of its first piece there, and how many it has."""

    word: int
    place: int
    num_pieces: int


class WordLayout(NamedTuple):
    """The words of a row in windows."""

    pieces: WordPieces
    sizes: IntArray
    """Pieces of each word that are used: int64 [W]."""
    windows: list[Window]
    window: IntArray
    """The window each word is read from: int64 [W]."""
    offset: int
    """Tokens of an example before its first word."""

    def ids(self, number: int) -> IntArray:
        """The pieces of the words of a window."""
        first, stop = self.windows[number]
        ends = self.pieces.ends
        ids = self.pieces.ids[ends[first] : ends[stop]]
        if len(ids) == self.sizes[first:stop].sum():
            return ids
        place = np.arange(len(ids)) - np.repeat(ends[first:stop] - ends[first], np.diff(ends[first : stop + 1]))
        return ids[place < np.repeat(self.sizes[first:stop], np.diff(ends[first : stop + 1]))]

    def read_from(self, number: int) -> Iterator[PlacedWord]:
        """The words that are read from a window, in order."""
        first, stop = self.windows[number]
        sizes = self.sizes[first:stop]
        places = self.offset + np.cumsum(sizes) - sizes
        for word, place, size in zip(range(first, stop), places.tolist(), sizes.tolist(), strict=True):
            if self.window[word] == number:
                yield PlacedWord(word, place, size)


class WordWindows:
    """Cuts rows of words into windows.

    Args:
        tokenizer: a fast tokenizer of transformers.
        stride: most pieces that two windows share; never more than half a window.
    """

    def __init__(self, tokenizer: Any, stride: int) -> None:
        self.tokenizer, self.stride = tokenizer, stride
        self.encoder = PieceEncoder(tokenizer)

    def layout(self, words: Sequence[str], max_length: int) -> WordLayout:
        """The windows of a row for examples of at most ``max_length`` tokens, special ones included."""
        template = self.encoder.single
        room = max_length - template.num_special
        pieces = self.encoder.words(words)
        sizes_W: IntArray = np.minimum(pieces.sizes, room)  # of a longer word (an address) the beginning is read
        windows = cut_windows(sizes_W, room, min(self.stride, room // 2))
        return WordLayout(pieces, sizes_W, windows, most_context(sizes_W, windows), len(template.before))


def at_words(outputs: Sequence[NDArray[np.float64]], layout: WordLayout) -> NDArray[np.float64]:
    """What was put out at the first piece of every word: [L, C] of each window -> [W, C]."""
    found_WC = np.empty((len(layout.window), outputs[0].shape[1]))
    for number, outputs_LC in enumerate(outputs):
        for word, place, _ in layout.read_from(number):
            found_WC[word] = outputs_LC[place]
    return found_WC
