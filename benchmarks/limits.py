"""What the machine allows, measured in the same run: the rate of matrix products, and of memory read and written back.

The limit of a training step is the time of its useful products at the first rate and of the optimizer's bytes at the
second, one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

OPTIMIZER_BYTES = 28
"""Bytes of memory an AdamW step moves for one parameter: weight, both means and gradient read, all but it written."""
_ROWS, _SHAPE = (128, 4096), (768, 3072)
_PATIENCE = 1.0


def _best_seconds(call: Callable[[], object], times: int = 6) -> float:
    best = float("inf")
    for _ in range(times):  # the first is slow: code is generated, pages are met
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
        if best > _PATIENCE:
            break
    return best


def gemm_peak(dtype: torch.dtype) -> float:
    """FLOP/s of torch.mm 4096 x 768 x 3072, the best of six; of 128 rows where the dtype is so slow that 4096 would
    take minutes (bf16 without arithmetic for it).
    """
    k, n = _SHAPE
    b = torch.randn(k, n).to(dtype)
    rate = 0.0
    for m in _ROWS:
        a, out = torch.randn(m, k).to(dtype), torch.empty(m, n, dtype=dtype)
        best = _best_seconds(lambda a=a, out=out: torch.mm(a, b, out=out))
        rate = max(rate, 2 * m * k * n / best)
        if best * _ROWS[-1] / m > 5 * _PATIENCE:
            break
    return rate


def update_bandwidth(numel: int = 64 * 2**20) -> float:
    """Bytes per second, read and written, of adding to ``numel`` floats in place, the best of six."""
    x = torch.zeros(numel)
    return 2 * x.nbytes / _best_seconds(lambda: x.add_(1.0))


def step_seconds(flops: float, parameters: int, dtype: torch.dtype) -> tuple[float, float]:
    """Least seconds of a step's products, and of its optimizer, on this machine now."""
    return flops / gemm_peak(dtype), OPTIMIZER_BYTES * parameters / update_bandwidth()
