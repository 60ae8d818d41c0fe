"""What the machine allows, measured in the same run: the rate of matrix products, and of memory read and written back.

The limit of a training step is the time of its useful products at the first rate and of the optimizer's bytes at the
second, one after the other. On a GPU the limit of an op is the larger of its two times, and is printed first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from devices import CPU, CUDA, gpu_rate

OPTIMIZER_BYTES = 28
"""Bytes of memory an AdamW step moves for one parameter: weight, both means and gradient read, all but it written."""
_ROWS, _SHAPE = (128, 4096), (768, 3072)
_PATIENCE = 1.0
_GPU_SHAPES = ((8192, 8192, 8192), (16384, 4096, 4096), (32768, 3072, 768))
"""Rows, inner and outer width of products that fill a GPU; which is fastest differs by GPU."""
_GPU_SECONDS = 0.2


class Limits(NamedTuple):
    """What a machine allows."""

    flops: float
    """FLOP/s of matrix products."""
    bandwidth: float
    """Bytes per second of its memory, read and written."""

    def seconds(self, flops: float, moved: float) -> float:
        """Least time of an op that must do so many FLOPs and move so many bytes, both at once."""
        return max(flops / self.flops, moved / self.bandwidth)


def of_gpu(dtype: torch.dtype) -> Limits:
    """What the GPU allows, printed as well: a benchmark says it before its figures."""
    limits = Limits(gemm_peak(dtype, CUDA), update_bandwidth(device=CUDA))
    print(
        f"limits of {torch.cuda.get_device_name()}, measured now: {limits.flops / 1e12:.1f} TFLOP/s of {dtype} matrix "
        f"products, {limits.bandwidth / 1e12:.2f} TB/s of memory read and written\n",
        flush=True,
    )
    return limits


def _best_seconds(call: Callable[[], object], times: int = 6) -> float:
    best = float("inf")
    for _ in range(times):  # the first is slow: code is generated, pages are met
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
        if best > _PATIENCE:
            break
    return best


def _gpu_product(dtype: torch.dtype, m: int, k: int, n: int) -> float:
    """FLOP/s of one shape on the GPU."""
    a, b, out = (torch.randn(shape, device=CUDA, dtype=dtype) for shape in ((m, k), (k, n), (m, n)))

    def once() -> int:
        torch.mm(a, b, out=out)
        return 2 * m * k * n

    return gpu_rate(once, _GPU_SECONDS)


def gemm_peak(dtype: torch.dtype, device: str = CPU) -> float:
    """FLOP/s of torch.mm 4096 x 768 x 3072, the best of six; of 128 rows where the dtype is so slow that 4096 would
    take minutes (bf16 without arithmetic for it). On a GPU the best of some larger shapes.
    """
    if device == CUDA:
        return max(_gpu_product(dtype, *shape) for shape in _GPU_SHAPES)
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


def update_bandwidth(numel: int = 64 * 2**20, device: str = CPU) -> float:
    """Bytes per second, read and written, of adding to ``numel`` floats in place, the best of six."""
    x = torch.zeros(numel, device=device)
    if device == CUDA:
        return gpu_rate(lambda: 2 * x.add_(1.0).nbytes, _GPU_SECONDS)
    return 2 * x.nbytes / _best_seconds(lambda: x.add_(1.0))


def step_seconds(flops: float, parameters: int, dtype: torch.dtype, device: str = CPU) -> tuple[float, float]:
    """Least seconds of a step's products, and of its optimizer, on this machine now."""
    limits = of_gpu(dtype) if device == CUDA else Limits(gemm_peak(dtype), update_bandwidth())
    return flops / limits.flops, OPTIMIZER_BYTES * parameters / limits.bandwidth
