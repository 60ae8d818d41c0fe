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


# BART's norms stand after each sublayer; at higher rates it stays at the unigram baseline for long.
CASES = {
    "t5": ("span_corruption", {"vocab_size": 2000, "max_length": 64}, {"steps": 400, "learning_rate": 3e-3}),
    "bart": ("denoising", {"vocab_size": 800, "max_length": 32}, {"steps": 300, "learning_rate": 1e-3}),
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("family", CASES)
def test_the_held_out_loss_beats_the_unigram_baseline(family, novels, tmp_path):
    (training, held_out), (objective, model, settings) = novels, CASES[family]
    engine = Engine.from_scratch(family, size="tiny", text=training, **model)
    result = engine.pretrain(
        training, eval=held_out, batch_size=16, precision="fp32", threads=1, output_dir=tmp_path / "run",
        evaluation={"every": 10_000, "max_rows": ROWS}, progress=False, report=False, **settings,
    )  # fmt: skip
    loss = result.metrics[f"eval/loss/{objective}"]
    ids, wanted = (target_ids(engine, paths, objective, tmp_path / "run") for paths in (training, held_out))
    baseline = unigram_loss(ids, wanted, len(engine.tokenizer))
    print(f"\n{objective} on {family}: held-out loss {loss:.3f}, unigram baseline {baseline:.3f}")
    assert loss < baseline - 0.2
