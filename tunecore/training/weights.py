"""The weights of a run in a folder, and back, as safetensors; the rest of a run's state is in ``state``.

``model.safetensors`` (with config and tokenizer, as transformers writes them) holds fp32 masters;
``objectives.safetensors`` the parameters of tasks that have their own; ``unmerged.safetensors`` what a strategy merged
into the model's own tensors (adapters, and what they stand on).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from tunecore.checkpoint import verify
from tunecore.errors import CheckpointError
from tunecore.models.folder import load_tensors, weight_files
from tunecore.training.plans import exported
from tunecore.training.run import Run
from tunecore.training.unit import TrainUnit

WriteModel = Callable[[Path, Mapping[str, Tensor]], None]
"""``write(folder, state_dict)``: save the model in transformers' layout with these fp32 tensors."""
ReadModel = Callable[[Path], Mapping[str, Tensor]]
"""``read(folder) -> state_dict``: the tensors a WriteModel wrote, under the model's own names."""

OBJECTIVES_FILE = "objectives.safetensors"
UNMERGED_FILE = "unmerged.safetensors"


def save_weights(run: Run, folder: Path, write_model: WriteModel) -> dict[str, Tensor]:
    """Write the fp32 weights: the model in transformers' layout, what strategies added merged into it, and the
    parameters of tasks that have own. Returns the model's tensors as written.
    """
    plain = exported(run.strategies, run.model, run.optimizer.full_state(run.model))
    write_model(folder, plain)
    objectives = _objectives_state(run)
    if objectives:
        save_file(contiguous(objectives), folder / OBJECTIVES_FILE)
    return plain


def load_weights(run: Run, folder: Path) -> None:
    """Take the weights of another checkpoint of this run (its best one); optimizer and counters stay.

    Raises:
        CheckpointError: the checkpoint is damaged or of another model.
    """
    model, objectives = read_weights(run, folder, verify(folder).files)
    run.optimizer.load_full_state(run.model, model)
    run.optimizer.load_full_state(run.unit.task_modules, objectives)


def read_weights(
    run: Run, folder: Path, listed: Collection[str], read_model: ReadModel | None = None
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """The model's and the tasks' tensors of a verified checkpoint, checked against this run; of the files its manifest
    has ``listed`` alone.
    """
    model = read_model(folder) if read_model is not None else _read_model_tensors(folder, listed)
    if UNMERGED_FILE in listed:
        # Under the names of the run's model, whose strategies hold some tensors apart.
        own = run.model.state_dict().keys() & model.keys()
        model = {name: model[name] for name in own} | load_tensors(folder / UNMERGED_FILE)
    _check_tensors(run.model, model, folder)
    objectives = load_tensors(folder / OBJECTIVES_FILE) if OBJECTIVES_FILE in listed else {}
    _check_objectives(run, objectives, folder)
    return model, objectives


def save_task_modules(unit: TrainUnit, folder: Path) -> None:
    """Write the tasks' own tensors beside a saved model, where there are any."""
    tensors = task_tensors(unit)
    if tensors:
        save_file(contiguous(tensors), folder / OBJECTIVES_FILE)


def load_task_modules(unit: TrainUnit, folder: Path) -> None:
    """Give a unit's tasks the parameters that tasks of their name and shape have in a saved model; before a run."""
    if not (folder / OBJECTIVES_FILE).exists():
        return
    wanted = unit.task_modules.state_dict()
    found = load_tensors(folder / OBJECTIVES_FILE)
    fitting = {n: t for n, t in found.items() if n in wanted and t.shape == wanted[n].shape}
    unit.task_modules.load_state_dict(fitting, strict=False)


def task_tensors(unit: TrainUnit) -> dict[str, Tensor]:
    """Tensors of the tasks' own modules, each once; what they share with the model is in the model's file."""
    seen = {id(p) for p in unit.model.parameters()}
    own = {}
    for name, value in unit.task_modules.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            own[name] = value.detach()
    return own


def contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors takes them."""
    return {name: value.contiguous() for name, value in tensors.items()}


def _read_model_tensors(folder: Path, listed: Collection[str]) -> dict[str, Tensor]:
    """Read ``model.safetensors``, or the shards its index lists; only what the manifest has ``listed``."""
    files = weight_files(folder)
    for name in files:
        if name not in listed:
            raise CheckpointError(f"{str(folder / name)!r} is no part of the checkpoint: its manifest does not list it")
    return {name: value for file in files for name, value in load_tensors(folder / file).items()}


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
