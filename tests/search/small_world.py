"""Data of a few rows, run files over it, and a program that runs one of them: for tests that kill it."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from tunecore.engine import Engine

GOOD, BAD = ("fine", "great", "lovely", "clever"), ("dull", "poor", "tedious", "weak")
THINGS = ("film", "book", "play", "song", "story", "cast")
MODEL = {
    "family": "bert", "size": "tiny",
    "overrides": {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 1},
}  # fmt: skip
COMMON = {
    "output_dir": "road",
    "model": MODEL,
    "tokenizer": {"vocab_size": 300},
    "data": {"train": ["train.jsonl"], "eval": ["dev.jsonl"], "test": ["test.jsonl"], "max_length": 24},
    "training": {"batch_size": 8, "learning_rate": 1e-2, "threads": 1},
    "tracking": {"progress": False},
    "plugins": {"load": False},
}
SPACE = {"training.learning_rate": {"low": 1e-4, "high": 3e-2, "log": True}, "strategies": [[], ["head_only"]]}
SEARCH = {
    **COMMON, "output_dir": "search", "head": "sequence_classification", "search": {"space": SPACE, "trials": 3},
    "training": {**COMMON["training"], "epochs": 2},
}  # fmt: skip
ROAD = {
    **COMMON,
    "stages": [
        {"name": "domain", "objectives": {"masked_lm": 1.0}, "data": {"train": ["corpus.jsonl"]},
         "training": {"steps": 4}, "evaluation": {"every": 2, "max_rows": 8}},
        {"name": "task", "objectives": {"masked_lm": 1.0}, "data": {"text": "text"},
         "training": {"steps": 4}, "evaluation": {"every": 2}},
        {"name": "classify", "head": "sequence_classification", "training": {"epochs": 2}},
    ],
}  # fmt: skip


def rows() -> list[dict[str, str]]:
    made = []
    for number, thing in enumerate(THINGS):
        for good, bad in zip(GOOD, BAD, strict=True):
            made.append({"text": f"this {thing} is {good} number {number}", "label": "pos"})
            made.append({"text": f"a {bad} {thing} and nothing more {number}", "label": "neg"})
    return made


def write_data(folder: Path) -> Path:
    """Write train, dev, test and corpus files into ``folder``; returns it."""
    folder.mkdir(parents=True)
    made = rows()
    parts = {"train": made[:24], "dev": made[24:36], "test": made[36:]}
    parts["corpus"] = [{"text": " ".join(row["text"] + "." for row in made[i : i + 6])} for i in range(0, 48, 2)]
    for name, part in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


def program(folder: str, config: dict[str, Any], kill: str | None) -> None:
    """Run what ``config`` describes; exits with its code. ``kill``: end as in a power cut when this path appears."""
    os.chdir(folder)
    torch.set_num_threads(1)
    if kill is not None:
        _kill_when_there(kill)
    result = Engine.from_config(config).run()
    Path("result").write_text(json.dumps({"interrupted": result.interrupted, "metrics": result.metrics}))
    sys.exit(result.exit_code)


def _kill_when_there(path: str) -> None:
    """SIGKILL this process right after the rename that makes ``path`` visible."""
    for name in ("rename", "replace"):
        function = getattr(os, name)

        def guarded(source: Any, target: Any, function: Any = function) -> None:
            function(source, target)
            if str(target) == path:
                os.kill(os.getpid(), signal.SIGKILL)

        setattr(os, name, guarded)


def end_state(folder: Path) -> dict[str, bytes]:
    """Every byte of the final model."""
    return {path.name: path.read_bytes() for path in (folder / "final").iterdir()}


if __name__ == "__main__":
    program(sys.argv[1], json.loads(sys.argv[2]), None)
