"""Heads that write texts from data files to a saved model: metrics, resuming, prediction, both ways to transformers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from tunecore import Engine
from tunecore.data.tokenizer import train_tokenizer
from tunecore.errors import ConfigError
from tunecore.heads.text_metrics import bleu
from tunecore.tracking import progress

WORDS = {"a": "ein", "dog": "Hund", "cat": "Kater", "man": "Mann", "sees": "sieht", "and": "und", "big": "grosser"}
PAIRS = [
    (f"a {big}{one} sees a {two}", f"ein {wide}{WORDS[one]} sieht ein {WORDS[two]}")
    for one in ("dog", "cat", "man")
    for two in ("dog", "cat", "man")
    for big, wide in (("", ""), ("big ", "grosser "))
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Parallel files, and the same rows as jsonl with prompts."""
    folder = tmp_path_factory.mktemp("pairs")
    for name, side in (("en", 0), ("de", 1)):
        (folder / f"train.{name}").write_text("".join(pair[side] + "\n" for pair in PAIRS))
    rows = [{"prompt": f"translate {en}", "completion": de} for en, de in PAIRS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def tokenizers():
    texts = [text for pair in PAIRS for text in pair] * 3 + ["translate"]
    return {name: train_tokenizer(texts, vocab_size=400, family=name, max_length=32) for name in ("t5", "bart", "gpt2")}


def finetune(family, tokenizer, files, folder, **options):
    seq2seq = family != "gpt2"
    head = {"seq2seq": {"source": "en", "target": "de", "max_new_tokens": 16, "generate_rows": 6}}
    if not seq2seq:
        head = {"causal_generation": {"max_new_tokens": 14, "generate_rows": 6, "metrics": ["exact_match", "bleu"]}}
    data = str(files / ("train.{en,de}" if seq2seq else "rows.jsonl"))
    engine = Engine.from_scratch(family, size="tiny", tokenizer=tokenizer, max_length=32, seed=2)
    settings = {
        "batch_size": 6, "learning_rate": 3e-3, "schedule": "constant", "warmup": 0, "checkpoint": {"every": 2},
        "evaluation": {"every": 2}, "progress": False, "report": False, "precision": "fp32", **options,
    }  # fmt: skip
    return engine, data, engine.finetune(data, eval=data, head=head, output_dir=folder, **settings)


@pytest.mark.parametrize("family", ["t5", "bart", "gpt2"])
def test_from_files_to_a_saved_model(family, tokenizers, files, tmp_path):
    engine, data, result = finetune(family, tokenizers[family], files, tmp_path / "whole", steps=6)
    name = engine.session.head.name
    figures = {f"eval/loss/{name}", f"eval/accuracy/{name}", f"eval/perplexity/{name}", "eval/bleu"}
    assert figures <= result.metrics.keys()
    assert result.metrics["eval/generated_rows"] == 6 and len(result.metrics["eval/samples"]) == 3

    finetune(family, tokenizers[family], files, tmp_path / "cut", steps=3)
    _, _, again = finetune(family, tokenizers[family], files, tmp_path / "cut", steps=6)
    whole, cut = (load_file(tmp_path / run / "final/model.safetensors") for run in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole)
    assert {k: v for k, v in again.metrics.items() if k.startswith("eval/")} == {
        k: v for k, v in result.metrics.items() if k.startswith("eval/")
    }

    rows = [en if family != "gpt2" else f"translate {en}" for en, _ in PAIRS]
    written = [prediction.label for prediction in engine.predict(rows)]
    measured = engine.evaluate(data)
    assert measured["generated_rows"] == len(PAIRS)
    assert measured["bleu"] == pytest.approx(bleu(written, [[de] for _, de in PAIRS], "13a", False))

    engine.save(tmp_path / "saved")
    ours = Engine.from_pretrained(tmp_path / "saved", seed=2)
    assert ours.session.head.options == engine.session.head.options
    assert [prediction.label for prediction in ours.predict(rows)] == written
    assert ours.evaluate(data)["loss"] == pytest.approx(measured["loss"], rel=1e-6)
    auto = AutoModelForCausalLM if family == "gpt2" else AutoModelForSeq2SeqLM
    plain = auto.from_pretrained(tmp_path / "saved").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for row, text in list(zip(rows, written, strict=True))[:3]:
        ids = tokenizer([row if family != "gpt2" else row + "\n"], return_tensors="pt", return_token_type_ids=False)
        output = plain.generate(**ids, max_new_tokens=16 if family != "gpt2" else 14, do_sample=False)[0]
        new = output if family != "gpt2" else output[ids["input_ids"].shape[1] :]
        assert tokenizer.decode(new, skip_special_tokens=True).strip() == text


def test_a_plain_model_of_transformers_is_tuned_and_beams_are_asked_for_later(tokenizers, files, tmp_path):
    engine, data, _ = finetune("t5", tokenizers["t5"], files, tmp_path / "run", steps=2)
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run/final")
    del plain.config.tunecore
    plain.save_pretrained(tmp_path / "plain")
    tokenizers["t5"].save_pretrained(tmp_path / "plain")
    head = {"seq2seq": {"source": "en", "target": "de", "max_new_tokens": 16}}
    theirs = Engine.from_pretrained(tmp_path / "plain", head=head, max_length=32)
    assert theirs.evaluate(data)["loss"] == pytest.approx(engine.evaluate(data)["loss"], rel=1e-6)

    beams = Engine.from_pretrained(tmp_path / "run", head={"seq2seq": {"num_beams": 3}})
    assert beams.session.head.options == replace(engine.session.head.options, num_beams=3)
    rows = [{"en": en} for en, _ in PAIRS]
    written = [prediction.label for prediction in beams.predict(rows)]
    assert written == [prediction.label for prediction in engine.predict(rows, num_beams=3)]
    drawn = [[p.label for p in engine.predict(rows, temperature=2.0, seed=seed)] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_generate_takes_names_people_know(tokenizers, files, tmp_path):
    engine, _, _ = finetune("gpt2", tokenizers["gpt2"], files, tmp_path / "run", steps=2)
    prompts = ["translate a dog", "translate"]
    drawn = engine.generate(prompts, max_new_tokens=5, temperature=0.9, top_k=20, top_p=0.95, seed=4)
    assert drawn == engine.generate(prompts, max_new_tokens=5, temperature=0.9, top_k=20, top_p=0.95, seed=4)
    assert engine.generate(prompts[0], max_new_tokens=5) == engine.generate(prompts, max_new_tokens=5)[:1]
    three = engine.generate(prompts, max_new_tokens=5, do_sample=True, num_return_sequences=3)
    assert len(three) == 6 and len(set(three[:3])) > 1
    pieces = []
    (text,) = engine.generate("translate a dog", max_new_tokens=5, on_text=lambda place, piece: pieces.append(piece))
    assert "".join(pieces) == text
    with pytest.raises(ConfigError, match=r"num_return_sequences is for texts that are drawn"):
        engine.generate("x", num_return_sequences=2)
    with pytest.raises(ConfigError, match=r"generation.top_p is 2"):
        engine.generate("x", top_p=2)


def test_without_generation_loss_and_accuracy_remain(tokenizers, files, tmp_path):
    engine = Engine.from_scratch("t5", size="tiny", tokenizer=tokenizers["t5"], max_length=32)
    data = str(files / "train.{en,de}")
    head = {"seq2seq": {"generate": False}}
    result = engine.finetune(
        data, eval=data, head=head, steps=1, output_dir=tmp_path, progress=False, report=False
    )
    assert "eval/accuracy/seq2seq" in result.metrics and "eval/bleu" not in result.metrics
    assert "generated_rows" not in engine.evaluate(data)
    assert isinstance(engine.predict("a dog sees a man")[0].label, str)


def test_other_heads_have_no_options_of_generation(reviews, tokenizer_dir, tmp_path):
    engine = Engine.from_scratch("bert", size="tiny", tokenizer=str(tokenizer_dir), max_length=32)
    engine.finetune(reviews, steps=1, output_dir=tmp_path, progress=False, report=False, eval_fraction=0.2)
    with pytest.raises(ConfigError, match=r"sequence_classification does not generate, .* no option 'num_beams'"):
        engine.predict("fine", num_beams=2)


def test_progress_is_shown_on_a_terminal_and_hands_everything_on(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert list(progress.counted(iter([2, 3]), 5, what="generating")) == [2, 3]
    assert "generating" in capsys.readouterr().err
    monkeypatch.delenv("FORCE_COLOR")
    assert list(progress.counted(iter([2, 3]), 5, what="generating")) == [2, 3]
    assert capsys.readouterr().err == ""
