"""Installs plugins as a stranger would, with metadata; makes ``installed`` importable."""

from __future__ import annotations

import itertools
import sys
import textwrap
from pathlib import Path

import pytest

from tunecore import plugins

sys.path.insert(0, str(Path(__file__).resolve().parent))
_numbers = itertools.count()


@pytest.fixture
def install(tmp_path: Path, fresh_environment: pytest.MonkeyPatch):
    """``install(name, code, dist=..., version=...)`` puts a distribution with one plugin on the path."""
    monkeypatch = fresh_environment
    (tmp_path / "light_builtin.py").write_text(
        textwrap.dedent("""
        import tunecore

        @tunecore.hookimpl
        def tunecore_register_strategies(register):
            register("full", lambda options: "full")

        @tunecore.hookimpl
        def tunecore_step_end(run):
            run.append("builtin")
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    # The real built-ins bring in torch and transformers; test_the_real_builtins below takes those.
    monkeypatch.setattr(plugins, "BUILTIN", "light_builtin")

    def install(name: str, code: str, dist: str | None = None, version: str = "1.2", target: str = "") -> str:
        module = f"plug_{next(_numbers)}"
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(code))
        dist = dist or f"dist-{name}"
        info = tmp_path / f"{dist.replace('-', '_')}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n")
        points = info / "entry_points.txt"
        before = points.read_text() if points.exists() else "[tunecore.plugins]\n"
        points.write_text(f"{before}{name} = {module}{target}\n")
        return module

    yield install
    for module in [m for m in sys.modules if m.startswith("plug_") or m == "light_builtin"]:
        del sys.modules[module]
