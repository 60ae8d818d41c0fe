"""A linear layer's three products: tunecore's GEMM against PyTorch's (on x86 MKL, in bf16 oneDNN), in turn.

Output, gradient of the input and gradient of the weight, each into a buffer that is there already: ``matmul_into``
against ``torch.mm(out=)``. FLOPs are 2 T K N each. With --new-rows each call has one row less than the one before, as
packed batches have another number of rows at every step: oneDNN compiles code for each, and keeps that of 1,024.

    python benchmarks/bench_linear.py [--threads N] [--pairs 5] [--dtype bf16] [--new-rows]
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import NamedTuple

import torch
from common import DTYPES, alternate, arguments, machine_line, parsed, ratios, record, timed_rate
from torch import Tensor

from tunecore.ops.linear import matmul_into

OURS, PEER = "tunecore", "torch.mm"
# Rows, input width, output width: BERT-base's layers, BERT-mini's, MiniLM's in fine-tuning, a vocabulary.
SHAPES = (
    (1285, 768, 768), (1285, 768, 3072), (1285, 3072, 768), (2644, 256, 256), (2644, 256, 1024), (424, 384, 1536),
    (190, 768, 30522),
)  # fmt: skip
QUICK = ((64, 64, 128),)


class Product(NamedTuple):
    """One product of a layer of so many rows, as a layer's operands lie: result, left, right."""

    name: str
    operands: Callable[[int], tuple[Tensor, Tensor, Tensor]]


def products(rows: int, width: int, out: int, dtype: torch.dtype) -> list[Product]:
    torch.manual_seed(0)
    x, weight, dout = (torch.randn(shape).to(dtype) for shape in ((rows, width), (out, width), (rows, out)))
    y, dx, dweight = (torch.empty_like(like) for like in (dout, x, weight))
    return [
        Product("output", lambda t: (y[:t], x[:t], weight.t())),
        Product("of input", lambda t: (dx[:t], dout[:t], weight)),
        Product("of weight", lambda t: (dweight, dout[:t].t(), x[:t])),
    ]


Multiply = Callable[[Tensor, Tensor, Tensor], object]


def turn(
    multiply: Multiply, product: Product, rows: Iterator[int], per_row: int, seconds: float
) -> Callable[[], float]:
    """A turn of one contestant; ``rows`` are those of each call."""

    def once() -> int:
        count = next(rows)
        multiply(*product.operands(count))
        return count * per_row

    return lambda: timed_rate(once, seconds, 1)


def main() -> None:
    parser = arguments(__doc__, seconds=0.2)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--new-rows", action="store_true", help="another number of rows at every call")
    args = parsed(parser)
    lines = [
        "| T x K x N | product | tunecore GFLOP/s | torch.mm | ours is |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    contestants = {OURS: matmul_into, PEER: lambda c, a, b: torch.mm(a, b, out=c)}
    for rows, width, out in QUICK if args.quick else SHAPES:
        shape = f"{rows} x {width} x {out}"
        counts = range(rows, rows // 2, -1) if args.new_rows else (rows,)
        for product in products(rows, width, out, DTYPES[args.dtype]):
            turns = {
                who: turn(multiply, product, cycle(counts), 2 * width * out, args.seconds)
                for who, multiply in contestants.items()
            }
            figures = alternate(turns, args.pairs)
            ratio = ratios(figures, OURS)
            if not args.quick:
                title = f"linear {args.dtype} {shape.replace(' ', '')} {product.name}"
                record(title + ", new rows" * args.new_rows, figures, ratio, "FLOP/s")
            ours, peer = (statistics.median(figures[who]) / 1e9 for who in (OURS, PEER))
            lines.append(f"| {shape} | {product.name} | {ours:.0f} | {peer:.0f} | {ratio[PEER]:.2f}x |")
    at_each = ", another number of rows at every call" * args.new_rows
    print(f"products of a linear layer, {args.dtype}{at_each} ({args.pairs} alternating rounds)\n")
    print("\n".join(lines))
    print("\n" + machine_line())


if __name__ == "__main__":
    main()
