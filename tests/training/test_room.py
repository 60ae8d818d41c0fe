"""What checkpoints will take, against what is free."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import fake_training as fake
import pytest
from safetensors.torch import load_file

from tunecore.errors import CheckpointError
from tunecore.training.room import check_room, checkpoint_bytes


@pytest.fixture
def run(tmp_path):
    return fake.make_fake_run(fake.make_config(tmp_path, keep=3), steps=4)


def free(monkeypatch, size):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(total=10**12, free=size))


def test_the_estimate_is_that_of_a_checkpoint(run, tmp_path):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("x" * 5000)
    before = checkpoint_bytes(run, tmp_path / "tokenizer")
    fake.fit(run, evaluation=False)
    after = checkpoint_bytes(run, tmp_path / "tokenizer")
    tensors = (load_file(path) for path in (tmp_path / "step-4").glob("*.safetensors"))
    size = sum(tensor.nbytes for file in tensors for tensor in file.values())
    assert before == pytest.approx(size + 5000, rel=0.02)
    assert after == pytest.approx(size + 5000, rel=0.02)


def test_no_room_for_one_checkpoint_is_an_error_with_the_figures(run, tmp_path, monkeypatch):
    free(monkeypatch, 1000)
    with pytest.raises(CheckpointError, match=r"1 KB free in '.*', and a checkpoint takes about [\d.]+ KB") as told:
        check_room(run, tmp_path / "tokenizer", best=True)
    assert "Make room" in told.value.hint


def test_room_for_one_but_not_for_all_is_a_warning(run, tmp_path, monkeypatch, recwarn):
    one = checkpoint_bytes(run, tmp_path / "tokenizer")
    free(monkeypatch, 5 * one - 1)
    with pytest.warns(UserWarning, match=r"5 more are to lie there at a time \(checkpoint.keep is 3\)"):
        check_room(run, tmp_path / "tokenizer", best=True)
    recwarn.clear()
    check_room(run, tmp_path / "tokenizer", best=False)
    for step in (1, 2):
        (tmp_path / f"step-{step}").mkdir()
    free(monkeypatch, 3 * one)
    check_room(run, tmp_path / "tokenizer", best=True)
    assert not recwarn.list


def test_a_run_that_has_ended_and_a_disk_that_tells_nothing_are_let_through(run, tmp_path, monkeypatch):
    free(monkeypatch, 0)
    run.step = 4
    check_room(run, tmp_path / "tokenizer", best=True)
    run.step = 0
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(total=0, free=0))
    check_room(run, tmp_path / "tokenizer", best=True)
