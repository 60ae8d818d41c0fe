"""Rows of a corpus with their ends left out: the same rows under the same numbers, for examples of fewer tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tunecore.data.text_pairs import SECOND_STARTS
from tunecore.errors import ConfigError
from tunecore.types import Chunk, Example, IntArray

if TYPE_CHECKING:
    from tunecore.data.corpus_rows import CorpusRows


class CutRows:
    """A view of ``rows`` cut to ``row_length`` tokens, special ones included; implements ``tunecore.types.CorpusView``.

    Of whole sentences as many as fit are kept, where that leaves one (of unit "pair" two), else the tokens that fit. Of
    two texts the longer is cut first.

    Raises:
        ConfigError: ``max_length`` leaves no room for text.
    """

    def __init__(self, rows: CorpusRows, max_length: int, row_length: int) -> None:
        self._rows, self.max_length = rows, max_length
        self._room = row_length - rows.num_special
        if self._room < (2 if rows.unit in ("pair", "text_pair") else 1):
            raise ConfigError(
                f"data.max_length_start leaves sequences of {max_length} tokens; {rows.num_special} special ones leave "
                "no room for text in them"
            )
        self.vocab_size, self.pad_id, self.sentinel_ids = rows.vocab_size, rows.pad_id, rows.sentinel_ids
        self.cls_id, self.sep_id, self.mask_id = rows.cls_id, rows.sep_id, rows.mask_id
        self.bos_id, self.eos_id = rows.bos_id, rows.eos_id

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row_id: int) -> Chunk:
        """Row ``row_id``, cut where it is too long."""
        chunk = self._rows[row_id]
        if len(chunk.ids) <= self._room:
            return chunk
        kept = self._kept(chunk)
        columns = {name: column[kept] for name, column in chunk.columns.items()}
        return chunk._replace(ids=chunk.ids[kept], columns=columns)

    def _kept(self, chunk: Chunk) -> IntArray:
        """Positions of the tokens that stay."""
        room, length = self._room, len(chunk.ids)
        if self._rows.unit == "text_pair":
            first = int(np.flatnonzero(chunk.columns[SECOND_STARTS])[0])
            of_first = min(first, max(room - (length - first), room - room // 2))
            return np.concatenate([np.arange(of_first), np.arange(first, min(length, first + room - of_first))])
        if self._rows.unit != "document":
            ends = np.flatnonzero(chunk.columns["sentence_starts"][1 : room + 1]) + 1
            if len(ends) >= (2 if self._rows.unit == "pair" else 1):
                room = int(ends[-1])
        return np.arange(room)

    def add_special(self, first: Chunk, second: Chunk | None = None) -> Example:
        """As the rows do."""
        return self._rows.add_special(first, second)
