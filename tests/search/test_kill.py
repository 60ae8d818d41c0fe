"""Runs with stages, and searches, that are killed end in the bytes of those that never were."""

from __future__ import annotations

import json
import signal
import time

import pytest
import small_world as small


def finish(start, folder, config):
    process = start(folder, config)
    process.join(120)
    assert process.exitcode == 0


def killed(start, folder, config, path):
    process = start(folder, config, kill=path)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL, f"{path} was never made"


@pytest.fixture
def whole_road(start, world):
    folder = world("whole")
    finish(start, folder, small.ROAD)
    return folder


def test_a_road_killed_in_every_stage_ends_in_the_same_bytes(start, world, whole_road):
    folder = world("killed")
    for path in ("road/domain/step-2", "road/task/step-2", "road/task/final", "road/classify/step-3"):
        killed(start, folder, small.ROAD, path)
    finish(start, folder, small.ROAD)
    assert small.end_state(folder / "road") == small.end_state(whole_road / "road")
    results = [json.loads((base / "road/classify/result.json").read_text()) for base in (folder, whole_road)]
    assert results[0] == results[1] and 0 <= results[0]["test"]["accuracy"] <= 1


@pytest.fixture
def whole_search(start, world):
    folder = world("whole")
    finish(start, folder, small.SEARCH)
    return folder


def trials(folder):
    return json.loads((folder / "search/trials.json").read_text())["trials"]


def test_a_search_killed_in_its_trials_ends_in_the_same_bytes(start, world, whole_search):
    folder = world("killed")
    for path in ("run.yaml", "trial-0/step-3", "trial-1/best", "trial-2/step-6", "final"):
        killed(start, folder, small.SEARCH, f"search/{path}")
    finish(start, folder, small.SEARCH)
    assert small.end_state(folder / "search") == small.end_state(whole_search / "search")
    assert trials(folder) == trials(whole_search) and len(trials(folder)) == 3
    for name in ("best.yaml", "result.json"):
        assert (folder / "search" / name).read_bytes() == (whole_search / "search" / name).read_bytes()


def test_a_process_takes_over_the_trial_of_one_that_was_killed(start, world, whole_search):
    folder = world("shared")
    doomed = start(folder, small.SEARCH, kill="search/trial-0/step-3")
    deadline = time.monotonic() + 60
    while not (folder / "search/trial-0").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    finish(start, folder, small.SEARCH)
    doomed.join(60)
    assert doomed.exitcode == -signal.SIGKILL
    assert trials(folder)[0] == trials(whole_search)[0] and {t["state"] for t in trials(folder)} == {"complete"}


def test_two_processes_share_the_trials_of_a_search(start, world):
    folder = world("shared")
    config = {**small.SEARCH, "search": {**small.SEARCH["search"], "trials": 6}}
    both = [start(folder, config) for _ in range(2)]
    for process in both:
        process.join(180)
    assert [process.exitcode for process in both] == [0, 0]
    made = trials(folder)
    assert [t["number"] for t in made] == list(range(6)) and {t["state"] for t in made} == {"complete"}
    for trial in made:
        rows = [json.loads(line) for line in (folder / f"search/trial-{trial['number']}/metrics.jsonl").open()]
        steps = [row["step"] for row in rows if "eval/accuracy" in row]
        assert steps == [3, 6], "each trial was trained once"
    kept = {path.parent.name for path in (folder / "search").glob("trial-*/step-*")}
    best = json.loads((folder / "search/result.json").read_text())["trial"]
    assert kept == {f"trial-{best}"}, "only the best keeps its checkpoints"
