"""Runs of the real Engine that are killed at any moment, however often, end in the bytes of one that never was."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
import tiny_runs as tiny
from processes import children_of, wait_gone
from record import record
from scale import scaled

from tunecore.checkpoint import newest_good

SETTINGS = [(f, w, a) for f in ("bert", "gpt2", "t5") for w in (0, 2) for a in (1, 3)]
KILLS = 204
"""Of all settings together, at scale 1: 17 each."""
DELAY = 0.01


class Campaign:
    """One setting: its uninterrupted run, and runs that are killed until they are done."""

    def __init__(self, start_process, world: Path, folder: Path, family: str, workers: int, accumulation: int) -> None:
        self.start_process, self.folder = start_process, folder
        self.options = tiny.run_options(
            world, family, data__num_workers=workers, training__accumulation=accumulation
        )  # fmt: skip
        self.random = random.Random(f"{family} {workers} {accumulation}")
        self.kills = self.in_save = self.rounds = 0
        start_process(abs, 0).join()  # the fork server's own start does not count
        begun = time.monotonic()
        self.finish("whole")
        self.seconds = time.monotonic() - begun
        self.wanted = tiny.end_state(folder / "whole"), tiny.logged(folder / "whole")

    def start(self, name: str):
        faults = {"delay": DELAY, "journal": str(self.folder / f"{name}.journal")}
        said = str(self.folder / f"{name}.said")
        return self.start_process(tiny.command, self.options, str(self.folder / name), faults, said)

    def finish(self, name: str) -> None:
        process = self.start(name)
        process.join(120)
        assert process.exitcode == 0, (self.folder / f"{name}.said").read_text()

    def life(self, name: str, in_save: bool) -> int:
        """Start the run and kill it; returns the exit code."""
        process = self.start(name)
        deadline = time.monotonic() + self.random.uniform(0.1, 0.9) * self.seconds
        if in_save:
            deadline += 10 * self.seconds
        while time.monotonic() < deadline and process.exitcode is None:
            if in_save and any((self.folder / name).glob(".tmp-step-*")):
                time.sleep(self.random.uniform(0, 0.02))
                break
            time.sleep(0.0005 if in_save else 0.005)
        workers = children_of(process.pid)
        process.kill()
        process.join()
        assert wait_gone(workers, 4), "workers end with their parent"
        return process.exitcode

    def round(self, kills: int) -> None:
        """Kill one run until it is done (or has died so often), then let it end and compare all it left."""
        name = f"killed-{self.rounds}"
        folder = self.folder / name
        for _ in range(kills):
            in_save = self.random.random() < 1 / 3
            reached = tiny.step_of(newest_good(folder)[0])
            code = self.life(name, in_save)
            if code == 0:
                break
            assert code == -signal.SIGKILL, (self.folder / f"{name}.said").read_text()
            self.kills += 1
            self.in_save += in_save
            path, skipped = newest_good(folder)
            assert not skipped, "a kill never leaves a checkpoint that looks whole and is not"
            assert tiny.step_of(path) >= reached
        self.finish(name)
        self.rounds += 1
        assert tiny.end_state(folder) == self.wanted[0]
        assert tiny.logged(folder) == self.wanted[1]
        assert not [p.name for p in folder.rglob(".*") if p.name.startswith((".tmp-", ".old-", ".spool-"))]
        self.check_lost_work(self.folder / f"{name}.journal")

    def check_lost_work(self, journal: Path) -> None:
        """No start is more than a save interval behind the last step that was done."""
        done = 0
        for word, step in tiny.starts_and_steps(journal):
            if word == "start":
                assert done - tiny.SAVE_EVERY <= step <= done
            done = step
        assert done == tiny.STEPS


def campaign(start_process, world, folder, setting, kills) -> None:
    family, workers, accumulation = setting
    begun = time.monotonic()
    runs = Campaign(start_process, world, folder, family, workers, accumulation)
    while runs.kills < kills:
        runs.round(kills - runs.kills)
    record(
        "kill -9", runs.kills, runs.kills, family=family, workers=workers, accumulation=accumulation,
        in_save=runs.in_save, rounds=runs.rounds, seconds=round(time.monotonic() - begun, 1),
    )  # fmt: skip


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: f"{s[0]}-workers{s[1]}-accumulation{s[2]}")
def test_kills_at_random_times(start_process, world, tmp_path, setting):
    campaign(start_process, world, tmp_path, setting, scaled(KILLS // len(SETTINGS)))


def test_two_kills_of_the_real_engine(start_process, world, tmp_path):
    campaign(start_process, world, tmp_path, ("bert", 2, 1), 2)
