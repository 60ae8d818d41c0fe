"""Locks between processes that end with the process that holds them, however it ends: the kernel lets go."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunecore.errors import TunecoreError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def has_locks() -> bool:
    """Whether the system has such locks (Windows has none)."""
    return fcntl is not None


class FileLock:
    """A lock on a file, held by at most one process of all that share the folder, network folders included.

    It is a POSIX record lock: a child process (a data worker) does not inherit it, so it ends with its owner. Threads
    of one process do not keep each other out.

    Args:
        path: the lock's file; made where it is missing, never removed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self, *, wait: bool = True) -> bool:
        """Take the lock; returns False where another holds it and ``wait`` is False.

        Raises:
            TunecoreError: the system has no such locks.
        """
        if not has_locks():
            raise TunecoreError("runs that processes share need file locks, which this system does not have")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # what a lock of another is called differs between systems
            os.close(descriptor)
            return False
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Let go; without effect where it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """The lock for as long as the context lasts."""
        self.acquire()
        try:
            yield
        finally:
            self.release()
