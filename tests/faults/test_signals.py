"""SIGTERM and SIGINT at any place, once or twice: the documented code, no traceback, and the same bytes later."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from pathlib import Path

import pytest
import tiny_runs as tiny
from places import SignalAt
from record import record
from scale import scaled

from tunecore.checkpoint import newest_good

STEPS = 10
PREPARING, TRAINING = ("cleaning", "building"), ("run start", "step 1", "after step 4", "evaluating", "saving step-3")
FINISHING = ("saving step-10", "saving final", "finishing")
AT_RANDOM = 44
"""Runs that are signalled from outside, at scale 1; with all places the campaign is of 100 signals and more."""


class Runs:
    """Runs of one setting in a folder of their own, each compared in the end with one that was left alone."""

    def __init__(self, start_process, world: Path, folder: Path, **options) -> None:
        self.start_process, self.folder = start_process, folder
        self.options = tiny.run_options(world, training__steps=STEPS, evaluation__every=5, **options)
        self.count = 0
        start_process(abs, 0).join()
        begun = time.monotonic()
        assert set(self.end("whole")) == {0}
        self.seconds = time.monotonic() - begun
        self.wanted = tiny.end_state(folder / "whole", STEPS), tiny.logged(folder / "whole")

    def start(self, name, act=None, environment=None, number=0):
        said = str(self.folder / f"{name}.{number}.said")
        faults = {"delay": 0.01, **({} if act is None else {"act": act})}
        output = str(self.folder / name)
        return self.start_process(tiny.command, self.options, output, faults, said, environment or {})

    def start_all(self, name, acts):
        return [self.start(name, acts.get(0))]

    def end(self, name, acts=None, during=lambda processes: None) -> list[int]:
        """Run to an end, and return the exit codes; nothing may look like a crash."""
        processes = self.start_all(name, acts or {})
        during(processes)
        for process in processes:
            process.join(120)
        for number in range(len(processes)):
            said = self.said(name, number)
            assert "Traceback" not in said and "Exception ignored" not in said, said
        return [process.exitcode for process in processes]

    def said(self, name, number=0) -> str:
        return (self.folder / f"{name}.{number}.said").read_text()

    def stopped(self, acts=None, during=lambda processes: None) -> tuple[list[int], str]:
        """A fresh run that is signalled, then started again: (exit codes of the first, what it said)."""
        name = f"run-{self.count}"
        self.count += 1
        codes = self.end(name, acts, during)
        said = self.said(name)
        assert not newest_good(self.folder / name)[1]
        assert self.end(name) == [0] * len(codes)
        folder = self.folder / name
        assert (tiny.end_state(folder, STEPS), tiny.logged(folder)) == self.wanted
        hidden = [path.name for path in folder.rglob(".*") if path.name.startswith((".tmp-", ".old-", ".spool-"))]
        assert not hidden, "nothing half made is left"
        return codes, said


class TwoRanks(Runs):
    """The same on two processes that share every step."""

    def start_all(self, name, acts):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks = [{**shared, "RANK": str(n), "LOCAL_RANK": str(n)} for n in range(2)]
        return [self.start(name, acts.get(n), ranks[n], n) for n in range(2)]


def check_place(runs: Runs, place: str, number: int, times: int) -> None:
    codes, said = runs.stopped({0: SignalAt(place, [number] * times)})
    assert codes == [128 + number], said
    if place in TRAINING and times == 1:
        assert "stopped at step" in said and "the same command resumes it" in said, said
    else:
        assert "the same command" in said, said


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_every_place(start_process, world, tmp_path):
    begun, tried = time.monotonic(), 0
    for workers, places in ((0, (*PREPARING, *TRAINING, *FINISHING)), (2, ("loading 4",))):
        folder = tmp_path / f"workers-{workers}"
        folder.mkdir()
        runs = Runs(start_process, world, folder, data__num_workers=workers)
        for place in places:
            for number in (signal.SIGTERM, signal.SIGINT):
                for times in (1, 2):
                    check_place(runs, place, number, times)
                    tried += 1
    record("signals at a place", tried, tried, seconds=round(time.monotonic() - begun, 1))


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_from_outside_at_random_times(start_process, world, tmp_path):
    begun, times, alive = time.monotonic(), random.Random(0), 0
    runs = Runs(start_process, world, tmp_path, data__num_workers=2)
    tries = scaled(AT_RANDOM)
    for turn in range(tries):
        number = (signal.SIGTERM, signal.SIGINT)[turn % 2]

        def signal_it(processes, number=number, twice=turn % 4 > 1):
            time.sleep(0.05 + times.uniform(0.1, 0.95) * runs.seconds)
            for _ in range(1 + twice):
                if processes[0].exitcode is None:
                    os.kill(processes[0].pid, number)
                    time.sleep(times.uniform(0, 0.02))

        codes, said = runs.stopped(during=signal_it)
        assert codes[0] in (0, 128 + number), said
        alive += codes[0] != 0
    assert alive > tries // 2
    record("signals at random", tries, tries, alive=alive, seconds=round(time.monotonic() - begun, 1))


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_two_ranks_stop_together(start_process, world, tmp_path):
    begun, tried = time.monotonic(), 0
    runs = TwoRanks(start_process, world, tmp_path)
    for turn, place in enumerate((*TRAINING, "after step 5")):
        for signalled in ((0,), (1,), (0, 1)):
            if place.startswith("saving") and 0 not in signalled:
                continue  # rank 0 alone saves
            number = (signal.SIGTERM, signal.SIGINT)[turn % 2]
            codes, said = runs.stopped({rank: SignalAt(place, [number]) for rank in signalled})
            assert codes == [128 + number] * 2, said
            tried += 1
    record("signals on two ranks", tried, tried, seconds=round(time.monotonic() - begun, 1))


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_of_two_ranks_before_they_train(start_process, world, tmp_path, rank):
    runs = TwoRanks(start_process, world, tmp_path)
    codes, _ = runs.stopped({rank: SignalAt("building", [signal.SIGTERM])})
    other = 1 - rank
    assert codes[rank] == 143 and codes[other] == 2
    record("signals on two ranks", 1, 1, place="building")


# Two that cost data or hours: a half-made corpus left lying, and a stop that the last save forgot.
@pytest.mark.parametrize(("place", "number", "times"), [("cleaning", signal.SIGTERM, 1), ("saving step-10", 2, 1)])
def test_some_places(start_process, world, tmp_path, place, number, times):
    check_place(Runs(start_process, world, tmp_path), place, number, times)
