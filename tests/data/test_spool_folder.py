"""Half-made corpora: what a kill leaves is taken away, what is being made is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from tunecore.data.spool_folder import SpoolFolder, remove_abandoned

MAKER = """
import sys, time
from pathlib import Path
from tunecore.data.spool_folder import SpoolFolder
folder = SpoolFolder(Path(sys.argv[1]))
(folder.path / "ids").write_bytes(b"half")
print(folder.path.name, flush=True)
time.sleep(600)
"""


def test_a_folder_goes_once_its_maker_is_dead_and_not_before(tmp_path):
    own = SpoolFolder(tmp_path)
    maker = subprocess.Popen([sys.executable, "-c", MAKER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    theirs = tmp_path / maker.stdout.readline().strip()
    assert (theirs / "ids").exists()
    remove_abandoned(tmp_path)
    assert theirs.is_dir() and own.path.is_dir()
    os.kill(maker.pid, signal.SIGKILL)
    maker.communicate()
    remove_abandoned(tmp_path)
    assert not theirs.exists() and own.path.is_dir()
    own.remove()
    assert not list(tmp_path.iterdir())
