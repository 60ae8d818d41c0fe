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
from places import SignalAt, WaitAt
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
        said = "".join(self.said(name, number) for number in range(len(codes)))
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


def check_one_of_two(runs: TwoRanks, place: str, rank: int, number: signal.Signals, times: int) -> None:
    codes, said = runs.stopped({rank: SignalAt(place, [number] * times)})
    assert codes == [128 + number] * 2, said
    assert said.count(f"interrupted: rank {rank} was stopped by {number.name}; the same command") == 1, said
    assert said.count("interrupted") == 2 and "error:" not in said, said


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
@pytest.mark.timeout(1800)
def test_one_of_two_ranks_is_stopped_at_once(start_process, world, tmp_path):
    """Before the training, after it, and by a second signal within: the other ends as it did, and says why."""
    begun, tried = time.monotonic(), 0
    runs = TwoRanks(start_process, world, tmp_path)
    for place, times in (*((place, 1) for place in (*PREPARING, *FINISHING[1:])), ("after step 4", 2)):
        for rank in (0, 1):
            if place in ("cleaning", "saving final") and rank:
                continue  # rank 0 alone does that
            for number in (signal.SIGTERM, signal.SIGINT):
                check_one_of_two(runs, place, rank, number, times)
                tried += 1
    record("signals on two ranks", tried, tried, seconds=round(time.monotonic() - begun, 1))


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_rank_that_waits_for_rank_0_can_be_stopped(start_process, world, tmp_path):
    runs, gate = TwoRanks(start_process, world, tmp_path), tmp_path / "gate"

    def stop_the_one_that_waits(processes):
        while not gate.exists():
            assert processes[0].exitcode is None
            time.sleep(0.01)
        os.kill(processes[1].pid, signal.SIGTERM)
        processes[1].join(10)
        assert processes[1].exitcode == 143 and processes[0].exitcode is None, "at once, not when rank 0 is through"
        gate.unlink()

    codes, said = runs.stopped({0: WaitAt("cleaning", gate)}, stop_the_one_that_waits)
    assert codes == [143, 143] and "rank 1 was stopped by SIGTERM" in said, said
    record("signals on two ranks", 1, 1, place="waiting")


# Two that cost data or hours: a half-made corpus left lying, and a stop that the last save forgot.
@pytest.mark.parametrize(("place", "number", "times"), [("cleaning", signal.SIGTERM, 1), ("saving step-10", 2, 1)])
def test_some_places(start_process, world, tmp_path, place, number, times):
    check_place(Runs(start_process, world, tmp_path), place, number, times)


def test_a_stop_of_one_rank_before_the_training_is_one_of_both(start_process, world, tmp_path):
    check_one_of_two(TwoRanks(start_process, world, tmp_path), "building", 0, signal.SIGTERM, 1)
