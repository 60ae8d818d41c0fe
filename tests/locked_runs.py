"""What the processes of test_locks do."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tunecore.errors import InUseError
from tunecore.locks import RunLock


def hold(folder: str) -> None:
    """Hold a run's folder, say so, and wait to be killed."""
    RunLock(Path(folder)).acquire()
    hold_on(folder)


def hold_with_a_worker(folder: str) -> None:
    """The same, with a forked child that outlives its parent."""
    RunLock(Path(folder)).acquire()
    worker = os.fork()
    if worker == 0:
        time.sleep(600)
        os._exit(0)
    Path(folder, "worker").write_text(str(worker))
    hold_on(folder)


def hold_while_children_end(folder: str) -> None:
    """The same, after a forked child has released its copy and ended, as a worker may."""
    lock = RunLock(Path(folder))
    lock.acquire()
    if os.fork() == 0:
        lock.release()
        os._exit(0)
    os.wait()
    hold_on(folder)


def hold_on(folder: str) -> None:
    Path(folder, "held").touch()
    time.sleep(600)


def try_to_hold(folder: str, results) -> None:
    """Tell what comes of taking the folder."""
    try:
        RunLock(Path(folder)).acquire()
        results.put("taken")
    except InUseError as error:
        results.put(error.message)
