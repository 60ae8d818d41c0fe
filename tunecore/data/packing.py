"""Examples -> micro-batches: sequences laid end to end, never padded between. A pure function of its arguments.

Shape letters: T tokens in the batch, B sequences, N targets, L tokens of one example.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

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
        size = sum(len(example) for example in unit)
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
    """Pack examples, in order and first fit, into micro-batches of at most ``max_tokens`` tokens, filler included.

    No batch is smaller than ``ROUND_TO`` tokens. Groups are never split; an example or group longer than
    ``max_tokens`` makes a batch of its own. With ``min_micro_batches`` the examples are first parted evenly into that
    many (or as many as there are). No examples make no batch.

    Raises:
        DataError: an example is empty, or one loss has targets of two levels.
    """
    for example in examples:
        if len(example) == 0:
            raise DataError(f"row {example.row_id}: the example has no tokens")
    units = _units(examples)
    parts = min(min_micro_batches, len(units))
    capacity = max(max_tokens // ROUND_TO * ROUND_TO, ROUND_TO)
    edges = [round(i * len(units) / parts) for i in range(parts + 1)] if parts else [0]
    bins = [b for lo, hi in pairwise(edges) for b in _first_fit(units[lo:hi], capacity)]
    return [_lay_out(b, position_offset, pad_id, view) for b in bins]


def _lay_out(examples: Sequence[Example], position_offset: int, pad_id: int, view: str) -> PackedBatch:
    lengths = [len(example) for example in examples]
    row_ids = [example.row_id for example in examples]
    ids = [example.input_ids for example in examples]
    num_tokens = sum(lengths)
    filler = -num_tokens % ROUND_TO
    if filler:
        lengths.append(filler)
        row_ids.append(FILLER_ROW)
        ids.append(np.full(filler, pad_id, dtype=np.int64))
    cu_seqlens = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=cu_seqlens[1:])
    starts = cu_seqlens[:-1]
    positions = np.arange(num_tokens + filler, dtype=np.int64) - np.repeat(starts, lengths)
    for example, start in zip(examples, starts, strict=False):
        if example.position_ids is not None:
            positions[start : start + len(example)] = example.position_ids
    return PackedBatch(
        input_ids=_row(np.concatenate(ids)),
        position_ids=_row(positions + position_offset),
        token_type_ids=_token_types(examples, num_tokens + filler, starts),
        layout=PackedLayout(
            cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
            max_seqlen=max(lengths),
            row_ids=torch.tensor(row_ids, dtype=torch.int64),
        ),
        row_ids=tuple(row_ids[: len(examples)]),
        targets=_targets(examples, starts),
        num_tokens=num_tokens,
        view=view,
        groups=tuple(example.group for example in examples),
    )


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
