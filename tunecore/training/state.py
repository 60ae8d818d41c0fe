"""The whole state of a run in a folder, and back: weights, optimizer, counters, strategies, plugins' objects.

``weights`` writes the files of the model and its tasks; ``optimizer.safetensors`` holds the optimizer's tensors by
parameter name, ``state.json`` the rest. There is no generator state: randomness is a function of the seed
and the step. So a resumed run continues bit for bit on the same machine, versions, threads and ranks.
"""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from tunecore.checkpoint import clean_leftovers, commit, newest_good, verify
from tunecore.errors import CheckpointError
from tunecore.models.folder import load_tensors
from tunecore.training.optimizer import OptimizerState
from tunecore.training.run import Counters, Run
from tunecore.training.weights import (
    UNMERGED_FILE,
    ReadModel,
    WriteModel,
    contiguous,
    read_weights,
    save_weights,
)

OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
FORMAT = 1
_STATE = {
    "step": int, "seed": int, "counters": dict, "optimizer": dict, "strategies": list, "tracked": dict, "machine": dict,
}  # fmt: skip
"""Entries of the file, each with its kind."""


def save_state(run: Run, folder: Path, write_model: WriteModel) -> None:
    """Write everything of a run that a process of its own needs to go on. Rank 0 calls it, inside ``commit``."""
    plain = save_weights(run, folder, write_model)
    unmerged = {n: t for n, t in run.optimizer.full_state(run.model).items() if n not in plain}
    if unmerged:
        save_file(contiguous(unmerged), folder / UNMERGED_FILE)
    optimizer = run.optimizer.state_dict()
    save_file(contiguous(optimizer.tensors), folder / OPTIMIZER_FILE)
    state = {
        "format": FORMAT,
        "step": run.step,
        "total_steps": run.total_steps,
        "seed": run.seed,
        "counters": _counters_to_json(run.counters),
        "optimizer": optimizer.values,
        "optimizer_kind": optimizer.kind,
        "strategies": [[s.name, s.state_dict()] for s in run.strategies],
        "tracked": {name: obj.state_dict() for name, obj in run.tracked.items()} | run.untaken,
        "machine": machine(run),
    }
    with open(folder / STATE_FILE, "w", encoding="utf-8") as file:
        json.dump(state, file, indent=1, sort_keys=True, allow_nan=False)
        file.write("\n")


def load_state(run: Run, folder: Path, read_model: ReadModel | None = None) -> None:
    """Continue from a checkpoint: verify and check all of it, and only then change the run.

    Args:
        run: freshly made, from the same configuration.
        folder: a committed checkpoint.
        read_model: reads the model's tensors; None reads ``model*.safetensors`` under the model's own names.

    Raises:
        CheckpointError: as :func:`restore`.
    """
    run.untaken.clear()
    state = restore(run, folder, read_model)
    run.untaken = {name: kept for name, kept in state["tracked"].items() if name not in run.tracked}
    run.counters = _counters_from_json(state["counters"])
    run.saved = (run.step, run.counters.evaluated_at)
    _compare_machines(run, state["machine"])


def restore(run: Run, folder: Path, read_model: ReadModel | None = None) -> Mapping[str, Any]:
    """Take step, weights, optimizer, strategies and tracked objects from a checkpoint; counters stay. Returns its
    ``state.json``.

    Raises:
        CheckpointError: a file is damaged, or parameters, shapes, strategies or optimizer state are not this run's;
            the file or name is said and the run is as it was.
    """
    model, objectives = read_weights(run, folder, verify(folder).files, read_model)
    state = read_state(folder / STATE_FILE)
    saved, present = [name for name, _ in state["strategies"]], [s.name for s in run.strategies]
    if saved != present:
        raise CheckpointError(f"{str(folder)!r} was made with strategies {saved}, this run has {present}")
    if state["seed"] != run.seed:
        raise CheckpointError(f"{str(folder)!r} was made with training.seed {state['seed']}, this run has {run.seed}")
    kind = str(state.get("optimizer_kind", ""))  # checkpoints of the first releases do not say
    if not (folder / OPTIMIZER_FILE).exists():
        raise CheckpointError(f"{str(folder / OPTIMIZER_FILE)!r} is missing")
    tensors = OptimizerState(load_tensors(folder / OPTIMIZER_FILE), state["optimizer"], kind)
    before = run.step, [s.state_dict() for s in run.strategies]
    try:
        # Which parameters may have optimizer state depends on the strategies at that step.
        _set_strategies(run, state["step"], [s for _, s in state["strategies"]])
        run.optimizer.check_state(tensors)
    except CheckpointError as error:
        _set_strategies(run, *before)
        raise CheckpointError(f"{str(folder)!r}: {error.message}") from error
    run.optimizer.load_full_state(run.model, model)
    run.optimizer.load_full_state(run.unit.task_modules, objectives)
    run.optimizer.load_state_dict(tensors)
    for name, obj in run.tracked.items():
        if name in state["tracked"]:
            obj.load_state_dict(state["tracked"][name])
    return state


