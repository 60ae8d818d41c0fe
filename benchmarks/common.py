"""What every benchmark shares: alternating runs, medians, a table, and a JSON row per figure.

Contestants run in turn (A B A B ...), so that a change of the machine's mood meets all. Times of one contestant say
little on a shared machine; the ratio is taken round by round and its median is what counts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import devices
import torch

from tunecore.training.precision import cpu_computes_bf16

RESULTS = Path(__file__).parent / "results.jsonl"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class LeftOutError(Exception):
    """A contestant that cannot take part; the message says why."""


class Turn(NamedTuple):
    """One contestant's turn."""

    rate: float
    """Units of work (useful tokens, FLOPs) per second."""
    faults: float
    """Page faults per step that the kernel served without reading a disk."""


def arguments(description: str | None, seconds: float) -> argparse.ArgumentParser:
    """The options every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--pairs", type=int, default=5, help="rounds that count")
    parser.add_argument("--seconds", type=float, default=seconds, help="least time of one contestant's turn")
    parser.add_argument("--quick", action="store_true", help="small shapes, one round, nothing recorded: does it run?")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options given; sets torch's threads."""
    args = parser.parse_args()
    if args.quick:
        args.pairs, args.seconds = 1, 0.01
    torch.set_num_threads(args.threads)
    return args


def native_dtypes(device: str = devices.CPU) -> list[str]:
    """The dtypes this machine has arithmetic for; of a GPU the one that models are trained in there."""
    if device == devices.CUDA:
        return ["bf16"]
    return ["bf16", "fp32"] if cpu_computes_bf16() else ["fp32"]


def machine() -> dict[str, str]:
    """Name the machine and the versions a figure belongs to."""
    import transformers

    import tunecore
    from tunecore.ops._native import info

    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        cpu = f"{facts.get('model name', cpu)} (family {facts.get('cpu family')} model {facts.get('model')})"
    return {
        "cpu": cpu,
        "cores": str(os.cpu_count()),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tunecore": tunecore.__version__,
        "isa": str(info().capability),
        "threads": str(torch.get_num_threads()),
        **(devices.machine() if devices.in_use() else {}),
    }


def machine_line() -> str:
    """The same in one line, for the end of a table."""
    return "; ".join(f"{name}: {value}" for name, value in machine().items())


def alternate(contestants: Mapping[str, Callable[[], float]], pairs: int, warmup: int = 1) -> dict[str, list[float]]:
    """Run each contestant in turn, ``pairs`` times; each returns its figure (useful tokens per second).

    The first ``warmup`` rounds are not counted. A contestant that raises LeftOutError is named and dropped.
    """
    running = dict(contestants)
    figures: dict[str, list[float]] = {name: [] for name in running}
    for round_ in range(warmup + pairs):
        for name, run in list(running.items()):
            try:
                value = run()
            except LeftOutError as why:
                print(f"  {name} is left out: {why}", file=sys.stderr, flush=True)
                del running[name], figures[name]
                continue
            if round_ >= warmup:
                figures[name].append(value)
            print(f"  round {round_} {name}: {value:,.0f}", file=sys.stderr, flush=True)
    return figures


def taking_part(contestants: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """What each returns, which is to make a contestant and let it run; one that cannot is named, with its reason, and
    left out. A backend of scaled_dot_product_attention gives its reasons as warnings before an error without any.
    """
    made: dict[str, Any] = {}
    for name, make in contestants.items():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                made[name] = make()
            except (LeftOutError, ImportError, RuntimeError, NotImplementedError) as error:
                why = [str(error), *(str(warning.message) for warning in said)]
                lines = [text.strip().splitlines()[0] for text in why if text.strip()]
                print(f"  {name} is left out: {'; '.join(lines) or type(error).__name__}", file=sys.stderr, flush=True)
    return made


def _serve(connection: Connection, make: Callable[..., Callable[[], Any]], given: tuple[Any, ...]) -> None:
    with contextlib.suppress(EOFError):  # the other end closes when the benchmark is over
        try:
            turn = make(*given)
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            connection.recv()
            connection.send(LeftOutError(f"{type(error).__name__}: {lines[0]}"))
            return
        while connection.recv():
            connection.send(turn())


class OwnProcess:
    """A contestant ``make(*given)`` in a process of its own, asleep while it is not its turn.

    So neither side's memory allocator, caches or settings reach the other. Calling it takes a turn, and raises
    LeftOutError where ``make`` failed or the process died.
    """

    def __init__(self, make: Callable[..., Callable[[], Any]], *given: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, given), daemon=True)
        self._process.start()
        theirs.close()

    def __call__(self) -> Any:
        try:
            self._connection.send(True)
            answer = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            raise LeftOutError("its process died (out of memory?)") from error
        if isinstance(answer, LeftOutError):
            raise answer
        return answer

    def close(self) -> None:
        """End the process and wait until its memory is free."""
        self._connection.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()


