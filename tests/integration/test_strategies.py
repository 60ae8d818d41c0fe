"""Strategies through the engine: what is frozen stays as it is, byte for byte, and a cut run ends as an uncut one."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tunecore import Engine, hookimpl
from tunecore.config import PluginsConfig
from tunecore.errors import ConfigError
from tunecore.plugins import load_plugins

STEPS = 12
"""Two epochs of the 48 reviews, 8 at a time."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, topics, tokenizer_dir):
    """A pretrained tiny BERT of three layers."""
    folder = tmp_path_factory.mktemp("pretrained")
    engine = Engine.from_scratch(
        "bert", size="tiny", tokenizer=str(tokenizer_dir), max_length=32, overrides={"num_hidden_layers": 3}
    )
    engine.pretrain(
        topics[:10], steps=2, batch_size=8, output_dir=folder, progress=False, eval_fraction=0, report=False
    )  # fmt: skip
    return folder / "final"


class Seen:
    """A plugin that looks on: which parameters learn at each step, and where a backward pass went."""

    def __init__(self):
        self.trainable, self.rates, self.reached, self._hooked = [], [], set(), False

    @hookimpl
    def tunecore_batch_ready(self, run, batch):
        if not self._hooked:
            self._hooked = True
            for number, layer in enumerate(run.model.bert.encoder.layer):
                layer.register_forward_hook(lambda module, args, output, n=number: self._watch(output, n))
        self.trainable.append(set(run.optimizer.trainable))

    def _watch(self, output, number):
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.requires_grad:
            self.reached.add((len(self.trainable), number))

    @hookimpl
    def tunecore_step_end(self, run, metrics):
        self.rates.append(metrics["learning_rate"])


def finetune(checkpoint, reviews, output_dir, strategies, *plugins, **options):
    engine = Engine.from_pretrained(checkpoint, head="sequence_classification")
    engine.plugins = load_plugins(PluginsConfig(load=False), extra=list(plugins))
    settings = {
        "steps": STEPS, "batch_size": 8, "learning_rate": 1e-3, "seed": 3, "progress": False, "report": False,
        "evaluation": {"every": 4}, "checkpoint": {"every": 4, "keep": 9}, "eval_fraction": 0.0, "eval": reviews[:8],
        **options,
    }  # fmt: skip
    result = engine.finetune(reviews, strategies=strategies, output_dir=output_dir, **settings)
    return engine, result


def state_of(folder):
    names = ("model.safetensors", "optimizer.safetensors", "state.json")
    return {name: (folder / name).read_bytes() for name in names}


ADAPTIVE = {"adaptive_lr": {"window": 2, "patience": 1, "threshold": 0.5, "spike": 1.5}}
LISTS = {
    "gradual": ["layerwise_lr_decay", {"gradual_unfreezing": {"every": 3, "unit": "step"}}],
    "frozen": [{"freeze_layers": {"layers": ["embeddings", "0-1"]}}, ADAPTIVE],
    "anew": [{"reinit_top_layers": {"layers": 2}}],  # were it done again, the new layers' steps would be lost
    "mixed": [
        {"mixed": {"phases": [
            {"until": 5, "strategies": ["head_only", ADAPTIVE]},
            {"strategies": [{"gradual_unfreezing": {"every": None}}, "layerwise_lr_decay", ADAPTIVE]},
        ]}},
        {"reinit_top_layers": {}},
    ],
    "evaluated": [{"adaptive_lr": {"metric": "eval/accuracy", "patience": 1, "threshold": 1.0}}],
}  # fmt: skip


@pytest.mark.parametrize("strategies", LISTS.values(), ids=LISTS)
def test_a_run_cut_mid_schedule_ends_as_an_uncut_one(checkpoint, reviews, tmp_path, strategies):
    folder = tmp_path / "run"
    _, whole = finetune(checkpoint, reviews, folder, strategies)
    wanted = {step: state_of(folder / f"step-{step}") for step in (8, STEPS)}
    for name in ("step-8", f"step-{STEPS}", "final"):
        shutil.rmtree(folder / name)
    _, again = finetune(checkpoint, reviews, folder, strategies)
    assert {step: state_of(folder / f"step-{step}") for step in wanted} == wanted
    assert again.metrics["eval/loss"] == whole.metrics["eval/loss"]
    if "adaptive_lr" in json.dumps(strategies):
        assert b'"scale": 0.' in wanted[STEPS]["state.json"], "the rate fell, so there was something to remember"