def make_saver(run: Run, write_model: WriteModel, info: Mapping[str, Any] | None = None) -> Callable[[str], Path]:
    """Return ``save(name)``, which commits the run's state as ``output_dir/name`` and returns its path.

    Every rank calls it; rank 0 writes, the others wait.

    Args:
        run: the run.
        write_model: saves the model.
        info: more facts for the manifest: plugins and their versions, digest of the data.
    """

    def save(name: str) -> Path:
        failure = None
        if run.ranks.is_main:
            try:
                facts = {**manifest_info(run), **(info or {})}
                commit(run.output_dir, name, lambda folder: save_state(run, folder, write_model), facts)
            except CheckpointError as error:
                failure = error
        if run.ranks.any(failure is not None):  # else the others would wait for a rank that is gone
            raise failure or CheckpointError(f"rank 0 could not write checkpoint {name!r}; its own message says why")
        return run.output_dir / name

    return save


def resume(run: Run, read_model: ReadModel | None = None) -> Path | None:
    """Continue from the newest good checkpoint of ``output_dir``; None where there is none. Every rank calls it.

    Leftovers of a killed process are removed. A damaged checkpoint is skipped with a warning that says why.

    Raises:
        CheckpointError: the checkpoint is of another run, or as :func:`newest_on_all`.
    """
    if run.ranks.is_main:
        clean_leftovers(run.output_dir)
    run.ranks.barrier()
    path = newest_on_all(run)
    if path is not None:
        load_state(run, path, read_model)
    return path


def newest_on_all(run: Run) -> Path | None:
    """The newest good checkpoint of ``output_dir``, the same on every rank; None where there is none. One that is
    damaged is skipped with a warning that says why.

    Raises:
        CheckpointError: ranks see different folders, or there are checkpoints and all are damaged: a run must not
            begin anew, over what is left of it, without a word.
    """
    path, skipped = newest_good(run.output_dir)
    names = run.ranks.gather(None if path is None else path.name)
    if len(set(names)) > 1:
        raise CheckpointError(
            f"ranks found different checkpoints in {str(run.output_dir)!r}: {names}",
            hint="output_dir must be one folder that all machines share.",
        )
    if path is None and run.ranks.any(bool(skipped)):
        why = "; ".join(f"{damaged.name}: {reason}" for damaged, reason in skipped)
        raise CheckpointError(
            f"every checkpoint of the run in {str(run.output_dir)!r} is damaged: {why}",
            hint="Restore one of these folders from a copy; or, to begin the run anew, remove them or name another "
            "output_dir.",
        )
    if run.ranks.is_main:
        for damaged, reason in skipped:
            warnings.warn(f"checkpoint {damaged.name} is skipped: {reason}", stacklevel=2)
    return path


def manifest_info(run: Run) -> dict[str, Any]:
    """Where a checkpoint stands, what is in it, what made it. No clock time: equal states are equal bytes."""
    config = dataclasses.asdict(run.config)
    del config["output_dir"]  # a run folder may be moved
    return {
        "step": run.step,
        "epoch": run.progress.epoch,
        "tokens": run.counters.tokens,
        "parameters": {n: [list(p.shape), str(p.dtype)[6:]] for n, p in run.optimizer.masters.items()},
        "config": config,
        "machine": machine(run),
    }


def machine(run: Run) -> dict[str, Any]:
    """What bit-equality depends on beside the configuration."""
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": run.device.type,
        "isa": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "ranks": run.world_size,
    }


def _set_strategies(run: Run, step: int, states: list[dict[str, Any]]) -> None:
    run.step = step
    for strategy, state in zip(run.strategies, states, strict=True):
        strategy.load_state_dict(state)
    run.replan()


def read_state(path: Path) -> dict[str, Any]:
    """Read ``state.json``.

    Raises:
        CheckpointError: it is missing, of a newer format, or not as it was written.
    """
    if not path.exists():
        raise CheckpointError(
            f"{str(path)!r} is missing: the folder holds a model, but no state to continue a run from",
            hint="Start a new run from it with model.checkpoint.",
        )
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if state["format"] > FORMAT:
            raise CheckpointError(f"{str(path)!r} has format {state['format']}; this tunecore reads up to {FORMAT}")
        wrong = [key for key, kind in _STATE.items() if not isinstance(state[key], kind)]
        wrong += [] if all(len(pair) == 2 for pair in state["strategies"]) else ["strategies"]
        _counters_from_json(state["counters"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{str(path)!r} is not as tunecore writes it: {error!r}") from error
    if wrong:
        raise CheckpointError(f"{str(path)!r} is not as tunecore writes it: {', '.join(wrong)}")
    return state


def _counters_to_json(counters: Counters) -> dict[str, Any]:
    fields = dataclasses.asdict(counters)
    # JSON has no NaN; a sum that is not finite goes as a word.
    fields["window"] = {k: [s if math.isfinite(s) else str(s), n] for k, (s, n) in counters.window.items()}
    return fields


def _counters_from_json(fields: Mapping[str, Any]) -> Counters:
    window = {name: (float(total), int(count)) for name, (total, count) in fields["window"].items()}
    return Counters(**{**fields, "window": window})


def _compare_machines(run: Run, before: Mapping[str, Any]) -> None:
    """Take back the thread count where the configuration leaves it open; say what ends bit-equality."""
    if run.config.training.threads is None and before["threads"] != torch.get_num_threads():
        torch.set_num_threads(before["threads"])
    now = machine(run)
    changed = [f"{key} {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]
    if changed and run.ranks.is_main:
        warnings.warn(
            f"the run continues under other conditions ({', '.join(changed)}): correct, but not bit-equal to a run "
            "that was never interrupted",
            stacklevel=4,
        )
