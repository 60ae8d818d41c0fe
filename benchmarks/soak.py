"""Does a run that is cut and resumed for hours keep its memory, its files and its folder as they were?

A tiny BERT is trained by the real Engine with worker processes, evaluation and checkpoints. Every few seconds it is
killed, or sent SIGTERM or SIGINT, at a random time; the same run goes on in a new process. Each process samples itself
every second: memory (RSS), open files, threads, entries of /dev/shm and the size of the run's folder without its logs,
which grow with the steps. Two slopes are fitted to each: within processes, over their age once they are warm, and
between them, over their number. One that lies above its bound, and by three standard errors above zero, is growth, and
the exit code is 1.

    python benchmarks/soak.py --minutes 60 --output runs/soak

leaves ``samples.jsonl``, ``summary.json`` and ``soak.png`` there. Linux only; the plot needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tunecore
from tunecore.checkpoint import newest_good
from tunecore.config_io import load_config
from tunecore.engine import Engine
from tunecore.plugins import load_plugins
from tunecore.tiny import MAX_LENGTH, make_tokenizer, tiny_documents

LOGS = ("metrics.jsonl", "tensorboard", "report.html")
ENDINGS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


class Bound(NamedTuple):
    """What a figure may grow by."""

    within: float
    """A minute of one process."""
    between: float
    """From one process to the next."""
    unit: str


BOUNDS = {
    "rss": Bound(4.0, 0.5, "MB"),
    "files": Bound(1.0, 0.1, "open files"),
    "threads": Bound(1.0, 0.1, "threads"),
    "shm": Bound(5.0, 0.5, "entries"),
    "folder": Bound(1.0, 0.1, "MB"),
}


class Sampler:
    """A plugin that writes a sample a second."""

    def __init__(self, output: Path, life: int) -> None:
        self.life, self.folder = life, output / "run"
        self.file = open(output / "samples.jsonl", "a", encoding="utf-8")  # noqa: SIM115 (open as long as the process)
        self.begun = self.next = time.monotonic()
        self.steps = 0

    @tunecore.hookimpl
    def tunecore_step_end(self, run: Any) -> None:
        now = time.monotonic()
        self.steps += 1
        if now >= self.next:
            self.next = now + 1
            where = {"life": self.life, "age": now - self.begun, "done": self.steps, "step": run.step}
            row = {**where, **sample(self.folder)}
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()


def sample(folder: Path) -> dict[str, float]:
    """What this process holds, and what the run's folder and /dev/shm do."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    size = 0
    for path in folder.rglob("*"):
        if not any(part in LOGS for part in path.relative_to(folder).parts):
            try:
                size += path.stat().st_size
            except FileNotFoundError:
                continue  # pruned meanwhile
    return {
        "rss": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        "files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "shm": len(os.listdir("/dev/shm")),
        "folder": size / 1e6,
    }


def options(output: Path) -> dict[str, Any]:
    """The run: without an end, so that each process goes on where the last was cut."""
    return {
        "output_dir": str(output / "run"),
        "model": {"family": "bert", "size": "tiny", "overrides": {"hidden_size": 32, "intermediate_size": 64}},
        "tokenizer": {"path": str(output / "tokenizer")},
        "objectives": {"masked_lm": 1.0, "next_sentence": 0.5},
        "data": {"train": [str(output / "text.jsonl")], "max_length": MAX_LENGTH, "eval_fraction": 0.1,
                 "num_workers": 2},
        "training": {"steps": 10**7, "batch_size": 8, "accumulation": 2, "threads": 1, "precision": "fp32"},
        # Often, so that a process has seen its first evaluation and save, and is as large as it gets, within seconds.
        "evaluation": {"every": 10}, "checkpoint": {"every": 10}, "tracking": {"every": 20, "progress": False},
    }  # fmt: skip


def train(output: str, life: int) -> None:
    """One process of the run."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs behind it with Ctrl-C ignored
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    plugins = load_plugins(extra=[Sampler(Path(output), life)])
    result = Engine(load_config(options(Path(output))), plugins=plugins).run()
    sys.exit(result.exit_code)


def soak(output: Path, seconds: float, shortest: float, longest: float, seed: int) -> dict[str, int]:
    """Train, cut and resume for so long; returns how often each way of ending a process was taken.

    Raises:
        SystemExit: a process ended otherwise than it was told to, or a checkpoint is damaged.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["soak", "tunecore.engine"])
    draw, ended, life = random.Random(seed), dict.fromkeys((s.name for s in ENDINGS), 0), 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        process = context.Process(target=train, args=(str(output), life))
        process.start()
        process.join(min(draw.uniform(shortest, longest), max(1.0, end - time.monotonic())))
        how = draw.choice(ENDINGS)
        if process.exitcode is None:
            os.kill(process.pid, how)
        process.join(120)
        # A signal that comes before the training is not yet caught, and ends the process.
        if process.exitcode not in (-how, 128 + how, 1 if how == signal.SIGINT else -how):
            process.kill()
            sys.exit(f"process {life} ended with {process.exitcode} after {how.name}")
        skipped = newest_good(output / "run")[1]
        if skipped:
            sys.exit(f"after {how.name}, process {life}: {skipped}")
        ended[how.name] += 1
        life += 1
    return ended


