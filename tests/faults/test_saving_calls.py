"""Every system call of a save fails or kills the process: what was saved before stays, nothing half-written is taken,
and the same command again ends in the bytes of a run that met no fault. And what is said to be on the disk is."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from record import record
from scale import scaled

HERE = Path(__file__).resolve().parent
FAIL, KILL, SHORT = 1, 2, 3
SEED = 0


class Call(NamedTuple):
    """A line of the library's log."""

    name: str
    path: str
    other: str
    result: int
    size: int
    inode: int


class Case(NamedTuple):
    at: int
    action: int
    code: int = 0
    lasting: bool = False
    """Every later call that takes room fails as well, as on a disk that stays full."""


class World:
    """The program that stands before a save, with the calls of a save that nothing disturbs."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.folder = folder
        quiet = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "saving_world.py"), str(folder), str(library)], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **quiet, "LD_PRELOAD": str(library)},
        )  # fmt: skip
        self.whole_run = self.calls(self.answer()["log"])
        healthy = self.meet(Case(-1, 0))
        assert not problems_of(Case(-1, 0), healthy) and healthy["newest"] == "step-8"
        self.save = self.calls(healthy["first"]["log"])
        assert len(self.save) == healthy["first"]["calls"]

    def calls(self, log: list[str]) -> list[Call]:
        """The log, its paths relative to the folder."""
        made = []
        for line in log:
            name, path, other, *numbers = line.split("\t")
            path, other = (os.path.relpath(p, self.folder) if p.startswith("/") else p for p in (path, other))
            made.append(Call(name, path, other, *map(int, numbers)))
        return made

    def meet(self, case: Case) -> dict:
        """What comes of a case."""
        print(json.dumps(case._asdict()), file=self.process.stdin, flush=True)
        return self.answer()

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        assert line, "the program has ended"
        return json.loads(line)

    def at(self, name: str, path: str, which: int = 0) -> int:
        """Place of the call of that name whose path has that in it."""
        return [n for n, call in enumerate(self.save) if call.name == name and path in call.path][which]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler and LD_PRELOAD of Linux")
    made = tmp_path_factory.mktemp("library") / "failing_libc.so"
    flags = ("-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror")
    subprocess.run([compiler, *flags, "-o", made, HERE / "failing_libc.c", "-ldl"], check=True)
    return made


@pytest.fixture(scope="module")
def world(library, tmp_path_factory):
    import saving_world

    made = World(saving_world.small.write_data(tmp_path_factory.mktemp("world") / "here"), library)
    yield made
    made.process.stdin.close()
    made.process.wait(60)


def problems_of(case: Case, result: dict) -> list[str]:
    """What does not hold of a case."""
    first, again = result["first"], result["again"]
    found = []
    if case.action == KILL:
        if result["exit"] != -signal.SIGKILL:
            found.append("the process was not killed")
    elif first is None:
        found.append(f"the process ended with {result['exit']} and no word")
    elif not first["typed"]:
        found.append(f"an error not of its own kind: {first['message']}")
    if result["newest"] is None or int(result["newest"].removeprefix(".old-").split("-")[1]) < 4:
        found.append(f"the checkpoint from before is gone; the newest is {result['newest']}")
    if result["skipped"]:
        found.append(f"something half-written looks like a checkpoint: {result['skipped']}")
    if again is None or again["error"] is not None:
        found.append(f"the same command again fails: {again}")
    elif result["other"]:
        found.append(f"the same command again ends in other bytes of {result['other']}")
    if result["leftovers"]:
        found.append(f"left behind: {result['leftovers']}")
    return found


def test_a_save_survives_a_fault_at_its_tender_places(world):
    """A few cases of the campaign below, for every run of the tests."""
    cases = [
        Case(world.at("rename", ".tmp-step-6"), KILL),
        Case(world.at("unlink", ".tmp-step-2"), KILL),
        Case(world.at("write", ".tmp-step-6", 2), FAIL, errno.ENOSPC, lasting=True),
        Case(world.at("fsync", "manifest.json"), FAIL, errno.EIO),
        Case(world.at("rename", "step-2"), FAIL, errno.EIO),
    ]
    for case in cases:
        result = world.meet(case)
        assert not problems_of(case, result), world.save[case.at]
        if case.code == errno.ENOSPC:
            assert "No space left" in result["first"]["message"] and "Make room" in result["first"]["message"]
    assert any("cannot be removed" in line for line in result["first"]["warnings"]), "what is not pruned is said"


def cases_of(world: World) -> list[Case]:
    """All cases, those of one save and its pruning first, the rest as drawn."""
    begin, end = world.at("mkdir", ".tmp-step-6"), world.at("rmdir", ".tmp-step-2")
    made: dict[bool, list[Case]] = {True: [], False: []}
    for at, call in enumerate(world.save):
        cases = [
            Case(at, FAIL, errno.ENOSPC, lasting=True),
            Case(at, FAIL, errno.EDQUOT, lasting=True),
            Case(at, FAIL, errno.EIO),
            Case(at, KILL),
        ]
        if call.name == "write" and not call.other:
            cases += [Case(at, SHORT), Case(at, SHORT, errno.ENOSPC, lasting=True)]
        made[begin <= at <= end] += cases
    random.Random(SEED).shuffle(made[False])
    return made[True] + made[False]


@pytest.mark.faults
@pytest.mark.timeout(7200)
def test_every_call_of_a_save_may_fail(world):
    begun = time.perf_counter()
    cases = cases_of(world)[: scaled(420)]
    bad, ends = [], {}
    for case in cases:
        result = world.meet(case)
        problems = problems_of(case, result)
        if problems:
            bad.append((case, world.save[case.at], problems))
        end = "killed" if case.action == KILL else (result["first"] or {}).get("error") or "went on"
        ends[end] = ends.get(end, 0) + 1
    seconds = time.perf_counter() - begun
    record("every call of a save", len(cases), len(cases) - len(bad), ends=ends, seconds=round(seconds, 1))
    assert not bad, f"{len(bad)} of {len(cases)}; the first: {bad[:3]}"
    assert ends["killed"] and ends["CheckpointError"] and ends["went on"], "cases of every kind"


def is_kept_safe(call: Call) -> bool:
    """Not a file that costs nothing when it is lost: of the lock, and of the corpus, which is made again."""
    return not call.path.endswith("/.lock") and "/cache" not in call.path


def unsynced_files(calls: list[Call]) -> list[str]:
    """Files whose last bytes came after their last fsync, or which had another size then than they end with."""
    ends: dict[int, Call] = {}
    synced: dict[int, int] = {}
    for call in filter(is_kept_safe, calls):
        if call.name == "write":
            ends[call.inode] = call
            synced.pop(call.inode, None)
        elif call.name == "fsync" and call.size >= 0 and call.result == 0:
            synced[call.inode] = call.size
    return [call.path for inode, call in ends.items() if synced.get(inode) != call.size]


def unsynced_names(calls: list[Call]) -> list[str]:
    """Names made in a folder that was not fsynced afterwards; of what is renamed as a whole, before the rename."""
    waiting: dict[str, set[str]] = {}
    found = []
    for call in filter(is_kept_safe, calls):
        folder = str(Path(call.path).parent)
        if call.name in ("open", "mkdir") and call.result >= 0:
            waiting.setdefault(folder, set()).add(call.path)
        elif call.name == "rename" and call.result == 0:
            inside = [part for part in waiting if f"{part}/".startswith(f"{call.path}/")]
            found += [name for part in inside for name in waiting.pop(part)]
            waiting.get(folder, set()).discard(call.path)
            waiting.setdefault(str(Path(call.other).parent), set()).add(call.other)
        elif call.name in ("unlink", "rmdir"):
            if any(Path(name).name.startswith("step-") for name in waiting.get("run", ())):
                found.append(f"{call.path} goes before the new checkpoint is on the disk")
            waiting.get(folder, set()).discard(call.path)
        elif call.name == "fsync" and call.result == 0:
            waiting.pop(call.path, None)
    return found + [name for names in waiting.values() for name in names]


def test_everything_a_run_writes_is_on_the_disk_before_it_counts(world):
    calls = world.whole_run
    written = {call.path for call in calls if call.name in ("write", "rename")}
    for name in ("metrics.jsonl", ".tmp-run.yaml", ".tmp-final", ".tmp-result.json", ".tmp-tokenizer"):
        assert any(f"run/{name}" in path for path in written), f"the log lacks {name}"
    assert unsynced_files(calls) == []
    assert unsynced_names(calls) == []
    assert unsynced_files(world.save) == [] and unsynced_names(world.save) == []


def test_the_audit_finds_what_is_not_synced():
    write, sync = Call("write", "run/a", "", 5, 5, 1), Call("fsync", "run/a", "", 0, 5, 1)
    assert unsynced_files([write]) == ["run/a"] == unsynced_files([write, sync, write])
    assert unsynced_files([write, sync._replace(size=0)]) == ["run/a"] and unsynced_files([write, sync]) == []
    made, entry = Call("open", "run/s/a", "", 3, 0, 1), Call("fsync", "run/s", "", 0, -1, 2)
    moved, end = Call("rename", "run/s", "run/step-1", 0, -1, 0), Call("fsync", "run", "", 0, -1, 3)
    assert unsynced_names([made, entry, moved, end]) == []
    assert unsynced_names([made, moved, end]) == ["run/s/a"] and unsynced_names([made, entry, moved]) == ["run/step-1"]
    early = unsynced_names([made, entry, moved, Call("unlink", "run/.tmp-step-0/a", "", 0, -1, 0), end])
    assert early == ["run/.tmp-step-0/a goes before the new checkpoint is on the disk"]
