"""Minimal pairs by the engine: no training needed, from files to figures; and trained, on BLiMP itself too."""

from __future__ import annotations

import json
import zipfile

import pytest

from tunecore import Engine
from tunecore.errors import CheckpointError, ConfigError
from tunecore.models.loading import save_model
from tunecore.testing import make_model, make_tokenizer, tiny_documents

GOOD = [sentence.strip() + "." for text in tiny_documents() for sentence in text.split(".") if sentence.strip()]


def rows_of(sentences, uid):
    """Pairs that differ in the order of words."""
    return [
        {"sentence_good": s, "sentence_bad": " ".join(s.split()[::-1]), "UID": uid, "pairID": str(n)}
        for n, s in enumerate(sentences)
    ]


@pytest.fixture
def blimp(tmp_path):
    """An archive as BLiMP's: a file for each phenomenon."""
    path = tmp_path / "pairs.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for part, uid in enumerate(("first_order", "second_order")):
            lines = [json.dumps(row) for row in rows_of(GOOD[30 * part : 30 * part + 6], uid)]
            archive.writestr(f"data/{uid}.jsonl", "\n".join(lines))
    return path


def saved(folder, tasks, name="bert"):
    tokenizer = make_tokenizer(name)
    save_model(make_model(tasks, tokenizer, name), folder, tokenizer)
    return folder


@pytest.mark.parametrize(("name", "task"), [("bert", "masked_lm"), ("gpt2", "causal_lm")])
def test_a_pretrained_model_is_evaluated_as_it_is(name, task, blimp, tmp_path):
    folder = saved(tmp_path / "model", [task], name)
    engine = Engine.from_pretrained(folder, head={"minimal_pairs": {"max_per_group": 4}}, max_length=32)
    found = engine.evaluate(str(blimp))
    assert {uid: line["support"] for uid, line in found["report"].items()} == {"first_order": 4, "second_order": 4}
    predictions = engine.predict([*rows_of(GOOD[:4], ""), *rows_of(GOOD[30:34], "")])
    right = sum(p.label == "sentence_good" for p in predictions)
    assert found["accuracy"] == found["accuracy/minimal_pairs"] == right / 8
    (again,) = engine.predict([(GOOD[0], " ".join(GOOD[0].split()[::-1]))])
    assert again.scores == pytest.approx(predictions[0].scores)


def test_it_can_be_trained_and_is_found_again(tmp_path):
    folder = saved(tmp_path / "model", ["masked_lm"])
    engine = Engine.from_pretrained(folder, head="minimal_pairs", max_length=32, progress=False, report=False)
    held_out = rows_of(GOOD[60:70], "order")
    before = engine.evaluate(held_out)
    engine.finetune(
        rows_of(GOOD[:60], "order"), eval=held_out, epochs=3, batch_size=8, learning_rate=3e-3,
        output_dir=tmp_path / "run",
    )  # fmt: skip
    after = Engine.from_pretrained(tmp_path / "run").evaluate(held_out)
    assert after["loss"] < before["loss"] / 2
    assert after["accuracy"] == after["report"]["order"]["accuracy"] > 0.9


def test_a_model_without_a_prediction_head_is_refused(tmp_path):
    bare = saved(tmp_path / "bare", ["sequence_classification"])
    with pytest.raises(CheckpointError, match="BertForSequenceClassification; BertForMaskedLM also needs cls"):
        Engine.from_pretrained(bare, head="minimal_pairs", max_length=32).evaluate(rows_of(GOOD[:2], "x"))


def test_of_electra_the_generator_is_evaluated(pretrain, tmp_path):
    engine, _ = pretrain(tmp_path / "run", family="electra", objectives=["replaced_token_detection"])
    pairs = rows_of(["The list is empty.", "A module is an object."], "order")
    with pytest.raises(CheckpointError, match=r"save the generator: engine.save\(folder, part=\"generator\"\)"):
        Engine.from_pretrained(tmp_path / "run", head="minimal_pairs").evaluate(pairs)
    engine.save(tmp_path / "generator", part="generator")
    found = Engine.from_pretrained(tmp_path / "generator", head="minimal_pairs").evaluate(pairs)
    assert found["report"]["order"]["support"] == 2


def test_a_model_of_two_stacks_is_refused(tmp_path):
    folder = saved(tmp_path / "t5", ["span_corruption"], "t5")
    with pytest.raises(ConfigError, match="minimal_pairs needs a model of one stack"):
        Engine.from_pretrained(folder, head="minimal_pairs", max_length=32).evaluate(rows_of(GOOD[:2], "x"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_blimp_trained_on_some_pairs_and_held_against_others(shared_data, tmp_path):
    """A tiny GPT-2 that never read a text learns from 40 pairs of each phenomenon; budget: two minutes of one core.

    What a model of such a size knows of BLiMP after minutes of pretraining is hardly more than chance.
    """
    rows = []
    with zipfile.ZipFile(shared_data / "blimp" / "BLiMP.zip") as archive:
        for name in sorted(n for n in archive.namelist() if n.startswith("data/") and n.endswith(".jsonl")):
            with archive.open(name) as lines:
                rows += [json.loads(line) for line, _ in zip(lines, range(60), strict=False)]
    numbered = [(number % 60, row) for number, row in enumerate(rows)]
    train, held_out = ([row for n, row in numbered if (n < 40) is part] for part in (True, False))
    texts = [row[column] for row in train for column in ("sentence_good", "sentence_bad")]
    common = {"max_length": 64, "progress": False, "report": False, "threads": 1, "seed": 1}
    engine = Engine.from_scratch("gpt2", size="tiny", text=texts, vocab_size=2048, **common)
    result = engine.finetune(
        train, eval=held_out, head="minimal_pairs", epochs=4, batch_size=32, learning_rate=1e-3,
        output_dir=tmp_path / "run", **common,
    )  # fmt: skip
    found = engine.evaluate(held_out)
    print(f"BLiMP: {found['accuracy']:.4f} over {len(held_out)} held-out pairs, loss {found['loss']:.4f}")
    assert len(found["report"]) == 67
    assert found["accuracy"] == pytest.approx(result.metrics["eval/accuracy"], abs=0.01)
    assert found["accuracy"] > 0.65  # chance is 0.50 with a standard error of 0.014
