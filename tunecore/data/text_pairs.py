"""Rows of two texts: the mark that tells them apart, and how to part them. Shape letter: L tokens of a row."""

from __future__ import annotations

import numpy as np

from tunecore.types import Chunk

SECOND_STARTS = "second_starts"
"""The boundary column, bool [L], that marks the first token of the second text of a pair."""


def split_texts(chunk: Chunk) -> tuple[Chunk, Chunk]:
    """The two texts of a row of unit "text_pair"; the second keeps the mark on its first token."""
    cut = int(np.flatnonzero(chunk.columns[SECOND_STARTS])[0])
    first, second = (
        Chunk(
            chunk.row_id, chunk.document, chunk.start + part.start, chunk.ids[part],
            {name: column[part] for name, column in chunk.columns.items()},
        )
        for part in (slice(0, cut), slice(cut, len(chunk.ids)))
    )
    return first, second
