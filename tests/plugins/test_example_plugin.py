"""The example plugin as a stranger meets it: copied, installed as a package, found through its entry point."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "plugins" / "tunecore-example"

RUN = """
import json, sys
from tunecore.plugins import list_plugins

result = {"listed": [[i.info.name, i.info.distribution, i.info.version, i.selected] for i in list_plugins()]}
result["imported_by_listing"] = "tunecore_example" in sys.modules

import torch
from tunecore import Engine

torch.set_num_threads(1)
words = ("river", "boat", "teacher", "letter", "window", "stone", "harbour", "train")
texts = [" ".join(words[(i * k + k) % 8] for k in range(1, 9)) + "." for i in range(60)]
small = {"batch_size": 8, "max_length": 32, "threads": 1}
engine = Engine.from_scratch("bert", size="tiny", text=texts, vocab_size=300, **small)
engine.pretrain(texts, objectives={"masked_lm": 1.0, "shuffled_tokens": 0.5}, steps=3, output_dir="pre",
                tracking={"every": 1}, **small)
result["registered"] = [[e.kind, e.name, e.owner] for e in engine.plugins.registry]
rows = [{"text": text, "label": float(i % 5)} for i, text in enumerate(texts)]
tuned = Engine.from_pretrained("pre", head="text_regression")
tuned.finetune(rows, eval=rows[:10], strategies=["freeze_embeddings"], steps=3, output_dir="fine", **small)
result["metrics"] = tuned.evaluate(rows)
result["label"] = tuned.predict([texts[0]])[0].label
result["label_of_the_saved"] = Engine.from_pretrained("fine").predict([texts[0]])[0].label
print("RESULT " + json.dumps(result))
"""
def run(*command: str, path: Path | None = None, cwd: Path | None = None) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TUNECORE_")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(path), str(ROOT)])
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, check=False, timeout=280)
    assert done.returncode == 0, f"{' '.join(command[:6])}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example plugin installed by pip from a copy (building in the tree would litter it)."""
    pytest.importorskip("setuptools", minversion="77", reason="the plugin's build backend is not installed")
    pytest.importorskip("pip", reason="there is no pip to install with")
    folder = tmp_path_factory.mktemp("stranger")
    copy = folder / "tunecore-example"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    target = folder / "site"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation",
        "--disable-pip-version-check", "--target", str(target), str(copy))  # fmt: skip
    return target


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def result(installed: Path, folder: Path) -> dict[str, Any]:
    """What a program sees that lists plugins, pretrains and fine-tunes with the example's parts."""
    out = run(sys.executable, "-c", RUN, path=installed, cwd=folder)
    (line,) = (line for line in out.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


def test_the_installed_plugin_is_listed_without_being_imported(result: dict[str, Any]) -> None:
    assert ["example", "tunecore-example", "0.1.0", True] in result["listed"]
    assert result["imported_by_listing"] is False


def test_its_components_are_registered_under_its_name(result: dict[str, Any]) -> None:
    owner = "plugin 'example' (tunecore-example 0.1.0)"
    assert [entry[:2] for entry in result["registered"] if entry[2] == owner] == [
        ["objective", "shuffled_tokens"], ["head", "text_regression"], ["strategy", "freeze_embeddings"],
    ]  # fmt: skip


def test_a_run_trains_its_objective_beside_a_built_in_one(result: dict[str, Any], folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "pre" / "metrics.jsonl").read_text().splitlines()]
    logged = {name for row in rows for name in row}
    assert {"loss/masked_lm", "loss/shuffled_tokens"} <= logged


def test_its_head_trains_evaluates_and_predicts_also_after_it_was_saved(result: dict[str, Any]) -> None:
    assert result["metrics"]["mse"] > 0
    assert result["label_of_the_saved"] == pytest.approx(result["label"], abs=1e-5)


def test_the_state_of_its_step_hook_is_in_the_checkpoint(result: dict[str, Any], folder: Path) -> None:
    states = [path.read_text() for path in folder.glob("pre/step-3/*.json")]
    assert any("tunecore-example" in state and '"tokens"' in state for state in states)


def test_the_plugins_own_tests_pass_against_the_installed_package(installed: Path, tmp_path: Path) -> None:
    tests = tmp_path / "tests"
    shutil.copytree(SOURCE / "tests", tests, ignore=shutil.ignore_patterns("__pycache__"))
    out = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests), path=installed, cwd=tmp_path)
    assert "passed" in out
