"""Where a large file lies while it is made: a folder locked by its maker, so that one left by a kill is told."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from tunecore.durable import sync
from tunecore.locks import FileLock, has_locks

_PREFIX, _LOCK = ".spool-", "lock"
_own: set[Path] = set()
"""Folders of this process, which its own locks do not keep out."""


class SpoolFolder:
    """A new folder in ``parent`` for half-made files; :meth:`remove` it in the end."""

    def __init__(self, parent: Path) -> None:
        # It gets its name once it is locked, so that no other process takes it for abandoned before.
        made = Path(mkdtemp(prefix=".new", dir=parent))
        self._lock = FileLock(made / _LOCK)
        if has_locks():
            self._lock.acquire()
        self.path = parent / made.name.replace(".new", _PREFIX)
        os.rename(made, self.path)
        _own.add(self.path)

    def remove(self) -> None:
        """Take the folder away with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.release()
        _own.discard(self.path)


def remove_abandoned(parent: Path) -> None:
    """Remove the folders of makers that were killed; they may be as large as the text."""
    if not has_locks():
        return
    for folder in parent.glob(_PREFIX + "*"):
        lock = FileLock(folder / _LOCK)
        if folder.is_dir() and folder not in _own and lock.acquire(wait=False):
            shutil.rmtree(folder, ignore_errors=True)
            lock.release()


@contextmanager
def spooled(path: Path) -> Iterator[Path]:
    """Where to write what takes the place of ``path``, in one rename, when the context ends without an error.

    What a killed process left half made beside ``path`` is removed.

    Raises:
        OSError: the disk refuses it. What was there before is still there.
    """
    remove_abandoned(path.parent)
    folder = SpoolFolder(path.parent)
    try:
        made = folder.path / path.name
        yield made
        sync(made)
        os.replace(made, path)
        sync(path.parent)
    finally:
        folder.remove()
