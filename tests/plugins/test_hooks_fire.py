"""The hooks of a real run: all fire, in the order the contract draws, with what they promise."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import tunecore
from tunecore import hookspecs
from tunecore.config import PluginsConfig
from tunecore.config_io import load_config
from tunecore.engine import Engine
from tunecore.errors import PluginError
from tunecore.plugins import load_plugins
from tunecore.tiny import tiny_documents


class Recorder:
    """Writes down every hook of a run."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.fail_at = 0

    @tunecore.hookimpl
    def tunecore_configure(self, config):
        self.seen.append("tunecore_configure")
        assert config.training.seed == 3

    @tunecore.hookimpl
    def tunecore_model_built(self, model, config):
        self.seen.append("tunecore_model_built")
        assert model.config.model_type == "bert" and config.objectives

    @tunecore.hookimpl
    def tunecore_run_start(self, run):
        self.seen.append("tunecore_run_start")
        assert run.step == 0

    @tunecore.hookimpl
    def tunecore_batch_ready(self, run, batch):
        self.seen.append("tunecore_batch_ready")
        assert batch.num_tokens > 0

    @tunecore.hookimpl
    def tunecore_before_optimizer_step(self, run):
        self.seen.append("tunecore_before_optimizer_step")
        assert any(bool(torch.any(g != 0)) for g in run.optimizer.gradients().values())

    @tunecore.hookimpl
    def tunecore_step_end(self, run, metrics):
        self.seen.append("tunecore_step_end")
        assert metrics["loss"] > 0
        if run.step == self.fail_at:
            raise ValueError("boom")

    @tunecore.hookimpl
    def tunecore_evaluated(self, run, metrics):
        self.seen.append("tunecore_evaluated")
        assert metrics

    @tunecore.hookimpl
    def tunecore_checkpoint_saved(self, run, path):
        self.seen.append("tunecore_checkpoint_saved")
        assert (path / "config.json").is_file()

    @tunecore.hookimpl
    def tunecore_run_end(self, run, error):
        self.seen.append(f"tunecore_run_end {type(error).__name__}")


def pretrain(folder: Path, recorder: Recorder):
    texts = folder / "texts.txt"
    texts.write_text("\n\n".join(tiny_documents()), encoding="utf-8")
    config = load_config(
        {
            "output_dir": str(folder / "run"),
            "model": {"family": "bert", "size": "tiny"},
            "tokenizer": {"vocab_size": 300},
            "data": {"train": str(texts), "eval": str(texts), "max_length": 16},
            "objectives": {"masked_lm": 1.0},
            "training": {"steps": 2, "batch_size": 4, "accumulation": 2, "seed": 3, "precision": "fp32", "threads": 1},
            "evaluation": {"every": 2},
            "checkpoint": {"every": 2},
            "tracking": {"progress": False, "report": False},
        }
    )
    return Engine(config, plugins=load_plugins(PluginsConfig(load=False), extra=[recorder])).run()


def test_the_hooks_of_a_run_fire_in_the_order_of_the_contract(tmp_path):
    recorder = Recorder()
    pretrain(tmp_path, recorder)
    step = ["tunecore_batch_ready"] * 2 + ["tunecore_before_optimizer_step", "tunecore_step_end"]
    assert recorder.seen == [
        "tunecore_configure", "tunecore_model_built", "tunecore_run_start", *step, *step,
        "tunecore_evaluated", "tunecore_checkpoint_saved", "tunecore_run_end NoneType",
    ]  # fmt: skip
    drawn = re.findall(r"tunecore_\w+(?=\()", hookspecs.__doc__ or "")
    first_seen = list(dict.fromkeys(name.split()[0] for name in recorder.seen))
    assert first_seen == drawn


def test_a_hook_that_fails_ends_the_run_with_its_name_and_run_end_hears_of_it(tmp_path):
    recorder = Recorder()
    recorder.fail_at = 1
    with pytest.raises(PluginError) as caught:
        pretrain(tmp_path, recorder)
    assert str(caught.value) == "plugin 'Recorder' (given in code) in hook tunecore_step_end: ValueError: boom"
    assert recorder.seen[-1] == "tunecore_run_end PluginError"
