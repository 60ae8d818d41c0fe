"""The vocabulary loss, forward and all gradients (hidden, weight, bias): tunecore's against PyTorch's, in turn.

N rows with a target, hidden width E, vocabulary V. Peers: F.linear then F.cross_entropy on the same gathered rows, and
torch.nn.functional.linear_cross_entropy with the fastest of a few options at that shape, found in warm-up; it is left
out where one call takes more than --longest seconds and three times the limit. The limit is the three products alone,
torch.mm(out=) at the same shapes in the same rounds. All run in one process, with freed memory kept. Memory is what a
first call in a process of its own adds to the inputs at its peak, the gradients included.

With --device cuda: rows that fill a GPU, and the limit is the larger of the products' FLOPs over the measured matrix
peak and the least bytes over the measured bandwidth; the three products take part as a row of their own.

    python benchmarks/bench_masked_lm_loss.py [--dtype fp32 bf16] [--threads N] [--pairs 5] [--device cuda]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import devices
import torch
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
from limits import Limits, of_gpu
from torch import Tensor
from torch.nn import functional

from tunecore.ops import masked_lm_loss

SHAPES = ((614, 768, 30522), (190, 768, 30522), (4096, 768, 50257))
"""BERT-base's 15 % of 4,096 tokens, of 1,285; a batch of GPT-2."""
SHAPES_ON_GPU = ((4915, 768, 30522), (16384, 768, 50257), (8192, 4096, 128256))
"""BERT-base's 15 % of 32,768 tokens; a batch of GPT-2; one of a Llama of 8 billion weights."""
QUICK = ((64, 32, 1000),)
OURS, GATHERED, FUSED, LIMIT = "tunecore", "linear + cross_entropy", "linear_cross_entropy", "three products"
_SLICE = 8
"""Options are first tried on a part of the rows this many times smaller: some are fifty times slower than others."""


class Inputs(NamedTuple):
    """hidden [N, E], weight [V, E], bias [V], all with gradients; targets [N]."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    targets: Tensor

    def rows(self, count: int) -> Inputs:
        """The first ``count`` rows."""
        return Inputs(self.hidden.detach()[:count].requires_grad_(), self.weight, self.bias, self.targets[:count])

    def as_trained(self) -> Inputs:
        """The same memory, with float32 gradients of weight and bias, as tunecore trains; peers give the dtype's."""
        weight, bias = (x.detach().requires_grad_() for x in (self.weight, self.bias))
        weight.grad_dtype = bias.grad_dtype = torch.float32
        return self._replace(weight=weight, bias=bias)


def make_inputs(shape: tuple[int, int, int], dtype: torch.dtype) -> Inputs:
    """Random ones; no larger tensor is made on the way."""
    rows, width, vocab = shape
    torch.manual_seed(0)
    tensors = (torch.empty(size, dtype=dtype).normal_(std=std).requires_grad_()
               for size, std in (((rows, width), 1.0), ((vocab, width), 0.02), ((vocab,), 0.02)))  # fmt: skip
    return Inputs(*tensors, torch.randint(0, vocab, (rows,)))


def ours(x: Inputs) -> Tensor:
    return masked_lm_loss(x.hidden, x.weight, x.bias, x.targets, ignore_index=None).total


def gathered(x: Inputs) -> Tensor:
    logits = functional.linear(x.hidden, x.weight, x.bias)
    return functional.cross_entropy(logits, x.targets, reduction="sum")


def fused(options: Any) -> Callable[[Inputs], Tensor]:
    def call(x: Inputs) -> Tensor:
        return functional.linear_cross_entropy(
            x.hidden, x.weight, x.targets, linear_bias=x.bias, reduction="sum", options=options
        )

    return call


def forget_gradients(x: Inputs) -> None:
    x.hidden.grad = x.weight.grad = x.bias.grad = None


def with_gradients(loss: Callable[[Inputs], Tensor], x: Inputs) -> None:
    """Loss and gradients; the gradients stay in the inputs until the next call."""
    forget_gradients(x)
    loss(x).backward()


def inputs_of(name: str, x: Inputs) -> Inputs:
    return x.as_trained() if name == OURS else x


