"""Makes ``fake_training`` and ``fake_ranks`` importable, here and in processes that tests start.

These processes are forked from a server that has imported torch once, so that starting one costs milliseconds.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


@pytest.fixture(scope="session")
def processes(fork_server):
    """The multiprocessing context of the fork server."""
    return fork_server(HERE, "fake_ranks")


@pytest.fixture
def on_ranks(processes, tmp_path):
    """``on_ranks(n, function, *arguments)`` runs a function of fake_ranks on n ranks and returns what each gave."""
    import fake_ranks

    def run(count, function, *arguments, expect=0):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        results = tmp_path / f"ranks-{port}"
        results.mkdir()
        started = [
            processes.Process(
                target=fake_ranks.on_rank, args=(rank, count, port, str(results), function, arguments)
            )
            for rank in range(count)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join(120)
            if process.exitcode is None:
                process.kill()
        assert [p.exitcode for p in started] == [expect] * count
        return [fake_ranks.read_result(results, rank) for rank in range(count)]

    return run
