"""T5 and BART end to end on real text: tokenizer, pretraining, resuming, saving, generation."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from tunecore import Engine
from tunecore.data.tokenizer import train_tokenizer
from tunecore.errors import ConfigError
from tunecore.inputs import pretrain_rows, text_corpus
from tunecore.plugins import load_plugins
from tunecore.session import objectives_of
from tunecore.types import Progress

OBJECTIVE = {"t5": "span_corruption", "bart": "denoising"}
CLASS = {"t5": "T5ForConditionalGeneration", "bart": "BartForConditionalGeneration"}


@pytest.fixture(scope="module")
def tokenizers(topics):
    return {name: train_tokenizer(topics[:40], vocab_size=600, family=name, max_length=48) for name in OBJECTIVE}


def pretrain(family, tokenizer, text_file, folder, **options):
    engine = Engine.from_scratch(family, size="tiny", tokenizer=tokenizer, max_length=48, seed=2)
    settings = {
        "batch_size": 8, "learning_rate": 1e-3, "schedule": "constant", "warmup": 0, "eval_fraction": 0.05,
        "evaluation": {"max_rows": 12}, "checkpoint": {"every": 2}, "progress": False, "report": False, **options,
    }  # fmt: skip
    return engine, engine.pretrain(str(text_file), output_dir=folder, **settings)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_from_text_to_a_model_of_transformers(family, tokenizers, topics, tmp_path):
    """The objective is the family's own; what is saved says the same in plain transformers; a cut run goes on."""
    text_file = tmp_path / "text.jsonl"
    text_file.write_text("".join(json.dumps({"text": topic[:2000]}) + "\n" for topic in topics[:16]), encoding="utf-8")
    engine, result = pretrain(family, tokenizers[family], text_file, tmp_path / "whole", steps=4)
    assert result.metrics[f"eval/loss/{OBJECTIVE[family]}"] > 0
    lines = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert any(f"loss/{OBJECTIVE[family]}" in line for line in lines)

    pretrain(family, tokenizers[family], text_file, tmp_path / "cut", steps=2)
    pretrain(family, tokenizers[family], text_file, tmp_path / "cut", steps=4)
    whole, cut = (load_file(tmp_path / name / "final/model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)

    engine.save(tmp_path / "saved")
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "saved").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert type(plain).__name__ == CLASS[family] and plain.config.vocab_size == len(tokenizer)
    prompts = ["The for statement is used to iterate", "If"]
    options = {"max_new_tokens": 6, "min_new_tokens": 2, "do_sample": False}
    ours = engine.generate(prompts, **options)
    for prompt, answer in zip(prompts, ours, strict=True):
        ids = tokenizer([prompt], return_tensors="pt", return_token_type_ids=False)
        assert tokenizer.batch_decode(plain.generate(**ids, **options), skip_special_tokens=True) == [answer]

    again = Engine.from_pretrained(tmp_path / "saved", seed=2)
    assert again._default_objective() == OBJECTIVE[family]
    losses = [one.evaluate(str(text_file))[f"loss/{OBJECTIVE[family]}"] for one in (engine, again)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize("objective", ["masked_lm", "causal_lm"])
def test_an_objective_of_one_stack_is_refused(family, objective, tokenizers, text_file, tmp_path):
    with pytest.raises(ConfigError, match=f"{objective} needs a model of one stack; {family} is an encoder-decoder"):
        pretrain(family, tokenizers[family], text_file, tmp_path, steps=1, objectives=[objective])


def test_an_encoder_is_refused(topics, text_file, tmp_path):
    engine = Engine.from_scratch("bert", size="tiny", text=topics[:40], vocab_size=600, max_length=48)
    for objective in OBJECTIVE.values():
        with pytest.raises(ConfigError, match=f"{objective} needs an encoder-decoder model; bert has one stack"):
            engine.pretrain(str(text_file), objectives=[objective], steps=1, output_dir=tmp_path / objective)


def test_rows_are_longer_than_what_is_left_of_them(tokenizers, text_file, tmp_path):
    """Inputs fill max_length although span corruption shortens rows."""
    engine = Engine.from_scratch("t5", size="tiny", tokenizer=tokenizers["t5"], max_length=48)
    plugins = load_plugins(engine.config.plugins)
    config = replace(engine.config, objectives={"span_corruption": 1.0}, output_dir=str(tmp_path))
    objectives = objectives_of(config, plugins)
    corpus = text_corpus([str(text_file)], tokenizers["t5"], objectives, config, plugins.registry)
    rows = pretrain_rows(corpus, objectives, config, evaluation=False)
    lengths = [len(rows.examples(row, 0, Progress(0, 1, 0.0, 1.0))[0]) for row in range(len(rows))]
    assert max(lengths) == 48 and sum(n == 48 for n in lengths) > len(lengths) // 2
