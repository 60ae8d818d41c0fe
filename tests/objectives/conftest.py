"""A corpus of plain numbers whose every word and sentence is known, laid out as BERT does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from tunecore.types import Chunk, Example

CLS, SEP, MASK, PAD, VOCAB = 2, 3, 4, 0, 100
Row = tuple[int, Sequence[Sequence[Sequence[int]]]]  # document, sentences of words of ids


class NumberCorpus:
    vocab_size, cls_id, sep_id, mask_id, pad_id = VOCAB, CLS, SEP, MASK, PAD
    bos_id = eos_id = None

    def __init__(self, rows: Sequence[Row], max_length: int = 64) -> None:
        self.max_length = max_length
        self.rows = []
        for row_id, (document, sentences) in enumerate(rows):
            ids, words, starts = [], [], []
            for sentence in sentences:
                for w, word in enumerate(sentence):
                    for p, piece in enumerate(word):
                        ids.append(piece)
                        words.append(p == 0)
                        starts.append(w == 0 and p == 0)
            columns = {"word_starts": np.asarray(words, dtype=bool), "sentence_starts": np.asarray(starts, dtype=bool)}
            self.rows.append(Chunk(row_id, document, 0, np.asarray(ids, dtype=np.int64), columns))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row_id: int) -> Chunk:
        return self.rows[row_id]

    def add_special(self, first: Chunk, second: Chunk | None = None) -> Example:
        parts = [[CLS], first.ids, [SEP]] + ([second.ids, [SEP]] if second is not None else [])
        chunks = [None, first, None] + ([second, None] if second is not None else [])
        ids = np.concatenate([np.asarray(p, dtype=np.int64) for p in parts])
        special = np.concatenate([np.full(len(p), c is None) for p, c in zip(parts, chunks, strict=True)])
        columns = {"special": special}
        for name in first.columns:
            columns[name] = np.concatenate(
                [np.zeros(1, dtype=bool) if c is None else c.columns[name] for c in chunks]
            )
        segments = np.zeros(len(ids), dtype=np.int64)
        segments[len(first.ids) + 2 :] = 1
        return Example(row_id=first.row_id, input_ids=ids, token_type_ids=segments, columns=columns)


@pytest.fixture(scope="session")
def make_corpus() -> Callable[..., NumberCorpus]:
    return NumberCorpus
