"""Row id -> examples: what the loader asks for, in pretraining and in fine-tuning. Pure functions of their arguments.

Shape letter: L tokens of one example.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tunecore.data.corpus_rows import Unit
from tunecore.data.lengths import LengthWarmup
from tunecore.data.streams import PhiloxStream
from tunecore.errors import ConfigError, DataError
from tunecore.types import CorpusView, Example, Head, IntArray, Objective, Progress, Record, Targets

UNITS: tuple[Unit, ...] = ("document", "sentence", "pair", "text_pair")
"""From the least to the most structured."""
EVALUATION_EPOCH = -1
"""Held-out rows are always corrupted as in this epoch, so that two evaluations see the same masks."""
_log = logging.getLogger(__name__)
_AT_THE_END = Progress(step=1, total_steps=1, epoch=1.0, total_epochs=1.0)


class RowSource(Protocol):
    """Rows by number. Optional: ``group_sizes``, view -> how many rows of a step form one group (1 where left out)."""

    views: tuple[str, ...]
    """The kinds of forward its examples are for; each gets batches of its own."""

    def __len__(self) -> int: ...

    def examples(self, row_id: int, epoch: int, progress: Progress, view: str | None = None) -> list[Example]:
        """The examples of one row for one view (None: the first); each carries ``row_id``.

        Raises:
            DataError: an example is empty or longer than the model's maximum; the row is named.
        """
        ...


def group_size(rows: RowSource, view: str) -> int:
    """How many rows form one group in a view; 1 where rows stand alone."""
    return int(getattr(rows, "group_sizes", {}).get(view, 1))


def whole_groups(row_ids: IntArray, size: int, rank: int, world_size: int) -> IntArray:
    """The rows of one rank: every ``world_size``-th group of ``size`` consecutive ones; the last may be short."""
    return row_ids[np.arange(len(row_ids)) // size % world_size == rank]


def examples_of(
    rows: RowSource, row_ids: Sequence[int], epoch: int, progress: Progress, view: str
) -> list[Example]:
    """The examples of several rows in their order, each with its group where the view has groups."""
    size = group_size(rows, view)
    made = [(place // size, e) for place, row in enumerate(row_ids) for e in rows.examples(row, epoch, progress, view)]
    return [example if size == 1 else replace(example, group=group) for group, example in made]


class PretrainRows:
    """Chunks of a corpus, assembled and corrupted by objectives.

    Per view one objective assembles (the most structured unit; the first of the list among equals), then each of
    the view corrupts in list order. Draws depend on (seed, epoch, row id, objective) alone. With ``evaluation`` the
    epoch is constant, and rates that move over a run stand where they end. With ``lengths`` the rows of a step are cut
    to what it allows.
    """

    def __init__(
        self,
        corpus: CorpusView,
        objectives: Sequence[Objective],
        seed: int,
        evaluation: bool = False,
        lengths: LengthWarmup | None = None,
    ) -> None:
        if not objectives:
            raise ConfigError("pretraining needs at least one objective")
        self.corpus, self.seed, self.evaluation = corpus, seed, evaluation
        self._all, self._lengths = objectives, None if evaluation else lengths
        self._cut: dict[int, CorpusView] = {}
        if self._lengths is not None:
            self._cut_to(self._lengths.start)  # a length without room for text is said now
        self.views: tuple[str, ...] = tuple(dict.fromkeys(objective.view for objective in objectives))
        self._objectives = {view: [o for o in objectives if o.view == view] for view in self.views}
        self._assemblers = {view: max(found, key=_structure) for view, found in self._objectives.items()}
        self.group_sizes = {
            view: max(getattr(objective, "group_size", 1) for objective in found)
            for view, found in self._objectives.items()
        }

    def __len__(self) -> int:
        return len(self.corpus)

    def examples(self, row_id: int, epoch: int, progress: Progress, view: str | None = None) -> list[Example]:
        view = self.views[0] if view is None else view
        if self.evaluation:
            epoch, progress = EVALUATION_EPOCH, _AT_THE_END
        corpus = self.corpus if self._lengths is None else self._cut_to(self._lengths.at(progress.step))
        stream = PhiloxStream(self.seed, epoch, row_id, purpose=view)
        assembler = self._assemblers[view]
        examples = as_list(assembler.assemble(corpus, row_id, stream.child(f"assemble {assembler.name}")))
        for objective in self._objectives[view]:
            draws = stream.child(objective.name)
            examples = [objective.corrupt(example, corpus, draws, progress) for example in examples]
        for example in examples:
            _check(example, corpus.max_length, f"row {row_id} of the corpus (assembled by {assembler.name!r})")
        return examples

    def _cut_to(self, length: int) -> CorpusView:
        """The corpus with the end of rows left out whose examples would be longer; made once a length."""
        if length >= self.corpus.max_length:
            return self.corpus
        if length not in self._cut:
            self._cut[length] = self.corpus.cut_to(length, row_length(self._all, length))  # type: ignore[attr-defined]
        return self._cut[length]


def row_length(objectives: Sequence[Objective], length: int) -> int:
    """Tokens of a row, special ones included, whose examples have at most ``length`` with every objective."""
    return min(getattr(objective, "row_length", _same)(length) for objective in objectives)


def _same(length: int) -> int:
    """A row's length where an objective keeps it."""
    return length


