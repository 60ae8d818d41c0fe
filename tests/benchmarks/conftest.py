"""The scripts of benchmarks/ as modules."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark_module(monkeypatch, tmp_path):
    """``benchmark_module(name)`` imports one as a script there would; what it records is the test's own."""
    if not FOLDER.is_dir():
        pytest.skip("benchmarks/ is not beside the tests")
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)

    def load(name):
        module = importlib.import_module(name)
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results.jsonl", raising=False)
        return module

    yield load
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
            del sys.modules[name]
