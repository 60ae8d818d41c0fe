"""Examples -> micro-batches: sequences laid end to end, never padded between. A pure function of its arguments.

Shape letters: T tokens in the batch, B sequences, N targets, L tokens of one example.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from tunecore.errors import DataError
from tunecore.types import BatchTargets, Example, IntArray, PackedBatch, PackedLayout

ROUND_TO = 8
"""T is a multiple of this, so that few GEMM shapes are met (a new one costs a code generation)."""
FILLER_ROW = -1


def _units(examples: Iterable[Example]) -> list[list[Example]]:
    """What must stay together, in order of first appearance: a group, or a single example."""
    units: list[list[Example]] = []
    groups: dict[int, list[Example]] = {}
    for example in examples:
        if example.group >= 0 and example.group in groups:
            groups[example.group].append(example)
            continue
        units.append([example])
        if example.group >= 0:
            groups[example.group] = units[-1]
    return units


def _first_fit(units: Sequence[list[Example]], capacity: int) -> list[list[Example]]:
    """Each unit goes to the first bin with room for it; one larger than a bin gets a bin of its own."""
    bins: list[list[Example]] = []
    room: list[int] = []
    for unit in units:
        size = sum(example.num_tokens for example in unit)
        place = next((i for i, free in enumerate(room) if free >= size), None)
        if place is None:
            bins.append(list(unit))
            room.append(capacity - size)
        else:
            bins[place].extend(unit)
            room[place] -= size
    return bins


def pack(
    examples: Sequence[Example], *, max_tokens: int, position_offset: int, pad_id: int, min_micro_batches: int = 1,
    view: str = "encoder",
) -> list[PackedBatch]:
    """Pack examples, in order and first fit, into micro-batches of at most ``max_tokens`` tokens, fillers included.

    No row of a batch is smaller than ``ROUND_TO`` tokens. Groups are never split; an example or group longer than
    ``max_tokens`` makes a batch of its own. With ``min_micro_batches`` the examples are first parted evenly into that
    many (or as many as there are). No examples make no batch. Examples with decoder ids make two rows, the encoder's
    and the decoder's; their tokens are counted together.

    Raises:
        DataError: an example is empty, only some have decoder ids or a prefix, or one loss has targets of two levels.
    """
    _check(examples)
    units = _units(examples)
    parts = min(min_micro_batches, len(units))
    capacity = max(max_tokens // ROUND_TO * ROUND_TO, ROUND_TO)
    if examples and examples[0].decoder_input_ids is not None:
        capacity = max(capacity - ROUND_TO, ROUND_TO)  # two rows are rounded up, by less than 2 * ROUND_TO together
    edges = [round(i * len(units) / parts) for i in range(parts + 1)] if parts else [0]
    bins = [b for lo, hi in pairwise(edges) for b in _first_fit(units[lo:hi], capacity)]
    return [_lay_out(b, position_offset, pad_id, view) for b in bins]


def _check(examples: Sequence[Example]) -> None:
    for example in examples:
        decoder = example.decoder_input_ids
        if len(example) == 0 or (decoder is not None and len(decoder) == 0):
            raise DataError(f"row {example.row_id}: the example has no tokens")
        if (decoder is None) != (examples[0].decoder_input_ids is None):
            raise DataError(
                f"rows {examples[0].row_id} and {example.row_id}: one has decoder_input_ids, the other has none",
                hint="All examples of a view are for one kind of model.",
            )


class _Stack(NamedTuple):
    """The row of one stack: sequences end to end, the filler last."""

    ids: torch.Tensor
    positions: torch.Tensor
    cu_seqlens: IntArray
    max_seqlen: int

    @classmethod
    def of(cls, ids: Sequence[IntArray], filled: bool, position_offset: int, pad_id: int) -> _Stack:
        """Lay ``ids`` out; with ``filled`` a filler follows, of no tokens where none are missing."""
        filler = -sum(map(len, ids)) % ROUND_TO
        ids = [*ids, np.full(filler, pad_id, dtype=np.int64)] if filled else ids
        lengths = [len(sequence) for sequence in ids]
        cu_seqlens = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=cu_seqlens[1:])
        positions = np.arange(cu_seqlens[-1], dtype=np.int64) - np.repeat(cu_seqlens[:-1], lengths) + position_offset
        return cls(_row(np.concatenate(ids)), _row(positions), cu_seqlens, max(lengths))


def _lay_out(examples: Sequence[Example], position_offset: int, pad_id: int, view: str) -> PackedBatch:
    rows = [[example.input_ids for example in examples]]
    decoder_ids = [e.decoder_input_ids for e in examples if e.decoder_input_ids is not None]
    rows += [decoder_ids] if decoder_ids else []
    filled = any(sum(map(len, row)) % ROUND_TO for row in rows)
    stacks = [_Stack.of(row, filled, position_offset, pad_id) for row in rows]
    encoder, read = stacks[0], stacks[-1]  # hidden states are those of the last stack
    decoder = read if decoder_ids else None
    row_ids = [example.row_id for example in examples] + [FILLER_ROW] * filled
    dropout_ids = [_dropout_id(example) for example in examples] + [FILLER_ROW] * filled
    _restart_positions(encoder, examples, position_offset)
    return PackedBatch(
        input_ids=encoder.ids,
        position_ids=encoder.positions,
        token_type_ids=_token_types(examples, encoder.ids.shape[1], encoder.cu_seqlens),
        layout=PackedLayout(
            cu_seqlens=torch.from_numpy(encoder.cu_seqlens.astype(np.int32)),
            max_seqlen=encoder.max_seqlen,
            decoder_cu_seqlens=None if decoder is None else torch.from_numpy(decoder.cu_seqlens.astype(np.int32)),
            decoder_max_seqlen=0 if decoder is None else decoder.max_seqlen,
            row_ids=torch.tensor(dropout_ids, dtype=torch.int64),
            prefix_lens=_prefix_lens(examples, filled),
        ),
        row_ids=tuple(row_ids[: len(examples)]),
        targets=_targets(examples, read.cu_seqlens),
        num_tokens=sum(example.num_tokens for example in examples),
        view=view,
        decoder_input_ids=None if decoder is None else decoder.ids,
        decoder_position_ids=None if decoder is None else decoder.positions,
        parts=tuple(example.part for example in examples),
        groups=tuple(example.group for example in examples),
    )


def _dropout_id(example: Example) -> int:
    """What attention drops by: the row's id, moved for its further examples, so that these draw masks of their own."""
    return (example.row_id + example.part * 0x9E3779B1) & 0x7FFFFFFF if example.part else example.row_id


