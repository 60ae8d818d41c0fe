"""Texts -> token ids and boundary columns, a megabyte of text at a time, in the threads of ``tokenizers``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tunecore.data.corpus_file import CorpusWriter
from tunecore.data.segmenters import Segmenter
from tunecore.data.sentences import split_long, split_sentences
from tunecore.data.tokenizer import text_backend
from tunecore.types import IntArray

_PIECE_CHARS = 10_000
_BATCH_CHARS = 1_000_000


class _Piece(NamedTuple):
    """Text that is encoded at once."""

    text: str
    starts_document: bool
    starts_sentence: bool
    starts_second: bool
    """Whether it begins the second text of a pair."""


def _pieces(documents: Iterable[str | tuple[str, str]], sentences: bool) -> Iterator[_Piece]:
    """Cut documents into pieces short enough for flat memory, and at sentences where their starts are wanted."""
    for document in documents:
        for part, text in enumerate((document,) if isinstance(document, str) else document):
            first = True
            for sentence in split_sentences(text) if sentences else (text,):
                for number, piece in enumerate(split_long(sentence, _PIECE_CHARS)):
                    yield _Piece(piece, first and part == 0, number == 0, first and part == 1)
                    first = False


def _batches(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    held: list[_Piece] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece.text)
        if size >= _BATCH_CHARS:
            yield held
            held, size = [], 0
    if held:
        yield held


def encode_documents(
    texts: Iterable[str | tuple[str, str]], tokenizer: PreTrainedTokenizerFast, columns: tuple[str, ...],
    writer: CorpusWriter, segmenter: Segmenter,
) -> int:
    """Encode every text into ``writer``, without special tokens; return how many had no token.

    Args:
        texts: documents, or pairs of texts, each of which is one document, its texts end to end; long ones are cut
            before a line end or a space, so that memory stays flat.
        tokenizer: "[MASK]" written in a text is text to it.
        columns: boundary columns to compute: ``word_starts``, ``sentence_starts``, ``second_starts`` (the first token
            of the second text of a pair).
        writer: takes the tokens.
        segmenter: says where words begin beside the tokenizer's own splitting.
    """
    backend = text_backend(tokenizer)
    empty = documents_begun = 0
    for batch in _batches(_pieces(texts, "sentence_starts" in columns)):
        ids, bits = _encode(backend, [piece.text for piece in batch], segmenter if "word_starts" in columns else None)
        lengths = np.fromiter((len(i) for i in ids), dtype=np.int64, count=len(ids))
        flat = np.fromiter(chain.from_iterable(ids), dtype=writer.dtype, count=int(lengths.sum()))
        starts = np.concatenate(([0], np.cumsum(lengths)))
        marks = {} if bits is None else {"word_starts": bits}
        if "sentence_starts" in columns:
            marks["sentence_starts"] = _piece_bits([p.starts_sentence for p in batch], lengths, starts)
        if "second_starts" in columns:
            marks["second_starts"] = _piece_bits([p.starts_second for p in batch], lengths, starts)
        begins = [i for i, piece in enumerate(batch) if piece.starts_document]
        edges = [0, *(int(starts[i]) for i in begins), int(starts[-1])]
        for part in range(len(edges) - 1):
            if part > 0:
                if documents_begun > 0:
                    empty += not writer.end_document()
                documents_begun += 1
            lo, hi = edges[part], edges[part + 1]
            if hi > lo:
                writer.append(flat[lo:hi], {name: mark[lo:hi] for name, mark in marks.items()})
    if documents_begun > 0:
        empty += not writer.end_document()
    return empty


def _piece_bits(
    wanted: Sequence[bool], lengths: NDArray[np.int64], starts: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """A bit a token: the first one of each wanted piece that has any."""
    bits = np.zeros(int(starts[-1]), dtype=bool)
    bits[starts[:-1][np.asarray(wanted, dtype=bool) & (lengths > 0)]] = True
    return bits


def _encode(
    backend: Tokenizer, texts: list[str], segmenter: Segmenter | None
) -> tuple[list[list[int]], NDArray[np.bool_] | None]:
    """Ids of each text, and whether each token begins a word: of the tokenizer's own splitting, or of the segmenter."""
    if segmenter is None:
        return [e.ids for e in backend.encode_batch_fast(texts, add_special_tokens=False)], None
    ids, parts = [], []
    for text, encoding in zip(texts, backend.encode_batch(texts, add_special_tokens=False), strict=True):
        ids.append(encoding.ids)
        numbers = np.array([-1 if w is None else w for w in encoding.word_ids], dtype=np.int64)
        starts = np.diff(numbers, prepend=-2) != 0
        if words := segmenter.words(text):
            offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
            starts = _with_words(starts, offsets, np.array(words, dtype=np.int64))
        parts.append(starts)
    return ids, np.concatenate(parts) if parts else np.empty(0, dtype=bool)


def _with_words(starts: NDArray[np.bool_], offsets: IntArray, words: IntArray) -> NDArray[np.bool_]:
    """Word starts [L] of one text where ``words`` [W, 2] part its stretches without spaces; ``offsets`` are [L, 2].

    Inside such a stretch a token begins a word where one of ``words`` begins, and nowhere else; right after it always.
    """
    at = offsets[:, 0]
    # A byte-level piece may begin inside a character that the piece before it has begun.
    whole = np.append(True, at[1:] >= offsets[:-1, 1])
    word = np.searchsorted(words[:, 0], at, side="right") - 1
    inside = (word >= 0) & (at < words[word, 1])
    return np.where(inside, (at == words[word, 0]) & whole, starts | (np.isin(at, words[:, 1]) & whole))
