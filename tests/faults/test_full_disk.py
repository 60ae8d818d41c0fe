"""A run on a disk that is really full: it ends with an error that says so, and goes on when there is room."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from pathlib import Path

import pytest
import saving_world as saving

from tunecore.checkpoint import newest_good
from tunecore.errors import CheckpointError

SMALL, LARGE = "size=360k", "size=20m"
"""Room for two checkpoints of the world's run and what else it writes, and for all."""


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own; ``resize`` gives it another size."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options):
        return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True, text=True)

    if shutil.which("mount") is None or mount(SMALL).returncode:
        pytest.skip("a file system may not be mounted here")
    yield disk, lambda options: mount(f"remount,{options}")
    subprocess.run(["umount", "--lazy", disk], check=True)  # a tracker may still have a file of it open


@pytest.mark.faults
def test_a_run_on_a_full_disk_ends_with_a_word_and_goes_on_with_room(small_disk, tmp_path, monkeypatch):
    disk, resize = small_disk
    here = saving.small.write_data(tmp_path / "here")
    monkeypatch.chdir(here)
    saving.train()
    whole = saving.state_of(Path(saving.RUN))
    config = {**saving.CONFIG, "output_dir": str(disk / "run")}
    with warnings.catch_warnings(record=True) as told, pytest.raises(CheckpointError) as error:
        warnings.simplefilter("always")
        saving.train(config)
    assert "No space left on device" in error.value.message and "Make room" in error.value.hint
    assert any("more are to lie there at a time" in str(w.message) for w in told), "it was said before the first step"
    path, skipped = newest_good(disk / "run")
    assert path is not None and not skipped, "what was saved before is whole"
    assert not resize(LARGE).returncode
    saving.train(config)
    found = saving.state_of(disk / "run")
    assert found.keys() == whole.keys() and not saving.leftovers(disk / "run")
    assert [name for name in whole if found[name] != whole[name]] == []
