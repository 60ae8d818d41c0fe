"""A run's folder is one run's: of processes, of threads of one, and of a process that is gone."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent / "search"))

import locked_runs
import small_world as small

from tunecore import Engine, locks
from tunecore.config_io import load_config
from tunecore.errors import InUseError
from tunecore.locks import LOCK, RunLock
from tunecore.run_folder import FINAL

if locks.fcntl is None:
    pytest.skip("this system has no file locks", allow_module_level=True)


@pytest.fixture(scope="session")
def processes(fork_server):
    return fork_server(Path(__file__).resolve().parent, "locked_runs")


@pytest.fixture
def holder(start_process, tmp_path):
    """``holder(function)``: a process that holds ``tmp_path``, once it does."""

    def start(function=locked_runs.hold):
        process = start_process(function, str(tmp_path))
        deadline = time.monotonic() + 60
        while not (tmp_path / "held").exists():
            assert time.monotonic() < deadline and process.is_alive()
            time.sleep(0.01)
        return process

    return start


@pytest.fixture
def told_elsewhere(start_process, processes, tmp_path):
    """What another process is told that wants ``tmp_path``."""

    def ask():
        results = processes.Queue()
        start_process(locked_runs.try_to_hold, str(tmp_path), results)
        return results.get(timeout=60)

    return ask


def test_another_process_is_refused_with_the_holder_named(holder, tmp_path):
    process = holder()
    with pytest.raises(InUseError) as told:
        RunLock(tmp_path).acquire()
    named = rf"is in use by process {process.pid} on {re.escape(socket.gethostname())}, since \d{{4}}-\d\d-\d\d .* UTC"
    assert re.search(named, told.value.message) and str(tmp_path) in told.value.message
    assert "stop it" in told.value.hint and "another output_dir" in told.value.hint


def test_what_a_killed_process_left_is_taken_over(holder, tmp_path):
    process = holder()
    process.kill()
    process.join()
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == process.pid, "its line is still there"
    lock = RunLock(tmp_path)
    lock.acquire()
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    lock.release()
    assert (tmp_path / LOCK).read_text() == ""


def test_a_worker_that_outlives_its_run_holds_nothing(holder, tmp_path):
    process = holder(locked_runs.hold_with_a_worker)
    worker = int((tmp_path / "worker").read_text())
    try:
        process.kill()
        process.join()
        os.kill(worker, 0)
        lock = RunLock(tmp_path)
        lock.acquire()
        lock.release()
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_worker_that_ends_lets_nothing_go(holder, tmp_path, told_elsewhere):
    holder(locked_runs.hold_while_children_end)
    assert "is in use by process" in told_elsewhere()


def test_another_run_of_the_same_process_is_refused_and_costs_the_first_nothing(tmp_path, told_elsewhere):
    lock = RunLock(tmp_path)
    lock.acquire()
    (tmp_path / "link").symlink_to(tmp_path)
    for path in (tmp_path, tmp_path / "link"):
        with pytest.raises(InUseError, match="in use by another run of this process, since"):
            RunLock(path).acquire()
    assert f"process {os.getpid()} on" in told_elsewhere()
    lock.release()
    assert told_elsewhere() == "taken"


def test_who_waits_is_told_for_whom_and_comes_next(tmp_path):
    lock, told, done = RunLock(tmp_path), [], []
    lock.acquire()

    def wait():
        other = RunLock(tmp_path)
        other.acquire(told.append)
        done.append(True)
        other.release()

    thread = threading.Thread(target=wait)
    thread.start()
    deadline = time.monotonic() + 30
    while not told and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "another run of this process" in told[0] and not done
    lock.release()
    thread.join(30)
    assert done


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, code):
    def refuse(*arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(locks.fcntl, "lockf", refuse)
    lock = RunLock(tmp_path)
    with pytest.warns(UserWarning, match="there are no file locks in"):
        lock.acquire()
    with pytest.raises(InUseError):
        RunLock(tmp_path).acquire()
    lock.release()


def test_a_full_disk_does_not_name_the_holder_but_keeps_the_lock(tmp_path, monkeypatch, told_elsewhere):
    def refuse(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", refuse)
    lock = RunLock(tmp_path)
    lock.acquire()
    assert "is in use by another process" in told_elsewhere()
    lock.release()


@pytest.fixture
def here(tmp_path, monkeypatch):
    folder = small.write_data(tmp_path / "world")
    monkeypatch.chdir(folder)
    return folder


TUNE = {**small.COMMON, "output_dir": "run", "head": "sequence_classification"}


def held(folder):
    Path(folder).mkdir(parents=True)
    lock = RunLock(Path(folder))
    lock.acquire()
    return lock


def test_an_engine_leaves_the_folder_of_another_run_as_it_is(here):
    lock = held("run")
    config = load_config({**TUNE, "training": {**TUNE["training"], "epochs": 1}})
    before = sorted(Path("run").iterdir())
    with pytest.raises(InUseError, match="output_dir 'run' is in use by another run of this process"):
        Engine(config).run()
    with pytest.raises(InUseError, match="output_dir 'run' is in use"):
        Engine(config).finetune([{"text": "a", "label": "b"}], output_dir="run")
    assert sorted(Path("run").iterdir()) == before, "data in memory is not written there either"
    lock.release()
    Engine(config).run()
    assert (Path("run") / FINAL).is_dir()
    held_again = RunLock(Path("run"))
    held_again.acquire()
    held_again.release()


def test_a_road_waits_for_who_is_in_a_stage(here, capsys):
    lock, results = held("road/domain"), []
    road = {**small.ROAD, "stages": small.ROAD["stages"][:1]}
    thread = threading.Thread(target=lambda: results.append(Engine(load_config(road)).run()))
    thread.start()
    deadline, said = time.monotonic() + 60, ""
    while "waiting" not in said and time.monotonic() < deadline:
        time.sleep(0.05)
        said += capsys.readouterr().err
    assert "waiting for another process to end stage 'domain': another run of this process, since" in said
    assert not results
    lock.release()
    thread.join(120)
    assert results and not results[0].interrupted
