"""Attention, forward and backward: tunecore's kernel against PyTorch's scaled_dot_product_attention, in turn.

12 heads of 64: sequences of one length, where SDPA has no padding to pay for, with and without dropout (with it SDPA
has its math path only); causal; lengths drawn evenly from 16 to 512, which SDPA pads and masks; T5's relative bias with
the gradient of its table, for which SDPA takes a float mask [1, H, L, L] that requires grad. "sdpa" is its own choice
(flash where it can), "math" its math path. FLOPs are those of useful pairs, 3.5 x the forward products. Memory is what
a first call in a process of its own adds at its peak, gradients included. The limit is the GEMM peak of the same dtype,
measured in the same run. All run in one process, with freed memory kept.

    python benchmarks/bench_attention.py [--dtype bf16 fp32] [--threads N] [--pairs 5] [--quick]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from attention_cases import HEADS, WIDTH, Call, Case, cases, quick_cases
from common import (
    DTYPES,
    alternate,
    arguments,
    machine_line,
    native_dtypes,
    parsed,
    peak_memory,
    ratios,
    record,
    timed_rate,
)
from limits import gemm_peak
from torch.nn.attention import SDPBackend

from tunecore.ops._native import tune_allocator

OURS, SDPA, MATH = "tunecore", "sdpa", "sdpa math"


def make_call(name: str, case: Case, dtype: torch.dtype) -> Call:
    if name == OURS:
        return case.packed(dtype)
    return case.padded(dtype, SDPBackend.MATH if name == MATH else None)


def first_call(name: str, case: Case, dtype: torch.dtype) -> Call:
    """For :func:`common.peak_memory`: what is needed is imported and threads are started by a small call."""
    small = Case("", tuple(1 + n % 8 for n in range(min(2, len(case.lengths)))), case.dropout, case.causal, case.bias)
    make_call(name, small, dtype)()
    return make_call(name, case, dtype)


def turn(call: Call, flops: int, seconds: float) -> Callable[[], float]:
    def once() -> int:
        call()
        return flops

    return lambda: timed_rate(once, seconds, 1)


def measure(case: Case, dtype_name: str, peak: float, args: argparse.Namespace) -> str:
    """One row of the table."""
    dtype = DTYPES[dtype_name]
    calls = {name: turn(make_call(name, case, dtype), case.flops, args.seconds) for name in (OURS, SDPA, MATH)}
    figures = alternate(calls, args.pairs)
    ratio = ratios(figures, OURS)
    if not args.quick:
        record(f"attention {dtype_name} {case.name}", figures, ratio, "FLOP/s")
    mib = ""
    if case.memory:
        parts = [peak_memory(first_call, name, case, dtype) for name in (OURS, SDPA)]
        mib = ", ".join("?" if part is None else f"{part:,.0f}" for part in parts)
    ours, sdpa, math = (statistics.median(figures[name]) / 1e9 for name in (OURS, SDPA, MATH))
    return (
        f"| {dtype_name} {case.name} | {ours:.0f} | {sdpa:.0f} | {math:.0f} | {ratio[SDPA]:.1f}x | "
        f"{ratio[MATH]:.1f}x | {ours * 1e9 / peak:.0%} | {mib} |"
    )


def main() -> None:
    parser = arguments(__doc__, seconds=0.3)
    parser.add_argument("--dtype", nargs="+", choices=tuple(DTYPES), default=native_dtypes())
    args = parsed(parser)
    tune_allocator()
    lines = [
        "| sequences x length | tunecore GFLOP/s | sdpa | math | ours/sdpa | ours/math | of peak | MiB, ours, sdpa |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    peaks = {dtype: gemm_peak(DTYPES[dtype]) for dtype in args.dtype}
    for dtype, peak in peaks.items():
        lines += [measure(case, dtype, peak, args) for case in (quick_cases() if args.quick else cases())]
    print(f"attention, forward and backward, {HEADS} heads of {WIDTH} ({args.pairs} alternating rounds)\n")
    print("\n".join(lines))
    print("\nGEMM peak " + ", ".join(f"{dtype} {peak / 1e9:.0f} GFLOP/s" for dtype, peak in peaks.items()))
    print(machine_line())


if __name__ == "__main__":
    main()
