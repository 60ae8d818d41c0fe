"""Where a benchmark runs: on the CPU, or with --device cuda on the GPU at hand, timed by events of its own.

On a GPU a benchmark says first what the machine allows (``limits.of_gpu``), and starts only where the kernels of
tunecore are in use, so that no figure is PyTorch's by mistake. Exit code 77: there is no GPU, nothing was measured.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable

import torch

from tunecore.ops import _cuda
from tunecore.ops._native import tune_allocator
from tunecore.ops.masked_lm_loss import release_workspaces

CPU, CUDA = "cpu", "cuda"
NO_GPU = 77


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option --device."""
    parser.add_argument("--device", choices=(CPU, CUDA), default=CPU, help="cuda: the GPU that torch sees first")


def prepare(device: str) -> None:
    """Make the device ready: keep freed memory on a CPU; on a GPU leave with a word where nothing can be measured.

    Raises:
        SystemExit: there is no GPU (77), or the kernels of tunecore are not in use on it (1).
    """
    if device == CPU:
        tune_allocator()
        return
    if not torch.cuda.is_available():
        print("bench-gpu: torch sees no CUDA GPU here: nothing was measured", file=sys.stderr)
        raise SystemExit(NO_GPU)
    if reason := _cuda.info().reason:
        print(f"bench-gpu: the CUDA kernels of tunecore are not in use: {reason}", file=sys.stderr)
        raise SystemExit(1)


def machine() -> dict[str, str]:
    """Name the GPU and what a figure of it belongs to."""
    major, minor = torch.cuda.get_device_capability()
    return {
        "gpu": torch.cuda.get_device_name(),
        "capability": f"sm_{major}{minor}",
        "cuda": str(torch.version.cuda),
        "kernels": f"{_cuda.info().version} for {', '.join(f'sm_{arch}' for arch in _cuda.info().archs)}",
    }


def in_use() -> bool:
    """Whether this process has used a GPU: its name then belongs to the figures."""
    return torch.cuda.is_initialized()


def wait(device: str) -> None:
    """Until all that was handed to the device is done; a CPU has done it already."""
    if device == CUDA:
        torch.cuda.synchronize()


def gpu_rate(step: Callable[[], int], seconds: float, at_least: int = 2) -> float:
    """Units of work per second of ``step`` on the GPU, from an event before its first kernel to one behind its last.

    As many steps as take ``seconds`` are handed out without a look at the clock, at which the GPU would stand idle; a
    step whose Python is slower than its kernels is as slow as its Python here too.
    """
    _timed(step, 1)  # met caches, chosen algorithms
    work, taken = _timed(step, 1)
    count = max(at_least, math.ceil(seconds / taken))
    work, taken = _timed(step, count)
    return work / taken


def _timed(step: Callable[[], int], count: int) -> tuple[int, float]:
    """Work and seconds of so many steps."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    work = sum(step() for _ in range(count))
    end.record()
    end.synchronize()
    return work, max(begin.elapsed_time(end) / 1e3, 1e-9)  # of no kernel at all: an event may be as old as the other


def gpu_memory(call: Callable[[], object]) -> float:
    """MiB by which one call raises the memory of the GPU that tensors hold, at its peak; workspaces that tunecore
    keeps between calls count as new.
    """
    release_workspaces()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del kept
    return peak / 2**20
