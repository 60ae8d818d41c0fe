"""Heads over whole texts from rows to a saved model: learn, measure, predict, and go to transformers and back."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForMultipleChoice, AutoModelForSequenceClassification, AutoTokenizer

from tunecore import Engine
from tunecore.errors import ConfigError, DataError

COLOURS = ("red", "blue", "green", "white")
THINGS = ("boat", "stone", "window", "letter", "harbour", "teacher")
QUIET = {"progress": False, "report": False, "batch_size": 8, "learning_rate": 3e-3, "warmup": 0}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny BERT that has hardly read anything."""
    folder = tmp_path_factory.mktemp("base")
    texts = [f"the {thing} is {colour} and not {other}." for thing in THINGS for colour in COLOURS for other in COLOURS]
    engine = Engine.from_scratch("bert", size="tiny", text=texts, vocab_size=300, max_length=32)
    quick = {**QUIET, "steps": 1, "eval_fraction": 0}
    engine.pretrain(texts, output_dir=folder / "pre", **quick)
    return engine.save(folder / "model")


def tune(base, rows, head, folder, **options):
    engine = Engine.from_pretrained(base, head=head)
    engine.finetune(rows, eval=rows, output_dir=folder, **{**QUIET, "epochs": 15, **options})
    return engine


def back_and_forth(engine, auto, folder):
    """(plain model, an engine that read what the plain one saved)."""
    engine.save(folder / "saved")
    plain = auto.from_pretrained(folder / "saved").eval()
    plain.config.__dict__.pop("tunecore", None)
    plain.save_pretrained(folder / "plain")
    AutoTokenizer.from_pretrained(folder / "saved").save_pretrained(folder / "plain")
    assert "tunecore" not in json.loads((folder / "plain/config.json").read_text())
    return plain, Engine.from_pretrained(folder / "plain")


def encoded(engine, *texts):
    return engine.tokenizer(*texts, padding=True, return_tensors="pt")


def test_multi_label(base, tmp_path):
    rows = [
        {"text": f"the {t} is {a} and {b}", "label": sorted({a, b})} for t in THINGS for a in COLOURS for b in COLOURS
    ]
    engine = tune(base, rows, "multi_label_classification", tmp_path / "run", epochs=8)
    metrics = engine.evaluate(rows)
    assert metrics["f1_micro"] > 0.9 and set(metrics["report"]) == set(COLOURS)
    texts = [row["text"] for row in rows[:9]]
    predictions = engine.predict(texts)
    plain, again = back_and_forth(engine, AutoModelForSequenceClassification, tmp_path)
    assert plain.config.problem_type == "multi_label_classification"
    with torch.no_grad():
        scores = plain(**encoded(engine, texts)).logits.sigmoid()
    for prediction, row in zip(predictions, scores.tolist(), strict=True):
        want = {plain.config.id2label[i]: score for i, score in enumerate(row)}
        assert prediction.scores == pytest.approx(want, abs=1e-4)
    assert again.session.head.name == "multi_label_classification"
    assert [p.label for p in again.predict(texts)] == [p.label for p in predictions]


@pytest.mark.parametrize("scale", [{}, {"min": 0, "max": 30}], ids=["plain", "range"])
def test_regression(base, tmp_path, scale):
    worth = dict(zip(COLOURS, (3, 10, 20, 30) if scale else (-1.0, 0.0, 0.5, 1.0), strict=True))
    rows = [{"text": f"the {t}", "other": f"a {c} one", "score": str(worth[c])} for t in THINGS for c in COLOURS] * 2
    head = {"regression": {"text_pair": "other", "label": "score", **scale}}
    engine = tune(base, rows, head, tmp_path / "run")
    metrics = engine.evaluate(rows)
    assert metrics["spearman"] > 0.9 and metrics["pearson"] > 0.9
    pairs = [(row["text"], row["other"]) for row in rows[:8]]
    values = [p.label for p in engine.predict(pairs)]
    plain, again = back_and_forth(engine, AutoModelForSequenceClassification, tmp_path)
    assert (plain.config.problem_type, plain.config.num_labels) == ("regression", 1)
    with torch.no_grad():
        outputs = plain(**encoded(engine, *map(list, zip(*pairs, strict=True)))).logits[:, 0]
    assert values == pytest.approx((outputs * scale.get("max", 1)).tolist(), rel=1e-3, abs=1e-4)
    assert again.session.head.name == "regression"
    same = Engine.from_pretrained(tmp_path / "plain", head=head).predict(
        [{"text": a, "other": b} for a, b in pairs]
    )
    assert [p.label for p in same] == pytest.approx(values, rel=1e-3, abs=1e-4)


