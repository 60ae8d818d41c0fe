"""Batches and sequences that grow, through the engine: sizes as said, resumed exactly, for any number of workers."""

from __future__ import annotations

import shutil

import pytest

from tunecore import hookimpl
from tunecore.config import PluginsConfig, RunConfig, TrainingConfig
from tunecore.config_io import load_config
from tunecore.errors import ConfigError
from tunecore.plugins import load_plugins

GROWING = {
    "batch_size": 8, "batch_size_start": 2, "batch_size_warmup": 4,
    "max_length_start": 16, "max_length_warmup": 5, "max_length": 48, "steps": 6,
}  # fmt: skip


def bytes_of(folder):
    names = ("model.safetensors", "optimizer.safetensors", "state.json")
    return {name: (folder / name).read_bytes() for name in names}


class Seen:
    def __init__(self):
        self.rows, self.longest = [], []

    @hookimpl
    def tunecore_batch_ready(self, run, batch):
        self.rows += [0] * (run.step + 1 - len(self.rows))
        self.longest += [0] * (run.step + 1 - len(self.longest))
        self.rows[run.step] += len(set(batch.row_ids))
        self.longest[run.step] = max(self.longest[run.step], batch.layout.max_seqlen)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_growing_run_resumes_exactly_and_workers_change_nothing(pretrain, tmp_path, family):
    tokenizer = {} if family == "bert" else {"tokenizer": None}
    options = {"family": family, "checkpoint": {"every": 3, "keep": 3}, **tokenizer, **GROWING}
    pretrain(tmp_path / "run", **options)
    whole = bytes_of(tmp_path / "run/step-6")
    for name in ("step-6", "final"):
        shutil.rmtree(tmp_path / "run" / name)
    pretrain(tmp_path / "run", **options, num_workers=2)
    assert bytes_of(tmp_path / "run/step-6") == whole


def test_batches_and_sequences_are_of_the_size_that_was_said(text_file, tokenizer_dir, tmp_path):
    from tunecore import Engine

    seen = Seen()
    engine = Engine.from_scratch("bert", size="tiny", tokenizer=str(tokenizer_dir))
    engine.plugins = load_plugins(PluginsConfig(load=False), extra=[seen])
    result = engine.pretrain(
        str(text_file), output_dir=tmp_path / "run", progress=False, report=False, eval_fraction=0, **GROWING
    )
    assert seen.rows == [2, 2, 4, 4, 8, 8]
    assert seen.longest == [16, 16, 24, 32, 40, 48]
    assert result.steps == 6 and 0 < result.metrics["epoch"] < 1


def test_epochs_are_whole_ones(reviews, topics, tokenizer_dir, tmp_path):
    """48 rows: 4 + 4 + 8 + 8 (16 steps' stages) make 24 in 4 steps, and 3 steps of 16 and 8 end the first pass."""
    from tunecore import Engine

    engine = Engine.from_scratch("bert", size="tiny", tokenizer=str(tokenizer_dir), max_length=32)
    result = engine.finetune(
        reviews, epochs=2, batch_size=16, batch_size_start=4, batch_size_warmup=4, output_dir=tmp_path / "run",
        eval_fraction=0, progress=False, report=False,
    )  # fmt: skip
    # 4, 4, 8, 8, 16, 8 and then 16, 16, 16
    assert result.steps == 9 and result.metrics["epoch"] == 2.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"training": {"batch_size_start": 4}}, "batch_size_start and training.batch_size_warmup go together"),
        ({"training": {"batch_size_warmup": 4}}, "go together"),
        ({"training": {"batch_size_start": 64, "batch_size_warmup": 4}}, "it must be 1 to training.batch_size, 32"),
        ({"data": {"max_length_start": 200, "max_length_warmup": 4}}, "it must be 4 to data.max_length, 128"),
        ({"data": {"max_length_start": 16, "max_length_warmup": -1}}, "must not be negative"),
        ({"head": "x", "data": {"max_length_start": 16, "max_length_warmup": 9}}, "max_length_start is of pretraining"),
    ],
)
def test_options_that_do_not_go_together(given, message):
    with pytest.raises(ConfigError, match=message):
        load_config(given)
    assert RunConfig(training=TrainingConfig(batch_size_start=4, batch_size_warmup=9)).training.batch_size_start == 4
