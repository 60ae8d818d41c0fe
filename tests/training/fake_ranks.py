"""What tests run on several ranks: each function takes its ranks and returns tensors."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import torch
from fake_training import (
    Accuracy,
    Counter,
    FakeRows,
    fit,
    make_config,
    make_fake_run,
    make_hooks,
    make_loader,
    make_unit,
)
from safetensors.torch import load_file, save_file

from tunecore import hookspecs
from tunecore.data.loader import eval_batches
from tunecore.errors import InUseError, TunecoreError
from tunecore.training.distributed import open_ranks
from tunecore.training.evaluate import evaluate
from tunecore.training.state import make_saver
from tunecore.training.step import train_step


def on_rank(rank, count, port, results, function, arguments) -> None:
    """Run ``function(ranks, *arguments)`` as one of several ranks; tensors it returns are left in a file."""
    names = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with open_ranks("cpu", threads=1) as ranks:
        save_file(function(ranks, *arguments), Path(results) / f"{rank}.safetensors")


def refused(ranks, folder) -> dict[str, torch.Tensor]:
    """What this rank is told that wants a folder that is held."""
    from tunecore.runner import alone_in

    try:
        with alone_in(Path(folder), ranks):
            message = "taken"
    except InUseError as error:
        message = error.message
    return {"message": torch.frombuffer(bytearray(message.encode()), dtype=torch.uint8)}


def read_result(results, rank):
    return load_file(Path(results) / f"{rank}.safetensors")


def gradient_of(ranks, batch_size, max_tokens, accumulation, step) -> dict[str, torch.Tensor]:
    """Gradients and metrics of one step in float64, taken where plugins see them."""
    caught = {}

    class Catch:
        @hookspecs.hookimpl
        def tunecore_before_optimizer_step(self, run):
            caught.update({n: g.clone() for n, g in run.optimizer.gradients().items() if g is not None})

    run = make_fake_run(
        make_config(batch_size=batch_size), unit=make_unit().double(), hooks=make_hooks(Catch()), ranks=ranks
    )
    batches = make_loader(run, max_tokens=max_tokens, accumulation=accumulation).step(step)
    run.step = step
    metrics = train_step(run, batches)
    caught["micro_batches"] = torch.tensor(len(batches.micro_batches))
    caught["targets"] = torch.tensor([sum(b.num_targets.values()) for b in batches.micro_batches] or [0])
    for name, value in metrics.items():
        if not name.startswith("time/"):
            caught[f"metric {name}"] = torch.tensor(value, dtype=torch.float64)
    return caught


def message_of(function, *arguments) -> dict[str, torch.Tensor]:
    """The error message a function ends with, as bytes."""
    try:
        function(*arguments)
    except TunecoreError as error:
        return {"message": torch.tensor(list(f"{type(error).__name__}: {error.message}".encode()), dtype=torch.uint8)}
    raise AssertionError("no error")


def nan_on_rank_1(ranks, policy) -> dict[str, torch.Tensor]:
    """One step in which only rank 1 has a NaN."""
    run = make_fake_run(make_config(on_nonfinite=policy), ranks=ranks)
    if ranks.rank == 1:
        run.model.decoder.register_forward_hook(lambda module, given, logits: logits * float("nan"))
    batches = make_loader(run).step(0)
    if policy == "raise":
        return message_of(train_step, run, batches)
    return {"skipped": torch.tensor(train_step(run, batches)["skipped"])}


def full_disk_on_rank_0(ranks, output_dir) -> dict[str, torch.Tensor]:
    def write(folder, tensors):
        raise OSError(28, "No space left on device")

    return message_of(make_saver(make_fake_run(make_config(output_dir), ranks=ranks), write), "step-0")


def leave_or_wait(ranks) -> dict[str, torch.Tensor]:
    """Rank 1 goes away; rank 0 waits for it."""
    if ranks.rank == 1:
        return {"rank": torch.tensor(1)}
    found = message_of(ranks.sum, [1.0])["message"]
    return {"message": found[: len("TrainingError: another rank has ended")]}


def slow_turn(ranks) -> dict[str, torch.Tensor]:
    """Rank 0 takes three times as long over its turn as a collective may take."""
    from tunecore.runner import main_first

    torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=0.5))
    begun = time.monotonic()
    with main_first(ranks):
        first = time.monotonic() - begun < 0.5
        if ranks.is_main:
            time.sleep(1.5)
    return {"first": torch.tensor(first)}


def evaluate_on(ranks, count) -> dict[str, torch.Tensor]:
    unit = make_unit(head=True).double()
    batches = eval_batches(
        FakeRows(count, words=False), max_tokens=16, position_offset=1, pad_id=0, rank=ranks.rank,
        world_size=ranks.world_size,
    )  # fmt: skip
    found = evaluate(unit, batches, Accuracy(), ranks=ranks)
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}


def gather_on(ranks) -> dict[str, torch.Tensor]:
    found = ranks.gather({"rank": ranks.rank, "text": "ü" * ranks.rank})
    assert found == [{"rank": r, "text": "ü" * r} for r in range(ranks.world_size)]
    assert ranks.any(ranks.rank == 1) and not ranks.any(False)
    return {"threads": torch.tensor(torch.get_num_threads()), "sum": torch.tensor(ranks.sum_ints([ranks.rank, 2**52]))}


def train_on(ranks, output_dir, steps, stop_at=0, stop_in_evaluation_at=0) -> dict[str, torch.Tensor]:
    """Train with evaluation and checkpoints; rank 1 asks to stop at ``stop_at``, or while it evaluates at a step.
    Returns the final weights.
    """

    class Stop:
        @hookspecs.hookimpl
        def tunecore_run_start(self, run):
            def ask(unit, batch):
                if not unit.training and run.step == stop_in_evaluation_at and run.rank == run.world_size - 1:
                    run.stop.request()

            run.unit.register_forward_pre_hook(ask)

        @hookspecs.hookimpl
        def tunecore_step_end(self, run):
            if run.step == stop_at and run.rank == run.world_size - 1:
                run.stop.request()

    run = make_fake_run(
        make_config(output_dir, evaluate_every=4), steps=steps, unit=make_unit(dropout=0.1),
        hooks=make_hooks(Counter(), Stop()), ranks=ranks,
    )  # fmt: skip
    result = fit(run)
    weights = {name: p.detach() for name, p in run.optimizer.masters.items()}
    evaluated = torch.tensor(result.metrics.get("eval/loss", 0.0), dtype=torch.float64)
    return {**weights, "steps": torch.tensor(result.steps), "eval": evaluated, "code": torch.tensor(result.exit_code)}
