"""setup.py as a module, and what the packaging tests build with it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def builder() -> ModuleType:
    """setup.py, which builds only when run."""
    spec = importlib.util.spec_from_file_location("tunecore_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def compiler(builder) -> str:
    found = builder.find_compiler()
    if found is None:
        pytest.skip("no C++ compiler on this machine")
    return found
