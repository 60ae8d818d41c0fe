"""One optimizer step, as a straight line: count, forward, backward, share, check, clip, step.

The counts N_i of every loss are summed over micro-batches and ranks before any gradient is made; each micro-batch
then runs one backward on sum_i weight_i * total_i / N_i. So how a step's rows are split over micro-batches and ranks
never changes the gradient.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tunecore.data.streams import PhiloxStream, derive_key
from tunecore.models.fused import sparse_gradients
from tunecore.training.nonfinite import gradient_problem, leave_out, named_rows
from tunecore.training.run import Run
from tunecore.training.to_device import to_device
from tunecore.types import LossSum, PackedBatch

if TYPE_CHECKING:
    from tunecore.data.loader import StepBatches


def train_step(run: Run, batches: StepBatches) -> dict[str, float]:
    """Make step ``run.step`` and return its metrics, of all ranks.

    Every rank calls this for every step, also with no micro-batches. A step that is left out counts: the next one
    follows, with the next rows.

    Returns:
        ``loss`` (the weighted sum), ``loss/<name>`` (mean over targets), ``accuracy/<name>``, ``grad_norm`` (before
        clipping), ``learning_rate``, ``tokens`` (useful ones), ``time/<phase>`` in seconds, ``view/<name>`` (1 or 0:
        whether the step trained it) where views take turns, and ``skipped`` where the step was left out. A loss
        without targets in this step is not among them.

    Raises:
        TrainingError: a loss or the gradient is not finite and ``training.on_nonfinite`` does not go on from there
            (``training.nonfinite``), or a task's count is not what its batch announced.
    """
    clock, tally, micro_batches, multiplier = Clock(), Tally(run), batches.micro_batches, run.multiplier
    *counts, tokens = run.ranks.sum_ints(_announced(run, micro_batches))
    targets, weights = dict(zip(run.unit.losses, counts, strict=True)), run.loss_weights
    for index, batch in enumerate(micro_batches):
        batch, stream = _seeded(run, batch, index)
        run.hooks.tunecore_batch_ready(run=run, batch=batch)
        with sparse_gradients():
            losses = run.unit(batch, stream)
        tally.add(batch, losses)
        clock.lap("forward")
        parts = [weights[name] / targets[name] * loss.total for name, loss in losses.items()]
        if any(part.requires_grad for part in parts):
            torch.stack(parts).sum().backward()
        clock.lap("backward")
    share_gradients(run)
    metrics = tally.means(targets)
    metrics["grad_norm"] = norm = run.optimizer.grad_norm()
    clock.lap("reduce")
    problem = tally.problem or gradient_problem(run, norm, batches.row_ids)
    if problem is None:
        if _is_implemented(run.hooks, "tunecore_before_optimizer_step"):
            run.optimizer.gradients()  # dense ones, also for who looks at a parameter's own
            run.hooks.tunecore_before_optimizer_step(run=run)
            norm = run.optimizer.grad_norm()  # a hook may have changed the gradients
        run.optimizer.clip(norm, run.config.training.max_grad_norm)
        run.optimizer.step(multiplier)
        run.left_out_in_a_row = 0
    else:
        leave_out(run, problem)
        metrics["skipped"] = 1.0
    metrics["learning_rate"] = run.optimizer.learning_rate * multiplier
    metrics["tokens"] = tokens
    if run.alternates:
        metrics |= {f"view/{view}": float(view in batches.views) for view in run.unit.view_weights}
    run.step += 1
    run.counters.tokens += tokens
    run.observe(metrics)
    clock.lap("optimizer")
    metrics.update(clock.phases)
    run.hooks.tunecore_step_end(run=run, metrics=dict(metrics))  # a plugin may change what it is given
    return metrics


class Clock:
    """Seconds by phase; on a GPU a phase is as long as handing out its work takes."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Count the time since the last lap to ``phase``."""
        now = time.perf_counter()
        self.phases[f"time/{phase}"] = self.phases.get(f"time/{phase}", 0.0) + now - self._last
        self._last = now


