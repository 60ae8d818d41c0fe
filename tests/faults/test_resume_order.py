"""Whatever a run is cut into, and however it goes on, its rows, their order and their masks are those of one piece."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest
import tiny_runs as tiny
from places import SignalAt
from record import record

STEPS = 20


class Pieces:
    """Runs that are stopped after given steps; each piece may have options or ranks of its own."""

    def __init__(self, start_process, world: Path, folder: Path, family: str) -> None:
        self.start_process, self.world, self.folder, self.family = start_process, world, folder, family
        self.whole = self.run("whole", [{}])
        per_epoch = json.loads((folder / "whole" / f"step-{STEPS}" / "manifest.json").read_text())["info"]["epoch"]
        self.per_epoch = round(STEPS / per_epoch)

    def run(self, name, pieces, stops=()) -> list[tuple[str, ...]]:
        """Run in pieces, all but the last stopped after a step; returns the rows in the order they were seen."""
        places = [SignalAt(f"after step {stop}", [signal.SIGINT]) for stop in stops]
        for options, place in zip(pieces, [*places, None], strict=True):
            codes = self.piece(name, dict(options), place)
            assert set(codes) == {0 if place is None else 130}, (self.folder / f"{name}.said").read_text()
        return tiny.journal_of(self.folder / f"{name}.journal", "row")

    def piece(self, name, options, place) -> list[int]:
        ranks = options.pop("ranks", 1)
        every = {"training__steps": STEPS, "checkpoint__every": 4, "evaluation__every": 7, **options}
        given = tiny.run_options(self.world, self.family, **every)
        faults = {"journal": str(self.folder / f"{name}.journal"), "rows": True, "act": place}
        said = str(self.folder / f"{name}.said")
        started = [
            self.start_process(tiny.command, given, str(self.folder / name), faults, said, environment)
            for environment in environments(ranks)
        ]
        for process in started:
            process.join(120)
        return [process.exitcode for process in started]

    def state(self, name) -> dict[str, bytes]:
        """All files of the last checkpoint and the final model but the manifests, which name the options."""
        files = tiny.end_state(self.folder / name, STEPS)
        return {name: data for name, data in files.items() if not name.endswith("manifest.json")}


def environments(ranks: int) -> list[dict[str, str]]:
    if ranks == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**shared, "RANK": str(n), "LOCAL_RANK": str(n)} for n in range(ranks)]


def check_cuts(pieces: Pieces, name: str, stops: list[int]) -> None:
    assert pieces.run(name, [{}] * (len(stops) + 1), stops) == pieces.whole, "rows, order and masks"
    assert pieces.state(name) == pieces.state("whole")
    assert tiny.logged(pieces.folder / name) == tiny.logged(pieces.folder / "whole")


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_cuts_within_an_epoch_at_its_end_and_at_the_last_step(start_process, world, tmp_path, family):
    begun = time.monotonic()
    pieces = Pieces(start_process, world, tmp_path, family)
    end = pieces.per_epoch
    assert 4 <= end <= STEPS - 3, "the run has more than one epoch, of several steps"
    cases = ([1, 2, 3], [end], [end - 1, end, end + 1], [STEPS - 1, STEPS], [4, 7, 8], list(range(1, STEPS)))
    for number, stops in enumerate(cases):
        check_cuts(pieces, f"cut-{number}", list(stops))
    resumes = sum(map(len, cases))
    record("resume order", resumes, resumes, family=family, seconds=round(time.monotonic() - begun, 1))


@pytest.mark.faults
def test_two_cuts_in_one_epoch(start_process, world, tmp_path):
    check_cuts(Pieces(start_process, world, tmp_path, "bert"), "cut", [2, 3])


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("family", ["bert", "t5"])
def test_other_workers_and_ranks_and_threads_from_piece_to_piece(start_process, world, tmp_path, family):
    pieces = Pieces(start_process, world, tmp_path, family)
    assert pieces.run("workers", [{"data__num_workers": n} for n in (0, 2, 1)], [5, 9]) == pieces.whole
    assert pieces.state("workers") == pieces.state("whole")
    record("resume with other workers", 2, 2, family=family)

    if (os.cpu_count() or 1) > 1:
        assert pieces.run("threads", [{"training__threads": n} for n in (1, 2)], [9]) == pieces.whole
        said = (tmp_path / "threads.said").read_text()
        assert "continues under other conditions (threads 1 -> 2)" in said and "not bit-equal" in said
        record("resume with other threads", 1, 1, family=family)

    # Ranks write into one journal, and pack fewer rows each: a step is compared as a set of rows.
    seen = pieces.run("ranks", [{"ranks": n} for n in (1, 2, 1)], [5, 12])
    assert sorted(seen) == sorted(pieces.whole) and seen != pieces.whole
    steps = [int(line[1]) for line in seen]
    assert steps == sorted(steps)
    said = (tmp_path / "ranks.said").read_text()
    assert "continues under other conditions (ranks 1 -> 2)" in said and "(ranks 2 -> 1)" in said
    record("resume with other ranks", 2, 2, family=family)
