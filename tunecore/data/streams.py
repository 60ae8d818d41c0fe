"""Counter-based random streams: draws are a pure function of (seed, ids, purpose), on any machine and numpy.

The generator is Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011)
on plain unsigned arithmetic, so nothing depends on a numpy release. The compiled core uses the same layout.
Shape letter: n draws or blocks.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np
from numpy.typing import NDArray

from tunecore.types import IntArray

Words = NDArray[np.uint32]

_MASK32 = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(_MASK32)
_SHIFT = np.uint64(32)
_MIN_BLOCKS = 128


def _round_keys(key0: int, key1: int) -> NDArray[np.uint64]:
    steps = range(_ROUNDS)
    keys = [[[(key0 + r * _WEYL[0]) & _MASK32], [(key1 + r * _WEYL[1]) & _MASK32]] for r in steps]
    return np.array(keys, dtype=np.uint64)


def _philox(even: NDArray[np.uint64], odd: NDArray[np.uint64], keys: NDArray[np.uint64]) -> Words:
    """Ten rounds over counter words (0, 2) and (1, 3), each uint64 [2, n]; returns words uint32 [n, 4]."""
    for r in range(_ROUNDS):
        product = even * _MULTIPLIERS
        high = product >> _SHIFT
        product &= _LOW
        even = high[::-1] ^ odd
        even ^= keys[r]
        odd = product[::-1]
    words = np.empty((even.shape[1], 4), dtype=np.uint32)
    words[:, 0::2] = even.T
    words[:, 1::2] = odd.T
    return words


def philox4x32(counters: Words, key: tuple[int, int]) -> Words:
    """Encrypt counters uint32 [n, 4] under two 32-bit key words; returns uint32 [n, 4]."""
    wide = counters.astype(np.uint64).T
    return _philox(wide[0::2], wide[1::2], _round_keys(key[0] & _MASK32, key[1] & _MASK32))


def _hash64(seed: int, ids: tuple[int, ...], purpose: str) -> int:
    """64 bits that name (seed, ids, purpose); integers count modulo 2**64."""
    numbers = [value & 0xFFFFFFFFFFFFFFFF for value in (seed, *ids)]
    data = struct.pack(f"<I{len(numbers)}Q", len(numbers), *numbers) + purpose.encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, person=b"tunecore").digest(), "little")


def derive_key(seed: int, *ints: int) -> int:
    """A key in [0, 2**63) that is a stable hash of the arguments: for torch seeds and dropout keys."""
    return _hash64(seed, ints, "key") >> 1


class PhiloxStream:
    """A sequence of draws that depends on (seed, ids, purpose) alone; implements ``tunecore.types.Stream``.

    Each call advances a counter inside the stream. A child's draws do not depend on how much its parent has drawn.
    """

    __slots__ = ("_block", "_buffer", "_ids", "_keys", "_purpose", "_seed")

    def __init__(self, seed: int, *ids: int, purpose: str = "") -> None:
        self._seed, self._ids, self._purpose = seed, ids, purpose
        self._keys: NDArray[np.uint64] | None = None
        self._block = 0
        self._buffer: Words = np.empty(0, dtype=np.uint32)

    def child(self, purpose: str) -> PhiloxStream:
        return PhiloxStream(self._seed, *self._ids, purpose=f"{self._purpose}/{purpose}")

    def uniform(self, n: int) -> NDArray[np.float64]:
        return (self._words64(n) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def integers(self, low: int, high: int, n: int) -> IntArray:
        """Multiply-shift on 64 bits: no value is favoured by more than (high - low) / 2**64.

        Raises:
            ValueError: the range is empty or wider than 2**32.
        """
        width = high - low
        if not 0 < width <= 1 << 32:
            raise ValueError(f"integers({low}, {high}): the range must hold 1 to 2**32 values")
        words, wide = self._words64(n), np.uint64(width)
        scaled = ((words >> _SHIFT) * wide + ((words & _LOW) * wide >> _SHIFT)) >> _SHIFT
        return scaled.astype(np.int64) + low

    def permutation(self, n: int) -> IntArray:
        return np.argsort(self._words64(n), kind="stable")

    def _words64(self, n: int) -> NDArray[np.uint64]:
        words = self._take(2 * n).astype(np.uint64)
        return (words[0::2] << _SHIFT) | words[1::2]

    def _take(self, n: int) -> Words:
        """The next ``n`` words; blocks are made ahead, which changes no word and spares small calls the set-up."""
        missing = n - self._buffer.shape[0]
        if missing > 0:
            self._buffer = np.concatenate((self._buffer, self._make(max(-(-missing // 4), _MIN_BLOCKS))))
        taken, self._buffer = self._buffer[:n], self._buffer[n:]
        return taken

    def _make(self, blocks: int) -> Words:
        if self._keys is None:
            key = _hash64(self._seed, self._ids, self._purpose)
            self._keys = _round_keys(key & _MASK32, key >> 32)
        block = np.arange(self._block, self._block + blocks, dtype=np.uint64)
        self._block += blocks
        even = np.zeros((2, blocks), dtype=np.uint64)
        odd = np.zeros((2, blocks), dtype=np.uint64)
        even[0], odd[0] = block & _LOW, block >> _SHIFT
        return _philox(even, odd, self._keys).reshape(-1)
