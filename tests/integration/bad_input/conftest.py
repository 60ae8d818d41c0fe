"""A tiny model folder and short runs of it, to be given what is wrong."""

from __future__ import annotations

import json
import shutil

import pytest

from tunecore import Engine


@pytest.fixture(scope="session")
def settings():
    """Options of a run that ends at once."""
    return {"steps": 2, "batch_size": 4, "progress": False, "report": False, "eval_fraction": 0}


@pytest.fixture(scope="session")
def model(topics, text_file, tokenizer_dir, tmp_path_factory, settings):
    """A run folder with a tiny pretrained BERT."""
    folder = tmp_path_factory.mktemp("model") / "run"
    engine = Engine.from_scratch("bert", size="tiny", tokenizer=str(tokenizer_dir), max_length=64)
    engine.pretrain(topics[:30], output_dir=folder, **settings)
    return folder


@pytest.fixture
def pretrain(text_file, tokenizer_dir, tmp_path, settings):
    def run(data=str(text_file), *, family="bert", output_dir=tmp_path / "run", tokenizer=tokenizer_dir, **options):
        engine = Engine.from_scratch(family, size="tiny", tokenizer=str(tokenizer), max_length=64)
        return engine.pretrain(data, output_dir=output_dir, **{**settings, **options})

    return run


@pytest.fixture
def finetune(model, reviews, tmp_path, settings):
    def run(train=reviews, *, checkpoint=model, output_dir=tmp_path / "run", **options):
        engine = Engine.from_pretrained(checkpoint)
        return engine.finetune(train, output_dir=output_dir, **{**settings, **options})

    return run


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


@pytest.fixture
def copied(model, tmp_path):
    """``copied(**changes)``: the model folder again, with entries of its config.json changed."""

    def copy(**changes):
        shutil.copytree(model / "final", tmp_path / "other")
        path = tmp_path / "other" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        (tmp_path / "other" / "manifest.json").unlink()
        return tmp_path / "other"

    return copy
