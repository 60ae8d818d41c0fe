"""Makes the modules of this folder importable, here and in the processes that tests start."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


@pytest.fixture(scope="session")
def processes(fork_server):
    """The multiprocessing context of the fork server."""
    return fork_server(HERE, "tiny_runs")


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Text and tokenizers of the tiny runs."""
    import tiny_runs

    return tiny_runs.write_world(tmp_path_factory.mktemp("world"))
