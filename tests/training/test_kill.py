"""A run that is killed, at any moment and however often, ends in the bytes of one that never was."""

from __future__ import annotations

import os
import random
import signal
import time

import fake_training as fake
import pytest

from tunecore.checkpoint import newest_good, verify

STEPS = 30
LONGEST = 0.6


@pytest.fixture
def start(start_process):
    return lambda folder, *options: start_process(fake.program, str(folder), *options)


def finish(start, folder, *options):
    process = start(folder, *options)
    process.join(120)
    assert process.exitcode == 0


def end_state(folder, steps=STEPS):
    path = folder / f"step-{steps}"
    verify(path)
    return {p.name: p.read_bytes() for p in path.iterdir()}


@pytest.fixture
def wanted(start, tmp_path):
    finish(start, tmp_path / "whole")
    return end_state(tmp_path / "whole")


def newest_step(folder):
    path, skipped = newest_good(folder)
    assert not skipped, "a kill never leaves a checkpoint that looks whole and is not"
    return 0 if path is None else verify(path).info["step"]


def kill_at_random_times(start, folder, kills, seed, delay):
    """Start the run ``kills`` times and kill it after up to LONGEST seconds each; returns how often it was alive."""
    times = random.Random(seed)
    killed = reached = 0
    for _ in range(kills):
        process = start(folder, f"delay={delay}")
        time.sleep(times.uniform(0.05, LONGEST))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        assert newest_step(folder) >= reached
        reached = newest_step(folder)
    return killed


def test_kills_at_random_times(start, tmp_path, wanted):
    # The run waits longer in all than it is given, so that every kill finds it alive, on a fast machine too.
    assert kill_at_random_times(start, tmp_path / "killed", 6, seed=0, delay=6 * LONGEST / STEPS) == 6
    finish(start, tmp_path / "killed")
    assert end_state(tmp_path / "killed") == wanted


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_many_kills_at_random_times(start, tmp_path, wanted, seed):
    kill_at_random_times(start, tmp_path / "killed", 15, seed, delay=0.01)
    finish(start, tmp_path / "killed")
    assert end_state(tmp_path / "killed") == wanted


def test_a_kill_before_every_call_of_a_save(start, tmp_path, wanted):
    """Systematically: before the 1st, 2nd, 3rd ... fsync or rename of a process, through three saves and their
    pruning."""
    folder, reached, kills = tmp_path / "killed", 0, 0
    for call in range(60):
        process = start(folder, f"kill_at={call}")
        process.join(120)
        assert process.exitcode in (0, -signal.SIGKILL)
        kills += process.exitcode != 0
        assert newest_step(folder) >= reached
        reached = newest_step(folder)
        if process.exitcode == 0:
            break
    assert kills > 15 and reached == STEPS
    assert end_state(folder) == wanted
    assert not [p.name for p in folder.iterdir() if p.name.startswith(".tmp")], "leftovers go at the next start"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_from_outside(start, tmp_path, wanted, number, code):
    folder = tmp_path / "stopped"
    process = start(folder, "delay=0.02")
    deadline = time.monotonic() + 60
    while not (folder / "step-3").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == code
    assert 3 <= newest_step(folder) < STEPS
    finish(start, folder)
    assert end_state(folder) == wanted