def seconds_of(loss: Callable[[Inputs], Tensor], x: Inputs) -> float:
    start = time.perf_counter()
    with_gradients(loss, x)
    devices.wait(x.hidden.device.type)
    return time.perf_counter() - start


def three_products(x: Inputs) -> Callable[[], None]:
    """logits, dhidden, dweight by torch.mm into memory that is there."""
    hidden, weight = x.hidden.detach(), x.weight.detach()
    logits = torch.mm(hidden, weight.t())
    dhidden, dweight = torch.empty_like(hidden), torch.empty_like(weight)

    def call() -> None:
        torch.mm(hidden, weight.t(), out=logits)
        torch.mm(logits, weight, out=dhidden)
        torch.mm(logits.t(), hidden, out=dweight)

    return call


def option_sets() -> dict[str, Any]:
    """What linear_cross_entropy can be asked for; {} where torch has it not."""
    make = getattr(torch.nn, "LinearCrossEntropyOptions", None)
    if make is None or not hasattr(functional, "linear_cross_entropy"):
        return {}
    sets = {"options None": None, "auto": make(), "aspect_ratio, accurate": make(acc_policy="accurate",
            chunking_method="aspect_ratio")}  # fmt: skip
    for policy in ("accurate", "compact"):
        for rows in (128, 512):
            sets[f"{rows} rows, {policy}"] = make(batch_chunk_size=rows, chunking_method=None, acc_policy=policy)
    return sets


