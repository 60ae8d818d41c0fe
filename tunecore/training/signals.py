"""Ctrl-C and SIGTERM: finish the step, save, leave. Ask twice and it leaves at once, or after the save in progress.

A signal only sets a flag. The loop asks after every step, and all ranks learn the answer together, so they stop at
the same step. Exit codes are the shell's: 128 + signal, so 130 after Ctrl-C and 143 after SIGTERM.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from tunecore.errors import Interrupted
from tunecore.training.distributed import Ranks

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Catches SIGINT and SIGTERM inside a ``with`` block; the handlers from before come back at its end.

    Off the main thread, where Python takes no signals, the block catches nothing; :meth:`request` still works.
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        self._ranks = ranks or Ranks()
        self._before: dict[int, Any] = {}
        self._shielded = False
        self._again = False
        self.received: int | None = None
        """Number of the first signal, here or on another rank."""

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            # None stands for a handler that was not set from Python and cannot be put back from it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
        elif self._shielded:
            self._again = True
        else:
            raise Interrupted(number)

    def request(self, number: int = signal.SIGINT) -> None:
        """Ask the run to stop, as a signal would (from a plugin or a notebook)."""
        if self.received is None:
            self.received = int(number)

    def agreed(self) -> bool:
        """Whether any rank was asked to stop; every rank must call this at the same point of its work."""
        if self._ranks.world_size > 1:
            counts = self._ranks.sum([float(self.received == number) for number in SIGNALS])
            if self.received is None:
                self.received = next((int(n) for n, count in zip(SIGNALS, counts, strict=True) if count), None)
        return self.received is not None

    @property
    def exit_code(self) -> int:
        """0, or 128 + the signal received."""
        return 0 if self.received is None else 128 + self.received

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Around a save: a second signal waits for its end, then raises Interrupted."""
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False
        if self._again and self.received is not None:
            raise Interrupted(self.received)
