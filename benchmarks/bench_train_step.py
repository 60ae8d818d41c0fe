"""Training step: tunecore against transformers, in turn, on the same rows.

One optimizer step a round (forward, backward, clipping, AdamW), dropout 0.1: BERT-mini (32 sequences of 32 to 128
random tokens), BERT-base (16 of them) and GPT-2 (12 layers of 768, 4 sequences of 64 to 256). The peers get the same
rows padded to the longest of the batch: fp32 or bf16 autocast, eager or sdpa attention, or sdpa compiled by
torch.compile for just this shape (compiled in warm-up, not counted; needs a C++ compiler). Each peer lives in a process
of its own, with the memory allocator as it comes, and "tuned": with freed memory kept, as tunecore sets it. A few peers
at a time take turns with tunecore, since each holds a model.
Every step has the same rows, or with --new-rows others, as in a real training: then batches differ in their number of
tokens, and torch.compile makes what it makes of changing shapes.

The limit is the FLOPs of the useful tokens (head at target rows only, attention included) over the GEMM peak of the
dtype, then the optimizer's 28 bytes a parameter over the bandwidth of memory, both measured in the same run.

With --device cuda: BERT-base (64 sequences of 32 to 512) and GPT-2 (16 of 128 to 1024), beside transformers with sdpa,
plain and compiled, in bf16 autocast, and beside tunecore with its own kernels in the layers too (TUNECORE_CUDA_LAYERS).

    python benchmarks/bench_train_step.py [--model mini base gpt2] [--precision auto|fp32|bf16] [--new-rows]
        [--profile] [--device cuda]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle, product

import devices
from common import OwnProcess, Turn, alternate, arguments, native_dtypes, parsed, ratios, record, table, timed_turn
from limits import step_seconds
from peer import PeerStep, padded
from profile_step import profile_steps
from step_models import MODELS, MODELS_ON_GPU, StepModel, make_training
from torch import set_num_threads

from tunecore.models import fused
from tunecore.ops._native import tune_allocator

TUNED = " tuned"
NEW_ROWS = 256
"""Batches of --new-rows: about as many as there are steps, so that hardly one comes twice."""
OWN_LAYERS = "own layers"
"""The contestant that is tunecore again, with its kernels in the layers of the model on a GPU."""


def default_peers(precision: str, device: str) -> list[str]:
    """Names "attention dtype [tuned]"; of the dtypes those the machine has arithmetic for, compiled in ours."""
    dtypes = native_dtypes(device)
    if device == devices.CUDA:
        dtype = dtypes[0] if precision == "auto" else precision
        return [f"sdpa {dtype}", f"compile {dtype}", OWN_LAYERS]
    compiled = dtypes[0] if precision == "auto" else precision
    plain = ["eager fp32", "sdpa fp32", *(["eager bf16"] if "bf16" in dtypes else []), f"compile {compiled}"]
    return ["".join(parts) for parts in product(plain, ("", TUNED))]


def make_contestant(name: str, model: StepModel, args: argparse.Namespace, folder: str) -> Callable[[], Turn]:
    """What takes turns with our training in a process of its own; its turn is useful tokens per second."""
    set_num_threads(args.threads)
    if name != OWN_LAYERS:
        return make_peer(name, model, args)
    fused.ON_GPU = True
    _, once = make_training(model, args.precision, folder, args.device)
    return lambda: timed_turn(once, args.seconds, 1, args.device)


def make_peer(name: str, model: StepModel, args: argparse.Namespace) -> Callable[[], Turn]:
    """A transformers model, named "attention dtype [tuned]"."""
    attention, dtype, *tuned = name.split()
    if tuned:
        tune_allocator()
    peer, compiled = model.build().to(args.device), attention == "compile"
    peer.set_attn_implementation("sdpa" if compiled else attention)
    step = PeerStep(peer, 1e-4, autocast=dtype == "bf16", compiled=compiled, one_shape=model.batches == 1)
    turn = cycle(range(model.batches))
    batches = [
        {key: value.to(args.device) for key, value in padded(model.pack(1 << 20, batch), 0).items()}
        for batch in range(model.batches)
    ]

    def once() -> int:
        batch = next(turn)
        step(batches[batch])
        return model.useful_of(batch)

    once()
    return lambda: timed_turn(once, args.seconds, 1, args.device)


def compete(
    ours: str, once: Callable[[], int], peers: Sequence[str], model: StepModel, args: argparse.Namespace, folder: str
) -> None:
    """Alternate with all peers, ``--at-once`` of them at a time, and print and record the table."""
    rates: dict[str, list[float]] = {ours: []}
    ratio, faults = {ours: 1.0}, dict[str, list[float]]()

    def rate_of(name: str, turn: Callable[[], Turn]) -> Callable[[], float]:
        def run() -> float:
            taken = turn()
            faults.setdefault(name, []).append(taken.faults)
            return taken.rate

        return run

    for start in range(0, max(1, len(peers)), args.at_once):
        group = peers[start : start + args.at_once]
        names = {p: f"{ours}, {p}" if p == OWN_LAYERS else f"transformers {p}" for p in group}
        others = {shown: OwnProcess(make_contestant, p, model, args, folder) for p, shown in names.items()}
        turns = {ours: lambda: timed_turn(once, args.seconds, 1, args.device), **others}
        figures = alternate({name: rate_of(name, turn) for name, turn in turns.items()}, args.pairs)
        for process in others.values():
            process.close()
        for name, value in ratios(figures, ours).items():
            ratio[name] = value
            rates.setdefault(name, []).extend(figures[name])
    title = f"{model.title} training step, {model.sequences} sequences, {model.useful:.0f} useful tokens"
    if model.batches > 1:
        title += ", new rows"
    if args.device == devices.CUDA:
        title = f"cuda {title}"
    if not args.quick:
        record(title, rates, ratio, "useful tokens/s")
    medians = {name: f"{statistics.median(values):,.0f}" for name, values in faults.items()}
    columns = {"page_faults_a_step": medians} if args.device == devices.CPU else {}
    table(title, rates, ratio, ours, **columns)


def measure(model: StepModel, args: argparse.Namespace) -> None:
    """One model: the table, the limit, the profile."""
    ours = f"tunecore {args.precision}"
    with tempfile.TemporaryDirectory() as folder:
        run, once = make_training(model, args.precision, folder, args.device)
        parameters = run.unit.parameters_by_name().values()
        dtype = next(iter(parameters)).dtype
        if args.profile:
            print(profile_steps(run, once, 1 if args.quick else 5), end="\n\n")
        count = sum(p.numel() for p in parameters)
        rates = [timed_turn(once, args.seconds, 1, args.device).rate for _ in range(args.pairs)]
        products, optimizer = step_seconds(model.flops(run.model), count, dtype, args.device)
        rate, limit = statistics.median(rates), model.useful / (products + optimizer)
        peers = default_peers(args.precision, args.device)
        if args.quick:
            peers = peers[2:3] if args.device == devices.CPU else peers
        if args.peers is not None:
            peers = list(filter(None, args.peers.split(",")))
        compete(ours, once, peers, model, args, folder)
    print(
        f"limit: {products * 1e3:.1f} ms of {dtype} products and {optimizer * 1e3:.1f} ms of optimizer bytes, "
        f"{limit:,.0f} useful tokens/s; beside its measurement tunecore made {rate:,.0f}, {rate / limit:.0%} of it\n"
    )


def main() -> None:
    parser = arguments(__doc__, seconds=3.0)
    parser.add_argument("--model", nargs="+", choices=tuple(MODELS), help="default: mini (on a CPU), base and gpt2")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--peers", help='comma-separated, such as "eager bf16,compile fp32 tuned"; "" for none')
    parser.add_argument("--at-once", type=int, default=4, help="peers in memory at a time (BERT-base: 3 GiB each)")
    parser.add_argument("--new-rows", action="store_true", help="other rows at each step")
    parser.add_argument("--profile", action="store_true", help="print where the time of our step goes, on a CPU")
    devices.add_device(parser)
    args = parsed(parser)
    models = MODELS if args.device == devices.CPU else MODELS_ON_GPU
    if unknown := sorted({*(args.model or ())} - models.keys()):
        parser.error(f"--device {args.device} has no model {', '.join(unknown)}")
    if args.profile and args.device != devices.CPU:
        parser.error("--profile looks at the operators of a CPU only")
    devices.prepare(args.device)
    chosen = args.model or [name for name in models if name != "tiny"]
    for name in ["tiny"] if args.quick else chosen:
        measure(replace(models[name], batches=NEW_ROWS if args.new_rows else 1), args)


if __name__ == "__main__":
    main()