class Tally:
    """The losses of a step: summed on the device, read once at its end."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._seen: list[tuple[str, PackedBatch, Tensor, Tensor | None]] = []
        self.problem: str | None = None
        """What is not finite, named, once :meth:`means` was called; the same on every rank."""

    def add(self, batch: PackedBatch, losses: dict[str, LossSum]) -> None:
        """Remember the losses of one micro-batch."""
        for name, loss in losses.items():
            self._seen.append((name, batch, loss.total.detach(), loss.num_correct))

    def means(self, targets: dict[str, int]) -> dict[str, float]:
        """Losses and accuracies over all ranks, by the counts of the step."""
        none = torch.zeros((), device=self._run.device)
        parts = [torch.stack([t.double(), (none if c is None else c).double()]) for _, _, t, c in self._seen]
        values = torch.stack(parts).tolist() if parts else []
        totals = {name: [0.0, 0.0, 0.0] for name in targets}  # sum, correct, whether correct has a meaning
        found = []
        for (name, batch, _, correct), (total, right) in zip(self._seen, values, strict=True):
            totals[name][0] += total
            totals[name][1] += right
            totals[name][2] += float(correct is not None)
            if not math.isfinite(total):
                found.append(f"loss {name!r} is {total} on rows {named_rows(batch.row_ids)}")
        flat = self._run.ranks.sum([v for entry in totals.values() for v in entry])
        metrics, weights = {}, self._run.loss_weights
        loss = 0.0
        for i, (name, count) in enumerate(targets.items()):
            total, right, has_meaning = flat[3 * i : 3 * i + 3]
            if count:
                metrics[f"loss/{name}"] = total / count
                loss += weights[name] * total / count
                if has_meaning:
                    metrics[f"accuracy/{name}"] = right / count
        if not all(math.isfinite(v) for v in flat):
            self.problem = "; ".join(part for rank in self._run.ranks.gather(found) for part in rank)
        return {"loss": loss, **metrics} if metrics else {}


def share_gradients(run: Run) -> None:
    """Sum gradients over ranks. One that only some ranks have is 0 on the others; one no rank has stays away."""
    if run.world_size == 1:
        return
    optimizer = run.optimizer
    gradients = optimizer.gradients()
    present = run.ranks.sum([float(g is not None) for g in gradients.values()])
    shared = []
    for (name, gradient), ranks_with_it in zip(gradients.items(), present, strict=True):
        if not ranks_with_it:
            continue
        if gradient is None:
            gradient = torch.zeros_like(optimizer.masters[name])
            optimizer.set_gradient(name, gradient)
        shared.append(gradient)
    run.ranks.sum_gradients(shared)


def _announced(run: Run, micro_batches: list[PackedBatch]) -> list[int]:
    """Targets of each loss in this rank's part of the step, then its useful tokens."""
    counts = [sum(b.num_targets.get(name, 0) for b in micro_batches) for name in run.unit.losses]
    return [*counts, sum(b.num_tokens for b in micro_batches)]


def _seeded(run: Run, batch: PackedBatch, index: int) -> tuple[PackedBatch, PhiloxStream]:
    """Put the batch on the device and make all its randomness a function of (seed, step, micro-batch, rank)."""
    ids = (run.step, index, run.rank)
    key = derive_key(run.seed, *ids)
    _seed_torch(key, run.device)
    batch = to_device(batch, run.device)
    layout = batch.layout._replace(rng_key=torch.tensor(key, device=run.device))
    return replace(batch, layout=layout), PhiloxStream(run.seed, *ids, purpose="loss")


def _seed_torch(key: int, device: torch.device) -> None:
    """Seed the generators transformers' own dropout draws from.

    ``torch.manual_seed`` would do the same for every kind of accelerator torch knows, present or not, and keep a
    formatted traceback for each that is not yet started: up to half a millisecond a micro-batch.
    """
    torch.default_generator.manual_seed(key)
    if device.type == "cuda":
        torch.cuda.manual_seed(key)


def _is_implemented(hooks: Any, name: str) -> bool:
    implementations = getattr(getattr(hooks, name), "get_hookimpls", None)
    return implementations is None or bool(implementations())
