"""Worker processes that die, hang or are signalled: a clear error where one is due, and never a process left over."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

import pytest
import torch

import tunecore.data.workers
from tunecore.config import DataConfig
from tunecore.data.workers import items_of_workers
from tunecore.errors import ConfigError, DataError


class Numbers:
    """Gives the number back; at 3 it does in a worker what ``at_3`` says."""

    def __init__(self, at_3=lambda: None, busy=0.0):
        self.at_3, self.busy = at_3, busy

    def __getitem__(self, number):
        time.sleep(self.busy)
        if number == 3:
            self.at_3()
        return number


def sleep_long():
    time.sleep(600)


def hold_everything():
    os.kill(os.getpid(), signal.SIGSTOP)


def crash():
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGSEGV)


def refuse():
    raise ZeroDivisionError("a bug of a plugin")


def workers():
    return [child for child in multiprocessing.active_children() if child.daemon]


@pytest.fixture(autouse=True)
def no_process_is_left():
    before = set(multiprocessing.active_children())
    handler = signal.getsignal(signal.SIGTERM)
    yield
    assert set(multiprocessing.active_children()) <= before
    assert signal.getsignal(signal.SIGTERM) == handler


@pytest.mark.parametrize(
    ("at_3", "error", "words"),
    [
        (crash, DataError, r"a data worker process died[\s\S]*data.num_workers"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), DataError, "a data worker process died"),
        (lambda: os._exit(1), DataError, "a data worker process died"),
        (refuse, ZeroDivisionError, "a bug of a plugin"),
        (sleep_long, DataError, r"no data worker process has answered for 0.5 seconds\n.*data.worker_timeout"),
    ],
    ids=["crash", "kill", "exit", "raise", "hang"],
)
def test_what_a_worker_may_do(at_3, error, words):
    begun = time.monotonic()
    items = items_of_workers(Numbers(at_3), range(20), 2, timeout=0.5 if at_3 is sleep_long else 30)
    with pytest.raises(error, match=words) as caught:
        list(items)
    assert time.monotonic() - begun < 15
    assert not workers(), f"none is left, whoever keeps the error {caught.value!r}"


@pytest.mark.faults
def test_a_worker_that_no_signal_but_one_ends():
    with pytest.raises(DataError, match="has answered"):
        list(items_of_workers(Numbers(hold_everything), range(20), 2, timeout=0.5))


def test_a_slow_worker_is_waited_for(monkeypatch):
    monkeypatch.setattr("tunecore.data.workers._LOOK", 0.1)
    assert list(items_of_workers(Numbers(lambda: time.sleep(0.5)), range(6), 2, timeout=30)) == list(range(6))


def test_the_loader_imports_what_it_needs_before_there_are_workers(monkeypatch):
    """The death of one, raised into torch's own import, would be swallowed there, and printed with a traceback."""
    alive, use = [], torch.autograd.profiler.record_function
    enter = use.__enter__
    monkeypatch.setattr(use, "__enter__", lambda self: [alive.append(len(workers())), enter(self)][1])
    assert list(items_of_workers(Numbers(), range(4), 2, timeout=30)) == list(range(4))
    assert alive[0] == 0 and len(alive) > 1


def test_a_death_is_told_where_a_batch_is_waited_for_and_nowhere_else():
    items = items_of_workers(Numbers(), range(1000), 2, timeout=30)
    assert next(items) == 0
    victim = workers()[0]
    os.kill(victim.pid, signal.SIGKILL)
    time.sleep(0.3)  # the signal of its death arrives here, in what stands for an optimizer step
    with pytest.raises(DataError, match=rf"a data worker process died: .*{victim.pid}"):
        list(items)


@pytest.mark.parametrize("late", [0.0, 0.5])
def test_workers_leave_signals_to_their_parent(monkeypatch, late):
    """As Ctrl-C in a terminal, or a scheduler, which signal every process of a run; also one that has not begun yet."""
    begin = tunecore.data.workers._begin
    monkeypatch.setattr("tunecore.data.workers._begin", lambda *a: (time.sleep(late if a[-1] == 1 else 0), begin(*a)))
    items = items_of_workers(Numbers(busy=0.01), range(40), 2, timeout=30)
    found = [next(items)]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        for worker in workers():
            os.kill(worker.pid, number)
        found.append(next(items))
    assert found + list(items) == list(range(40))


def test_a_generator_that_is_dropped_or_closed_takes_its_workers_along():
    items = items_of_workers(Numbers(busy=0.01), range(1000), 2, timeout=30)
    next(items)
    items.close()
    assert not workers()
    items = items_of_workers(Numbers(busy=0.01), range(1000), 2, timeout=30)
    next(items)
    del items
    assert not workers()


def test_off_the_main_thread_a_death_is_found_all_the_same(monkeypatch):
    monkeypatch.setattr("tunecore.data.workers._LOOK", 0.2)
    found = []

    def read():
        try:
            list(items_of_workers(Numbers(lambda: os._exit(1)), range(20), 2, timeout=30))
        except DataError as error:
            found.append(error.message)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join(20)
    assert found and "a data worker process died" in found[0]


def test_the_option_is_checked():
    with pytest.raises(ConfigError, match=r"data.worker_timeout is 0"):
        DataConfig(worker_timeout=0)