def _restart_positions(row: _Stack, examples: Sequence[Example], position_offset: int) -> None:
    """Write the positions that examples bring along over those that count from their start."""
    for example, start in zip(examples, row.cu_seqlens, strict=False):
        if example.position_ids is not None:
            given = torch.from_numpy(example.position_ids + position_offset)
            row.positions[0, start : start + len(example)] = given


def _row(values: IntArray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int64, copy=False)).unsqueeze(0)


def _token_types(examples: Sequence[Example], total: int, starts: IntArray) -> torch.Tensor | None:
    """Segment ids [1, T] when any example has them; the others, and the filler, are segment 0."""
    if all(example.token_type_ids is None for example in examples):
        return None
    types = np.zeros(total, dtype=np.int64)
    for example, start in zip(examples, starts, strict=False):
        if example.token_type_ids is not None:
            types[start : start + len(example)] = example.token_type_ids
    return _row(types)


def _prefix_lens(examples: Sequence[Example], filled: bool) -> torch.Tensor | None:
    """Prefixes int32 [B] where the examples have them; the filler is causal."""
    given = [example.prefix_len for example in examples if example.prefix_len is not None]
    if not given:
        return None
    for example in examples:
        if example.prefix_len is None or not 0 <= example.prefix_len <= len(example):
            raise DataError(
                f"row {example.row_id}: prefix_len is {example.prefix_len} for {len(example)} tokens",
                hint="Every example of a view has a prefix between 0 and its length, or none has one.",
            )
    return torch.tensor([*given, *([0] if filled else [])], dtype=torch.int32)


def _targets(examples: Sequence[Example], starts: IntArray) -> dict[str, BatchTargets]:
    """Targets by loss, in order of first appearance: token positions in the packed row, or sequence numbers."""
    packed: dict[str, BatchTargets] = {}
    for name in dict.fromkeys(name for example in examples for name in example.targets):
        given = [(i, e.targets[name]) for i, e in enumerate(examples) if name in e.targets]
        level = given[0][1].level
        for i, targets in given:
            if targets.level != level:
                raise DataError(f"row {examples[i].row_id}: loss {name!r} has both token and sequence targets")
        index = [t.index + starts[i] if level == "token" else np.full(len(t), i, dtype=np.int64) for i, t in given]
        labels = np.concatenate([t.labels for _, t in given])
        packed[name] = BatchTargets(torch.from_numpy(np.concatenate(index)), torch.from_numpy(labels), level)
    return packed
