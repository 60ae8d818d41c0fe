"""A model saved over another: whole, and never a mixture of two that loads."""

from __future__ import annotations

import errno
import os

import pytest

from tunecore import checkpoint
from tunecore.checkpoint import write_model_folder
from tunecore.errors import CheckpointError

FILES = ("config.json", "model.safetensors", "tokenizer.json", "pooling/config.json")


def write(text):
    def into(folder):
        (folder / "pooling").mkdir()
        for name in FILES:
            (folder / name).write_text(text)

    return into


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def folder(tmp_path):
    write_model_folder(tmp_path / "models" / "mine", write("old"))
    return tmp_path / "models" / "mine"


def test_a_new_folder_holds_what_was_written(folder):
    assert contents(folder) == dict.fromkeys(FILES, "old")


def test_what_else_is_in_the_folder_stays_but_a_manifest_that_is_no_longer_true(folder):
    (folder / "README.md").write_text("mine")
    (folder / "manifest.json").write_text("{}")
    (folder / ".tmp-saved-1").mkdir()  # of a process that was killed
    write_model_folder(folder, write("new"))
    assert contents(folder) == {**dict.fromkeys(FILES, "new"), "README.md": "mine"}
    assert not (folder / ".tmp-saved-1").exists()


def test_a_full_disk_leaves_the_model_that_was_there(folder):
    def half(stage):
        write("new")(stage)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match=r"cannot write '.*mine': .*No space left") as error:
        write_model_folder(folder, half)
    assert "Make room" in error.value.hint
    assert contents(folder) == dict.fromkeys(FILES, "old")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_after_any_failing_call_the_folder_holds_one_model_or_none(folder, monkeypatch, call):
    real, outcomes = getattr(os, call), set()
    for allowed in range(40):
        write_model_folder(folder, write("old"))
        calls = []

        def failing(*args, allowed=allowed, calls=calls):
            calls.append(args)
            if len(calls) > allowed:
                raise OSError(errno.EIO, "Input/output error")
            return real(*args)

        monkeypatch.setattr(checkpoint.os, call, failing)
        try:
            write_model_folder(folder, write("new"))
        except CheckpointError:
            found = contents(folder)
            if "config.json" in found:
                assert len(set(found.values())) == 1
            outcomes.add(found.get("config.json"))
        else:
            break
        finally:
            monkeypatch.setattr(checkpoint.os, call, real)
    else:
        raise AssertionError("it never got through")
    assert None in outcomes
    assert contents(folder) == dict.fromkeys(FILES, "new")
