"""Worker processes: items in the order asked for, and an end to every process, whichever way things go.

The processes are those of ``torch.utils.data.DataLoader``. What is added: a worker that does not answer is an error
after a while, signals that reach a whole group of processes are the parent's business alone, and a worker ends with
its parent, however that ended.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from types import FrameType, TracebackType
from typing import Any

import torch.utils.data

from tunecore.errors import DataError

_LOOK = 5.0
"""Seconds after which a wait for a batch looks whether the workers still live."""
_GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""What Ctrl-C and many schedulers send to all processes of a run; the parent still needs batches to end its step."""
_GRACE = 1.0
"""Seconds a worker has for what it is at when it is no longer needed."""


def items_of_workers(
    dataset: torch.utils.data.Dataset[Any], indices: Sequence[int], num_workers: int, timeout: float
) -> Generator[Any, None, None]:
    """Yield ``dataset[i]`` for every i of ``indices``, in order, made by processes; they end with the generator.

    Args:
        dataset: what is asked; forked on Linux, so its memory is shared.
        indices: what it is asked for.
        num_workers: processes, at least 1.
        timeout: seconds to wait for one item.

    Raises:
        DataError: a worker died, or did not answer in time.
    """
    # Fork is safe because workers stay out of OpenMP.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    forks = context.get_start_method() == "fork"
    lifeline, ours = context.Pipe(duplex=False)
    # At exit the interpreter waits for its children: also for those of a generator that nobody closed.
    atexit.register(ours.close)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, sampler=indices, num_workers=num_workers, collate_fn=_as_it_is,
        multiprocessing_context=context, timeout=min(_LOOK, timeout),
        worker_init_fn=partial(_begin, lifeline, ours if forks else None),
    )  # fmt: skip
    others = set(multiprocessing.active_children())
    watch = _Watch(timeout)
    # The loader's iterator uses it, and its first use imports a module. From when there are workers on, torch may raise
    # the death of one into that import, which swallows the error and prints its traceback.
    with torch.profiler.record_function("data workers"):
        pass
    iterator: Iterator[Any] | None = None
    try:
        while True:
            try:
                if iterator is None:
                    with _held(_GROUP_SIGNALS):
                        iterator = iter(loader)
                    watch.start([child for child in multiprocessing.active_children() if child not in others])
                with watch:
                    item = _next_item(iterator, timeout)
            except StopIteration:
                return
            except (RuntimeError, ConnectionError, EOFError) as error:
                # Which one depends on what the worker was at when it died: torch sees its exit, or a pipe breaks.
                if watch.hung:
                    raise _hung(timeout) from error
                if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                    raise
                raise DataError(
                    f"a data worker process died: {error}",
                    hint="It was killed (out of memory?) or crashed; lower data.num_workers, 0 works in this process.",
                ) from error
            yield item
    finally:
        watch.pause()
        _end(iterator, [child for child in multiprocessing.active_children() if child not in others], ours)
        watch.end()
        lifeline.close()
        atexit.unregister(ours.close)


class _Watch:
    """Tells of a dead worker where a batch is waited for, and nowhere else; and ends a wait that torch does not.

    Torch raises out of its handler of SIGCHLD, which runs between any two instructions: in the middle of an optimizer
    step or of a save. Here that handler runs only inside ``with watch``; a worker that died before is named there.

    A batch that a worker has announced is fetched from it without a time limit. If it was stopped in between, only its
    death ends that; so workers are killed once a wait has passed its limit and a look.
    """

    def __init__(self, timeout: float) -> None:
        self.hung = False
        """The workers were killed, for the wait had no end."""
        self._longest = timeout + _LOOK
        self._workers: Sequence[Any] = ()
        self._since: float | None = None
        self._torch: Any = None
        self._ended = threading.Event()

    def start(self, workers: Sequence[Any]) -> None:
        self._workers = workers
        threading.Thread(target=self._look, daemon=True).start()
        if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
            self._torch = signal.getsignal(signal.SIGCHLD)
            signal.signal(signal.SIGCHLD, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._since is not None and callable(self._torch):
            self._torch(number, frame)

    def _look(self) -> None:
        while not self._ended.wait(1.0):
            since = self._since
            if since is not None and time.monotonic() - since > self._longest:
                self.hung = True
                for worker in self._workers:
                    worker.kill()
                return

    def __enter__(self) -> None:
        self._since = time.monotonic()
        dead = [str(worker.pid) for worker in self._workers if not worker.is_alive()]
        if dead:
            raise RuntimeError(f"DataLoader worker (pid {', '.join(dead)}) exited unexpectedly")

    def __exit__(self, *_: object) -> None:
        self.pause()

    def pause(self) -> None:
        self._since = None

    def end(self) -> None:
        self._ended.set()
        if self._torch is not None:
            with suppress(ValueError):  # the generator is closed off the main thread
                signal.signal(signal.SIGCHLD, self._torch)


def _next_item(iterator: Iterator[Any], timeout: float) -> Any:
    waited = 0.0
    while True:
        try:
            return next(iterator)
        except RuntimeError as error:
            # Torch raises at every look; between two of them the iterator is as it was.
            if "DataLoader timed out" not in str(error):
                raise
            waited += min(_LOOK, timeout)
            if waited >= timeout:
                raise _hung(timeout) from error


def _hung(timeout: float) -> DataError:
    return DataError(
        f"no data worker process has answered for {timeout:g} seconds",
        hint="It hangs (a network disk, a lock in a plugin?), or steps take longer to make: raise data.worker_timeout, "
        "or see with data.num_workers 0 where it stands.",
    )


def _end(iterator: Any, workers: Sequence[Any], ours: Connection) -> None:
    """End the workers: by torch's word, a hung one by its lifeline, and what is left by force."""
    let_go = threading.Timer(_GRACE, ours.close)
    let_go.start()
    try:
        # Not left to the garbage collector: the traceback of an error may keep the iterator for long.
        shut_down = getattr(iterator, "_shutdown_workers", None)
        if shut_down is not None:
            shut_down()
    finally:
        let_go.cancel()
        ours.close()
        for worker in workers:
            worker.join(_GRACE)
            if worker.is_alive():
                worker.kill()
                worker.join()


@contextmanager
def _held(numbers: Sequence[int]) -> Iterator[None]:
    """Hold signals back from this thread, and from processes it starts: torch's workers end by SIGTERM until they have
    come to :func:`_begin`, where it is ignored.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(lifeline: Connection, theirs: Connection | None, worker: int) -> None:
    """What a worker does first: leave signals to its parent, and watch for that one's end."""
    if theirs is not None:
        theirs.close()  # a fork inherits it, and would keep itself alive
    for number in _GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _GROUP_SIGNALS)
    sys.excepthook = _say_unless_broken_off
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()


def _end_with_parent(lifeline: Connection) -> None:
    try:
        lifeline.recv_bytes()
    except (EOFError, OSError):
        # Not sys.exit: the thread that makes batches may hang, or wait to hand over what nobody reads.
        os._exit(0)


def _say_unless_broken_off(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The thread that hands tensors over may find that a parent that was interrupted no longer listens."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _as_it_is(item: Any) -> Any:
    return item
