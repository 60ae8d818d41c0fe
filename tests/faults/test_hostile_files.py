"""Files made to harm: nothing in them runs, nothing is written outside the run's folder, no connection is tried."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import hostile_worker
import pytest
from record import record

pytestmark = pytest.mark.faults

HERE = Path(__file__).resolve().parent
CASES = [*hostile_worker.MODELS, *hostile_worker.FILES]
REFUSED = {
    "pickled weights only": "CheckpointError: .*pytorch_model.bin is not read",
    "a pickle called safetensors": "CheckpointError: .*model.safetensors cannot be read",
    "a pickled tokenizer.json": "DataError: tokenizer .* cannot be loaded",
    "shards outside": "CheckpointError: .*which is no file of this folder",
    "an array of objects": "DataError: .*side.npy' is damaged: .*Python objects",
}
"""What must be an error; the others may be one, or be passed over."""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "0",
                   "PYTHONPATH": os.pathsep.join([str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")]),
                   "HOME": str(folder), "HF_HOME": str(folder / "hub"), "TMPDIR": str(folder)}  # fmt: skip
    words = [sys.executable, str(HERE / "hostile_worker.py"), str(folder)]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    bad = [case for case, what in result.items() if what["events"] and case != "control"]
    record("hostile files", len(result) - 1, len(result) - 1 - len(bad))
    return result


@pytest.mark.parametrize("case", [case for case in CASES if case != "control"])
def test_nothing_runs_and_nothing_is_written_outside(told, case):
    assert told[case]["events"] == []
    assert not told[case]["outcome"].startswith("untyped"), told[case]["outcome"]


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_safely_is_refused_by_name(told, case):
    assert re.match(REFUSED[case], told[case]["outcome"], re.DOTALL), told[case]["outcome"]


def test_the_watch_is_awake(told):
    seen = " ".join(told["control"]["events"])
    assert "pickle.find_class" in seen and "os.system" in seen and "EXECUTED" in seen
