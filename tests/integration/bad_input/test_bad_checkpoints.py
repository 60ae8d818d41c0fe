"""Folders named as a start model that are none, or not whole: one typed error that names the file and the way out."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunecore import Engine
from tunecore.errors import CheckpointError, TunecoreError

pytestmark = pytest.mark.timeout(60)


def without(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def cut(name, size):
    return lambda folder: os.truncate(folder / name, size)


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


def entries(**changes):
    def change(folder):
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(content | changes))

    return change


def tensors(change):
    def edit(folder):
        found = load_file(folder / "model.safetensors")
        change(found)
        (folder / "model.safetensors").unlink()
        save_file(found, folder / "model.safetensors")

    return edit


def pickles_only(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def index_of(*shards):
    def make(folder):
        weights = dict(zip(load_file(folder / "model.safetensors"), shards * 1000, strict=False))
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))

    return make


WORDS = "bert.embeddings.word_embeddings.weight"
BROKEN = {
    "no config.json": (without("config.json"), r"holds no model: no config.json"),
    "config.json cut short": (cut("config.json", 50), r"config.json is not JSON"),
    "an empty config.json": (cut("config.json", 0), r"config.json is not JSON"),
    "config.json of a list": (text("config.json", "[]"), r"config.json holds list, not an object"),
    "config.json nested too deep": (text("config.json", "[" * 100_000), r"config.json is not JSON"),
    "no model_type": (entries(model_type=None), r"config.json: unknown model_type 'None'; known"),
    "an unknown model_type": (entries(model_type="evil"), r"config.json: unknown model_type 'evil'; known"),
    "no weights": (without("model.safetensors"), r"is no model: model.safetensors is missing"),
    "pickled weights only": (pickles_only, r"model.safetensors is missing \(pytorch_model.bin is not read\)\n.*save"),
    "weights cut short": (cut("model.safetensors", 5000), r"model.safetensors cannot be read"),
    "empty weights": (cut("model.safetensors", 0), r"model.safetensors cannot be read"),
    "no embedding": (tensors(lambda t: t.pop(WORDS)), r"tensors are missing, bert.embeddings.word_emb"),
    "another shape": (tensors(lambda t: t.update({WORDS: torch.zeros(3, 3)})), WORDS + r" is \(3, 3\), but config"),
    "a tensor of integers": (
        tensors(lambda t: t.update({WORDS: t[WORDS].long()})), WORDS + " is of torch.int64",
    ),
    "more layers than tensors": (entries(num_hidden_layers=10**9), r"config.json says 1000000000 layers, but"),
    "fewer layers": (entries(num_hidden_layers=1), r"bert.encoder.layer.1.* is of a layer beyond the 1 of config.json"),
    "a width of a text": (entries(hidden_size="wide"), r"hidden_size"),
    "a width of memory": (entries(hidden_size=10**12), r"config.json"),
    "quantized weights": (entries(quantization_config={"bits": 4}), r"quantized weights cannot be trained"),
    "an adapter": (text("adapter_config.json", "{}"), r"holds an adapter, not a whole model"),
    "an index of noise": (
        lambda folder: (without("model.safetensors")(folder), text("model.safetensors.index.json", "{}")(folder)),
        r"model.safetensors.index.json cannot be read",
    ),
    "shards above the folder": (index_of("../../a.safetensors"), r"index.json names '../../a.safetensors', which"),
    "shards anywhere": (index_of("/etc/a.safetensors"), r"index.json names '/etc/a.safetensors', which is no file of"),
    "shards that are numbers": (index_of(3), r"index.json names 3, which is no file of this folder"),
    "a missing shard": (index_of("b.safetensors"), r"b.safetensors cannot be read"),
    "positions that are a text": (entries(max_position_embeddings="far", tunecore=None), r"max_position_embeddings is"),
    "an entry of a text": (entries(tunecore="x"), r"config.json: tunecore is 'x'; it must be {key: value} pairs"),
    "a length that is a text": (entries(tunecore={"max_length": "x"}), r"tunecore.max_length is 'x'; it must be a who"),
    "a head that is a text": (entries(tunecore={"head": "x"}), r"tunecore.head is 'x'; it must be {key: value} pairs"),
    "a head without a name": (entries(tunecore={"head": {"options": {}}}), r"tunecore.head.name is None; it must be a"),
    "labels of other keys": (entries(id2label={"a": "b"}, tunecore=None), r"id2label has the key 'a'"),
    "labels of a text": (entries(id2label="ab", tunecore=None), r"config.json: id2label is 'ab'; it must be {key"),
    "classes of a text": (entries(architectures="Bert", tunecore=None), r"config.json: architectures is 'Bert'; it mu"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_folder_that_is_no_whole_model_is_named(copied, finetune, case):
    make, message = BROKEN[case]
    make(folder := copied())
    with pytest.raises(TunecoreError, match=message):
        finetune(checkpoint=folder)


def head(**changes):
    kept = {"name": "sequence_classification", "options": {}, "facts": {"labels": ["a", "b"]}}
    return entries(tunecore={"head": kept | changes, "max_length": 32})


OPENED = {
    "facts without labels": (head(facts={}), r"config.json says of the head 'sequence_classification' cannot be used"),
    "facts of another kind": (head(facts={"labels": 3}), r"config.json says of the head 'sequence_classification'"),
    "an unknown head": (head(name="evil"), r"unknown head 'evil'; known: "),
    "an unknown option": (head(options={"evil": 1}), r"has no option 'evil'"),
    "an option of another kind": (head(options={"labels": 3}), r"labels is 3; it must be"),
    "an unknown objective": (entries(tunecore={"objectives": {"evil": 1.0}}), r"unknown objective 'evil'; known: "),
    "a weight that is a text": (entries(tunecore={"objectives": {"masked_lm": "x"}}), r"masked_lm: the weight is 'x'"),
}  # fmt: skip


@pytest.mark.parametrize("case", OPENED)
def test_what_a_folder_says_of_its_task_is_not_believed(copied, case):
    make, message = OPENED[case]
    make(folder := copied())
    with pytest.raises(TunecoreError, match=message):
        Engine.from_pretrained(folder).predict(["fine"])


RUNS = {
    "best points outside": (lambda run: (run / "best").write_text("../../elsewhere"), r"best' names '../../elsewhere'"),
    "best is noise": (lambda run: (run / "best").write_bytes(b"\xff/\x00"), r"best' names"),
}


@pytest.mark.parametrize("case", RUNS)
def test_a_run_folder_does_not_point_outside(tmp_path, case):
    make, message = RUNS[case]
    (tmp_path / "run").mkdir()
    make(tmp_path / "run")
    with pytest.raises(CheckpointError, match=message):
        Engine.from_pretrained(tmp_path / "run")


def test_a_damaged_summary_of_data_is_named(pretrain, tmp_path):
    pretrain()
    (tmp_path / "run" / "data_summary.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"data_summary.json' cannot be read"):
        pretrain()
