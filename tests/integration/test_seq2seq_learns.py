"""Slow: span_corruption and denoising learn from novels, and say more of an unseen one than word counts do."""

from __future__ import annotations

import zipfile
from dataclasses import replace

import numpy as np
import pytest
from unigram import unigram_loss

from tunecore import Engine
from tunecore.inputs import pretrain_rows, text_corpus
from tunecore.session import objectives_of
from tunecore.types import Progress

pytestmark = pytest.mark.slow
TRAINING, HELD_OUT = ("Anon_Clara_1864.txt", "Barclay_Ladies_1917.txt"), "Barclay_Postern_1911.txt"
ROWS = 256


@pytest.fixture(scope="module")
def novels(shared_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("novels")
    with zipfile.ZipFile(shared_data / "text/english_novels_100.zip") as archive:
        members = {name.split("/")[-1]: name for name in archive.namelist()}
        for name in (*TRAINING, HELD_OUT):
            (folder / name).write_bytes(archive.read(members[name]))
    return [str(folder / name) for name in TRAINING], [str(folder / HELD_OUT)]


def target_ids(engine, paths, objective, folder):
    """What the decoder is asked for on the first rows of some files."""
    config = replace(engine.config, objectives={objective: 1.0}, output_dir=str(folder))
    config = replace(config, data=replace(config.data, max_length=engine.session.max_length))
    objectives = objectives_of(config, engine.plugins)
    corpus = text_corpus(paths, engine.tokenizer, objectives, config, engine.plugins.registry)
    rows = pretrain_rows(corpus, objectives, config, evaluation=True)
    examples = [rows.examples(row, 0, Progress(0, 1, 0.0, 1.0))[0] for row in range(len(rows))]
    return np.concatenate([e.targets[objective].labels for e in examples if objective in e.targets])


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("family", "objective", "steps"), [("t5", "span_corruption", 400), ("bart", "denoising", 150)])
def test_the_held_out_loss_beats_the_unigram_baseline(family, objective, steps, novels, tmp_path):
    training, held_out = novels
    engine = Engine.from_scratch(family, size="tiny", text=training, vocab_size=2000, max_length=64)
    result = engine.pretrain(
        training, eval=held_out, steps=steps, batch_size=16, learning_rate=3e-3, precision="fp32", threads=1,
        evaluation={"every": steps, "max_rows": ROWS}, output_dir=tmp_path / "run", progress=False, report=False,
    )  # fmt: skip
    loss = result.metrics[f"eval/loss/{objective}"]
    ids, wanted = (target_ids(engine, paths, objective, tmp_path / "run") for paths in (training, held_out))
    baseline = unigram_loss(ids, wanted, len(engine.tokenizer))
    print(f"\n{objective} on {family}: held-out loss {loss:.3f} after {steps} steps, unigram baseline {baseline:.3f}")
    assert loss < baseline - 0.2
