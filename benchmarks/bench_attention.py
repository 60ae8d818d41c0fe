"""Attention, forward and backward: tunecore's kernel against PyTorch's scaled_dot_product_attention, in turn.

Sequences of one length, so that SDPA has no padding to pay for; 12 heads of 64. SDPA runs its best CPU path (flash)
and its math path; with dropout 0.1 it has the math path only. FLOPs are 3.5 x those of the forward products.
The limit is the GEMM peak of the same dtype, measured in the same run.

    python benchmarks/bench_attention.py [--dtype bf16|fp32] [--threads N] [--pairs 5]
"""

from __future__ import annotations

import argparse
import statistics

import torch
from bench_train_step import gemm_peak
from common import alternate, machine, record, timed_rate
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from tunecore.ops import DropoutKey, attention

SHAPES = ((64, 32), (16, 128), (4, 512), (1, 2048))
HEADS, WIDTH = 12, 64


def contestants(batch: int, length: int, dtype: torch.dtype, p: float, seconds: float):
    """Name -> FLOP/s of forward and backward together."""
    torch.manual_seed(0)
    packed = [torch.randn(batch * length, HEADS, WIDTH).to(dtype).requires_grad_() for _ in range(3)]
    dout = torch.randn(batch * length, HEADS, WIDTH).to(dtype)
    cu = torch.arange(0, batch * length + 1, length, dtype=torch.int32)
    rng = DropoutKey(torch.tensor(1), torch.arange(batch), 0)
    shape = (batch, length, HEADS, WIDTH)
    padded = [x.detach().view(shape).transpose(1, 2).requires_grad_() for x in packed]
    flops = int(3.5 * 4 * batch * HEADS * length * length * WIDTH)

    def run(call, inputs: list[Tensor], gradient: Tensor):
        def once() -> int:
            torch.autograd.grad(call(*inputs), inputs, gradient)
            return flops

        return lambda: timed_rate(once, seconds)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, cu, cu, length, length, dropout_p=p, rng=rng)

    def sdpa(backend: SDPBackend | None):
        def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if backend is None:
                return scaled_dot_product_attention(q, k, v, dropout_p=p)
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(q, k, v, dropout_p=p)

        return call

    as_padded = dout.view(shape).transpose(1, 2)
    return {
        "tunecore": run(ours, packed, dout),
        "sdpa": run(sdpa(None), padded, as_padded),
        "sdpa math": run(sdpa(SDPBackend.MATH), padded, as_padded),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    peak = gemm_peak(dtype)
    lines = [
        "| sequences x length, dropout | tunecore GFLOP/s | sdpa | math path | ours/sdpa | ours/math | of GEMM peak |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for batch, length in SHAPES:
        for p in (0.0, 0.1):
            figures = alternate(contestants(batch, length, dtype, p, args.seconds), args.pairs)
            ratios = record(f"attention {args.dtype} {batch}x{length} dropout {p}", figures, "tunecore", "FLOP/s")
            ours, sdpa, math = (statistics.median(figures[name]) / 1e9 for name in ("tunecore", "sdpa", "sdpa math"))
            lines.append(
                f"| {batch} x {length}, {p} | {ours:.0f} | {sdpa:.0f} | {math:.0f} | {ratios['sdpa']:.1f}x | "
                f"{ratios['sdpa math']:.1f}x | {ours * 1e9 / peak:.0%} |"
            )
    print(f"attention, forward and backward, {args.dtype}, {HEADS} heads of {WIDTH}\n")
    print("\n".join(lines))
    print(f"\nGEMM peak {peak / 1e9:.0f} GFLOP/s; " + "; ".join(f"{k}: {v}" for k, v in machine().items()))


if __name__ == "__main__":
    main()
