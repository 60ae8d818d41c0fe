"""Locks between processes that end with the process that holds them, however it ends: the kernel lets go."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from tunecore.errors import InUseError, TunecoreError

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
    of one process do not keep each other out, and closing the file anywhere in the process lets go of it.

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
            OSError: the file cannot be made, or the file system has no such locks.
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

    @property
    def is_held(self) -> bool:
        """Whether this object holds it."""
        return self._descriptor is not None

    def write(self, text: str) -> None:
        """Replace what the file holds; the lock is held.

        Raises:
            OSError: the disk does not take it.
        """
        assert self._descriptor is not None, "of a lock that is held"
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text.encode(), 0)

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


LOCK = ".lock"
"""The lock's file in a run's folder."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_HELD: dict[tuple[int, int], tuple[int, str]] = {}
"""(device, inode) of a folder -> (process that holds it, since when). A forked child finds its parent's entries: they
are not its own."""
_CHANGED = threading.Condition()


class RunLock:
    """A run's folder, held by at most one run of all processes that share it and of all threads of each.

    The lock's file says who holds it, as one line of JSON: host, process, since when. A line that a killed process
    left says nothing: the kernel has let go of its lock.

    Args:
        folder: of the run; it is there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / LOCK)
        self._key: tuple[int, int] | None = None

    def acquire(self, waiting: Callable[[str], None] | None = None) -> None:
        """Take the folder. A file system without locks is a warning, and the folder is only kept from other threads.

        Args:
            waiting: called with who holds it, before this waits for its end; None does not wait.

        Raises:
            InUseError: it is held, and this does not wait; the holder is named.
            OSError: the lock's file cannot be made.
        """
        found = os.stat(self.folder)
        key = found.st_dev, found.st_ino
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        self._enter(key, since, waiting)
        try:
            # Only now: a file of a lock that this process holds must not be opened, for closing it would let go.
            if self._take(waiting):
                with suppress(OSError):  # a full disk: the lock holds, only its holder is not named
                    me = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
                    self._lock.write(json.dumps(me) + "\n")
        except BaseException:
            self._lock.release()
            self._leave(key)
            raise
        self._key = key

    def _enter(self, key: tuple[int, int], since: str, waiting: Callable[[str], None] | None) -> None:
        """Keep other threads of this process out."""
        with _CHANGED:
            told = False
            while _HELD.get(key, (0, ""))[0] == os.getpid():
                holder = f"another run of this process, since {_HELD[key][1]}"
                if waiting is None:
                    raise self._refusal(holder)
                if not told:
                    waiting(holder)
                    told = True
                _CHANGED.wait()
            _HELD[key] = os.getpid(), since

    def _leave(self, key: tuple[int, int]) -> None:
        with _CHANGED:
            _HELD.pop(key, None)
            _CHANGED.notify_all()

    def _take(self, waiting: Callable[[str], None] | None) -> bool:
        """Take the lock between processes; False where there is no such thing."""
        try:
            if not has_locks():
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
            if not self._lock.acquire(wait=False):
                holder = self._holder()
                if waiting is None:
                    raise self._refusal(holder)
                waiting(holder)
                self._lock.acquire()
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            where = str(self.folder)
            warnings.warn(f"there are no file locks in {where!r}: let no other process run there", stacklevel=3)
            return False
        return True

    def _holder(self) -> str:
        """Who holds the lock, as its file says."""
        try:
            told = json.loads(self._lock.path.read_text(encoding="utf-8"))
            return f"process {told['pid']} on {told['host']}, since {told['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"

    def _refusal(self, holder: str) -> InUseError:
        return InUseError(
            f"output_dir {str(self.folder)!r} is in use by {holder}",
            hint="Wait until that run ends, or stop it, or name another output_dir. (A process that was killed "
            "holds nothing.)",
        )

    def release(self) -> None:
        """Let go; without effect where it is not held."""
        if self._key is None or _HELD.get(self._key, (0, ""))[0] != os.getpid():
            return  # also in a forked child, whose parent holds it
        if self._lock.is_held:
            with suppress(OSError):
                self._lock.write("")
        self._lock.release()
        self._leave(self._key)
        self._key = None


def check_free(folder: Path) -> None:
    """Refuse to touch the folder of a run that is at work; every rank of a run may ask before its rank 0 takes it.

    Raises:
        InUseError: a run is at work there.
    """
    if os.environ.get("RANK", "0") != "0" or not (folder / LOCK).exists():
        return
    lock = RunLock(folder)
    with suppress(OSError):
        lock.acquire()
        lock.release()
