"""A run's folder: ``run.yaml, data_summary.json, metrics.jsonl, report.html, step-N/, final/, best, result.json``.

Naming a run folder anywhere a model is asked for means its best checkpoint, else ``final``, else the newest good step.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tunecore.checkpoint import MANIFEST, commit, newest_good, read_manifest, verify
from tunecore.config import RunConfig
from tunecore.config_diff import NEUTRAL_KEYS, RESUMABLE_KEYS, check_resumable, diff_configs
from tunecore.config_io import dump_config, load_config
from tunecore.durable import make_folder, write_text
from tunecore.errors import CheckpointError, ConfigError
from tunecore.tracking.values import plain

RUN_FILE = "run.yaml"
SUMMARY_FILE = "data_summary.json"
RESULT_FILE = "result.json"
BEST_FILE = "best"
FINAL = "final"


def claim(config: RunConfig, allowed: Collection[str] = RESUMABLE_KEYS) -> tuple[Path, bool]:
    """Take ``output_dir`` for this run; return it and whether a run of the same configuration is already there.

    Args:
        config: the run.
        allowed: dotted keys that may differ from those of a run that is there.

    Raises:
        ConfigError: the folder holds another run (the differing keys are named) or a model that is no run.
        CheckpointError: the folder cannot be made.
    """
    folder = Path(config.output_dir)
    run_file = folder / RUN_FILE
    if run_file.exists():
        try:
            check_resumable(load_config(run_file), config, allowed)
        except ConfigError as error:
            raise ConfigError(
                f"output_dir {config.output_dir!r} holds another run: {error.message}",
                hint="Name another output_dir, or give the options of that run to resume it.",
            ) from error
        return folder, True
    if (folder / "config.json").exists() or (folder.exists() and not folder.is_dir()):
        raise ConfigError(
            f"output_dir {config.output_dir!r} is a file, or a model that no run made; it would be overwritten",
            hint="Name another output_dir.",
        )
    make_folder(folder)
    return folder, False


def record_config(folder: Path, config: RunConfig) -> None:
    """Write ``run.yaml``."""
    write_text(folder / RUN_FILE, dump_config(config))


def record_data(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write ``data_summary.json``, or check it against the one there: a resumed run must see the same data.

    Raises:
        ConfigError: the data's digest has changed since the run began.
    """
    path = folder / SUMMARY_FILE
    if path.exists():
        before = _read_object(path).get("digest")
        if before != summary.get("digest"):
            raise ConfigError(
                f"the data of the run in {str(folder)!r} has changed since it began "
                f"(digest {before} then, {summary.get('digest')} now)",
                hint="Restore the files, or start a new run in another output_dir.",
            )
    write_text(path, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{str(path)!r} holds a {type(value).__name__}, not an object")
    return value


def record_best(folder: Path, checkpoint: Path | None) -> None:
    """Point ``best`` at a checkpoint of this folder."""
    if checkpoint is not None:
        write_text(folder / BEST_FILE, checkpoint.name + "\n")


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all; what is not finite goes as a word (``tracking.values``)."""
    write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_result(folder: Path) -> dict[str, Any] | None:
    """What ``result.json`` says of a run that ended, else None."""
    try:
        result = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return None  # damaged by hand: the run is looked at anew
    return result if isinstance(result, dict) else None


def finished(config: RunConfig) -> dict[str, Any] | None:
    """The result of the run in ``output_dir``, where just that run has ended and its model is whole; else None.

    Every byte of the model is read against its manifest.
    """
    folder = Path(config.output_dir)
    result = read_result(folder)
    if result is None or not (folder / RUN_FILE).exists():
        return None
    try:
        changed = [key for key in diff_configs(load_config(folder / RUN_FILE), config) if key not in NEUTRAL_KEYS]
        if not changed:
            verify(resolve_model(folder))
    except (ConfigError, CheckpointError):
        return None
    return None if changed else result


def best_name(folder: Path) -> str | None:
    """Name of the best checkpoint, where the run chose one."""
    path = folder / BEST_FILE
    if not path.exists():
        return None
    name = path.read_text(encoding="utf-8", errors="replace").strip()
    if Path(name).name != name:
        raise CheckpointError(f"{str(path)!r} names {name[:80]!r}, which is no checkpoint of this run")
    return name


def resolve_model(path: str | os.PathLike[str]) -> Path:
    """The model folder meant by ``path``: a transformers folder as it is, or the best of a run folder.

    Raises:
        CheckpointError: nothing at ``path`` is a model; what was looked for is said.
    """
    folder = Path(path)
    if (folder / "config.json").exists():
        return folder
    if not folder.is_dir():
        raise CheckpointError(
            f"{str(path)!r} is not a folder",
            hint="Name a folder with a config.json, or a run's output_dir. Models are not downloaded by name.",
        )
    for name in (best_name(folder), FINAL):
        if name and (folder / name / "config.json").exists():
            return folder / name
    newest, skipped = newest_good(folder)
    if newest is None:
        why = "; ".join(f"{p.name}: {reason}" for p, reason in skipped) or "it has no best, final or step-N"
        raise CheckpointError(f"{str(path)!r} holds no model: no config.json, and {why}")
    return newest


TRAINING_STATE = ("optimizer.safetensors", "state.json", "unmerged.safetensors")
"""Files of a checkpoint that only a run that goes on needs; adapters are merged into the model beside them."""


def verify_model(folder: Path) -> None:
    """Hold a model that a run committed against its manifest; one of other make, without a manifest, is let through.

    Raises:
        CheckpointError: a file of it is damaged or gone, state that only a run needs aside.
    """
    if not (folder / MANIFEST).exists():
        return
    try:
        verify(folder, but=TRAINING_STATE)
    except CheckpointError as error:
        raise CheckpointError(
            error.message,
            hint=f"Restore the file, or name another checkpoint of the run. If you changed it yourself, remove "
            f"{MANIFEST} from that folder.",
        ) from error


def copy_model(source: str | os.PathLike[str], folder: Path, name: str = FINAL) -> Path:
    """Commit the model meant by ``source`` (:func:`resolve_model`) as ``folder/name``, without training state.

    Raises:
        CheckpointError: there is no model, it is damaged, or it cannot be written.
    """
    model = resolve_model(source)
    manifest = verify(model)

    def write(stage: Path) -> None:
        for file in sorted(manifest.files):
            if file not in TRAINING_STATE:
                (stage / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(model / file, stage / file)

    return commit(folder, name, write, manifest.info)


def model_digest(path: str | os.PathLike[str]) -> str:
    """What tells one model from another: the digest of the weights' and settings' digests.

    A folder that no run committed (one of transformers) is told by its path alone.

    Raises:
        CheckpointError: no model is there.
    """
    model = resolve_model(path)
    if not (model / MANIFEST).exists():
        return f"folder {path}"
    files = read_manifest(model).files
    told = json.dumps({name: digest for name, (_, digest) in files.items() if name not in TRAINING_STATE})
    return hashlib.sha256(told.encode()).hexdigest()
