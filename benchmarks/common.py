"""What every benchmark shares: alternating runs, medians, a table, and a JSON row per figure.

Two contestants run in turn in one process (A B A B ...), so that a change of the machine's mood meets both. Times of
one contestant say little on a shared machine; the ratio is taken pair by pair and its median is what counts.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results.jsonl"


def machine() -> dict[str, str]:
    """Name the machine and the versions a figure belongs to."""
    import torch
    import transformers

    import tunecore
    from tunecore.ops._native import info

    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts = dict(line.split(":", 1) for line in lines if ":" in line)
        cpu = {k.strip(): v.strip() for k, v in facts.items()}.get("model name", cpu)
        family = {k.strip(): v.strip() for k, v in facts.items()}
        cpu += f" (family {family.get('cpu family')} model {family.get('model')})"
    except OSError:
        pass
    return {
        "cpu": cpu,
        "cores": str(os.cpu_count()),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tunecore": tunecore.__version__,
        "isa": str(info().capability),
        "threads": str(torch.get_num_threads()),
    }


def alternate(contestants: Mapping[str, Callable[[], float]], pairs: int, warmup: int = 1) -> dict[str, list[float]]:
    """Run each contestant in turn, ``pairs`` times; each returns its figure (useful tokens per second).

    The first ``warmup`` rounds are not counted.
    """
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(warmup + pairs):
        for name, run in contestants.items():
            value = run()
            if round_ >= warmup:
                figures[name].append(value)
            print(f"  round {round_} {name}: {value:,.0f}", file=sys.stderr, flush=True)
    return figures


def _serve(connection: Connection, make: Callable[..., Callable[[], float]], arguments: tuple[Any, ...]) -> None:
    turn = make(*arguments)
    with contextlib.suppress(EOFError):  # the other end closes when the benchmark is over
        while connection.recv():
            connection.send(turn())


def in_own_process(make: Callable[..., Callable[[], float]], *arguments: Any) -> Callable[[], float]:
    """A contestant ``make(*arguments)`` that lives in a process of its own and sleeps while it is not its turn.

    So neither side's memory allocator, caches or settings reach the other.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=_serve, args=(theirs, make, arguments), daemon=True).start()

    def turn() -> float:
        ours.send(True)
        return ours.recv()

    return turn


def timed_rate(step: Callable[[], int], seconds: float = 2.0, at_least: int = 2) -> float:
    """Useful tokens per second of ``step`` (which returns its useful tokens), over at least ``seconds``."""
    tokens, count = 0, 0
    start = time.perf_counter()
    while count < at_least or time.perf_counter() - start < seconds:
        tokens += step()
        count += 1
    return tokens / (time.perf_counter() - start)


def record(title: str, figures: Mapping[str, Sequence[float]], ours: str, unit: str) -> dict[str, float]:
    """Append one JSON row a contestant; returns the median of the pairwise ratios ours / theirs of each."""
    stamp, ratios = datetime.now(UTC).isoformat(timespec="seconds"), {}
    with open(RESULTS, "a", encoding="utf-8") as file:
        for name, values in figures.items():
            ratios[name] = statistics.median(a / b for a, b in zip(figures[ours], values, strict=True))
            row = {"time": stamp, "benchmark": title, "contestant": name, "unit": unit, "figures": list(values),
                   "median": statistics.median(values), "ours_over_this": ratios[name], **machine()}
            file.write(json.dumps(row) + "\n")
    return ratios


def table(title: str, figures: Mapping[str, Sequence[float]], ours: str, unit: str = "useful tokens/s") -> str:
    """Print medians and the median of pairwise ratios ours / theirs; append one JSON row each."""
    lines = [f"{title} ({len(figures[ours])} alternating rounds)", "", f"| | {unit}, median | min | max | ours is |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for name, ratio in record(title, figures, ours, unit).items():
        values, shown = figures[name], "" if name == ours else f"{ratio:.2f}x"
        lines.append(
            f"| {name} | {statistics.median(values):,.0f} | {min(values):,.0f} | {max(values):,.0f} | {shown} |"
        )
    lines.append("")
    lines.append("; ".join(f"{k}: {v}" for k, v in machine().items()))
    text = "\n".join(lines)
    print(text)
    return text
