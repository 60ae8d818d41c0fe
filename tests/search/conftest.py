"""Makes ``small_world`` importable, here and in processes that tests start: they are forked from a server that has
imported torch and the engine once, so that starting one costs little."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="needs the extra search")

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


@pytest.fixture(scope="session")
def processes():
    """The multiprocessing context of the fork server."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # The server imports its modules before it learns our sys.path.
    paths = [str(HERE), str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["small_world"])
    return context


@pytest.fixture
def start(processes):
    """``start(folder, config, kill=...)`` runs a configuration in a process of its own, from inside ``folder``."""
    import small_world

    started = []

    def start(folder, config, *, kill=None):
        process = processes.Process(target=small_world.program, args=(str(folder), config, kill))
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        if process.is_alive():
            process.kill()
        process.join()


@pytest.fixture
def world(tmp_path):
    """``world(name)`` is a new folder with the small data in it."""
    import small_world

    def make(name="world"):
        return small_world.write_data(tmp_path / name)

    return make