def fastest_options(x: Inputs, allowed: float) -> tuple[str, Any] | None:
    """Name and options of the fastest; None, with a word, where each takes longer than ``allowed`` seconds."""
    few = x.rows(max(1, len(x.targets) // _SLICE))
    found: list[tuple[float, str, Any]] = []
    for name, options in option_sets().items():
        if seconds_of(fused(options), few) * _SLICE <= 2 * allowed:  # a first call is the slower one
            found.append((min(seconds_of(fused(options), x) for _ in range(2)), name, options))
    if not found or min(found, key=lambda entry: entry[0])[0] > allowed:
        print(f"  {FUSED} is left out: a call takes more than {allowed:.1f} s, or this torch has it not")
        return None
    for taken, name, _ in sorted(found, key=lambda entry: entry[0]):
        print(f"  {FUSED}, {name}: {taken * 1e3:.0f} ms")
    return min(found, key=lambda entry: entry[0])[1:]


def memory_of(name: str, option: str, shape: tuple[int, int, int], dtype: torch.dtype) -> Callable[[], Any]:
    """A first call, for :func:`common.peak_memory`: made from names, since functions do not travel."""
    loss = {OURS: ours, GATHERED: gathered}.get(name) or fused(option_sets()[option])
    small, x = (inputs_of(name, make_inputs(s, dtype)) for s in ((4, 8, 16), shape))
    with_gradients(loss, small)  # what it needs is imported, threads are started
    return lambda: with_gradients(loss, x)


def losses_of(best: tuple[str, Any] | None) -> dict[str, Callable[[Inputs], Tensor]]:
    """The contestants, linear_cross_entropy with its best options among them."""
    return {OURS: ours, GATHERED: gathered} | ({FUSED: fused(best[1])} if best else {})


def turn(flops: int, args: Any, call: Callable[..., None], *given: Any) -> Callable[[], float]:
    """FLOP/s of ``call(*given)``."""

    def once() -> int:
        call(*given)
        return flops

    return lambda: timed_rate(once, args.seconds, 1, args.device)


def bytes_moved(shape: tuple[int, int, int], dtype: torch.dtype) -> int:
    """Least bytes: hidden, weight, bias and targets read, their gradients written, float32 for weight and bias."""
    rows, width, vocab = shape
    weights = vocab * width + vocab
    return (2 * rows * width + weights) * dtype.itemsize + 4 * weights + 8 * rows


def measure_on_gpu(shape: tuple[int, int, int], dtype_name: str, limits: Limits, args: Any) -> list[str]:
    """Rows of the table for one shape, the products alone among them."""
    dtype, flops = DTYPES[dtype_name], 6 * shape[0] * shape[1] * shape[2]
    with torch.device(devices.CUDA):
        x = make_inputs(shape, dtype)
    best, memory = fastest_options(x, args.longest), dict[str, float]()

    def enter(name: str, loss: Callable[[Inputs], Tensor]) -> Callable[[], float]:
        given = inputs_of(name, x)
        forget_gradients(x)
        memory[name] = devices.gpu_memory(lambda: with_gradients(loss, given))
        return turn(flops, args, with_gradients, loss, given)

    peers = {name: partial(enter, name, loss) for name, loss in losses_of(best).items() if name != OURS}
    peers[LIMIT] = lambda: turn(flops, args, three_products(x))
    figures = alternate({OURS: enter(OURS, ours), **taking_part(peers)}, args.pairs)
    ratio, limit = ratios(figures, OURS), limits.seconds(flops, bytes_moved(shape, dtype))
    if not args.quick:
        record(f"masked_lm_loss cuda {dtype_name} {shape}", figures, ratio, "FLOP/s")
    lines = []
    for name, rates in figures.items():
        taken = flops / statistics.median(rates)
        shown = f"{name} ({best[0]})" if best and name == FUSED else name
        lines.append(
            f"| {dtype_name} {' x '.join(map(str, shape))} | {shown} | {taken * 1e3:.2f} | {limit / taken:.0%} | "
            f"{'' if name == OURS else f'{ratio[name]:.2f}x'} | {f'{memory[name]:,.0f}' if name in memory else ''} |"
        )
    return lines


def measure(shape: tuple[int, int, int], dtype_name: str, args: Any) -> list[str]:
    """Rows of the table for one shape."""
    dtype, flops = DTYPES[dtype_name], 6 * shape[0] * shape[1] * shape[2]
    x = make_inputs(shape, dtype)
    products = three_products(x)
    products()
    start = time.perf_counter()
    products()
    best = fastest_options(x, max(args.longest, 3 * (time.perf_counter() - start)))
    losses = losses_of(best)
    turns = {name: turn(flops, args, with_gradients, loss, inputs_of(name, x)) for name, loss in losses.items()}
    figures = alternate({**turns, LIMIT: turn(flops, args, products)}, args.pairs)
    ratio, of_limit = ratios(figures, OURS), ratios(figures, LIMIT)
    if not args.quick:
        record(f"masked_lm_loss {dtype_name} {shape}", figures, ratio, "FLOP/s")
    lines = []
    for name in losses:
        option = best[0] if best else ""
        mib = peak_memory(memory_of, name, option, shape, dtype)
        lines.append(
            f"| {dtype_name} {' x '.join(map(str, shape))} | {name}{f' ({option})' if name == FUSED else ''} | "
            f"{flops / statistics.median(figures[name]) * 1e3:.1f} | {1 / of_limit[name]:.0%} | "
            f"{'' if name == OURS else f'{ratio[name]:.2f}x'} | {'' if mib is None else f'{mib:,.0f}'} |"
        )
    return lines


def main() -> None:
    parser = arguments(__doc__, seconds=0.5)
    parser.add_argument("--dtype", nargs="+", choices=tuple(DTYPES), help="default: those the device computes in")
    devices.add_device(parser)
    parser.add_argument("--longest", type=float, default=5.0, help="seconds of a call of linear_cross_entropy")
    args = parsed(parser)
    devices.prepare(args.device)
    lines = [
        "| dtype, N x E x V | | ms | of the limit | ours is | MiB at the peak |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for dtype in args.dtype or native_dtypes(args.device):
        if args.device == devices.CUDA:
            limits = of_gpu(DTYPES[dtype])
            for shape in QUICK if args.quick else SHAPES_ON_GPU:
                lines += measure_on_gpu(shape, dtype, limits, args)
            continue
        for shape in QUICK if args.quick else SHAPES:
            lines += measure(shape, dtype, args)
    print(f"vocabulary loss and its gradients ({args.pairs} alternating rounds)\n")
    print("\n".join([*lines, "", machine_line()]))


if __name__ == "__main__":
    main()
