"""The order of rows: a keyed permutation per epoch, computed where it is looked at, so resuming costs nothing.

A Feistel network permutes the numbers of b bits; results outside [0, n) walk on along their cycle until they fall
inside (Black, Rogaway: "Ciphers with arbitrary finite domains", CT-RSA 2002). Memory is O(1) whatever n is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tunecore.data.streams import PhiloxStream, derive_key
from tunecore.types import IntArray

_ROUNDS = 8
_SMALL = 4096


def _mix(x: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """A keyed 64-bit finaliser: every output bit depends on every input bit."""
    x = x ^ key
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Permutation:
    """A random order of 0, ..., n - 1 fixed by (seed, epoch); index it by an int, a slice or an int array.

    Up to 4,096 rows the order is drawn outright (a network of so few bits reaches too few orders); above, each
    position is computed on its own.

    Raises:
        ValueError: ``n`` is not positive.
        IndexError: a position is outside [0, n).
    """

    def __init__(self, n: int, seed: int, epoch: int) -> None:
        if n <= 0:
            raise ValueError(f"a permutation needs at least one row, not {n}")
        self.n = n
        self._small = PhiloxStream(seed, epoch, purpose="order").permutation(n) if n <= _SMALL else None
        bits = max((n - 1).bit_length(), 2)
        self._right_bits = np.uint64(bits - bits // 2)
        self._left_mask = np.uint64((1 << (bits // 2)) - 1)
        self._right_mask = np.uint64((1 << (bits - bits // 2)) - 1)
        self._keys = [np.uint64(derive_key(seed, epoch, r)) for r in range(_ROUNDS)]

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int | slice | IntArray) -> IntArray:
        """Rows at these positions, int64 (an array also for one position)."""
        if isinstance(index, slice):
            positions = np.arange(*index.indices(self.n), dtype=np.int64)
        else:
            positions = np.atleast_1d(np.asarray(index, dtype=np.int64))
            if positions.size and (positions.min() < 0 or positions.max() >= self.n):
                raise IndexError(f"positions must be in [0, {self.n})")
        if self._small is not None:
            return self._small[positions]
        rows = self._network(positions.astype(np.uint64))
        while (outside := np.flatnonzero(rows >= self.n)).size:
            rows[outside] = self._network(rows[outside])
        return rows.astype(np.int64)

    def _network(self, x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = x >> self._right_bits, x & self._right_mask
        for r in range(0, _ROUNDS, 2):
            left = left ^ (_mix(right, self._keys[r]) & self._left_mask)
            right = right ^ (_mix(left, self._keys[r + 1]) & self._right_mask)
        return (left << self._right_bits) | right


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Optimizer steps in one pass over ``n`` rows; the last may be short."""
    return -(-n // batch_size)


@dataclass(frozen=True)
class BatchSizes:
    """How many rows each optimizer step takes: ``size``, after a warm-up from ``start`` by doubling.

    The stages of the warm-up (start, 2 start, 4 start ... below ``size``) share its steps evenly. All that is asked of
    a step is computed from its number, by a few operations a stage; nothing depends on how long the run is, so a run
    may be made longer. (Growing batches: Smith et al. 2018, "Don't Decay the Learning Rate, Increase the Batch Size",
    arXiv:1711.00489; Brown et al. 2020, GPT-3, arXiv:2005.14165.)

    Raises:
        ValueError: a number is out of range.
    """

    size: int
    """Rows per step after the warm-up."""
    start: int | None = None
    """Rows of the first steps; None is ``size``."""
    warmup: int = 0
    """Steps until ``size`` is reached."""

    def __post_init__(self) -> None:
        if self.size < 1 or self.warmup < 0 or (self.start is not None and not 1 <= self.start <= self.size):
            raise ValueError(f"no batch sizes: {self}")

    @cached_property
    def stages(self) -> tuple[tuple[int, int], ...]:
        """(first step, rows per step) of each stage."""
        sizes = []
        size = self.size if self.start is None or self.warmup == 0 else self.start
        while size < self.size:
            sizes.append(size)
            size *= 2
        firsts = [number * self.warmup // len(sizes) for number in range(len(sizes))]
        return (*zip(firsts, sizes, strict=True), (self.warmup if sizes else 0, self.size))

    def rows_of_step(self, n: int, step: int) -> tuple[int, int, int]:
        """(epoch, start, stop): the part of the epoch's order of ``n`` rows that ``step`` (from 0) takes."""
        epoch = start = 0
        ends = [*(first for first, _ in self.stages[1:]), step + 1]
        for (first, size), end in zip(self.stages, ends, strict=True):
            epoch, start = _advanced(n, size, epoch, start, max(0, min(step, end) - first))
            if step < end:
                break
        return epoch, start, min(start + size, n)

    def epoch_at(self, n: int, step: int) -> float:
        """How many passes over ``n`` rows are done when ``step`` begins."""
        if len(self.stages) == 1:
            return step / steps_per_epoch(n, self.size)
        epoch, start, _ = self.rows_of_step(n, step)
        return epoch + start / n

    def steps_of(self, n: int, epochs: float) -> int:
        """Steps of ``epochs`` passes over ``n`` rows, at least 1; of a part of a pass, those that complete it."""
        if len(self.stages) == 1:
            return max(1, math.ceil(epochs * steps_per_epoch(n, self.size)))
        low, high = 1, math.ceil(epochs) * steps_per_epoch(n, self.stages[0][1])
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.epoch_at(n, middle) >= epochs else (middle + 1, high)
        return low


def _advanced(n: int, size: int, epoch: int, start: int, steps: int) -> tuple[int, int]:
    """(epoch, place) ``steps`` steps of ``size`` rows after place ``start`` of ``epoch``; none spans two epochs."""
    left = steps_per_epoch(n - start, size)
    if steps < left:
        return epoch, start + steps * size
    whole, rest = divmod(steps - left, steps_per_epoch(n, size))
    return epoch + 1 + whole, rest * size


def rows_of_step(n: int, batch_size: int | BatchSizes, seed: int, step: int) -> tuple[int, IntArray]:
    """The epoch (from 0) and the rows, int64, of optimizer step ``step`` (from 0), over all ranks."""
    sizes = batch_size if isinstance(batch_size, BatchSizes) else BatchSizes(batch_size)
    epoch, start, stop = sizes.rows_of_step(n, step)
    return epoch, Permutation(n, seed, epoch)[start:stop]
