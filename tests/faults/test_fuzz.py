"""Ten thousand damaged files in every run of the tests, a million in the nightly form: read, or refused by name.

Each reader works in a process of its own, so that a crash is seen; a file that takes long, and memory that grows, too.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import resource
import signal
import time
import traceback
import warnings
from pathlib import Path
from random import Random

import pytest
from fuzz_targets import make_targets
from record import record
from scale import scaled

from tunecore.errors import TunecoreError

NAMES = (
    "manifest", "safetensors", "index", "config.json", "state.json", "corpus", "run.yaml", "run.json", "csv", "tsv",
    "jsonl", "json", "conll", "txt", "parquet", "gz", "zip", "tokenizer.json", "result.json", "report",
)  # fmt: skip
DEFAULT, CAMPAIGN = 10_000, 10
"""Executions of the default run, and how many times as many the campaign has (at scale 1)."""
FOUND = {"corpus": 45_430}
"""What a nightly run found, kept in every run: a negative length in a record batch, which ended the process."""
SLOW_SECONDS, MOST_GROWTH = 5, 256 << 20


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    return make_targets(tmp_path_factory.mktemp("targets"))


def attack(target, name, first, count, folder, report, now):
    """In a process of its own: try damaged files; what was wrong goes to ``report``, empty where nothing was."""

    def too_slow(*_):
        raise TimeoutError(f"longer than {SLOW_SECONDS} s")

    signal.signal(signal.SIGALRM, too_slow)
    logging.disable()
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    resource.setrlimit(resource.RLIMIT_AS, (resident()[1] + (4 << 30),) * 2)
    give_back_freed_memory()
    path = folder / target.name
    before = 0
    for number in range(first, first + count):
        data = target.made(Random(f"{name} {number}"))
        path.write_bytes(data)
        now.value = number
        signal.setitimer(signal.ITIMER_REAL, SLOW_SECONDS)
        try:
            target.read(path)
        except TunecoreError:
            pass
        except BaseException:
            report.write_text(f"{name} {number}:\n{traceback.format_exc()[-3000:]}")
            os._exit(1)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if number == first + count // 2:
            before = resident()[0]
    if resident()[0] - before > MOST_GROWTH:
        report.write_text(f"{name}: {(resident()[0] - before) >> 20} MiB more in the second half of {count} files")
        os._exit(1)
    os._exit(0)


def give_back_freed_memory():
    """What was freed before the fork is resident still, and memory taken from it would not show as growth."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


def resident():
    """(resident, virtual) bytes of this process."""
    virtual, held = Path("/proc/self/statm").read_text().split()[:2]
    return int(held) * resource.getpagesize(), int(virtual) * resource.getpagesize()


def fuzz(target, name, first, count, folder):
    report = folder / "report"
    report.write_text("")
    context = multiprocessing.get_context("fork")
    now = context.Value("q", first, lock=False)
    process = context.Process(target=attack, args=(target, name, first, count, folder, report, now))
    process.start()
    process.join(60 + count * 0.1)
    if process.exitcode is None:
        process.kill()
        process.join()
    assert process.exitcode == 0, report.read_text() or f"{name} {now.value}: the process ended with {process.exitcode}"
    record("fuzzing", count, count, target=name)


def test_the_default_run_is_ten_thousand(targets):
    assert tuple(targets) == NAMES
    assert sum(target.share for target in targets.values()) == DEFAULT


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_read_or_refused(targets, tmp_path, name):
    fuzz(targets[name], name, 0, targets[name].share, tmp_path)


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_before_is_refused(targets, tmp_path, name):
    path = tmp_path / targets[name].name
    path.write_bytes(targets[name].made(Random(f"{name} {FOUND[name]}")))
    with pytest.raises(TunecoreError, match="damaged"):
        targets[name].read(path)


@pytest.mark.faults
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", NAMES)
def test_a_million_damaged_files_are_read_or_refused(targets, tmp_path, name):
    """At scale 1 a hundred thousand, at 10 a million; other files than those of the default run."""
    fuzz(targets[name], name, DEFAULT, scaled(CAMPAIGN * targets[name].share), tmp_path)


def test_the_attack_sees_what_is_not_typed_slow_or_a_crash(targets, tmp_path, monkeypatch):
    """A fuzzer that notices nothing proves nothing."""
    monkeypatch.setitem(globals(), "SLOW_SECONDS", 0.2)
    monkeypatch.setitem(globals(), "MOST_GROWTH", 20 << 20)
    held = []
    txt = targets["txt"]
    for read, message in (
        (lambda path: 1 / 0, "ZeroDivisionError"),
        (lambda path: os._exit(7), "txt 0: the process ended with 7"),
        (lambda path: time.sleep(9), "TimeoutError: longer than 0.2 s"),
        (lambda path: held.append(b"x" * (20 << 20)), "MiB more in the second half of 9 files"),
    ):
        with pytest.raises(AssertionError, match=message):
            fuzz(txt._replace(read=read), "txt", 0, 9, tmp_path)
