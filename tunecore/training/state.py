"""The whole state of a run in a folder, and back: weights, optimizer, counters, strategies, plugins' objects.

``model.safetensors`` (with config and tokenizer, as transformers writes them) holds fp32 masters;
``objectives.safetensors`` the parameters of tasks that have their own; ``unmerged.safetensors`` what a strategy merged
into the model's own tensors (adapters, and what they stand on); ``optimizer.safetensors`` the optimizer's tensors by
parameter name; ``state.json`` the rest. There is no generator state: randomness is a function of the seed
and the step. So a resumed run continues bit for bit on the same machine, versions, threads and ranks.
"""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tunecore.checkpoint import clean_leftovers, commit, newest_good, verify
from tunecore.errors import CheckpointError
from tunecore.models.folder import weight_files
from tunecore.training.optimizer import OptimizerState
from tunecore.training.plans import exported
from tunecore.training.run import Counters, Run
from tunecore.training.unit import TrainUnit

WriteModel = Callable[[Path, Mapping[str, Tensor]], None]
"""``write(folder, state_dict)``: save the model in transformers' layout with these fp32 tensors."""
ReadModel = Callable[[Path], Mapping[str, Tensor]]
"""``read(folder) -> state_dict``: the tensors a WriteModel wrote, under the model's own names."""

OPTIMIZER_FILE = "optimizer.safetensors"
OBJECTIVES_FILE = "objectives.safetensors"
UNMERGED_FILE = "unmerged.safetensors"
STATE_FILE = "state.json"
FORMAT = 1


_STATE = {
    "step": int, "seed": int, "counters": dict, "optimizer": dict, "strategies": list, "tracked": dict, "machine": dict,
}  # fmt: skip
"""Entries of the file, each with its kind."""


def save_state(run: Run, folder: Path, write_model: WriteModel) -> None:
    """Write everything of a run that a process of its own needs to go on. Rank 0 calls it, inside ``commit``."""
    plain = _write_weights(run, folder, write_model)
    unmerged = {n: t for n, t in run.optimizer.full_state(run.model).items() if n not in plain}
    if unmerged:
        save_file(_plain(unmerged), folder / UNMERGED_FILE)
    optimizer = run.optimizer.state_dict()
    save_file(_plain(optimizer.tensors), folder / OPTIMIZER_FILE)
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


def save_weights(run: Run, folder: Path, write_model: WriteModel) -> None:
    """Write the fp32 weights alone: the model in transformers' layout, what strategies added merged into it, and the
    parameters of tasks that have own.
    """
    _write_weights(run, folder, write_model)


def _write_weights(run: Run, folder: Path, write_model: WriteModel) -> dict[str, Tensor]:
    """As :func:`save_weights`; returns the model's tensors as written."""
    plain = exported(run.strategies, run.model, run.optimizer.full_state(run.model))
    write_model(folder, plain)
    objectives = _objectives_state(run)
    if objectives:
        save_file(_plain(objectives), folder / OBJECTIVES_FILE)
    return plain


def load_weights(run: Run, folder: Path) -> None:
    """Take the weights of another checkpoint of this run (its best one); optimizer and counters stay.

    Raises:
        CheckpointError: the checkpoint is damaged or of another model.
    """
    model, objectives = _read_weights(run, folder, verify(folder).files)
    run.optimizer.load_full_state(run.model, model)
    run.optimizer.load_full_state(run.unit.task_modules, objectives)


