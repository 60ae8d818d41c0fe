"""Rows of a corpus: chunks of documents or of whole sentences, in a table built once and vectorised.

A row is a stretch of tokens of one span; its length leaves room for the special tokens. With the units "sentence"
and "pair" rows are whole sentences, as many as fit; a sentence longer than a row (than half a row for "pair", so that
two segments always fit) is cut. With "text_pair" a row is a document of two texts, each cut at its end where both
together are too long, the longer one first.
Shape letters: R rows, S spans, L tokens of one row.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunecore.data.corpus_file import CorpusFile
from tunecore.data.cut_rows import CutRows
from tunecore.data.special_layout import SpecialLayout, Template
from tunecore.data.text_pairs import SECOND_STARTS, split_texts
from tunecore.errors import ConfigError, DataError, unknown_name
from tunecore.types import Chunk, Example, IntArray

Unit = Literal["document", "sentence", "pair", "text_pair"]
_UNITS = ("document", "sentence", "pair", "text_pair")
_OPENED = ("word_starts", "sentence_starts")
"""Columns in which the first token of a row counts, wherever the row was cut."""


class Spans(NamedTuple):
    """Stretches of documents: int64 [S] each, ascending and disjoint; start and stop count tokens of the file."""

    document: IntArray
    start: IntArray
    stop: IntArray

    @classmethod
    def of_documents(cls, offsets: IntArray) -> Spans:
        """Every document, whole."""
        return cls(np.arange(len(offsets) - 1, dtype=np.int64), offsets[:-1], offsets[1:])

    def take(self, which: NDArray[np.bool_] | IntArray) -> Spans:
        """The spans selected by a mask or by numbers."""
        return Spans(*(values[which] for values in self))


class CorpusRows:
    """The view of a corpus that objectives read; implements ``tunecore.types.CorpusView``.

    Rows are of at most ``row_length`` tokens, special ones included; None is ``max_length``, the longest example.

    Raises:
        ConfigError: ``max_length`` leaves no room for text, or the unit is unknown.
        DataError: the unit needs sentences and the corpus was made without ``sentence_starts``.
    """

    def __init__(
        self, file: CorpusFile, layout: SpecialLayout, spans: Spans, unit: Unit, max_length: int,
        row_length: int | None = None,
    ) -> None:
        if unit not in _UNITS:
            raise ConfigError(unknown_name("unit", unit, _UNITS))
        column = {"document": None, "text_pair": SECOND_STARTS}.get(unit, "sentence_starts")
        if column is not None and column not in file.columns:
            needs = "pairs of texts" if column == SECOND_STARTS else "sentences"
            raise DataError(
                f"corpus {file.path!r}: unit {unit!r} needs {needs}, and the corpus was made without {column}",
                hint="Name it in the objective's columns.",
            )
        two = unit in ("pair", "text_pair")
        template = layout.pair if two else layout.single
        budget = (max_length if row_length is None else row_length) - template.num_special
        if budget < (2 if two else 1):
            raise ConfigError(
                f"data.max_length is {max_length}; {template.num_special} special tokens leave no room for text"
            )
        self._file, self._layout = file, layout
        self.num_special = template.num_special
        self.unit, self.max_length = unit, max_length
        self.vocab_size, self.pad_id = layout.vocab_size, layout.pad_id
        self.cls_id, self.sep_id, self.mask_id = layout.cls_id, layout.sep_id, layout.mask_id
        self.bos_id, self.eos_id, self.sentinel_ids = layout.bos_id, layout.eos_id, layout.sentinel_ids
        self._cuts: IntArray = np.empty(0, dtype=np.int64)
        self._texts: _TextPairs | None = None
        if unit == "document":
            self._table = _chunks(spans, budget)
        elif unit == "text_pair":
            self._table, self._texts = _text_pairs(file, spans, budget)
        else:
            self._table, self._cuts = _sentence_rows(file, spans, budget, budget // 2 if unit == "pair" else budget)

    def __len__(self) -> int:
        return len(self._table.document)

    def cut_to(self, max_length: int, row_length: int) -> CutRows:
        """The same rows for examples of at most ``max_length`` tokens, each of at most ``row_length``.

        Raises:
            ConfigError: that leaves no room for text.
        """
        return CutRows(self, max_length, row_length)

    def __getitem__(self, row_id: int) -> Chunk:
        """Row ``row_id``: ids int64 [L]; the first token counts as the start of a word and of a sentence.

        Raises:
            IndexError: there is no such row.
        """
        if not 0 <= row_id < len(self):
            raise IndexError(f"row {row_id} of {len(self)}")
        document = int(self._table.document[row_id])
        start, stop = int(self._table.start[row_id]), int(self._table.stop[row_id])
        columns: dict[str, NDArray[Any]] = {}
        for name in self._file.columns:
            columns[name] = self._file.bits(name, start, stop)
            if name in _OPENED:
                columns[name][0] = True
            elif name == SECOND_STARTS:
                columns[name][0] = False
        if len(self._cuts):
            cuts = self._cuts[np.searchsorted(self._cuts, start) : np.searchsorted(self._cuts, stop)]
            columns["sentence_starts"][cuts - start] = True
        begin = start - int(self._file.offsets[document])
        ids = self._file.ids[start:stop].astype(np.int64)
        if self._texts is not None:
            kept = self._texts.kept(row_id, start, stop)
            ids, columns = ids[kept], {name: column[kept] for name, column in columns.items()}
        return Chunk(row_id, document, begin, ids, columns)

    def add_special(self, first: Chunk, second: Chunk | None = None) -> Example:
        """One or two chunks as the tokenizer lays them out.

        The columns are those of the chunks and ``special``; a special token counts as a word of its own. Segments
        are given for pairs, where the tokenizer has them. A whole row of unit "text_pair" is laid out as its two
        texts. A tokenizer without a template (GPT-2) gets its beginning- and end-of-text tokens only where the chunks
        begin and end a document, or are of a pair of texts.
        """
        if second is None and self._texts is not None and first.columns[SECOND_STARTS][1:].any():
            first, second = split_texts(first)
        parts, template = self._parts(first, second)
        special = np.concatenate([np.full(len(ids), chunk is None) for ids, chunk in parts])
        columns: dict[str, NDArray[Any]] = {"special": special}
        for name in first.columns:
            columns[name] = np.concatenate(
                [np.full(len(ids), name == "word_starts") if chunk is None else chunk.columns[name]
                 for ids, chunk in parts]
            )
        types = None
        if second is not None and self._layout.has_segments:
            types = np.repeat(np.asarray(template.segments, dtype=np.int64), [len(ids) for ids, _ in parts])
        return Example(
            row_id=first.row_id, input_ids=np.concatenate([ids for ids, _ in parts]), token_type_ids=types,
            columns=columns,
        )

    def _parts(self, first: Chunk, second: Chunk | None) -> tuple[list[tuple[IntArray, Chunk | None]], Template]:
        """Five parts (ids, chunk or None for special tokens), and the template they follow."""
        layout = self._layout
        template = layout.single if second is None else layout.pair
        before, after = template.before, template.after
        if layout.separates_documents and self._texts is None:
            last = first if second is None else second
            before = before if first.start == 0 else ()
            after = after if self._ends_document(last) else ()
        none = (np.empty(0, dtype=np.int64), None)
        return [
            (np.asarray(before, dtype=np.int64), None),
            (first.ids, first),
            (np.asarray(template.between, dtype=np.int64), None),
            none if second is None else (second.ids, second),
            (np.asarray(after, dtype=np.int64), None),
        ], template

    def _ends_document(self, chunk: Chunk) -> bool:
        offsets = self._file.offsets
        return chunk.start + len(chunk.ids) == int(offsets[chunk.document + 1] - offsets[chunk.document])


class _TextPairs(NamedTuple):
    """Of each row, int64 [R]: where its second text begins in the file, and how much of both texts is kept."""

    second: IntArray
    of_first: IntArray
    of_second: IntArray

    def kept(self, row: int, start: int, stop: int) -> NDArray[np.bool_]:
        """Which tokens of the row's document the row keeps: bool [stop - start]."""
        at = np.arange(start, stop)
        second = int(self.second[row])
        mask: NDArray[np.bool_] = np.where(
            at < second, at < start + self.of_first[row], at < second + self.of_second[row]
        )
        return mask


