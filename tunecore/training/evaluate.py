"""Evaluation: losses and metrics of a unit over batches, merged over ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from tunecore.errors import DataError
from tunecore.training.distributed import Ranks
from tunecore.training.generation import Answers
from tunecore.training.signals import StopSignal
from tunecore.training.to_device import to_device
from tunecore.training.unit import TrainUnit
from tunecore.types import Metrics, PackedBatch

Batch = TypeVar("Batch")

LANGUAGE_MODEL_SUFFIX = "_lm"
"""A loss with such a name (masked_lm, causal_lm) is a language model's: its mean in nats gives a perplexity."""


class EvaluationStopped(Exception):  # noqa: N818 (no error: the run was asked to stop)
    """The run was asked to stop while it evaluated; what was measured so far is no evaluation."""


def evaluate(
    unit: TrainUnit,
    batches: Iterable[PackedBatch],
    head_metrics: Metrics | None = None,
    *,
    ranks: Ranks | None = None,
    stop: StopSignal | None = None,
    answers: Answers | None = None,
) -> dict[str, Any]:
    """Measure a unit in evaluation mode, without gradients; modes are restored afterwards.

    Args:
        unit: model and tasks.
        batches: this rank's share.
        head_metrics: streaming metrics of the head, fed with its raw outputs.
        ranks: all ranks that evaluate together; None is this process alone.
        stop: asked after every batch.
        answers: of a head that generates; its metrics are then those of what it writes.

    Returns:
        ``loss`` (weighted sum of means), ``loss/<name>`` (mean over targets), ``accuracy/<name>`` where that has a
        meaning, ``perplexity/<name>`` for language models, and what ``head_metrics`` computes.

    Raises:
        DataError: no rank has a batch.
        EvaluationStopped: a rank was asked to stop; raised on every rank.
    """
    ranks = ranks or Ranks()
    sums = {name: [0.0, 0.0, 0.0, 0.0] for name in unit.losses}  # total, targets, correct, whether it has a meaning
    seen = 0
    with evaluation_mode(unit), torch.no_grad():
        for batch in _until(stop, batches):
            batch = to_device(batch, ranks.device)
            losses, raw = (unit(batch), None) if head_metrics is None else unit.assess(batch)
            for name, loss in losses.items():
                correct = loss.num_correct
                right = 0.0 if correct is None else float(correct)
                entry = (float(loss.total), float(loss.num_targets), right, float(correct is not None))
                sums[name] = [a + b for a, b in zip(sums[name], entry, strict=True)]
            if head_metrics is not None:
                head_metrics.update(raw, batch)
            seen += 1
        for _ in _until(stop, () if answers is None else answers):
            pass
    stopped = float(_is_received(stop))
    flat = ranks.sum([float(seen), stopped, *(v for entry in sums.values() for v in entry)])
    if flat[1]:
        raise EvaluationStopped
    if not flat[0]:
        raise DataError("there are no rows to evaluate on")
    results: dict[str, Any] = _means(unit, flat[2:])
    measured = head_metrics if answers is None else answers.metrics
    if measured is not None:
        states = ranks.gather(measured.state()) if ranks.world_size > 1 else []
        measured.merge([state for rank, state in enumerate(states) if rank != ranks.rank])
        results.update(measured.compute())
    return results


def _is_received(stop: StopSignal | None) -> bool:
    return stop is not None and stop.received is not None


def _until(stop: StopSignal | None, batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, up to the one after which a stop was asked for."""
    if _is_received(stop):
        return
    for batch in batches:
        yield batch
        if _is_received(stop):
            return


def _means(unit: TrainUnit, flat: list[float]) -> dict[str, float]:
    loss = 0.0
    named: dict[str, float] = {}
    parts = [task.component for task in unit.tasks]
    language = {name for part in parts if getattr(part, "language_model", False) for name in part.losses}
    for i, (name, weight) in enumerate(unit.weights.items()):
        total, count, right, has_meaning = flat[4 * i : 4 * i + 4]
        if not count:
            continue
        mean = total / count
        loss += weight * mean
        named[f"loss/{name}"] = mean
        if has_meaning:
            named[f"accuracy/{name}"] = right / count
        if name in language or name.endswith(LANGUAGE_MODEL_SUFFIX):
            named[f"perplexity/{name}"] = math.exp(mean) if mean < 700 else math.inf
    return {"loss": loss, **named} if named else {}


@contextmanager
def evaluation_mode(unit: nn.Module) -> Iterator[None]:
    """Evaluation mode while the context lasts; every module's own mode returns afterwards."""
    # Module by module: a strategy may keep some of them in evaluation mode while training.
    modes = [(module, module.training) for module in unit.modules()]
    unit.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
