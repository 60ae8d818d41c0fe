"""Every hook is documented with its arguments, drawn in the loop, fired by us with all of them, and tested."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from tunecore import hookspecs
from tunecore.hook_check import HOOKS
from tunecore.plugins import load_plugins
from tunecore.testing import assert_plugin_conforms

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
LIFE = [name for name in HOOKS if not name.startswith("tunecore_register_")]


def signature(hook: str) -> str:
    return f"{hook}({', '.join(HOOKS[hook])})"


def test_there_are_hooks():
    assert len(LIFE) == 9 and len(HOOKS) == 17


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_on_the_page_with_its_arguments(hook):
    assert f"| `{signature(hook)}` |" in PAGE
    assert (getattr(hookspecs, hook).__doc__ or "").strip()


@pytest.mark.parametrize("hook", LIFE)
def test_every_hook_of_a_run_is_drawn_in_the_loop_in_its_place(hook):
    for drawing in (hookspecs.__doc__ or "", PAGE.split("## The life of a run")[1].split("## Every hook")[0]):
        assert signature(hook) in drawing
    order = [name for name in re.findall(r"tunecore_\w+(?=\()", hookspecs.__doc__ or "") if name in LIFE]
    assert order == LIFE


def test_every_register_hook_is_drawn():
    short = {name.removeprefix("tunecore_register") for name in HOOKS if name not in LIFE}
    for drawing in (hookspecs.__doc__ or "", PAGE):
        assert all(name in drawing for name in short)


def test_the_page_names_no_hook_that_is_not_there():
    named = set(re.findall(r"\btunecore_[a-z_]+\b", PAGE))
    assert named - {"tunecore_api", "tunecore_steps_end"} <= set(HOOKS), "the second is there as a misspelling"


def fired() -> dict[str, list[set[str]]]:
    """Hook -> the arguments of every place in the package that fires it."""
    calls: dict[str, list[set[str]]] = {}
    for path in (ROOT / "tunecore").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in HOOKS:
                calls.setdefault(node.func.attr, []).append({str(keyword.arg) for keyword in node.keywords})
    return calls


@pytest.mark.parametrize("hook", LIFE)
def test_every_hook_of_a_run_is_fired_with_all_its_arguments(hook):
    places = fired().get(hook, [])
    assert places, f"nothing fires {hook}"
    assert all(given == set(HOOKS[hook]) for given in places)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_tested(hook):
    own = [path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    assert any(hook in path.read_text(encoding="utf-8") for path in own), f"no test names {hook}"


def example(language: str) -> str:
    return PAGE.split(f"```{language}\n")[1].split("```")[0]


def test_the_plugin_on_the_page_works_and_has_fifteen_lines(tmp_path, monkeypatch, capsys):
    code = example("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 16
    (tmp_path / "polynomial.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    plugin = importlib.import_module("polynomial")
    assert_plugin_conforms(plugin)
    plugins = load_plugins(extra=[plugin])
    schedule = plugins.registry.create("schedule", "polynomial", {"power": 3})
    assert [schedule(step, 10) for step in (0, 5, 10)] == [1.0, 0.125, 0.0]
    plugins.hooks.tunecore_step_end(run=SimpleNamespace(step=200), metrics={"loss": 1.5})
    assert capsys.readouterr().out == "200 1.5\n"
    assert tomllib.loads(example("toml"))["project"]["entry-points"]["tunecore.plugins"] == {"polynomial": "polynomial"}