def as_list(assembled: Example | Sequence[Example]) -> list[Example]:
    """What ``Objective.assemble`` returns, one example or several, as a list."""
    return [assembled] if isinstance(assembled, Example) else list(assembled)


def _structure(objective: Objective) -> int:
    if objective.unit not in UNITS:
        raise ConfigError(f"objective {objective.name!r}: unit {objective.unit!r} is none of {', '.join(UNITS)}")
    return UNITS.index(objective.unit)


def most_structured_unit(objectives: Sequence[Objective]) -> Unit:
    """The unit of the rows these objectives share.

    Raises:
        ConfigError: an objective's unit is unknown.
    """
    return UNITS[max(_structure(objective) for objective in objectives)]


def _check(example: Example, max_length: int, where: str) -> None:
    decoder = example.decoder_input_ids
    for what, length in (("example", len(example)), ("decoder's row", 1 if decoder is None else len(decoder))):
        if not 0 < length <= max_length:
            raise DataError(
                f"{where}: the {what} has {length} tokens; it must have 1 to {max_length}",
                hint="Lower data.max_length, or check the objective or head that made it." if length else None,
            )


def _nothing() -> str | None:
    return None


class _Stored(NamedTuple):
    """Where one tokenised example lies in the flat arrays, and what is kept of it as it is."""

    row_id: int
    start: int
    stop: int
    has_types: bool
    positions: IntArray | None
    decoder_ids: NDArray[np.uint32] | None
    prefix_len: int | None
    part: int
    group: int
    targets: Mapping[str, Targets]
    columns: Mapping[str, NDArray[Any]]


class TaskRows:
    """Labelled records, tokenised once by a head and kept compactly (4 bytes a token and one for its segment).

    Args:
        records: the rows; a row's id is its place in the list.
        head: makes the examples of a row.
        tokenizer: handed to the head.
        max_length: longest example.
        labelled: False where rows have no label (prediction).
        keep_records: keep the records too, for metrics over whole rows.
        seed: of rows to train on: fixes the draws of a head that trains on some of a row's examples only
            (``training_examples``); None gives them all.

    Raises:
        DataError: a row cannot be used; its file and row are named.
    """

    def __init__(
        self, records: Sequence[Record], head: Head, tokenizer: Any, max_length: int, labelled: bool = True,
        keep_records: bool = False, seed: int | None = None,
    ) -> None:
        if not records:
            raise DataError("there are no rows to work on")
        self.records: tuple[Record, ...] = tuple(records) if keep_records else ()
        self._seed = seed
        self._choose = None if seed is None else getattr(head, "training_examples", None)
        self.views: tuple[str, ...] = (getattr(head, "view", "encoder"),)
        self.group_sizes = dict.fromkeys(self.views, int(getattr(head, "group_size", 1)))
        ids: list[NDArray[np.uint32]] = []
        types: list[NDArray[np.uint8]] = []
        self._rows: list[list[_Stored]] = []
        start = 0
        for row_id, record in enumerate(records):
            stored = []
            made = head.examples(record, row_id, tokenizer, max_length, labelled=labelled)
            for part, example in enumerate(made):
                _check(example, max_length, f"{record.file}:{record.row}")
                stop = start + len(example)
                segments = example.token_type_ids
                ids.append(example.input_ids.astype(np.uint32))
                types.append(np.zeros(len(example), np.uint8) if segments is None else segments.astype(np.uint8))
                stored.append(
                    _Stored(
                        row_id, start, stop, segments is not None, example.position_ids,
                        None if example.decoder_input_ids is None else example.decoder_input_ids.astype(np.uint32),
                        example.prefix_len, part, example.group, example.targets, example.columns,
                    )
                )
                start = stop
            self._rows.append(stored)
        self._ids = np.concatenate(ids) if ids else np.empty(0, np.uint32)
        self._types = np.concatenate(types) if types else np.empty(0, np.uint8)
        if (notes := getattr(head, "row_notes", _nothing)()) is not None:
            _log.warning("%s: %s", head.name, notes)

    def __len__(self) -> int:
        return len(self._rows)

    def num_parts(self, row_id: int) -> int:
        """How many examples a row has."""
        return len(self._rows[row_id])

    def examples(self, row_id: int, epoch: int, progress: Progress, view: str | None = None) -> list[Example]:
        made = [
            Example(
                row_id=stored.row_id,
                input_ids=self._ids[stored.start : stored.stop].astype(np.int64),
                token_type_ids=self._segments(stored),
                position_ids=stored.positions,
                decoder_input_ids=None if stored.decoder_ids is None else stored.decoder_ids.astype(np.int64),
                prefix_len=stored.prefix_len,
                targets=stored.targets,
                columns=stored.columns,
                part=stored.part,
                group=stored.group,
            )
            for stored in self._rows[row_id]
        ]
        if self._choose is None or self._seed is None:
            return made
        return list(self._choose(made, PhiloxStream(self._seed, epoch, row_id, purpose="training examples")))

    def _segments(self, stored: _Stored) -> IntArray | None:
        return self._types[stored.start : stored.stop].astype(np.int64) if stored.has_types else None
