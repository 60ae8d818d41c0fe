"""Files and folders that are on the disk when they are there. After a crash a file is the old one or the new, whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from tunecore.errors import CheckpointError

TEMPORARY = ".tmp-"
"""What the names of unfinished files and folders begin with; those of a killed process go when the run starts again."""


def temporary_path(path: Path) -> Path:
    """Where this process writes what is to become ``path``."""
    return path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")


def sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and its parents where they are missing, each of them on the disk when this returns.

    Raises:
        CheckpointError: one cannot be made.
    """
    if path.is_dir():
        return
    if path.parent != path:
        make_folder(path.parent)
    try:
        path.mkdir(exist_ok=True)
        sync(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A UTF-8 file to write, which takes the place of ``path`` in one rename when the context ends without an error.

    Raises:
        CheckpointError: the disk is full or refuses a write. What was there before is still there.
    """
    temporary = temporary_path(path)
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise


def cannot_write(path: Path, error: OSError) -> CheckpointError:
    """The error of a file of a run that the disk does not take."""
    return CheckpointError(
        f"cannot write {str(path)!r}: {error.strerror or error}",
        hint="Make room on the disk, or see that it is there and writable, and run the same command again.",
    )


def write_text(path: Path, text: str) -> None:
    """Write a small file as :func:`replacing` does.

    Raises:
        CheckpointError: it cannot be written.
    """
    with replacing(path) as file:
        file.write(text)
