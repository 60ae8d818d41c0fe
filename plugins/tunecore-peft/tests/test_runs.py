"""Whole runs: what is saved is a plain model, a cut run ends as an uncut one, and the model below adapters stays."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import tunecore_peft
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tunecore import Engine
from tunecore.config import PluginsConfig
from tunecore.errors import ConfigError
from tunecore.plugins import load_plugins
from tunecore.testing import make_model, make_tokenizer, tiny_documents, tiny_records

STEPS = 6
BASE = "bert.encoder.layer.{}.attention.self.query"


def rows():
    return [dict(record.fields) for record in tiny_records()] * 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    tokenizer = make_tokenizer()
    make_model(["masked_lm"], tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def finetune(checkpoint, output_dir, strategies, **options):
    engine = Engine.from_pretrained(checkpoint, head="sequence_classification", max_length=32)
    engine.plugins = load_plugins(PluginsConfig(load=False), extra=[tunecore_peft])
    settings = {
        "steps": STEPS, "batch_size": 4, "learning_rate": 5e-3, "seed": 3, "progress": False, "report": False,
        "evaluation": {"every": 2}, "checkpoint": {"every": 2, "keep": 9}, "eval": rows()[:4], **options,
    }  # fmt: skip
    engine.finetune(rows(), strategies=strategies, output_dir=output_dir, **settings)
    return engine


STRATEGIES = {
    "lora": [{"lora": {"r": 2, "dropout": 0.2}}],
    "dora, decayed and gradual": [
        {"lora": {"r": 2, "use_dora": True, "target_modules": ["all-linear"]}}, "layerwise_lr_decay",
        {"gradual_unfreezing": {"unit": "step", "every": 3, "initial": 1}},
    ],
    "ia3": [{"peft": {"type": "ia3"}}],
    "loha in a phase": [{"mixed": {"phases": [
        {"until": 3, "strategies": [{"peft": {"type": "loha", "target_modules": "query", "config": {"r": 2}}}]},
        {"strategies": ["layerwise_lr_decay"]},
    ]}}],
}  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_run_cut_in_the_middle_ends_as_an_uncut_one(checkpoint, tmp_path, name, precision):
    def run():
        finetune(checkpoint, tmp_path / "run", STRATEGIES[name], precision=precision)
        names = ("model.safetensors", "unmerged.safetensors", "optimizer.safetensors", "state.json")
        last = tmp_path / f"run/step-{STEPS}"
        return {name: (last / name).read_bytes() for name in names}

    whole = run()
    for folder in (f"step-{STEPS}", "step-4", "final"):
        shutil.rmtree(tmp_path / "run" / folder)
    assert run() == whole


def test_only_adapters_and_head_move_and_have_a_state(checkpoint, tmp_path):
    finetune(checkpoint, tmp_path / "run", [{"lora": {"r": 2, "target_modules": ["query"]}}])
    before, last = load_file(checkpoint / "model.safetensors"), tmp_path / f"run/step-{STEPS}"
    saved, unmerged = load_file(last / "model.safetensors"), load_file(last / "unmerged.safetensors")
    for layer in (0, 1):
        name = BASE.format(layer)
        assert torch.equal(unmerged[f"{name}.base_layer.weight"], before[f"{name}.weight"])
        product = unmerged[f"{name}.lora_B.default.weight"] @ unmerged[f"{name}.lora_A.default.weight"] * (16 / 2)
        assert float(product.norm()) > 0
        torch.testing.assert_close(saved[f"{name}.weight"], before[f"{name}.weight"] + product)
    untouched = [n for n in saved if n in before and "query.weight" not in n and "pooler" not in n]
    assert len(untouched) > 20 and all(torch.equal(saved[n], before[n]) for n in untouched)
    state = {n.partition("/")[2] for n in load_file(last / "optimizer.safetensors")}
    adapters = {f"{BASE.format(n)}.lora_{x}.default.weight" for n in (0, 1) for x in "AB"}
    heads = {f"{n}.{x}" for n in ("bert.pooler.dense", "classifier") for x in ("weight", "bias")}
    assert state == adapters | heads


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_final_model_is_a_plain_one(checkpoint, tmp_path, name):
    engine = finetune(checkpoint, tmp_path / "run", STRATEGIES[name], precision="fp32")
    assert not [n for n, _ in engine.model.named_parameters() if "base_layer" in n]
    texts = tiny_documents()[:3]
    ours = [prediction.scores["yes"] for prediction in engine.predict(texts)]
    best = (tmp_path / "run/best").read_text().strip() if (tmp_path / "run/best").is_file() else None
    folders = [engine.save(tmp_path / "saved")]
    if best is None or best == f"step-{STEPS}":
        folders += [tmp_path / "run/final", tmp_path / f"run/step-{STEPS}"]
    for folder in folders:
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        with torch.no_grad():
            for text, wanted in zip(texts, ours, strict=True):
                inputs = tokenizer(text, truncation=True, max_length=32, return_tensors="pt")
                scores = model(**inputs).logits.softmax(-1)[0]
                assert float(scores[model.config.label2id["yes"]]) == pytest.approx(wanted, abs=1e-5)
    assert not (tmp_path / "run/final/unmerged.safetensors").exists()
    again = Engine.from_pretrained(tmp_path / "run")
    assert [p.scores["yes"] for p in again.predict(texts)] == pytest.approx(ours, abs=1e-5)


def test_the_merged_model_says_what_the_model_with_adapters_said(checkpoint, tmp_path):
    """The evaluation in the run is of the adapters in place, the one after it of the merged weights."""
    engine = finetune(checkpoint, tmp_path / "run", STRATEGIES["lora"], precision="fp32", evaluation={"every": STEPS})
    logged = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    (before,) = [row["eval/loss"] for row in logged if "eval/loss" in row]
    assert engine.evaluate(rows()[:4])["loss"] == pytest.approx(before, abs=1e-5)


def test_contradictions_are_refused(checkpoint, tmp_path):
    for other in ("head_only", "full", {"peft": {"type": "ia3"}}, "lora"):
        with pytest.raises(ConfigError, match="contradict each other"):
            finetune(checkpoint, tmp_path / "run", ["lora", other])
    with pytest.raises(ConfigError, match="a new model has no"):
        finetune(checkpoint, tmp_path / "run", ["lora", "reinit_top_layers"])
    finetune(checkpoint, tmp_path / "other", ["reinit_top_layers", "lora"], steps=1)
