"""The loader: the micro-batches of a step, as a pure function of the step's number, made here or in processes.

A worker makes whole steps, so their number changes no byte, and resuming at step s costs nothing. Workers never
enter the compiled core.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch.utils.data

from tunecore.data.order import BatchSizes, rows_of_step, steps_per_epoch
from tunecore.data.packing import pack
from tunecore.data.rows import EVALUATION_EPOCH, RowSource, examples_of, group_size, whole_groups
from tunecore.data.views import view_of_step
from tunecore.data.workers import items_of_workers
from tunecore.errors import ConfigError, DataError, TunecoreError
from tunecore.types import Example, PackedBatch, Progress

EVALUATION_WINDOW = 512
"""Rows of an evaluation that are sorted by length together before they are packed."""


class StepBatches(NamedTuple):
    """All of one optimizer step that falls to one rank."""

    step: int
    epoch: int
    row_ids: tuple[int, ...]
    """Rows of this rank, of all views; empty where a short last step has fewer rows than there are ranks."""
    micro_batches: list[PackedBatch]
    views: tuple[str, ...] = ()
    """The views this step trains, whichever of them have rows on this rank."""


class _Failure(NamedTuple):
    """An error a user can cause, on its way from a worker."""

    kind: type[TunecoreError]
    message: str
    hint: str | None


class _Steps(torch.utils.data.Dataset[StepBatches | _Failure]):
    """Step number -> its batches, for DataLoader."""

    def __init__(self, loader: StepLoader) -> None:
        self.loader = loader

    def __getitem__(self, step: int) -> StepBatches | _Failure:
        try:
            return self.loader.step(step)
        except TunecoreError as error:
            return _Failure(type(error), error.message, error.hint)


_MOST_WORKERS_A_CORE = 16
"""More only cost memory, until there is none left for anybody."""


class StepLoader:
    """Iterates over the StepBatches of steps ``start_step``, ..., ``total_steps`` - 1.

    Args:
        rows: where examples come from.
        batch_size: rows per optimizer step, over all ranks, or how they grow; the last step of an epoch may be short.
        seed: fixes the order of rows.
        start_step: the first step to make.
        total_steps: one past the last step.
        rank: this process takes every ``world_size``-th row (or group of rows) of a step.
        world_size: number of ranks.
        max_tokens: most tokens of a micro-batch.
        accumulation: at least this many micro-batches per step and view, where there are rows enough.
        position_offset: the family's first position id.
        pad_id: id of filler tokens.
        num_workers: processes; 0 makes the batches in this one.
        view: the only view to make; None makes all of ``rows.views``, in their order.
        view_weights: of several views each step makes one, in these proportions; None makes all in every step.
        worker_timeout: seconds to wait for a worker's step.

    Raises:
        ConfigError: a number is out of range, or ``batch_size`` is no multiple of a view's group size.
        DataError: a row cannot be used, there are no rows, or a worker process died or hangs.
    """

    def __init__(
        self, rows: RowSource, *, batch_size: int | BatchSizes, seed: int, total_steps: int, max_tokens: int,
        position_offset: int, pad_id: int, start_step: int = 0, rank: int = 0, world_size: int = 1,
        accumulation: int = 1, num_workers: int = 0, view: str | None = None,
        view_weights: Mapping[str, float] | None = None, worker_timeout: float = 300.0,
    ) -> None:
        smallest = 1 if isinstance(batch_size, BatchSizes) else batch_size
        if min(smallest, max_tokens, accumulation) < 1 or num_workers < 0 or not 0 <= rank < world_size:
            raise ConfigError("batch_size, max_tokens and accumulation must be at least 1, rank below world_size")
        if num_workers > (most := _MOST_WORKERS_A_CORE * (os.cpu_count() or 1)):
            raise ConfigError(
                f"data.num_workers is {num_workers}; this machine has cores for {most} at most",
                hint="Two are often enough.",
            )
        if len(rows) == 0:
            raise DataError("there are no rows to train on")
        self.rows, self.seed = rows, seed
        self.batch_sizes = batch_size if isinstance(batch_size, BatchSizes) else BatchSizes(batch_size)
        self.start_step, self.total_steps = start_step, total_steps
        self.rank, self.world_size = rank, world_size
        self.num_workers, self.worker_timeout = num_workers, worker_timeout
        self.views = rows.views if view is None else (view,)
        self.view_weights = view_weights
        for name in self.views:
            for _, size in self.batch_sizes.stages:
                if size % group_size(rows, name):
                    raise ConfigError(
                        f"training.batch_size is {size}{'' if size == self.batch_sizes.size else ' in its warm-up'}, "
                        f"but rows of view {name!r} go in groups of {group_size(rows, name)}",
                        hint="Make batch_size and batch_size_start multiples of the group_size of objective or head.",
                    )
        self._packing = {
            "max_tokens": max_tokens, "position_offset": position_offset, "pad_id": pad_id,
            "min_micro_batches": accumulation,
        }

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one pass, at the size after any warm-up."""
        return steps_per_epoch(len(self.rows), self.batch_sizes.size)

    def __len__(self) -> int:
        return max(0, self.total_steps - self.start_step)

    def progress(self, step: int) -> Progress:
        """How far the run is when ``step`` begins."""
        epochs = (self.batch_sizes.epoch_at(len(self.rows), at) for at in (step, self.total_steps))
        return Progress(step, self.total_steps, *epochs)

    def step(self, step: int) -> StepBatches:
        """The batches of one step: a pure function of its number."""
        epoch, rows = rows_of_step(len(self.rows), self.batch_sizes, self.seed, step)
        progress = self.progress(step)
        batches: list[PackedBatch] = []
        seen: dict[int, None] = {}
        views = self.views_of_step(step)
        for view in views:
            share = whole_groups(rows, group_size(self.rows, view), self.rank, self.world_size)
            mine = [int(row) for row in share]
            seen.update(dict.fromkeys(mine))
            batches += pack(examples_of(self.rows, mine, epoch, progress, view), view=view, **self._packing)
        return StepBatches(step, epoch, tuple(seen), batches, views)

    def views_of_step(self, step: int) -> tuple[str, ...]:
        """The views that ``step`` trains."""
        weights = self.view_weights
        return self.views if weights is None else (view_of_step(weights, self.seed, step),)

    def __iter__(self) -> Iterator[StepBatches]:
        steps = range(self.start_step, self.total_steps)
        if self.num_workers == 0:
            yield from map(self.step, steps)
            return
        items = items_of_workers(_Steps(self), steps, self.num_workers, self.worker_timeout)
        with closing(items):
            for item in items:
                if isinstance(item, _Failure):
                    raise item.kind(item.message, hint=item.hint)
                yield item


