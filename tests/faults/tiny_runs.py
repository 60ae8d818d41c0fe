"""Runs of the real Engine that take a second: three families, dropout, evaluation, checkpoints; and a program for them.

The program runs the command line as a user's process does, with :class:`Faults` as a plugin that paces the run, keeps a
journal of it, and does what a test wants done at a named place.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from places import come_by

import tunecore.engine
from tunecore import cli
from tunecore.config_io import load_config
from tunecore.hookspecs import hookimpl
from tunecore.plugins import load_plugins
from tunecore.tiny import MAX_LENGTH, make_tokenizer, tiny_documents
from tunecore.types import PackedBatch

LATE = (
    "transformers.models.bert.modeling_bert", "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.t5.modeling_t5", "transformers.models.bert.tokenization_bert_fast",
    "transformers.models.align", "torch.utils.tensorboard", "torch.utils.data", "pandas", "tunecore._C",
)  # fmt: skip
"""What a run imports when it needs it; the fork server imports it once."""
for late in LATE:
    with suppress(ImportError):
        importlib.import_module(late)
load_plugins()
load_config({"model": {"family": "bert"}})

NARROW = {
    "bert": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "t5": {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2},
}
"""Config entries that make a family's model tiny; dropout stays what the family has."""
OBJECTIVES = {
    "bert": {"masked_lm": 1.0, "next_sentence": 0.5},
    "gpt2": {"causal_lm": 1.0},
    "t5": {"span_corruption": 1.0},
}
STEPS, SAVE_EVERY = 24, 3
"""Of a run, where nothing else is said; a pass over the tiny documents takes about seven steps."""


def write_world(folder: Path) -> Path:
    """The tiny documents and a tokenizer of each family, for every run of a test session."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = (json.dumps({"text": text}) + "\n" for text in tiny_documents())
    (folder / "text.jsonl").write_text("".join(rows), encoding="utf-8")
    for family in NARROW:
        make_tokenizer(family).save_pretrained(folder / family)
    return folder


def run_options(world: Path, family: str = "bert", **changes: Any) -> dict[str, Any]:
    """A run as a run file describes it; ``changes`` are by dotted key, "." written as "__"."""
    options: dict[str, Any] = {
        "model": {"family": family, "size": "tiny", "overrides": NARROW[family]},
        "tokenizer": {"path": str(world / family)},
        "objectives": OBJECTIVES[family],
        "data": {"train": [str(world / "text.jsonl")], "max_length": MAX_LENGTH, "eval_fraction": 0.1},
        "training": {"steps": STEPS, "batch_size": 6, "precision": "fp32", "threads": 1, "device": "cpu",
                     "learning_rate": 1e-3, "seed": 5},
        "evaluation": {"every": 8, "max_rows": 4},
        "checkpoint": {"every": SAVE_EVERY},
        "tracking": {"every": 4, "progress": False, "report": False},
    }  # fmt: skip
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            options.setdefault(section, {})[name] = value
        else:
            options[section] = value
    return options


class Faults:
    """A plugin that paces a run, writes a line a step into a journal, and acts once at a named place.

    Args:
        delay: seconds to sleep in every step.
        journal: file for "start N", "step N" and "workers PID PID ..." lines; they survive a kill.
        act: called with the name of each place the run comes by.
        rows: write "row STEP ROW DIGEST" for each sequence, too.
    """

    def __init__(
        self, delay: float = 0.0, journal: str | None = None, act: Callable[[str], None] | None = None,
        rows: bool = False,
    ) -> None:
        self.delay, self.act, self.rows = delay, act or (lambda place: None), rows
        self.file = None if journal is None else os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, *words: Any) -> None:
        if self.file is not None:
            os.write(self.file, (" ".join(map(str, words)) + "\n").encode())

    def come_by(self, place: str) -> None:
        """What :func:`places.come_by` tells."""
        if place.startswith("workers "):
            self.note(place)
        self.act(place)

    @hookimpl
    def tunecore_run_start(self, run):
        self.note("start", run.step)
        self.act("run start")

    @hookimpl
    def tunecore_batch_ready(self, run, batch):
        if self.delay:
            time.sleep(self.delay)
        if self.rows:
            for row_id, digest in sequences_of(batch):
                self.note("row", run.step, row_id, digest)
        self.act(f"step {run.step + 1}")

    @hookimpl
    def tunecore_step_end(self, run, metrics):
        self.note("step", run.step)
        self.act(f"after step {run.step}")


def sequences_of(batch: PackedBatch) -> Iterator[tuple[int, str]]:
    """(row id, digest of what the model reads of it and is asked for) of every sequence, however it is packed."""
    layout = batch.layout
    ends = [layout.cu_seqlens, *([] if layout.decoder_cu_seqlens is None else [layout.decoder_cu_seqlens])]
    for number, row_id in enumerate(batch.row_ids):
        first, last = ((int(cu[number]), int(cu[number + 1])) for cu in (ends[0], ends[-1]))
        seen = [part[0, slice(*first)] for part in (batch.input_ids, batch.position_ids, batch.token_type_ids)
                if part is not None]  # fmt: skip
        if batch.decoder_input_ids is not None:
            seen.append(batch.decoder_input_ids[0, slice(*last)])
        for _, targets in sorted(batch.targets.items()):
            begin, end = last if targets.level == "token" else (number, number + 1)
            here = (targets.index >= begin) & (targets.index < end)
            seen += [targets.index[here] - begin, targets.labels[here]]
        digest = hashlib.blake2b(digest_size=8)
        for tensor in seen:
            digest.update(json.dumps(tensor.tolist()).encode())
        yield row_id, digest.hexdigest()


def journal_of(path: Path, *words: str) -> list[tuple[str, ...]]:
    """The lines of a journal that begin with one of the words."""
    lines = [tuple(line.split()) for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in lines if line[0] in words]


def starts_and_steps(journal: Path) -> list[tuple[str, int]]:
    """("start" or "step", number) in the order they came."""
    return [(line[0], int(line[1])) for line in journal_of(journal, "start", "step")]


def end_state(folder: Path, steps: int = STEPS) -> dict[str, bytes]:
    """Every byte of a finished run's last checkpoint and of its final model."""
    files = [path for name in (f"step-{steps}", "final") for path in sorted((folder / name).rglob("*"))]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.is_file()}


def step_of(checkpoint: Path | None) -> int:
    """The step of a checkpoint's folder; 0 where there is none."""
    return 0 if checkpoint is None else int(checkpoint.name.removeprefix("step-"))


def logged(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, without what a clock says."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("time", "tokens_per"))} for row in rows]


def command(
    options: Mapping[str, Any], output_dir: str, faults: Mapping[str, Any], said: str = "",
    environment: Mapping[str, str] | None = None,
) -> None:
    """``tunecore pretrain`` on these options, as a process of its own: what it prints goes to the file ``said``."""
    os.environ.update(environment or {})
    # A shell starts what runs in its background with Ctrl-C ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if said:
        into = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(into, 1)
        os.dup2(into, 2)
    plugin = Faults(**faults)
    come_by(plugin.come_by)
    tunecore.engine.load_plugins = partial(load_plugins, extra=[plugin])
    run_file = Path(output_dir).with_suffix(f".{os.getpid()}.yaml")
    run_file.write_text(yaml.safe_dump({**options, "output_dir": output_dir}), encoding="utf-8")
    try:
        cli.main(["pretrain", str(run_file)])
    finally:
        sys.stdout.flush()
        run_file.unlink()