def test_blocks_join_one_by_one_and_no_backward_runs_below_them(checkpoint, reviews, tmp_path):
    seen = Seen()
    strategies = [{"gradual_unfreezing": {"every": 3, "unit": "step"}}]
    finetune(checkpoint, reviews, tmp_path / "run", strategies, seen)
    before = load_file(checkpoint / "model.safetensors")
    for step, below in ((4, 1), (8, 0)):  # at step 4 blocks 2 and 1 learn, at step 8 all three
        saved = load_file(tmp_path / f"run/step-{step}/model.safetensors")
        state = {name.partition("/")[2] for name in load_file(tmp_path / f"run/step-{step}/optimizer.safetensors")}
        frozen = {n for n in saved if any(f".layer.{i}." in n for i in range(below)) or ".embeddings." in n}
        assert frozen and state == set(saved) - frozen
        for name in frozen:
            assert torch.equal(saved[name], before[name]), name
        for name in state & before.keys():
            if name.endswith("weight"):
                assert not torch.equal(saved[name], before[name]), name
    assert (1, 2) in seen.reached and (1, 1) not in seen.reached  # at first only the top block's output is followed
    assert (4, 1) in seen.reached and (4, 0) not in seen.reached
    assert (12, 0) in seen.reached
    sizes = [len(names) for names in seen.trainable]
    assert sizes == sorted(sizes) and len(set(sizes)) == 4


def test_discriminative_rates_are_those_of_the_optimizer(checkpoint, reviews, tmp_path):
    """One step of SGD without decay or clipping moves each layer by its rate: the ratio of two runs is the scale."""
    moved = []
    for strategies in ([], [{"layerwise_lr_decay": {"decay": 0.5}}]):
        folder = tmp_path / f"run{len(moved)}"
        plain = {"optimizer": "sgd", "weight_decay": 0.0, "max_grad_norm": 0.0, "warmup": 0, "precision": "fp32"}
        finetune(checkpoint, reviews, folder, strategies, steps=1, **plain)
        moved.append(load_file(folder / "step-1/model.safetensors"))
    before = load_file(checkpoint / "model.safetensors")
    scales = {"embeddings.word": 1 / 16, "layer.0.": 1 / 8, "layer.1.": 1 / 4, "layer.2.": 1 / 2}
    for part, scale in scales.items():
        for name in (n for n in before if part in n and n.endswith("dense.weight")):
            full, scaled = ((one[name] - before[name]).double() for one in moved)
            assert float(scaled.norm() / full.norm()) == pytest.approx(scale, rel=1e-2), name


def test_another_seed_starts_them_elsewhere(checkpoint, reviews, tmp_path):
    name, found = "bert.encoder.layer.2.attention.self.query.weight", []
    for number, seed in enumerate((3, 3, 4)):
        folder = tmp_path / str(number)
        finetune(checkpoint, reviews, folder, ["reinit_top_layers", "head_only"], seed=seed, steps=1)
        found.append(load_file(folder / "final/model.safetensors")[name])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_the_rate_falls_on_a_plateau(checkpoint, reviews, tmp_path):
    seen = Seen()
    strategies = [{"adaptive_lr": {"window": 2, "patience": 1, "threshold": 1e9, "min_scale": 0.2}}]
    finetune(checkpoint, reviews, tmp_path / "run", strategies, seen, schedule="constant", warmup=0)
    # The first reading is the best there is; each later one lets the rate fall.
    wanted = [1.0] * 4 + [0.5] * 2 + [0.25] * 2 + [0.2] * 4
    assert seen.rates == pytest.approx([1e-3 * w for w in wanted])


@pytest.mark.parametrize(
    ("strategies", "message"),
    [
        (["head_only", "full"], "'full' and 'head_only' contradict"),
        (["layerwise_lr_decay", {"layerwise_lr_decay": {"decay": 0.5}}], "both set lr_scale"),
        ([{"freeze_layers": {"parameters": ["bert.encoder.*", "no.such"]}}], r"'no\.such' matches no parameter"),
        ([{"mixed": {"phases": [{"strategies": ["head_onyl"]}]}}], "head_onyl"),
        ([{"mixed": {"phases": [{"until": "soon"}]}}], "until"),
    ],
)
def test_what_is_refused(checkpoint, reviews, tmp_path, strategies, message):
    with pytest.raises(ConfigError, match=message):
        finetune(checkpoint, reviews, tmp_path / "run", strategies)