def eval_batches(
    rows: RowSource, *, max_tokens: int, position_offset: int, pad_id: int, rank: int = 0, world_size: int = 1,
    max_rows: int | None = None, view: str | None = None,
) -> Iterator[PackedBatch]:
    """The batches of one pass for evaluation or prediction, this rank's share; deterministic.

    Inside a window of rows examples are sorted by length, so that batches are of even sequences; all examples of a
    row fall into one window. With ``max_rows`` that many rows are taken, evenly spread.
    """
    count = len(rows)
    taken = np.arange(count)
    if max_rows is not None and max_rows < count:
        taken = np.arange(max_rows) * count // max_rows
    progress = Progress(0, 1, 0.0, 1.0)
    for name in rows.views if view is None else (view,):
        size = group_size(rows, name)
        mine = [int(row) for row in whole_groups(taken, size, rank, world_size)]
        window = max(EVALUATION_WINDOW // size, 1) * size
        for begin in range(0, len(mine), window):
            examples = examples_of(rows, mine[begin : begin + window], EVALUATION_EPOCH, progress, name)
            examples.sort(key=_length)
            yield from pack(
                examples, max_tokens=max_tokens, position_offset=position_offset, pad_id=pad_id, view=name
            )


def _length(example: Example) -> int:
    return example.num_tokens
