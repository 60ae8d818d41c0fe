"""Phrases in tokenised text: those of a list, and collocations that the text itself shows.

Collocations are found as in word2phrase (Mikolov et al. 2013, arXiv:1310.4546), with normalised pointwise mutual
information as the score (Bouma 2009): two neighbouring words that stand together at least ``min_count`` times and much
more often than chance are joined. Done twice, this gives phrases of up to four words.

Everything here works on blocks of tokens of fixed size, so memory stays flat; a phrase across the edge of a block is
not seen. Results depend on the tokens and options alone.

Shape letters: T tokens of a block, U units (words, later words and phrases) of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunecore.errors import ConfigError
from tunecore.types import IntArray

Bits = NDArray[np.bool_]
Keys = NDArray[np.uint64]

BLOCK = 1 << 20
"""Tokens that are looked at together."""
PASSES = 2
"""How often neighbours are joined: phrases have up to 2 ** PASSES words."""
LARGEST_TABLE = 1 << 24
"""Most pairs that are counted at once; beyond it the rarest are dropped, as word2phrase does."""


@dataclass(frozen=True, kw_only=True)
class PhraseOptions:
    """Where phrases come from."""

    phrases: str | None = None
    """File of phrases, one a line."""
    entities: str | None = None
    """File of names (people, places ...), one a line."""
    collocations: bool = True
    """Find phrases in the statistics of the text too."""
    min_count: int = 10
    """Times two words must stand side by side to be a phrase."""
    min_npmi: float = 0.4
    """Normalised pointwise mutual information they must have: 0 is chance, 1 is never apart."""

    def __post_init__(self) -> None:
        if self.min_count < 2:
            raise ConfigError(f"min_count of phrases is {self.min_count}; it must be at least 2")
        if not -1 < self.min_npmi <= 1:
            raise ConfigError(f"min_npmi of phrases is {self.min_npmi}; it must be above -1 and at most 1")


class Marks(NamedTuple):
    """Phrases of a block: where each starts, and which tokens are part of one; bool [T] each."""

    starts: Bits
    members: Bits

    @classmethod
    def of_spans(cls, count: int, first: IntArray, stop: IntArray) -> Marks:
        """Marks of ``count`` tokens with phrases [first, stop), ascending and disjoint."""
        starts = np.zeros(count, dtype=bool)
        starts[first] = True
        edges = np.zeros(count + 1, dtype=np.int64)
        edges[first] += 1
        edges[stop] -= 1
        return cls(starts, np.cumsum(edges[:-1]) > 0)


class Block(NamedTuple):
    """Tokens that are looked at together."""

    ids: IntArray
    """int64 [T]."""
    word_starts: Bits
    """bool [T]; also true where a document begins."""
    document_starts: Bits
    """bool [T]."""


class Lexicon:
    """Finds the entries of a list in token ids: whole words, the longest entry first, from left to right.

    Args:
        entries: each a sequence of token ids.
    """

    def __init__(self, entries: Iterable[Sequence[int]]) -> None:
        self._entries = frozenset(tuple(entry) for entry in entries if len(entry))
        lengths: dict[int, set[int]] = {}
        for entry in self._entries:
            lengths.setdefault(entry[0], set()).add(len(entry))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        self._first = np.array(sorted(lengths), dtype=np.int64)

    def find(self, block: Block) -> Marks:
        """The phrases of a block; none reaches into another document."""
        count = len(block.ids)
        ids = block.ids.tolist()
        word_ends = np.append(block.word_starts[1:], True)
        ends = np.append(np.flatnonzero(block.document_starts), count)
        candidates = np.flatnonzero(np.isin(block.ids, self._first) & block.word_starts)
        limits = ends[np.searchsorted(ends, candidates, side="right")]
        first: list[int] = []
        stop: list[int] = []
        for at, limit in zip(candidates.tolist(), limits.tolist(), strict=True):
            if stop and at < stop[-1]:
                continue
            for length in self._lengths[ids[at]]:
                end = at + length
                if end <= limit and word_ends[end - 1] and tuple(ids[at:end]) in self._entries:
                    first.append(at)
                    stop.append(end)
                    break
        return Marks.of_spans(count, np.array(first, dtype=np.int64), np.array(stop, dtype=np.int64))


class _Units(NamedTuple):
    """Words, or words and phrases, of a block."""

    first: IntArray
    """int64 [U]: the first token."""
    keys: Keys
    """uint64 [U]: names the tokens of the unit."""
    joins: Bits
    """bool [U]: whether it can be part of a phrase (punctuation cannot)."""
    opens: Bits
    """bool [U]: whether a document begins here."""
    words: IntArray
    """int64 [U]: how many words it has."""

    def pairs(self) -> tuple[Keys, Bits]:
        """Of each unit and the next, [U - 1]: the key of both together, and whether they may be joined."""
        keys = _mix(self.keys[:-1] * np.uint64(0x9E3779B97F4A7C15) + _mix(self.keys[1:]))
        return keys, self.joins[:-1] & self.joins[1:] & ~self.opens[1:]

    def joined(self, chosen: Keys) -> _Units:
        """Neighbours whose pair is in ``chosen`` (sorted) made one, from left to right."""
        keys, may = self.pairs()
        if len(chosen) == 0 or len(keys) == 0:
            return self
        at = np.minimum(np.searchsorted(chosen, keys), len(chosen) - 1)
        wanted = may & (chosen[at] == keys)
        # Of consecutive pairs every other one is taken, for each takes both of its units.
        run_start = wanted & ~np.append(False, wanted[:-1])
        number = np.arange(len(wanted)) - np.maximum.accumulate(np.where(run_start, np.arange(len(wanted)), 0))
        taken = wanted & (number % 2 == 0)
        left = np.append(taken, False)
        kept = ~np.append(False, taken)
        words = self.words + np.where(left, np.append(self.words[1:], 0), 0)
        new = np.where(left, np.append(keys, np.uint64(0)), self.keys)
        return _Units(self.first[kept], new[kept], self.joins[kept], self.opens[kept], words[kept])


class Collocations:
    """Finds neighbouring words that belong together by the statistics of a text.

    Args:
        blocks: makes the blocks of the text anew at each call.
        is_word: bool [V], by token id: whether it is (part of) a word; all else parts phrases.
        options: how often and how strongly words must stand together.
    """

    def __init__(self, blocks: Callable[[], Iterator[Block]], is_word: Bits, options: PhraseOptions) -> None:
        self.is_word = is_word
        self.chosen: list[Keys] = []
        for _ in range(PASSES):
            singles, pairs = _Counts(), _Counts()
            for block in blocks():
                units = self._units(block)
                keys, may = units.pairs()
                singles.add(units.keys[units.joins])
                pairs.add(keys[may])
            self.chosen.append(self._strong(blocks, singles, pairs, options))

    def _strong(
        self, blocks: Callable[[], Iterator[Block]], singles: _Counts, pairs: _Counts, options: PhraseOptions
    ) -> Keys:
        """Keys of the pairs that are frequent and strong enough, sorted. A pair's parts are read off the text again."""
        keys, counts = pairs.table()
        frequent = counts >= options.min_count
        keys, counts = keys[frequent], counts[frequent]
        total = float(singles.total)
        if len(keys) == 0:
            return keys
        left, right = np.zeros(len(keys), dtype=np.float64), np.zeros(len(keys), dtype=np.float64)
        for block in blocks():
            units = self._units(block)
            found, may = units.pairs()
            at = np.minimum(np.searchsorted(keys, found), len(keys) - 1)
            known = np.flatnonzero(may & (keys[at] == found))
            left[at[known]] = singles.of(units.keys[known])
            right[at[known]] = singles.of(units.keys[known + 1])
        together = counts / total
        npmi = np.log(together * total * total / (left * right)) / -np.log(np.minimum(together, 1 - 1e-12))
        return keys[npmi >= options.min_npmi]

    def _units(self, block: Block) -> _Units:
        first = np.flatnonzero(block.word_starts)
        place = np.arange(len(block.ids)) - np.repeat(first, np.diff(first, append=len(block.ids)))
        mixed = _mix((block.ids.astype(np.uint64) << np.uint64(16)) + place.astype(np.uint64) + np.uint64(1))
        units = _Units(
            first, np.add.reduceat(mixed, first), np.logical_or.reduceat(self.is_word[block.ids], first),
            block.document_starts[first], np.ones(len(first), dtype=np.int64),
        )  # fmt: skip
        for chosen in self.chosen:
            units = units.joined(chosen)
        return units

    def find(self, block: Block) -> Marks:
        """The phrases of a block."""
        units = self._units(block)
        stop = np.append(units.first[1:], len(block.ids))
        phrases = units.words > 1
        return Marks.of_spans(len(block.ids), units.first[phrases], stop[phrases])


