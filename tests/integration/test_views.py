"""Whole runs of objectives that cannot share a forward: turns, curves, resuming, and what is saved."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, ElectraForPreTraining

from tunecore import Engine
from tunecore.config import RunConfig
from tunecore.data.views import view_of_step
from tunecore.errors import ConfigError
from tunecore.models.folder import read_config

OBJECTIVES = {"replaced_token_detection": 3.0, "contrastive": {"weight": 1.0, "group_size": 4}}
STEPS = 8


@pytest.fixture(scope="module")
def electra(text_file, tokenizer_dir, tmp_path_factory):
    """A run of two views that ended by itself, each of its steps logged and kept."""

    def run(output_dir, **options):
        engine = Engine.from_scratch("electra", size="tiny", tokenizer=str(tokenizer_dir), max_length=48)
        settings = {
            "steps": STEPS, "batch_size": 4, "learning_rate": 1e-3, "seed": 3, "progress": False, "report": False,
            "evaluation": {"every": 4, "max_rows": 8}, "eval_fraction": 0.05, "tracking": {"every": 1},
            "checkpoint": {"every": 1, "keep": STEPS}, "objectives": OBJECTIVES, **options,
        }  # fmt: skip
        result = engine.pretrain(str(text_file), output_dir=output_dir, **settings)
        return engine, result

    folder = tmp_path_factory.mktemp("turns") / "run"
    return run, *run(folder), folder


def logged(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "learning_rate" in row], [row for row in rows if "eval/loss" in row]


def test_each_step_trains_one_view_and_logs_only_its_curves(electra):
    _, _, _, folder = electra
    steps, evaluations = logged(folder)
    assert [row["step"] for row in steps] == list(range(1, STEPS + 1))
    shares = {"replaced_token_detection": 3.0, "contrastive": 1.0}
    for row in steps:
        view = view_of_step(shares, 3, row["step"] - 1)
        assert {name for name in row if name.startswith("view/")} == {f"view/{name}" for name in shares}
        assert row[f"view/{view}"] == 1.0 and sum(row[f"view/{name}"] for name in shares) == 1.0
        losses = {name for name in row if name.startswith("loss/")}
        expected = {"contrastive"} if view == "contrastive" else {"generator_masked_lm", "replaced_token_detection"}
        assert losses == {f"loss/{name}" for name in expected}
        # Within a view weights are relative: 3 / 3 for the one objective, and its own factor of 50.
        whole = {"loss/contrastive": 1.0, "loss/generator_masked_lm": 1.0, "loss/replaced_token_detection": 50.0}
        assert row["loss"] == pytest.approx(sum(whole[name] * row[name] for name in losses))
    assert sum(row["view/contrastive"] for row in steps) == STEPS / 4
    for row in evaluations:
        names = ("contrastive", "generator_masked_lm", "replaced_token_detection")
        total = sum(w * row[f"eval/loss/{n}"] for n, w in zip(names, (1.0, 3.0, 150.0), strict=True))
        assert row["eval/loss"] == pytest.approx(total)


@pytest.mark.parametrize("step", [1, 3, 6])
def test_a_run_cut_at_any_step_ends_in_the_same_bytes(electra, tmp_path, step):
    run, _, _, folder = electra
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    for name in ("final", "best", *(f"step-{later}" for later in range(step + 1, STEPS + 1))):
        path = copy / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    run(copy)
    for name in ("model.safetensors", "objectives.safetensors", "optimizer.safetensors"):
        assert (copy / f"step-{STEPS}" / name).read_bytes() == (folder / f"step-{STEPS}" / name).read_bytes(), name
    assert logged(copy)[0][-1]["loss"] == logged(folder)[0][-1]["loss"]


def test_every_step_trains_all_views_where_that_is_asked_for(electra, tmp_path):
    run, *_ = electra
    run(tmp_path / "run", training={"views": "every_step"}, steps=2, checkpoint={"every": 2})
    steps, _ = logged(tmp_path / "run")
    for row in steps:
        weights = {"contrastive": 1.0, "generator_masked_lm": 3.0, "replaced_token_detection": 150.0}
        assert row["loss"] == pytest.approx(sum(w * row[f"loss/{name}"] for name, w in weights.items()))
        assert not any(name.startswith("view/") for name in row)
    with pytest.raises(ConfigError, match=r"training\.views"):
        run(tmp_path / "run", training={"views": "alternate"}, steps=2)


def test_discriminator_and_generator_are_models_of_transformers(electra, tmp_path):
    _, engine, _, folder = electra
    for place in (folder / f"step-{STEPS}", engine.save(tmp_path / "model")):
        model, report = ElectraForPreTraining.from_pretrained(place, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
    generator, report = AutoModelForMaskedLM.from_pretrained(
        engine.save(tmp_path / "generator", part="generator"), output_loading_info=True
    )
    assert type(generator).__name__ == "ElectraForMaskedLM"
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(generator.get_input_embeddings().weight, model.get_input_embeddings().weight)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "generator")) == generator.config.vocab_size
    with pytest.raises(ConfigError, match="generator"):
        engine.save(tmp_path / "other", part="genrator")


def test_the_saved_run_goes_on_and_evaluates(electra, topics, tmp_path):
    _, engine, _, folder = electra
    again = Engine.from_pretrained(folder, seed=3)  # masks of an evaluation follow the seed
    texts = topics[:3]
    mine, theirs = (e.evaluate(texts, progress=False) for e in (engine, again))
    assert mine == pytest.approx(theirs)
    assert {"loss/contrastive", "loss/generator_masked_lm", "loss/replaced_token_detection"} <= mine.keys()
    generator = Engine.from_pretrained(engine.save(tmp_path / "generator", part="generator"))
    assert generator.evaluate(texts, progress=False).keys() >= {"loss/masked_lm", "perplexity/masked_lm"}
    assert read_config(tmp_path / "generator")["architectures"] == ["ElectraForMaskedLM"]


def test_a_new_objectives_own_weights_are_those_of_the_seed(electra, tmp_path):
    run, *_ = electra
    states = []
    for n, seed in enumerate((3, 3, 4)):
        torch.manual_seed(n)  # whatever the state of torch's generator
        engine, _ = run(tmp_path / str(n), steps=1, seed=seed, learning_rate=1e-9, eval_fraction=0.0)
        states.append(engine.session.unit.task_modules.state_dict()["contrastive.weight"])
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_parallel_text_becomes_a_translation_model(tmp_path):
    english = [f"the {c} {n} is number {i}" for i, (c, n) in enumerate([("red", "lamp"), ("blue", "stone")] * 12)]
    german = [f"die {c} {n} ist Nummer {i}" for i, (c, n) in enumerate([("rote", "Lampe"), ("blaue", "Stein")] * 12)]
    for name, texts in (("en", english), ("de", german)):
        (tmp_path / f"train.{name}").write_text("\n".join(texts) + "\n")
    data = str(tmp_path / "train.{en,de}")
    engine = Engine.from_scratch("bert", size="tiny", text=data, vocab_size=400, max_length=40)
    assert "rote" in "".join(engine.tokenizer.get_vocab())  # trained on both columns
    objectives = {"translation_lm": 1.0, "contrastive": {"pairs": True, "group_size": 4}, "masked_lm": 1.0}
    result = engine.pretrain(
        data, objectives=objectives, steps=6, batch_size=8, eval_fraction=0.2, output_dir=tmp_path / "run",
        progress=False, report=False,
    )  # fmt: skip
    assert {f"eval/loss/{name}" for name in objectives} <= result.metrics.keys()
    summary = json.loads((tmp_path / "run/data_summary.json").read_text())
    assert summary["train"]["documents"] + summary["eval"]["documents"] == 24
    one_side = Engine.from_pretrained(tmp_path / "run", objectives={"masked_lm": 1.0})
    assert one_side.evaluate(data, text="de", progress=False).keys() >= {"loss/masked_lm"}
    shown = {}
    for texts in ("both", "second"):
        objective = {"translation_lm": {"texts": texts, "masked": "second"}}
        part = Engine.from_pretrained(tmp_path / "run", objectives=objective)
        shown[texts] = part.evaluate(data, progress=False)["loss/translation_lm"]
    assert shown["both"] != shown["second"]


def test_views_is_checked():
    with pytest.raises(ConfigError, match=r"training\.views"):
        Engine.from_scratch("bert", training={"views": "sometimes"})
    assert RunConfig().training.views == "alternate"
