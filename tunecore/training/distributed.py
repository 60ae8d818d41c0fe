"""Ranks: who computes what, and the few sums they share. One process is a rank of its own, and pays nothing.

Started by torchrun, whose environment says how many there are: gloo between CPUs, NCCL between GPUs.

A rank that is stopped by a signal outside the steps, where no rank asks the others, leaves word of it in the store they
met at. Its peers find their connection closed, read the word, and end as it did: one stop, one exit code.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from tunecore.errors import ConfigError, Interrupted, TrainingError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

BUCKET_BYTES = 25 * 2**20
"""Gradients travel in buckets of about this size: large enough for bandwidth, small enough to overlap copies."""
_STOPPED, _LEFT, _TURNS = "tunecore/stopped", "tunecore/left", "tunecore/turns"
"""Keys of the store: which rank was stopped first, and by what; how many stopped ranks have left; how many turns of
rank 0 are over."""
_POLL_SECONDS = 0.05
_LAST_SECONDS = 5.0
"""So long a stopped rank 0, with which the store goes, waits for peers to read its word; one busier than that learns
only that it is gone."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, as seen by one of them."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    store: Store | None = None
    """Where they met, and leave word for one another; None for a rank of its own."""

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sum numbers over ranks, in float64 (whole numbers are exact up to 2**53)."""
        if self.world_size == 1 or not values:
            return list(values)
        # NCCL sums on the GPU; float64 everywhere keeps token counts exact.
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        with self._with_peers():
            dist.all_reduce(total)
        return total.tolist()

    def sum_ints(self, values: Sequence[int]) -> list[int]:
        """Sum whole numbers over ranks."""
        return [int(v) for v in self.sum(values)]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; the same answer on all."""
        return self.sum([1.0 if flag else 0.0])[0] > 0

    def gather(self, value: Any) -> list[Any]:
        """Every rank's JSON-serialisable value, by rank. As JSON text: nothing is unpickled."""
        if self.world_size == 1:
            return [value]
        data = json.dumps(value).encode()
        sizes = [0] * self.world_size
        sizes[self.rank] = len(data)
        sizes = self.sum_ints(sizes)
        mine = torch.zeros(max(sizes), dtype=torch.uint8, device=self.device)
        mine[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        parts = [torch.empty_like(mine) for _ in sizes]
        with self._with_peers():
            dist.all_gather(parts, mine)
        return [json.loads(bytes(p[:n].tolist())) for p, n in zip(parts, sizes, strict=True)]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            with self._with_peers():
                dist.barrier()

    def sum_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Sum gradients over ranks in place, in buckets of one dtype; all ranks give the same shapes in one order."""
        if self.world_size == 1 or not gradients:
            return
        pending = []
        with self._with_peers():
            for bucket in _buckets(gradients):
                flat = torch.cat([g.reshape(-1) for g in bucket])
                pending.append((dist.all_reduce(flat, async_op=True), flat, bucket))
            for work, _, _ in pending:
                work.wait()
        for _, flat, bucket in pending:
            parts = flat.split([g.numel() for g in bucket])
            torch._foreach_copy_(list(bucket), [p.view_as(g) for p, g in zip(parts, bucket, strict=True)])

    def end_turn(self, failed: bool) -> None:
        """Rank 0 is through with what the others wait for in :meth:`wait_for_main`."""
        if self.store is not None:
            with self._with_peers():
                self.store.add(_TURNS, 1)
            self.any(failed)

    def wait_for_main(self) -> bool:
        """Wait until rank 0 has ended its next turn; returns whether it failed.

        A turn may take hours (a corpus is tokenised), a collective would time out; nor does that let signals through.
        """
        if self.store is None:
            return False
        with self._with_peers():
            turn = self.store.add(f"{_TURNS} for {self.rank}", 1)
            while self.store.add(_TURNS, 0) < turn:
                self._end_if_stopped()
                time.sleep(_POLL_SECONDS)
        return self.any(False)

    def leave_word(self, stop: KeyboardInterrupt) -> None:
        """Say that this rank was stopped, unless another was before it."""
        if self.store is not None:
            with suppress(RuntimeError):  # rank 0 is gone, and the store with it
                number = getattr(stop, "number", signal.SIGINT)
                self.store.compare_set(_STOPPED, "", f"{self.rank} {int(number)}")

    def wait_for_readers(self) -> None:
        """What a stopped rank does last, its connections closed: rank 0 keeps the store for those yet to read it."""
        assert self.store is not None
        deadline = time.monotonic() + _LAST_SECONDS
        with suppress(RuntimeError):
            left = self.store.add(_LEFT, 1)
            while self.is_main and left < self.world_size and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
                left = self.store.add(_LEFT, 0)

    def _end_if_stopped(self) -> None:
        """End as another rank did, where one has left word.

        Raises:
            Interrupted: with its signal.
        """
        if self.store is not None and self.store.check([_STOPPED]):
            rank, number = map(int, self.store.get(_STOPPED).split())
            raise Interrupted(number, f"rank {rank} was stopped by {signal.Signals(number).name}")

    @contextmanager
    def _with_peers(self) -> Iterator[None]:
        """What goes wrong inside is that another rank is gone.

        Raises:
            Interrupted: it was stopped.
            TrainingError: it ended otherwise; instead of the back end's error.
        """
        try:
            yield
        except RuntimeError as error:
            with suppress(RuntimeError):
                self._end_if_stopped()
            raise TrainingError(
                f"another rank has ended, so this one cannot go on: {str(error).splitlines()[0]}",
                hint="Its own message says why; the same command resumes the run.",
            ) from error


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (size >= BUCKET_BYTES or bucket[0].dtype != gradient.dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.numel() * gradient.element_size()
    if bucket:
        yield bucket


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """Map ``training.device`` to a device: "auto" is the local rank's GPU where there is one.

    Raises:
        ConfigError: an unknown device, or CUDA is asked for and torch sees none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if name != "cuda" and not name.startswith("cuda:"):
        raise ConfigError(f"training.device is {name!r}; it must be auto, cpu or cuda")
    if not torch.cuda.is_available():
        raise ConfigError(
            "training.device is 'cuda', but torch sees no CUDA device",
            hint="Set training.device: cpu, or install a CUDA build of torch (`tunecore doctor` shows what is there).",
        )
    return torch.device(name if ":" in name else f"cuda:{local_rank % torch.cuda.device_count()}")


def set_threads(threads: int | None, local_size: int) -> int:
    """Set torch's CPU threads for this rank and return their number.

    None keeps torch's own choice in a single process, and shares the cores between the ranks of a machine
    (torchrun's default of one thread each would leave most of it idle).
    """
    if threads is None and local_size > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = max(1, cores // local_size)
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


@contextmanager
def open_ranks(device: str = "auto", threads: int | None = None) -> Iterator[Ranks]:
    """Join the ranks torchrun started, or be the only one; leave them at the end, and with word where that is a stop.

    Args:
        device: ``training.device``.
        threads: ``training.threads``.

    Raises:
        ConfigError: the device is not there.
    """
    environ = os.environ
    world_size = int(environ.get("WORLD_SIZE", "1")) if "RANK" in environ else 1
    local_rank = int(environ.get("LOCAL_RANK", "0")) if world_size > 1 else 0
    local_size = int(environ.get("LOCAL_WORLD_SIZE", "1")) if world_size > 1 else 1
    where = choose_device(device, local_rank)
    set_threads(threads, local_size)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if world_size == 1:
        yield Ranks(device=where)
        return
    started = not dist.is_initialized()
    if started:
        dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
    store = dist.distributed_c10d._get_default_store()
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), local_rank, local_size, where, store)
    stopped = False
    try:
        yield ranks
    except KeyboardInterrupt as stop:
        stopped = True
        ranks.leave_word(stop)
        raise
    finally:
        if started:
            dist.destroy_process_group()  # closes the connections, so peers that wait for this rank wake
            if stopped:
                ranks.wait_for_readers()
