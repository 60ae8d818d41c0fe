"""Attention, forward and backward: tunecore's kernel against PyTorch's scaled_dot_product_attention, in turn.

12 heads of 64: sequences of one length, where SDPA has no padding to pay for, with and without dropout (with it SDPA
has its math path only); causal; lengths drawn evenly from 16 to 512, which SDPA pads and masks; T5's relative bias with
the gradient of its table, for which SDPA takes a float mask [1, H, L, L] that requires grad. "sdpa" is its own choice
(flash where it can), "math" its math path. FLOPs are those of useful pairs, 3.5 x the forward products. Memory is what
a first call in a process of its own adds at its peak, gradients included. The limit is the GEMM peak of the same dtype,
measured in the same run. All run in one process, with freed memory kept.

With --device cuda: sixteen times as many sequences, SDPA's flash, cuDNN, efficient and math backends by name, and
torch's varlen attention, which like ours has no padding; a backend that does not take a case is named and left out. The
limit is the larger of the FLOPs over the measured matrix peak and the least bytes over the measured bandwidth.

    python benchmarks/bench_attention.py [--dtype bf16 fp32] [--threads N] [--pairs 5] [--device cuda] [--quick]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import devices
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
    taking_part,
    timed_rate,
)
from limits import Limits, gemm_peak, of_gpu
from torch.nn.attention import SDPBackend

OURS, SDPA, MATH, VARLEN = "tunecore", "sdpa", "sdpa math", "varlen_attn"
BACKENDS = {
    SDPA: None,
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
    MATH: SDPBackend.MATH,
}
"""Contestant -> backend of scaled_dot_product_attention; None is its own choice."""
PEERS_ON_GPU = (VARLEN, *BACKENDS)
TIMES_ON_GPU = 16


def make_call(name: str, case: Case, dtype: torch.dtype) -> Call:
    if name == OURS:
        return case.packed(dtype)
    return case.varlen(dtype) if name == VARLEN else case.padded(dtype, BACKENDS[name])


def first_call(name: str, case: Case, dtype: torch.dtype) -> Call:
    """For :func:`common.peak_memory`: what is needed is imported and threads are started by a small call."""
    small = Case("", tuple(1 + n % 8 for n in range(min(2, len(case.lengths)))), case.dropout, case.causal, case.bias)
    make_call(name, small, dtype)()
    return make_call(name, case, dtype)


def turn(call: Call, flops: int, seconds: float, device: str = devices.CPU) -> Callable[[], float]:
    def once() -> int:
        call()
        return flops

    return lambda: timed_rate(once, seconds, 1, device)


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


def measure_on_gpu(case: Case, dtype_name: str, limits: Limits, args: argparse.Namespace) -> list[str]:
    """A row for each contestant that takes the case."""
    dtype = DTYPES[dtype_name]
    memory: dict[str, float] = {}

    def enter(name: str) -> Callable[[], float]:
        with torch.device(devices.CUDA):
            call = make_call(name, case, dtype)
        memory[name] = devices.gpu_memory(call)
        return turn(call, case.flops, args.seconds, devices.CUDA)

    peers = {name: partial(enter, name) for name in PEERS_ON_GPU}
    figures = alternate({OURS: enter(OURS), **taking_part(peers)}, args.pairs)
    ratio, limit = ratios(figures, OURS), limits.seconds(case.flops, case.bytes_moved(dtype))
    if not args.quick:
        record(f"attention cuda {dtype_name} {case.name}", figures, ratio, "FLOP/s")
    lines = []
    for name, rates in figures.items():
        rate = statistics.median(rates)
        lines.append(
            f"| {dtype_name} {case.name} | {name} | {case.flops / rate * 1e3:.3f} | {rate / 1e12:.1f} | "
            f"{limit * rate / case.flops:.0%} | {'' if name == OURS else f'{ratio[name]:.2f}x'} | {memory[name]:,.0f} |"
        )
    return lines


def run_on_gpu(args: argparse.Namespace) -> None:
    """Limits, then the table."""
    lines = [
        "| sequences x length | | ms | TFLOP/s | of the limit | ours is | MiB at the peak |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for dtype in args.dtype:
        limits = of_gpu(DTYPES[dtype])
        for case in quick_cases() if args.quick else cases(TIMES_ON_GPU):
            lines += measure_on_gpu(case, dtype, limits, args)
    print(f"attention, forward and backward, {HEADS} heads of {WIDTH} ({args.pairs} alternating rounds)\n")
    print("\n".join([*lines, "", machine_line()]))


def main() -> None:
    parser = arguments(__doc__, seconds=0.3)
    parser.add_argument("--dtype", nargs="+", choices=tuple(DTYPES), help="default: those the device computes in")
    devices.add_device(parser)
    args = parsed(parser)
    devices.prepare(args.device)
    args.dtype = args.dtype or native_dtypes(args.device)
    if args.device == devices.CUDA:
        run_on_gpu(args)
        return
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
