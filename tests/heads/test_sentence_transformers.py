"""The files of sentence-transformers: written, read, and those of published models."""

from __future__ import annotations

import json

import pytest

from tunecore.heads.sentence_transformers import SentenceModel, read_sentence_model, sentence_model_files


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_what_is_written_is_read(pooling, normalize, tmp_path):
    model = SentenceModel(pooling, normalize, 128)
    write(tmp_path, sentence_model_files(model, 32))
    assert read_sentence_model(tmp_path) == model


def test_a_pooling_it_does_not_know_writes_nothing():
    assert sentence_model_files(SentenceModel("pooler", True, 128), 32) == {}


MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
DENSE = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
MEAN = {"word_embedding_dimension": 384, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}


@pytest.mark.parametrize(
    ("modules", "pooling", "found"),
    [
        (MODULES, MEAN, SentenceModel("mean", False, None)),
        (MODULES, {"pooling_mode": "cls"}, SentenceModel("first", False, None)),
        (MODULES, {"pooling_mode": "max"}, None),
        (MODULES, {**MEAN, "pooling_mode_max_tokens": True}, None),
        (MODULES, {**MEAN, "pooling_mode_cls_token": True}, None),
        ([*MODULES, DENSE], MEAN, None),
        (MODULES[:1], MEAN, None),
        ([{**MODULES[0], "path": "0_Transformer"}, MODULES[1]], MEAN, None),
        ({"not": "a list"}, MEAN, None),
        (MODULES, [], None),
    ],
)
def test_only_what_we_can_do_alike_is_taken(modules, pooling, found, tmp_path):
    write(tmp_path, {"modules.json": modules, "1_Pooling/config.json": pooling})
    assert read_sentence_model(tmp_path) == found


def test_a_folder_without_them_says_nothing(tmp_path):
    assert read_sentence_model(tmp_path) is None
    (tmp_path / "modules.json").write_text("{")
    assert read_sentence_model(tmp_path) is None