def test_a_model_of_one_label_is_a_regression_as_in_transformers(base, tmp_path):
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    plain.config.__dict__.pop("tunecore", None)
    plain.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path)
    assert isinstance(Engine.from_pretrained(tmp_path).predict("the boat")[0].label, float)


def test_multiple_choice(base, tmp_path):
    rows = []
    for n, thing in enumerate(THINGS * 4):
        choices = [f"it is {colour}" for colour in COLOURS[: 2 + n % 3]]
        choices.append(choices[n % len(choices)])
        choices[n % (len(choices) - 1)] = "it is harbour"
        rows.append({"question": f"the {thing}", "choices": choices, "label": n % (len(choices) - 1)})
    engine = tune(base, rows, "multiple_choice", tmp_path / "run")
    assert engine.evaluate(rows)["accuracy"] > 0.9
    predictions = engine.predict(rows)
    assert np.mean([p.label == "it is harbour" for p in predictions]) > 0.9
    plain, again = back_and_forth(engine, AutoModelForMultipleChoice, tmp_path)
    for row, prediction in zip(rows[:5], predictions, strict=False):
        inputs = encoded(engine, [row["question"]] * len(row["choices"]), row["choices"])
        with torch.no_grad():
            scores = plain(**{k: v[None] for k, v in inputs.items()}).logits[0].softmax(-1)
        assert prediction.score == pytest.approx(float(scores.max()), abs=1e-4)
    pairs = [(row["question"], row["choices"]) for row in rows]
    assert [p.label for p in again.predict(pairs)] == [p.label for p in predictions]


@pytest.mark.parametrize("options", [{"loss": "cosent"}, {"loss": "cosine", "min": 0, "max": 3}, {"loss": "info_nce"}])
def test_sentence_embedding(base, tmp_path, options):
    scored = options["loss"] != "info_nce"
    rows = [
        {"text": f"the {t} is {a}", "text_pair": f"a {b} {t}", "label": 3 if a == b else 0}
        for t in THINGS for a in COLOURS for b in COLOURS if scored or a == b
    ]  # fmt: skip
    head = {"sentence_embedding": {"group_size": 8, **options}}
    engine = tune(base, rows, head, tmp_path / "run", epochs=6 if scored else 30)
    metrics = engine.evaluate(rows)
    assert metrics["spearman" if scored else "accuracy"] > 0.6
    texts = [row["text"] for row in rows[:7]] + ["the stone", "a red letter which nobody reads"]
    vectors = engine.embed(texts)
    assert vectors.dtype == np.float32 and np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(9), abs=1e-5)
    assert [p.label for p in engine.predict(texts)] == [pytest.approx(v.tolist(), abs=1e-5) for v in vectors]
    pair = engine.predict([(texts[0], texts[1])])[0].label
    assert pair == pytest.approx(float(vectors[0] @ vectors[1]) * options.get("max", 1), abs=1e-4)
    order = [3, 8, 0, 5]
    np.testing.assert_allclose(engine.embed([texts[i] for i in order]), vectors[order], atol=1e-5)
    # As plain transformers makes them, by the files that sentence-transformers reads.
    saved = engine.save(tmp_path / "saved")
    pooling = json.loads((saved / "1_Pooling/config.json").read_text())
    assert pooling["pooling_mode_mean_tokens"] and pooling["word_embedding_dimension"] == vectors.shape[1]
    kinds = [module["type"].rsplit(".")[-1] for module in json.loads((saved / "modules.json").read_text())]
    assert kinds == ["Transformer", "Pooling", "Normalize"]
    assert (tmp_path / "run/final/modules.json").is_file()


