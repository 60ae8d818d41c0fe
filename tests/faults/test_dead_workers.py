"""A run that loses a data worker (kill, crash, error, hang): told soon, no process left, the same bytes later."""

from __future__ import annotations

import time

import pytest
import tiny_runs as tiny
from places import WorkerAt
from processes import wait_gone
from record import record

SAID = {
    "kill": "a data worker process died",
    "crash": "a data worker process died",
    "raise": "text.jsonl:3: a bad row",
    "hang": "no data worker process has answered for 6 seconds",
    "stop": "no data worker process has answered for 6 seconds",
}


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("family", "how"),
    [("bert", how) for how in SAID] + [(family, how) for family in ("gpt2", "t5") for how in ("kill", "crash")],
)
def test_a_worker_that_is_lost(start_process, world, tmp_path, family, how):
    options = tiny.run_options(world, family, data__num_workers=2)
    # Of the others none may be taken for a worker that hangs, however slow the machine is.
    short = tiny.run_options(world, family, data__num_workers=2, data__worker_timeout=6)

    def run(name, act=None):
        said, journal = tmp_path / f"{name}.said", tmp_path / f"{name}.journal"
        journal.unlink(missing_ok=True)
        faults = {"act": act, "delay": 0.01, "journal": str(journal)}
        chosen = short if act is not None and how in ("hang", "stop") else options
        process = start_process(tiny.command, chosen, str(tmp_path / name), faults, str(said))
        process.join(120)
        assert process.exitcode is not None
        workers = [int(pid) for line in tiny.journal_of(journal, "workers") for pid in line[1:]]
        assert len(workers) >= 2 and wait_gone(workers, 1), "no worker outlives the run"
        return process.exitcode, said.read_text()

    assert run("whole")[0] == 0
    places = ("loading 0", "loading 13")
    for place in places:
        name = place.replace(" ", "-")
        begun = time.monotonic()
        code, said = run(name, WorkerAt(place, how))
        assert code == 2 and f"error: {SAID[how]}" in said and "Traceback" not in said, said
        assert time.monotonic() - begun < 60
        assert run(name)[0] == 0
        assert tiny.end_state(tmp_path / name) == tiny.end_state(tmp_path / "whole")
        assert tiny.logged(tmp_path / name) == tiny.logged(tmp_path / "whole")
    record("lost workers", len(places), len(places), family=family, how=how)
