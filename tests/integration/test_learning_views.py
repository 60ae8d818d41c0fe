"""The objectives with forwards of their own learn from real text: held-out losses against the baseline of each."""

from __future__ import annotations

import json
import math
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tunecore import Engine
from tunecore.data.loader import eval_batches
from tunecore.inputs import pretrain_rows, text_corpus
from tunecore.objectives.replaced_token_detection import GENERATOR, sample_tokens
from tunecore.training.unit import ForwardPass

sys.path.insert(0, str(Path(__file__).resolve().parent))
from unigram import unigram_loss

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
NOVELS = 6


@pytest.fixture(scope="module")
def novels(shared_data, tmp_path_factory):
    """A few novels as files of text."""
    folder = tmp_path_factory.mktemp("novels")
    with zipfile.ZipFile(shared_data / "text/english_novels_100.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".txt"))
        for number, name in enumerate(names[:NOVELS]):
            (folder / f"{number}.txt").write_bytes(archive.read(name))
    return folder


def held_out(engine, folder, name):
    """The held-out batches of a finished run, made anew, and the ids it was trained on."""
    session, config = engine.session, engine.config
    corpus = text_corpus(config.data.train, session.tokenizer, session.objectives, config, engine.plugins.registry)
    if config.data.eval:
        kept, held = corpus, text_corpus(
            config.data.eval, session.tokenizer, session.objectives, config, engine.plugins.registry
        )
    else:
        kept, held = corpus.split(config.data.eval_fraction, config.training.seed)
    rows = pretrain_rows(held, session.objectives, config, evaluation=True)
    batches = list(eval_batches(rows, max_rows=config.evaluation.max_rows, view=name, **session.packing(4096)))
    spans = zip(kept.spans.start, kept.spans.stop, strict=True)
    return batches, np.concatenate([kept.file.ids[start:stop] for start, stop in spans]).astype(np.int64)


def report(record_property, **figures):
    for name, value in figures.items():
        record_property(name, value)
    print(json.dumps({k: round(float(v), 4) for k, v in figures.items()}))


def test_replaced_token_detection_learns_from_novels(novels, tmp_path, record_property):
    engine = Engine.from_scratch("electra", size="tiny", text=str(novels), vocab_size=1000, max_length=64)
    result = engine.pretrain(
        str(novels), objectives={"replaced_token_detection": 1.0}, steps=400, batch_size=32,
        learning_rate=2e-3, output_dir=tmp_path / "run", progress=False, evaluation={"every": 400, "max_rows": 400},
        eval_fraction=0.05, weight_decay=0.01,
    )  # fmt: skip
    batches, train_ids = held_out(engine, tmp_path / "run", "replaced_token_detection")
    unit, generator = engine.session.unit, engine.session.unit.task_modules["replaced_token_detection"]
    replaced = total = 0
    labels = []
    with torch.no_grad():
        for batch in batches:
            masked = batch.targets[GENERATOR]
            rows = ForwardPass(unit.model, unit.family, batch).encode(model=generator)[masked.index]
            samples = sample_tokens(*unit.family.token_head(generator, rows), masked.labels[:, 1])
            replaced += int((samples != masked.labels[:, 0]).sum())
            total += batch.num_tokens
            labels.append(masked.labels[:, 0].numpy())
    share = replaced / total
    prior = -share * math.log(share) - (1 - share) * math.log(1 - share)
    unigram = unigram_loss(train_ids, np.concatenate(labels), len(engine.tokenizer))
    found = {name: result.metrics[f"eval/loss/{name}"] for name in (GENERATOR, "replaced_token_detection")}
    report(record_property, unigram=unigram, prior=prior, seconds=result.seconds, **found)
    assert found[GENERATOR] < unigram - 0.3
    assert found["replaced_token_detection"] < prior


def test_translation_lm_learns_from_captions(shared_data, tmp_path, record_property):
    folder = shared_data / "multi30k"
    train, held = str(folder / "train.{en,de}.gz"), str(folder / "val.{en,de}.gz")
    engine = Engine.from_scratch("bert", size="tiny", text=train, vocab_size=5000, max_length=80)
    result = engine.pretrain(
        train, eval=held, objectives={"translation_lm": 1.0}, steps=200, batch_size=64, learning_rate=2e-3,
        output_dir=tmp_path / "run", progress=False, evaluation={"every": 200},
    )  # fmt: skip
    batches, train_ids = held_out(engine, tmp_path / "run", "translation_lm")
    labels = np.concatenate([batch.targets["translation_lm"].labels.numpy() for batch in batches])
    unigram = unigram_loss(train_ids, labels, len(engine.tokenizer))
    german = {}
    for name, texts in (("with_english", "both"), ("alone", "second")):
        objective = {"translation_lm": {"texts": texts, "masked": "second"}}
        measured = Engine.from_pretrained(tmp_path / "run", objectives=objective).evaluate(held, progress=False)
        german[name] = measured["accuracy/translation_lm"]
    loss = result.metrics["eval/loss/translation_lm"]
    report(record_property, unigram=unigram, loss=loss, seconds=result.seconds, **german)
    assert loss < unigram - 0.3


@pytest.mark.parametrize("pairs", [False, True])
def test_contrastive_learns_from_captions(shared_data, tmp_path, record_property, pairs):
    folder, group = shared_data / "multi30k", 32
    train, held = str(folder / "train.{en,de}.gz"), str(folder / "val.{en,de}.gz")
    engine = Engine.from_scratch("bert", size="tiny", text=train, vocab_size=5000, max_length=48)
    result = engine.pretrain(
        train, eval=held, text=None if pairs else "en", steps=150, batch_size=64, learning_rate=1e-3,
        objectives={"contrastive": {"pairs": pairs, "group_size": group}}, output_dir=tmp_path / "run", progress=False,
        evaluation={"every": 150},
    )  # fmt: skip
    loss, accuracy = (result.metrics[f"eval/{name}/contrastive"] for name in ("loss", "accuracy"))
    report(record_property, chance=math.log(group), loss=loss, accuracy=accuracy, seconds=result.seconds)
    assert loss < math.log(group) - 0.4
    assert accuracy > 3 / group
