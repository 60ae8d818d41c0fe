"""Folders that are either whole or not there: stage, digest, commit, verify, prune.

A checkpoint is written into ``.tmp-<name>-<pid>`` beside its place; every file is flushed to the disk; the manifest
with all sizes and SHA-256 digests comes last; then one rename makes it visible. A kill or a full disk at any moment
leaves the checkpoints from before as they were. An older folder of the same name waits as ``.old-<name>-<pid>`` for
the two renames that replace it, and counts as that checkpoint should the process die between them.

What a checkpoint is, its manifest says: a file it does not list is left alone and never read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError

from tunecore.durable import TEMPORARY, make_folder, sync, temporary_path
from tunecore.errors import CheckpointError

MANIFEST = "manifest.json"
_CONFIG = "config.json"
FORMAT = 1
_OLD = ".old-"
_STEP = re.compile(r"step-(\d+)")
_OLD_NAME = re.compile(r"\.old-(.+)-\d+")


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself."""

    name: str
    """Name of the folder it was committed as."""
    files: Mapping[str, tuple[int, str]]
    """Path inside the folder -> (size in bytes, SHA-256)."""
    info: Mapping[str, Any]
    """Step, parameters, configuration, versions: what the writer gave."""


def commit(run_dir: Path, name: str, write: Callable[[Path], object], info: Mapping[str, Any]) -> Path:
    """Write a checkpoint and make it visible in one rename; it is on the disk when this returns.

    Args:
        run_dir: folder of the run; made where it is absent.
        name: name of the checkpoint's folder; one of that name is replaced.
        write: writes the files into the folder it is given.
        info: JSON-serialisable facts for the manifest.

    Raises:
        CheckpointError: the disk is full or refuses a write. What was there before is still there.
    """
    target = run_dir / name
    hint = (
        "Make room on the disk (or lower checkpoint.keep) and run the same command again; "
        "earlier checkpoints are untouched."
    )
    with _stage(temporary_path(target), f"checkpoint {str(target)!r}", hint) as stage:
        write(stage)
        files = {}
        for path in _files(stage):
            sync(path)
            files[path.relative_to(stage).as_posix()] = (path.stat().st_size, _digest(path))
        _write_manifest(stage / MANIFEST, Manifest(name, files, info))
        for folder in [*(p for p in stage.rglob("*") if p.is_dir()), stage]:
            sync(folder)
        _move_into_place(stage, target)
    return target


def write_model_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Write a model's files into a folder that may hold some already; each is whole or not there.

    They are written aside first. Then config.json goes and comes back last, so that a folder in which a kill left new
    files beside old ones is no model. A checkpoint's manifest goes: what it says is no longer true.

    Args:
        folder: made where it is missing; files that ``write`` does not write stay in it.
        write: writes the files into the folder it is given.

    Raises:
        CheckpointError: the disk is full or refuses a write; a model that was there is untouched. Or it refuses one of
            the renames, and the folder holds no model.
    """
    make_folder(folder)
    clean_leftovers(folder)
    hint = "Make room on the disk and save again."
    with _stage(temporary_path(folder / "saved"), repr(str(folder)), hint) as stage:
        write(stage)
        files = sorted(_files(stage), key=lambda path: path == stage / _CONFIG)
        for path in files:
            sync(path)
        for stale in (_CONFIG, MANIFEST):
            (folder / stale).unlink(missing_ok=True)
        for path in files:
            target = folder / path.relative_to(stage)
            make_folder(target.parent)
            os.replace(path, target)
            sync(target.parent)


@contextmanager
def _stage(stage: Path, what: str, hint: str) -> Iterator[Path]:
    """A new folder to write into, gone in the end if not moved; an error of the disk names ``what`` was written."""
    try:
        make_folder(stage.parent)
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir()
        yield stage
    except BaseException as error:
        if not _is_of_the_disk(error):
            raise
        raise CheckpointError(f"cannot write {what}: {error}", hint=hint) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _is_of_the_disk(error: BaseException) -> bool:
    # tokenizers raises a bare Exception, and only its text tells.
    return isinstance(error, OSError | SafetensorError) or "(os error " in str(error)


def _move_into_place(stage: Path, target: Path) -> None:
    replaced = target.with_name(f"{_OLD}{target.name}-{os.getpid()}")
    if target.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        os.rename(target, replaced)
    try:
        os.rename(stage, target)
    except BaseException:
        # Also where a signal is raised between the two renames, or after the second.
        if replaced.exists() and not target.exists():
            os.rename(replaced, target)
        raise
    sync(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def verify(path: Path, but: Collection[str] = ()) -> Manifest:
    """Read every byte of a checkpoint against its manifest, and return the manifest.

    Args:
        path: the checkpoint.
        but: files that are not asked for, and may be damaged or gone.

    Raises:
        CheckpointError: the manifest or a file is missing, cut short, changed or not where it belongs; the file and
            what is wrong are named.
    """
    manifest = read_manifest(path)
    for name, (size, digest) in manifest.files.items():
        if name in but:
            continue
        file = path / name
        try:
            found = file.stat().st_size
            if found != size:
                raise CheckpointError(f"{str(file)!r} has {found} bytes; the manifest says {size}")
            if _digest(file) != digest:
                raise CheckpointError(f"{str(file)!r} is damaged: its SHA-256 is not that of the manifest")
        except FileNotFoundError:
            raise CheckpointError(f"{str(file)!r} is missing") from None
        except OSError as error:
            raise CheckpointError(f"{str(file)!r} cannot be read: {error}") from error
    return manifest


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a checkpoint, without reading the files it lists.

    Raises:
        CheckpointError: it is missing, cannot be read, was changed, or is of a newer format.
    """
    file = path / MANIFEST
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{str(file)!r} is missing, so the checkpoint was never completed") from None
    except OSError as error:
        raise CheckpointError(f"{str(file)!r} cannot be read: {error}") from error
    damaged = CheckpointError(f"{str(file)!r} is damaged: it is not as it was written")
    try:
        content = json.loads(data)
        digest = content.pop("sha256")
        if content["format"] > FORMAT:
            raise CheckpointError(
                f"{str(file)!r} has format {content['format']}; this tunecore reads up to {FORMAT}",
                hint="Upgrade tunecore.",
            )
        files = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in content["files"].items()}
        manifest = Manifest(str(content["name"]), files, dict(content["info"]))
        # Equal bytes, not equal meaning: also a flipped bit that JSON would shrug off is found.
        same = _manifest_bytes(content, digest) == data and hashlib.sha256(_canonical(content)).hexdigest() == digest
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise damaged from None
    if not same:
        raise damaged
    for name in files:
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\0" in name:
            raise CheckpointError(f"{str(file)!r} names {name!r}, which is outside the checkpoint")
    return manifest


