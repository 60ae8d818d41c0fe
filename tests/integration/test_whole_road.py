"""The main job, end to end on real text: tokenizer, pretraining, fine-tuning, evaluation, prediction, saving."""

import json

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from tunecore import Engine, RunConfig
from tunecore.config import ModelConfig
from tunecore.saved_tasks import with_known_length


def test_from_text_to_a_saved_classifier(topics, text_file, reviews, tmp_path):
    engine = Engine.from_scratch("bert", size="tiny", text=topics[:60], vocab_size=800, max_length=64, seed=1)
    pre = engine.pretrain(
        str(text_file), objectives={"masked_lm": 1.0, "next_sentence": 0.5}, steps=12, batch_size=8,
        learning_rate=1e-3, output_dir=tmp_path / "pre", evaluation={"every": 6, "max_rows": 30}, progress=False,
    )  # fmt: skip
    assert pre.steps == 12 and not pre.interrupted
    assert pre.metrics["eval/loss/masked_lm"] > 0 and "eval/accuracy/next_sentence" in pre.metrics
    rows = [json.loads(line) for line in (tmp_path / "pre/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "eval/loss" in row] == [6, 12]
    assert (tmp_path / "pre/report.html").stat().st_size > 5000

    tuned = Engine.from_pretrained(tmp_path / "pre", head="sequence_classification", labels=["neg", "pos"])
    result = tuned.finetune(
        reviews, eval=reviews, epochs=12, learning_rate=2e-3, batch_size=8, output_dir=tmp_path / "ft", progress=False
    )
    assert result.best_metric is not None and result.best_metric > 0.9
    metrics = tuned.evaluate(reviews)
    assert metrics["accuracy"] == pytest.approx(result.best_metric)
    assert {"f1_macro", "f1_micro", "mcc", "confusion_matrix"} <= metrics.keys()
    texts = [row["text"] for row in reviews]
    predictions = tuned.predict(texts)
    assert sum(p.label == row["label"] for p, row in zip(predictions, reviews, strict=True)) / len(reviews) == (
        pytest.approx(metrics["accuracy"])
    )
    assert predictions[0].score == max(predictions[0].scores.values())

    # Plain transformers reads what we saved, and says the same.
    tuned.save(tmp_path / "saved")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        logits = plain(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    ours = torch.tensor([[p.scores["neg"], p.scores["pos"]] for p in predictions])
    torch.testing.assert_close(logits.softmax(-1), ours, atol=2e-5, rtol=1e-4)
    assert plain.config.id2label == {0: "neg", 1: "pos"}

    # And the other way round: what plain transformers saves, we load; the head is found by itself.
    plain.save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    again = Engine.from_pretrained(tmp_path / "plain").predict(texts)
    assert [p.label for p in again] == [p.label for p in predictions]


def test_every_checkpoint_loads_in_transformers(pretrain, tmp_path):
    _, result = pretrain(tmp_path / "run")
    folders = [p for p in (tmp_path / "run").iterdir() if (p / "config.json").exists()]
    assert {"final", "step-6"} <= {p.name for p in folders}
    for folder in folders:
        model = AutoModelForMaskedLM.from_pretrained(folder)
        assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(folder))
    assert result.best_path is not None and (tmp_path / "run/best").read_text().strip() == result.best_path.name


@pytest.mark.parametrize(
    ("family", "objective"),
    [
        *[(family, "masked_lm") for family in ("roberta", "distilbert", "electra", "albert")],
        *[(family, "masked_lm") for family in ("modernbert", "deberta-v2")],
        *[(family, "causal_lm") for family in ("gpt2", "llama")],
        # Those that differ little from one above.
        *[pytest.param(family, "masked_lm", marks=pytest.mark.slow) for family in ("ernie", "xlm-roberta", "deberta")],
        pytest.param("mistral", "causal_lm", marks=pytest.mark.slow),
    ],
)
def test_every_family_pretrains_and_finetunes(family, objective, topics, text_file, reviews, tmp_path):
    engine = Engine.from_scratch(family, size="tiny", text=topics[:40], vocab_size=600, max_length=48)
    common = {"batch_size": 8, "learning_rate": 1e-3, "progress": False, "report": False}
    pre = engine.pretrain(str(text_file), steps=3, output_dir=tmp_path / "pre", eval_fraction=0.02,
                          evaluation={"max_rows": 8}, **common)  # fmt: skip
    assert f"eval/loss/{objective}" in pre.metrics
    tuned = Engine.from_pretrained(tmp_path / "pre")
    tuned.finetune(reviews, eval=reviews, head="sequence_classification", steps=3, output_dir=tmp_path / "ft", **common)
    predictions = tuned.predict(["a fine film", "a dull play"])
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ft/final").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ft/final")
    with torch.no_grad():
        logits = plain(**tokenizer(["a fine film"], return_tensors="pt")).logits
    scores = torch.tensor([list(predictions[0].scores.values())])
    torch.testing.assert_close(logits.softmax(-1), scores, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("family", "unused"), [("bert", 0), ("roberta", 2), ("xlm-roberta", 2)])
def test_a_folder_of_transformers_is_read_as_far_as_its_positions_go(family, unused, tmp_path):
    CONFIG_MAPPING[family](max_position_embeddings=40).save_pretrained(tmp_path)
    config = with_known_length(RunConfig(model=ModelConfig(checkpoint=str(tmp_path))))
    assert config.data.max_length == 40 - unused


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_decoder_generates(family, topics, text_file, tmp_path):
    engine = Engine.from_scratch(family, size="tiny", text=topics[:40], vocab_size=600, max_length=48)
    engine.pretrain(str(text_file), steps=3, batch_size=8, output_dir=tmp_path / "run", progress=False, eval_fraction=0)
    prompts = ["The for statement", "If"]
    batched = engine.generate(prompts, max_new_tokens=8, do_sample=False)
    single = [engine.generate(p, max_new_tokens=8, do_sample=False)[0] for p in prompts]
    assert batched == single and all(batched)


def test_head_only_changes_nothing_but_the_head(pretrain, reviews, tmp_path):
    engine, _ = pretrain(tmp_path / "pre", steps=2)
    before = {name: value.clone() for name, value in engine.model.state_dict().items()}
    engine.finetune(reviews, steps=4, batch_size=8, learning_rate=1e-2, strategies=["head_only"],
                    output_dir=tmp_path / "ft", progress=False, eval_fraction=0)  # fmt: skip
    after = engine.model.state_dict()
    changed = {name for name in before.keys() & after.keys() if not torch.equal(before[name], after[name])}
    assert not {name for name in changed if ".encoder." in name or ".embeddings." in name}
    assert any("classifier" in name for name in after)
