"""Processes seen from outside, by what Linux says of them under /proc."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path


def children_of(pid: int) -> list[int]:
    """Ids of the processes that ``pid`` started and that still run."""
    try:
        lists = [task / "children" for task in Path(f"/proc/{pid}/task").iterdir()]
        return [int(child) for path in lists for child in path.read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def is_running(pid: int) -> bool:
    """Whether a process runs; one that ended and was not yet waited for does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_gone(pids: Iterable[int], seconds: float) -> bool:
    """Wait until none of the processes runs; False where one still does after so many seconds."""
    deadline = time.monotonic() + seconds
    waiting = list(pids)
    while waiting := [pid for pid in waiting if is_running(pid)]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
