"""A linear layer in float32, its three products: tunecore's GEMM against PyTorch's (MKL on x86), in turn.

Output, gradient of the input and gradient of the weight, each into a buffer that is there already: ``matmul_into``
against ``torch.mm(out=)``. FLOPs are 2 T K N each.

    python benchmarks/bench_linear.py [--threads N] [--pairs 5]
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from common import alternate, arguments, machine_line, parsed, ratios, record, timed_rate
from torch import Tensor

from tunecore.ops.linear import matmul_into

OURS, PEER = "tunecore", "torch.mm"
# Rows, input width, output width: BERT-base's layers, BERT-mini's, MiniLM's in fine-tuning, a vocabulary.
SHAPES = (
    (1285, 768, 768), (1285, 768, 3072), (1285, 3072, 768), (2644, 256, 256), (2644, 256, 1024), (424, 384, 1536),
    (190, 768, 30522),
)  # fmt: skip
QUICK = ((64, 64, 128),)


def products(rows: int, width: int, out: int) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Name -> (result, left, right) of the three products of a layer, laid out as a layer has them."""
    torch.manual_seed(0)
    x, weight, dout = torch.randn(rows, width), torch.randn(out, width), torch.randn(rows, out)
    new = torch.empty
    return {
        "output": (new(rows, out), x, weight.t()),
        "of input": (new(rows, width), dout, weight),
        "of weight": (new(out, width), dout.t(), x),
    }


def turn(call: Callable[..., object], flops: int, seconds: float) -> Callable[[], float]:
    def once() -> int:
        call()
        return flops

    return lambda: timed_rate(once, seconds, 1)


def main() -> None:
    args = parsed(arguments(__doc__, seconds=0.2))
    lines = [
        "| T x K x N | product | tunecore GFLOP/s | torch.mm | ours is |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for shape in QUICK if args.quick else SHAPES:
        flops = 2 * shape[0] * shape[1] * shape[2]
        for name, (result, left, right) in products(*shape).items():
            calls = {
                OURS: lambda c=result, a=left, b=right: matmul_into(c, a, b),
                PEER: lambda c=result, a=left, b=right: torch.mm(a, b, out=c),
            }
            figures = alternate({who: turn(call, flops, args.seconds) for who, call in calls.items()}, args.pairs)
            ratio = ratios(figures, OURS)
            if not args.quick:
                record(f"linear fp32 {'x'.join(map(str, shape))} {name}", figures, ratio, "FLOP/s")
            ours, peer = (statistics.median(figures[who]) / 1e9 for who in (OURS, PEER))
            lines.append(f"| {' x '.join(map(str, shape))} | {name} | {ours:.0f} | {peer:.0f} | {ratio[PEER]:.2f}x |")
    print(f"products of a linear layer, float32 ({args.pairs} alternating rounds)\n")
    print("\n".join(lines))
    print("\n" + machine_line())


if __name__ == "__main__":
    main()
