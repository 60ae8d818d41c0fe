"""Small files are the old one or the new one, and a disk that refuses is an error of our own."""

from __future__ import annotations

import errno
import os

import pytest

from tunecore.durable import make_folder, replacing, write_text
from tunecore.errors import CheckpointError
from tunecore.tracking.jsonl import JsonlTracker, append_row


def refuse(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_what_was_there_stays_when_the_disk_refuses(tmp_path, monkeypatch, call):
    path = tmp_path / "best"
    write_text(path, "step-2\n")
    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(CheckpointError, match=r"cannot write '.*best': No space left") as told:
        write_text(path, "step-4\n")
    assert "Make room" in told.value.hint
    assert path.read_text() == "step-2\n" and os.listdir(tmp_path) == ["best"]


def test_an_error_of_the_writer_itself_comes_out_as_it_is(tmp_path):
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a") as file:
        file.write("half")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write '.*file': File exists"):
        make_folder(tmp_path / "file" / "run")
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_a_row_of_metrics_that_does_not_fit_is_an_error_that_names_the_file():
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    tracker = JsonlTracker()
    tracker._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    with pytest.raises(CheckpointError, match=r"cannot write 'metrics.jsonl': No space left"):
        tracker.log(1, {"loss": 1.0})
    tracker._file.close()


def test_a_row_after_the_end_that_does_not_fit_is_one_too(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot write '.*metrics.jsonl': Is a directory"):
        append_row(tmp_path / "metrics.jsonl", 1, {"loss": 1.0})