def _read_weights(
    run: Run, folder: Path, listed: Collection[str], read_model: ReadModel | None = None
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """The model's and the tasks' tensors of a verified checkpoint, checked against this run; of the files its manifest
    has ``listed`` alone.
    """
    model = read_model(folder) if read_model is not None else _read_model_tensors(folder, listed)
    if UNMERGED_FILE in listed:
        # Under the names of the run's model, whose strategies hold some tensors apart.
        own = run.model.state_dict().keys() & model.keys()
        model = {name: model[name] for name in own} | _read(folder / UNMERGED_FILE)
    _check_tensors(run.model, model, folder)
    objectives = _read(folder / OBJECTIVES_FILE) if OBJECTIVES_FILE in listed else {}
    _check_objectives(run, objectives, folder)
    return model, objectives


def save_task_modules(unit: TrainUnit, folder: Path) -> None:
    """Write the tasks' own tensors beside a saved model, where there are any."""
    tensors = task_tensors(unit)
    if tensors:
        save_file(_plain(tensors), folder / OBJECTIVES_FILE)


def load_task_modules(unit: TrainUnit, folder: Path) -> None:
    """Give a unit's tasks the parameters that tasks of their name and shape have in a saved model; before a run."""
    if not (folder / OBJECTIVES_FILE).exists():
        return
    wanted = unit.task_modules.state_dict()
    found = _read(folder / OBJECTIVES_FILE)
    fitting = {n: t for n, t in found.items() if n in wanted and t.shape == wanted[n].shape}
    unit.task_modules.load_state_dict(fitting, strict=False)


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
    model, objectives = _read_weights(run, folder, verify(folder).files, read_model)
    state = _read_state(folder / STATE_FILE)
    saved, present = [name for name, _ in state["strategies"]], [s.name for s in run.strategies]
    if saved != present:
        raise CheckpointError(f"{str(folder)!r} was made with strategies {saved}, this run has {present}")
    if state["seed"] != run.seed:
        raise CheckpointError(f"{str(folder)!r} was made with training.seed {state['seed']}, this run has {run.seed}")
    kind = str(state.get("optimizer_kind", ""))  # checkpoints of the first releases do not say
    tensors = OptimizerState(_read(folder / OPTIMIZER_FILE), state["optimizer"], kind)
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


def _read_model_tensors(folder: Path, listed: Collection[str]) -> dict[str, Tensor]:
    """Read ``model.safetensors``, or the shards its index lists; only what the manifest has ``listed``."""
    files = weight_files(folder)
    for name in files:
        if name not in listed:
            raise CheckpointError(f"{str(folder / name)!r} is no part of the checkpoint: its manifest does not list it")
    return {name: value for file in files for name, value in _read(folder / file).items()}


def _set_strategies(run: Run, step: int, states: list[dict[str, Any]]) -> None:
    run.step = step
    for strategy, state in zip(run.strategies, states, strict=True):
        strategy.load_state_dict(state)
    run.replan()


def _check_tensors(module: nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Hold tensors by name and shape against a module; a tied parameter need come under one of its names only."""
    wanted = module.state_dict(keep_vars=True)
    given = {id(wanted[name]) for name in tensors if name in wanted}
    for name, value in tensors.items():
        if name not in wanted:
            raise CheckpointError(f"{str(folder)!r} is of another model: it has {name!r}, which this one lacks")
        if value.shape != wanted[name].shape:
            raise CheckpointError(
                f"{str(folder)!r} is of another model: {name!r} has shape {tuple(value.shape)} there, "
                f"{tuple(wanted[name].shape)} here"
            )
    for name, value in wanted.items():
        if name not in tensors and id(value) not in given:
            raise CheckpointError(f"{str(folder)!r} is of another model: it lacks {name!r}")


def _objectives_state(run: Run) -> dict[str, Tensor]:
    """The tasks' own tensors, as fp32 masters."""
    full = run.optimizer.full_state(run.unit.task_modules)
    return {name: full[name] for name in task_tensors(run.unit)}


def task_tensors(unit: TrainUnit) -> dict[str, Tensor]:
    """Tensors of the tasks' own modules, each once; what they share with the model is in the model's file."""
    seen = {id(p) for p in unit.model.parameters()}
    own = {}
    for name, value in unit.task_modules.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            own[name] = value.detach()
    return own


def _check_objectives(run: Run, tensors: Mapping[str, Tensor], folder: Path) -> None:
    wanted = _objectives_state(run)
    for name in sorted(wanted.keys() ^ tensors.keys()):
        where = "lacks" if name in wanted else "has too much:"
        raise CheckpointError(f"{str(folder / OBJECTIVES_FILE)!r} {where} {name!r}; the objectives or head differ")
    for name, value in tensors.items():
        if value.shape != wanted[name].shape:
            raise CheckpointError(
                f"{str(folder / OBJECTIVES_FILE)!r}: {name!r} has shape {tuple(value.shape)}, "
                f"this run's {tuple(wanted[name].shape)}"
            )


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in tensors.items()}


def _read(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise CheckpointError(f"{str(path)!r} is missing")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error}") from error
    return tensors


def _read_state(path: Path) -> dict[str, Any]:
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