def newest_good(run_dir: Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest ``step-N`` of a run that verifies, and those newer that do not, each with the reason.

    Changes nothing on the disk.
    """
    skipped: list[tuple[Path, str]] = []
    for step, path in sorted(_steps(run_dir, replaced_too=True), reverse=True):
        try:
            name = read_manifest(path).name
            if name != f"step-{step}":
                raise CheckpointError(f"{str(path / MANIFEST)!r} is of another: it was committed as {name!r}")
            verify(path)
        except CheckpointError as error:
            skipped.append((path, error.message))
        else:
            return path, skipped
    return None, skipped


def prune(
    run_dir: Path, keep: int, protect: Collection[Path | str] = (), newest: int | None = None
) -> list[Path]:
    """Remove all but the ``keep`` newest ``step-N`` folders and those in ``protect``; return what went.

    What cannot be removed stays, with a warning: it costs room, and no run ends for that.

    Args:
        run_dir: folder of the run.
        keep: how many stay.
        protect: folders that stay besides.
        newest: step the run stands at. Folders of later steps, damaged ones that a resumed run had to step over, are
            not counted, or they would crowd out the good ones; they stay until the run comes to their step again.
    """
    kept = {Path(p).name for p in protect}
    removed = []
    done = [(step, path) for step, path in _steps(run_dir) if newest is None or step <= newest]
    for _, path in sorted(done, reverse=True)[max(1, keep) :]:
        if path.name in kept:
            continue
        # Out of sight first, in one rename: a folder half removed must not be taken for a checkpoint.
        doomed = temporary_path(path)
        try:
            os.rename(path, doomed)
        except OSError as error:
            _warn_of_leftover(path, error)
            continue
        _remove(doomed)
        removed.append(path)
    return removed


def clean_leftovers(run_dir: Path) -> list[Path]:
    """Take away what a killed process left half done; call it when a run starts. Returns what was removed.

    A checkpoint caught in the middle of being replaced gets its place back. What cannot be removed stays, with a
    warning.
    """
    removed: list[Path] = []
    if not run_dir.is_dir():
        return removed
    for path in sorted(run_dir.iterdir()):
        old = _OLD_NAME.fullmatch(path.name)
        if old and not (run_dir / old[1]).exists():
            try:
                os.rename(path, run_dir / old[1])
            except OSError as error:
                _warn_of_leftover(path, error)
        elif (old or path.name.startswith(TEMPORARY)) and _remove(path):
            removed.append(path)
    return removed


def _remove(path: Path) -> bool:
    """Remove a file or a folder, as much of it as can be; returns whether all of it is gone."""
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:
        shutil.rmtree(path, ignore_errors=True)
        if path.exists():
            _warn_of_leftover(path, error)
            return False
    return True


def _warn_of_leftover(path: Path, error: OSError) -> None:
    """Say that a folder stays."""
    warnings.warn(f"{str(path)!r} cannot be removed and takes room on the disk: {error}", stacklevel=3)


def _steps(run_dir: Path, *, replaced_too: bool = False) -> Iterator[tuple[int, Path]]:
    """(N, folder) of every step-N; with ``replaced_too`` also of one whose replacement never came."""
    if not run_dir.is_dir():
        return
    for path in run_dir.iterdir():
        old = _OLD_NAME.fullmatch(path.name) if replaced_too else None
        step = _STEP.fullmatch(old[1] if old else path.name)
        if step and path.is_dir() and not (old and (run_dir / old[1]).exists()):
            yield int(step[1]), path


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1).encode()


def _manifest_bytes(content: Mapping[str, Any], digest: str) -> bytes:
    return _canonical({**content, "sha256": digest}) + b"\n"


def _write_manifest(path: Path, manifest: Manifest) -> None:
    files = {name: {"size": size, "sha256": digest} for name, (size, digest) in manifest.files.items()}
    # Through JSON once, so that what is digested is what a reader will see (tuples are lists, keys are strings).
    given = {"format": FORMAT, "name": manifest.name, "files": files, "info": manifest.info}
    content = json.loads(json.dumps(given, allow_nan=False))
    with open(path, "wb") as file:
        file.write(_manifest_bytes(content, hashlib.sha256(_canonical(content)).hexdigest()))
        file.flush()
        os.fsync(file.fileno())