def page_faults() -> int:
    """Page faults of this process so far that were served without a disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def timed_turn(step: Callable[[], int], seconds: float = 2.0, at_least: int = 2, device: str = devices.CPU) -> Turn:
    """Take steps (each returns its units of work) for at least ``seconds``; on a GPU page faults say nothing."""
    if device == devices.CUDA:
        return Turn(devices.gpu_rate(step, seconds, at_least), 0.0)
    work, count, faults = 0, 0, page_faults()
    start = time.perf_counter()
    while count < at_least or time.perf_counter() - start < seconds:
        work += step()
        count += 1
    return Turn(work / (time.perf_counter() - start), (page_faults() - faults) / count)


def timed_rate(step: Callable[[], int], seconds: float = 2.0, at_least: int = 2, device: str = devices.CPU) -> float:
    """Units of work per second of ``step``, over at least ``seconds``."""
    return timed_turn(step, seconds, at_least, device).rate


def peak_memory(make: Callable[..., Callable[[], Any]], *given: Any) -> float | None:
    """MiB by which one call of ``make(*given)`` raises a fresh process's resident memory at its peak, what it returns
    included; None where the system does not say (it is not Linux) or the call fails.
    """
    probe = OwnProcess(_probe_memory, make, given)
    try:
        return probe()
    except LeftOutError as why:
        print(f"  no memory figure: {why}", file=sys.stderr)
        return None
    finally:
        probe.close()


def _probe_memory(make: Callable[..., Callable[[], Any]], given: tuple[Any, ...]) -> Callable[[], float]:
    call = make(*given)

    def measure() -> float:
        # 5: forget the highest resident size so far (proc(5)), which importing and making inputs may have set.
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        kept = call()
        peak = _status("VmHWM") - before
        del kept
        return peak

    return measure


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def ratios(figures: Mapping[str, Sequence[float]], ours: str) -> dict[str, float]:
    """The median of the round-by-round ratios ours / theirs, by contestant."""
    pairs = {name: zip(figures[ours], values, strict=True) for name, values in figures.items()}
    return {name: statistics.median(a / b for a, b in both) for name, both in pairs.items()}


def record(title: str, figures: Mapping[str, Sequence[float]], ratio: Mapping[str, float], unit: str) -> None:
    """Append one JSON row a contestant."""
    stamp = datetime.now(UTC).isoformat(timespec="seconds")
    with open(RESULTS, "a", encoding="utf-8") as file:
        for name, values in figures.items():
            row = {"time": stamp, "benchmark": title, "contestant": name, "unit": unit, "figures": list(values),
                   "median": statistics.median(values), "ours_over_this": ratio[name], **machine()}
            file.write(json.dumps(row) + "\n")


def table(
    title: str,
    figures: Mapping[str, Sequence[float]],
    ratio: Mapping[str, float],
    ours: str,
    unit: str = "useful tokens/s",
    **columns: Mapping[str, str],
) -> str:
    """Print medians, ratios and further columns (by contestant); the caption of a column has no underscores."""
    captions = [name.replace("_", " ") for name in columns]
    lines = [
        f"{title} ({len(figures[ours])} alternating rounds)", "",
        " | ".join([f"| | {unit}, median", "min", "max", "ours is", *captions]) + " |",
        "| --- |" + " ---: |" * (4 + len(columns)),
    ]  # fmt: skip
    for name, values in figures.items():
        shown = "" if name == ours else f"{ratio[name]:.2f}x"
        cells = [f"{f(values):,.0f}" for f in (statistics.median, min, max)]
        further = [column.get(name, "") for column in columns.values()]
        lines.append(f"| {' | '.join([name, *cells, shown, *further])} |")
    text = "\n".join([*lines, "", machine_line()])
    print(text)
    return text