class _Counts:
    """How often each key occurs. Beyond ``LARGEST_TABLE`` keys the rarest are dropped, rarer than ever more."""

    def __init__(self) -> None:
        self.total = 0
        self._keys: Keys = np.empty(0, dtype=np.uint64)
        self._counts: IntArray = np.empty(0, dtype=np.int64)
        self._waiting: list[tuple[Keys, IntArray]] = []
        self._floor = 1

    def add(self, keys: Keys) -> None:
        self.total += len(keys)
        found, counts = np.unique(keys, return_counts=True)
        self._waiting.append((found, counts.astype(np.int64)))
        if sum(len(k) for k, _ in self._waiting) > max(BLOCK, len(self._keys) // 2):
            self._merge()

    def table(self) -> tuple[Keys, IntArray]:
        """(keys, counts), by ascending key."""
        self._merge()
        return self._keys, self._counts

    def of(self, keys: Keys) -> IntArray:
        """The counts of keys, 1 where one was dropped."""
        known, counts = self.table()
        at = np.minimum(np.searchsorted(known, keys), max(len(known) - 1, 0))
        return np.where(known[at] == keys, counts[at], 1) if len(known) else np.ones(len(keys), dtype=np.int64)

    def _merge(self) -> None:
        if not self._waiting:
            return
        parts = [(self._keys, self._counts), *self._waiting]
        self._waiting = []
        keys, inverse = np.unique(np.concatenate([k for k, _ in parts]), return_inverse=True)
        counts = np.zeros(len(keys), dtype=np.int64)
        np.add.at(counts, inverse, np.concatenate([c for _, c in parts]))
        while len(keys) > LARGEST_TABLE:
            self._floor += 1
            kept = counts >= self._floor
            keys, counts = keys[kept], counts[kept]
        self._keys, self._counts = keys, counts


def _mix(x: Keys) -> Keys:
    """A 64-bit finaliser: every output bit depends on every input bit (Stafford's variant 13)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
