"""The order of rows: a keyed permutation per epoch, computed where it is looked at, so resuming costs nothing.

A Feistel network permutes the numbers of b bits; results outside [0, n) walk on along their cycle until they fall
inside (Black, Rogaway: "Ciphers with arbitrary finite domains", CT-RSA 2002). Memory is O(1) whatever n is.
"""

from __future__ import annotations

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


def rows_of_step(n: int, batch_size: int, seed: int, step: int) -> tuple[int, IntArray]:
    """The epoch (from 0) and the rows, int64, of optimizer step ``step`` (from 0), over all ranks."""
    epoch, position = divmod(step, steps_per_epoch(n, batch_size))
    start = position * batch_size
    return epoch, Permutation(n, seed, epoch)[start : min(start + batch_size, n)]