def slope(x: Sequence[float], y: Sequence[float], groups: Sequence[int] | None = None) -> tuple[float, float]:
    """(slope, its standard error) of a line through the points, in each group with an intercept of its own."""
    a, b = np.asarray(x, float), np.asarray(y, float)
    of = np.zeros(len(a), int) if groups is None else np.asarray(groups)
    for group in np.unique(of):
        here = of == group
        a[here] -= a[here].mean()
        b[here] -= b[here].mean()
    spread, freedom = float(a @ a), len(a) - len(np.unique(of)) - 1
    if spread == 0 or freedom < 1:
        return 0.0, float("inf")
    found = float(a @ b) / spread
    return found, float(np.sqrt(np.square(b - found * a).sum() / freedom / spread))


def judge(rows: Sequence[Mapping[str, float]], warm: int) -> list[dict[str, Any]]:
    """The two slopes of every figure, and whether they are growth."""
    late = [row for row in rows if row["done"] >= warm]
    first = {row["life"]: row for row in reversed(late)}
    verdicts = []
    for name, bound in BOUNDS.items():
        within = slope([r["age"] / 60 for r in late], [r[name] for r in late], [int(r["life"]) for r in late])
        between = slope(list(first), [row[name] for row in first.values()])
        for where, (found, error), allowed in (("within", within, bound.within), ("between", between, bound.between)):
            grows = found > allowed and found > 3 * error
            verdicts.append(
                {"figure": name, "where": where, "slope": found, "error": error, "bound": allowed,
                 "unit": bound.unit, "grows": bool(grows)}
            )  # fmt: skip
    return verdicts


def draw(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Plot every figure over the samples, one colour a process."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: pip install 'tunecore[bench]' brings matplotlib")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(BOUNDS), sharex=True, figsize=(9, 11))
    for axis, (name, bound) in zip(axes, BOUNDS.items(), strict=True):
        colours = [int(row["life"]) % 10 for row in rows]
        axis.scatter(range(len(rows)), [row[name] for row in rows], c=colours, cmap="tab10", s=6)
        axis.set_ylabel(f"{name} ({bound.unit})")
        axis.set_ylim(bottom=0)
    axes[-1].set_xlabel("sample, one a second; colours are processes")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def report(output: Path, ended: Mapping[str, int], warm: int) -> int:
    """Print and keep the verdict; returns the exit code."""
    lines = (output / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.endswith("}")]  # a kill may tear the last
    verdicts = judge(rows, warm)
    for v in verdicts:
        per = "a minute" if v["where"] == "within" else "a process"
        word = "GROWS" if v["grows"] else "steady"
        print(f"{v['figure']:<8} {v['where']:<8} {v['slope']:+9.3f} {v['unit']} {per} "
              f"(± {v['error']:.3f}, bound {v['bound']:g})  {word}")  # fmt: skip
    steps = max((row["step"] for row in rows), default=0)
    summary = {"processes": sum(ended.values()), "ended": dict(ended), "samples": len(rows), "steps": steps}
    print(json.dumps(summary))
    (output / "summary.json").write_text(json.dumps({**summary, "verdicts": verdicts}, indent=1), encoding="utf-8")
    draw(rows, output / "soak.png")
    return int(any(v["grows"] for v in verdicts) or not rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--output", type=Path, default=Path("runs/soak"), help="made anew")
    parser.add_argument("--life", type=float, nargs=2, default=(10, 45), metavar=("SHORTEST", "LONGEST"), help="s")
    parser.add_argument("--warm", type=int, default=40, help="steps of a process after which its samples count")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    shutil.rmtree(args.output, ignore_errors=True)
    args.output.mkdir(parents=True)
    texts = (json.dumps({"text": text}) + "\n" for text in tiny_documents())
    (args.output / "text.jsonl").write_text("".join(texts), encoding="utf-8")
    make_tokenizer().save_pretrained(args.output / "tokenizer")
    ended = soak(args.output, 60 * args.minutes, *args.life, args.seed)
    return report(args.output, ended, args.warm)


if __name__ == "__main__":
    sys.exit(main())
