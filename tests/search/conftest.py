"""Makes ``small_world`` importable, here and in processes that tests start: they are forked from a server that has
imported torch and the engine once, so that starting one costs little."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="needs the extra search")

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


@pytest.fixture(scope="session")
def processes(fork_server):
    """The multiprocessing context of the fork server."""
    return fork_server(HERE, "small_world")


@pytest.fixture
def start(start_process):
    """``start(folder, config, kill=...)`` runs a configuration in a process of its own, from inside ``folder``."""
    import small_world

    return lambda folder, config, *, kill=None: start_process(small_world.program, str(folder), config, kill)


@pytest.fixture
def world(tmp_path):
    """``world(name)`` is a new folder with the small data in it."""
    import small_world

    def make(name="world"):
        return small_world.write_data(tmp_path / name)

    return make
