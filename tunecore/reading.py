"""What objectives and heads read: rows of sources, chunks of a corpus, streams of random draws, texts a model wrote.

Shape letter: L tokens of one example or chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tunecore.batch import Example, IntArray


class Record(NamedTuple):
    """One row of a source: its fields, and where it stands for error messages."""

    fields: Mapping[str, Any]
    file: str
    row: int


class Generated(NamedTuple):
    """What a model wrote for one prompt: the raw output of a head that generates."""

    text: str
    """The new tokens as text, special tokens left out."""
    ids: tuple[int, ...]
    """The new tokens up to the end token, which is left out."""


class Stream(Protocol):
    """Random draws that are a pure function of (seed, epoch, row id, purpose)."""

    def uniform(self, n: int) -> NDArray[np.float64]:
        """``n`` draws from [0, 1)."""
        ...

    def integers(self, low: int, high: int, n: int) -> IntArray:
        """``n`` draws from low, ..., high - 1."""
        ...

    def permutation(self, n: int) -> IntArray:
        """0, ..., n - 1 in random order."""
        ...

    def child(self, purpose: str) -> Stream:
        """An independent stream for a named purpose."""
        ...


class CorpusView(Protocol):
    """What an objective may read of the tokenised corpus.

    A row is a chunk of one document for unit "document", of whole sentences for "sentence" and "pair", two texts end
    to end for "text_pair" (column ``second_starts`` marks the second); its length leaves room for the special tokens.
    """

    vocab_size: int
    cls_id: int | None
    sep_id: int | None
    mask_id: int | None
    pad_id: int
    bos_id: int | None
    eos_id: int | None
    sentinel_ids: tuple[int, ...]
    """Ids of ``<extra_id_0>``, ``<extra_id_1>`` ... (T5); empty where the tokenizer has none."""
    max_length: int
    """Longest example in tokens, special tokens included; of two stacks, in each."""

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def __getitem__(self, row_id: int) -> Chunk:
        ...

    def add_special(self, first: Chunk, second: Chunk | None = None) -> Example:
        """Lay out one or two chunks as the family does ([CLS] a [SEP] b [SEP]); columns and segments included."""
        ...


class Chunk(NamedTuple):
    """A stretch of one document: ids [L], token-aligned columns [L], and where it comes from."""

    row_id: int
    document: int
    start: int
    ids: IntArray
    columns: Mapping[str, NDArray[Any]]