def _text_pairs(file: CorpusFile, spans: Spans, budget: int) -> tuple[Spans, _TextPairs]:
    """A row for each span of two texts, cut to ``budget`` tokens together; a span with one text only gives none."""
    marks = file.set_positions(SECOND_STARTS)
    owner = np.searchsorted(spans.start, marks, "right") - 1
    inside = (owner >= 0) & (marks > spans.start[owner]) & (marks < spans.stop[owner])
    table, second = spans.take(owner[inside]), marks[inside]
    first_length, second_length = second - table.start, table.stop - second
    of_first = np.minimum(first_length, np.maximum(budget - second_length, budget - budget // 2))
    return table, _TextPairs(second, of_first, np.minimum(second_length, budget - of_first))


def _chunks(spans: Spans, budget: int) -> Spans:
    """Consecutive chunks of ``budget`` tokens; the last of a span may be shorter."""
    counts = -(-(spans.stop - spans.start) // budget)
    owner = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = spans.start[owner] + number * budget
    return Spans(spans.document[owner], start, np.minimum(start + budget, spans.stop[owner]))


def _sentence_rows(file: CorpusFile, spans: Spans, budget: int, longest: int) -> tuple[Spans, IntArray]:
    """Rows of whole sentences, greedily filled to ``budget``; and where sentences over ``longest`` were cut."""
    starts = file.set_positions("sentence_starts")
    lo, hi = np.searchsorted(starts, spans.start, "right"), np.searchsorted(starts, spans.stop, "left")
    # The sentences of a span begin at the span's start and at every mark inside it.
    counts = hi - lo + 1
    owner = np.repeat(np.arange(len(counts)), counts)
    heads = np.cumsum(counts) - counts
    number = np.arange(len(owner)) - np.repeat(heads, counts)
    begin = np.where(number == 0, spans.start[owner], starts[lo[owner] + number - 1])
    end = np.append(begin[1:], 0)
    end[heads + counts - 1] = spans.stop
    pieces = _chunks(Spans(owner, begin, end), longest)
    cuts = np.setdiff1d(pieces.start, begin, assume_unique=True)
    return _fill(pieces, spans, budget), cuts


def _fill(pieces: Spans, spans: Spans, budget: int) -> Spans:
    """Join consecutive pieces of one span (``pieces.document`` is its number) while they fit into ``budget``."""
    fits = np.searchsorted(pieces.stop, pieces.start + budget, "right")
    own = np.searchsorted(pieces.document, pieces.document, "right")
    following = np.minimum(fits, own).tolist()
    firsts: list[int] = []
    at, count = 0, len(following)
    while at < count:
        firsts.append(at)
        at = following[at]
    first = np.asarray(firsts, dtype=np.int64)
    last = np.append(first[1:], count) - 1
    return Spans(spans.document[pieces.document[first]], pieces.start[first], pieces.stop[last])