def test_any_model_embeds_and_a_saved_pooling_is_found(base, tmp_path):
    texts = ["the boat is red", "stone", "a white letter and a harbour"]
    engine = Engine.from_pretrained(base)
    vectors = engine.embed(texts, normalize=False)
    backbone = engine.session.family.backbone(engine.model).eval()
    for text, vector in zip(texts, vectors, strict=True):
        inputs = engine.tokenizer(text, return_tensors="pt", return_attention_mask=False)
        with torch.no_grad():
            hidden = backbone(**inputs).last_hidden_state
        np.testing.assert_allclose(vector, hidden[0].mean(0).numpy(), atol=1e-5)
    assert engine.embed(texts).shape == engine.embed(texts, pooling="first").shape == (3, 128)
    assert engine.embed([]).shape == (0, 128) and engine.embed("stone").shape == (1, 128)
    np.testing.assert_allclose(engine.embed(iter(texts)), vectors / np.linalg.norm(vectors, axis=1)[:, None], atol=1e-5)
    with pytest.raises(DataError, match=r"text 1 to embed is 3 \(int\)"):
        engine.embed(["a", 3])
    with pytest.raises(ConfigError, match="pooling is 'max'"):
        engine.embed(texts, pooling="max")
    head = {"sentence_embedding": {"loss": "info_nce", "pooling": "first", "normalize": False}}
    saved = Engine.from_pretrained(base, head=head).save(tmp_path / "saved")
    config = json.loads((saved / "config.json").read_text())
    del config["tunecore"]  # as sentence-transformers would have saved it
    (saved / "config.json").write_text(json.dumps(config))
    found = Engine.from_pretrained(saved)
    np.testing.assert_allclose(found.embed(texts), engine.embed(texts, pooling="first", normalize=False), atol=1e-5)
    assert found.session.head.options.pooling == "first" and found.session.max_length == 32


def test_groups_and_batches_that_do_not_fit_are_named(base, tmp_path):
    rows = [{"text": f"the {a}", "text_pair": f"a {a}"} for a in COLOURS * 8]
    with pytest.raises(ConfigError, match=r"batch_size is 8, but rows of view 'encoder' go in groups of 32"):
        tune(base, rows, {"sentence_embedding": {"loss": "info_nce"}}, tmp_path / "run")


@pytest.mark.parametrize(
    ("head", "lines", "message"),
    [
        ({"regression": {"text": "text"}}, ["text,label", "a,1", "b,nan", "c,3"], r"rows\.csv:3: .*'label'\) is nan"),
        ({"regression": {"label": "score"}}, ["text,label", "a,1"], r"rows\.csv:2: no column 'score'; columns found"),
        ({"regression": {"label": ["x", "y"]}}, ["text,x", "a,1"], r"rows\.csv:2: no column 'y'; columns found"),
        ({"regression": {"min": 0, "max": 5}}, ["text,label", "a,1", "b,6"], r"rows\.csv:3: 6.0 .*outside 0 to 5"),
        ("multi_label_classification", ["text,tags", "a,x"], r"rows\.csv:2: no column 'label'"),
        (
            {"multiple_choice": {"question": "text", "choices": ["c0", "c1"]}},
            ["text,c0,c1,label", "q,a,b,0", "q,a,,0"], r"rows\.csv:3: 1 choice\(s\)",
        ),
        (
            {"multiple_choice": {"question": "text", "choices": ["c0", "c1"]}},
            ["text,c0,c1,label", "q,a,b,0", "q,a,b,4"], r"rows\.csv:3: .*'4', which is none of the 2 choices",
        ),
        ("multiple_choice", ["text,label", "q,0"], r"rows\.csv:2: there is no column 'question'"),
        ("sentence_embedding", ["text,text_pair,label", "a,b,1", "a,c,"], r"rows\.csv:3: the number .*is missing"),
        ("sentence_embedding", ["text,label", "a,1"], r"rows\.csv:2: there is no column 'text_pair'"),
    ],
)  # fmt: skip
def test_bad_rows_are_named_by_file_and_row(base, tmp_path, head, lines, message):
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    engine = Engine.from_pretrained(base, head=head)
    with pytest.raises(DataError, match=message):
        engine.finetune(str(tmp_path / "rows.csv"), output_dir=tmp_path / "run", eval_fraction=0, **QUIET)
