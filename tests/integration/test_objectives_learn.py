"""Objectives over the vocabulary trained for real, minutes on one core: the held-out loss beats unigrams."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from unigram import unigram_loss

from tunecore import Engine
from tunecore.data.loader import eval_batches
from tunecore.inputs import pretrain_rows, text_corpus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
NOVELS, HELD_OUT = 4, 1
ROWS = 600
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture(scope="session")
def novels(shared_data, tmp_path_factory):
    """(training folder, held-out folder): a few of the novels, one of them held out."""
    folder = tmp_path_factory.mktemp("novels")
    parts = folder / "train", folder / "eval"
    for part in parts:
        part.mkdir()
    with zipfile.ZipFile(shared_data / "text" / "english_novels_100.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".txt"))[: NOVELS + HELD_OUT]
        for number, name in enumerate(names):
            (parts[number >= NOVELS] / f"{number}.txt").write_bytes(archive.read(name))
    return parts


class Learnt(NamedTuple):
    """The held-out metrics of a run, and what its losses asked for."""

    metrics: Mapping[str, Any]
    labels: Mapping[str, np.ndarray]
    train_ids: np.ndarray
    vocab_size: int

    def unigram(self, loss: str) -> float:
        return unigram_loss(self.train_ids, self.labels[loss], self.vocab_size)


def learn(
    data, output_dir, objectives, *, family="bert", steps=450, vocab_size=4096, overrides=None, **options
) -> Learnt:
    """Pretrain a tiny new model and measure it on held-out text."""
    train, held_out = map(str, data)
    common = {
        "max_length": 64, "batch_size": 32, "learning_rate": 2e-3, "progress": False, "report": False, "threads": 1,
        "seed": 1, **options,
    }  # fmt: skip
    engine = Engine.from_scratch(
        family, size="tiny", text=train, vocab_size=vocab_size, overrides=overrides or {}, **common
    )
    result = engine.pretrain(
        train, eval=held_out, objectives=objectives, steps=steps, output_dir=output_dir,
        evaluation={"every": steps, "max_rows": ROWS}, **common,
    )  # fmt: skip
    session, config, registry = engine.session, engine.config, engine.plugins.registry
    config = replace(config, data=replace(config.data, max_length=session.max_length))
    corpora = [text_corpus([p], engine.tokenizer, session.objectives, config, registry) for p in (train, held_out)]
    rows = pretrain_rows(corpora[1], session.objectives, config, evaluation=True)
    labels: dict[str, list[np.ndarray]] = {}
    for batch in eval_batches(rows, max_rows=ROWS, **session.packing(4096)):
        for name, targets in batch.targets.items():
            labels.setdefault(name, []).append(targets.labels.numpy())
    joined = {name: np.concatenate(parts) for name, parts in labels.items()}
    return Learnt(result.metrics, joined, np.asarray(corpora[0].file.ids), len(engine.tokenizer))


def report(learnt: Learnt, loss: str, baseline: float) -> float:
    value = float(learnt.metrics[f"eval/loss/{loss}"])
    print(f"{loss}: held-out {value:.4f}, baseline {baseline:.4f}, {len(learnt.labels[loss])} targets")
    return value


def test_masked_lm_of_spans(novels, tmp_path):
    learnt = learn(novels, tmp_path, {"masked_lm": {"span": True}}, steps=800)  # the plateau ends near step 450
    baseline = learnt.unigram("masked_lm")
    assert report(learnt, "masked_lm", baseline) < baseline - 0.1


def test_prefix_lm_goes_on_after_a_prefix(novels, tmp_path):
    learnt = learn(novels, tmp_path, {"prefix_lm": {"prediction": "next_token"}}, family="gpt2")
    baseline = learnt.unigram("prefix_lm")
    assert report(learnt, "prefix_lm", baseline) < baseline - 0.1


def test_phrase_masked_lm(novels, tmp_path):
    """Names from a list, phrases from the statistics of the novels."""
    names = tmp_path / "names.txt"
    names.write_text("Sir Henry\nMary Antony\nNurse Rosemary\nUncle Sam\n", encoding="utf-8")
    learnt = learn(novels, tmp_path / "run", {"phrase_masked_lm": {"entities": str(names)}})
    baseline = learnt.unigram("phrase_masked_lm")
    assert report(learnt, "phrase_masked_lm", baseline) < baseline - 0.1


def test_prefix_lm_fills_in_masks(novels, tmp_path):
    """Rows of 16 tokens: where a word has few others to look at, the plateau of masked words ends within minutes."""
    learnt = learn(
        novels, tmp_path, {"prefix_lm": {"mask_rate": 0.25}}, steps=600, vocab_size=1000, overrides=NO_DROPOUT,
        max_length=16, batch_size=128, learning_rate=3e-3,
    )  # fmt: skip
    baseline = learnt.unigram("prefix_lm")
    assert report(learnt, "prefix_lm", baseline) < baseline - 0.1


@pytest.fixture(scope="session")
def abstracts(shared_data, tmp_path_factory):
    """(training file, held-out file): abstracts of papers, each a document."""
    folder = tmp_path_factory.mktemp("abstracts")
    parts = folder / "train.jsonl", folder / "eval.jsonl"
    for part, name in zip(parts, ("train", "test"), strict=True):
        lines = (shared_data / "scitldr" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [{"text": " ".join(json.loads(line)["source"])} for line in lines]
        part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return parts


def test_sentence_order_of_abstracts(abstracts, tmp_path):
    """What a paper is about stands before what it found."""
    learnt = learn(abstracts, tmp_path, {"sentence_order": 1.0}, steps=250, vocab_size=1000, max_length=128)
    labels = learnt.labels["sentence_order"]
    majority = max(labels.mean(), 1 - labels.mean())
    accuracy = float(learnt.metrics["eval/accuracy/sentence_order"])
    report(learnt, "sentence_order", math.log(2))
    print(f"sentence_order: accuracy {accuracy:.4f}, majority {majority:.4f}")
    assert accuracy > majority + 0.06  # three standard errors of 600 pairs
