"""Each file of the newest checkpoint is damaged in every way: the one before is taken, file and reason are told, and
the run ends in the bytes of one that met nothing. Where none is left good, that is an error and nothing changes."""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
import saving_world as saving
from record import record
from scale import scaled

from tunecore import Engine, hookimpl
from tunecore.checkpoint import newest_good
from tunecore.errors import CheckpointError
from tunecore.run_folder import TRAINING_STATE, resolve_model

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plugins" / "tunecore-peft" / "src"))
import tunecore_peft

sys.path.pop(0)  # or what a build left there would be an installed plugin to the tests after this one

NEWEST, BEFORE = "step-6", "step-4"
CONFIGS = {
    "bert": {**saving.CONFIG, "model": {**saving.small.MODEL, "family": "bert"}},
    "roberta": {**saving.CONFIG, "strategies": ["adaptive_lr"]},
    "adapters": {
        **saving.CONFIG, "objectives": {}, "head": "sequence_classification",
        "model": {**saving.small.MODEL, "family": "bert"}, "strategies": [{"lora": {"r": 2, "dropout": 0.2}}],
        "data": {"train": ["train.jsonl"], "eval": ["dev.jsonl"], "max_length": 24},
    },
}  # fmt: skip
ONLY_IN = {"objectives.safetensors": "roberta", "unmerged.safetensors": "adapters"}
"""Files of a checkpoint that one kind of run has."""


class StopAt:
    """A plugin that stops a run at a step; a run that goes on has it too, for the manifest names plugins."""

    def __init__(self, step: int | None = None) -> None:
        self.step = step

    @hookimpl
    def tunecore_step_end(self, run):
        if run.step == self.step:
            run.stop.request()


class Torn(NamedTuple):
    name: str
    config: dict
    whole: dict[str, bytes]
    """What the run comes to without a fault."""
    files: list[str]
    """Of a checkpoint."""

    def again(self) -> list[str]:
        """The same command on what is in ``run``; returns what it warned of."""
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            train(self.config)
        return [str(w.message) for w in told]


def train(config: dict, stop_at: int | None = None):
    """Run it, or resume it, with the same plugins each time."""
    return saving.train(config, tunecore_peft, StopAt(stop_at))


def put_back() -> Path:
    shutil.rmtree(saving.RUN)
    shutil.copytree(saving.PRISTINE, saving.RUN)
    return Path(saving.RUN)


def cut(percent):
    return lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size * percent // 100])


DRAW = random.Random(0)


def flip(path):
    data = bytearray(path.read_bytes())
    data[DRAW.randrange(len(data))] ^= 1 << DRAW.randrange(8)
    path.write_bytes(data)


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    **{f"cut at {percent} %": cut(percent) for percent in (1, 25, 50, 99)},
    "a flipped bit": flip,
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "of another step": lambda path: shutil.copyfile(path.parents[1] / BEFORE / path.name, path),
}


@pytest.fixture(
    scope="module", params=["roberta", *(pytest.param(name, marks=pytest.mark.faults) for name in ("bert", "adapters"))]
)
def torn(request, tmp_path_factory):
    folder = saving.small.write_data(tmp_path_factory.mktemp("torn") / "here")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        config = CONFIGS[request.param]
        train(config)
        whole = saving.state_of(Path(saving.RUN))
        shutil.rmtree(saving.RUN)
        assert train(config, 6).interrupted
        shutil.copytree(saving.RUN, saving.PRISTINE)
        files = sorted(path.name for path in Path(saving.RUN, NEWEST).iterdir())
        assert all((file in files) == (request.param == kind) for file, kind in ONLY_IN.items())
        yield Torn(request.param, config, whole, files)


def is_damaged(run: Path, file: str) -> bool:
    before = Path(saving.PRISTINE, NEWEST, file)
    return not (run / NEWEST / file).exists() or (run / NEWEST / file).read_bytes() != before.read_bytes()


def problem_of(torn: Torn, run: Path, file: str) -> str | None:
    """What does not hold of a run with a damaged file."""
    found, skipped = newest_good(run)
    if found != run / BEFORE or [path for path, _ in skipped] != [run / NEWEST]:
        return f"{found} is taken, {skipped} skipped"
    told = [line for line in torn.again() if "is skipped" in line]
    if len(told) != 1 or NEWEST not in told[0] or file not in told[0]:
        return f"it says {told}"
    if saving.state_of(run) != torn.whole:
        return "the run ends in other bytes"
    return f"left behind: {left}" if (left := saving.leftovers(run)) else None


@pytest.mark.parametrize(
    ("file", "damage"),
    [("optimizer.safetensors", "of another step"), ("manifest.json", "of another step"), ("state.json", "cut at 50 %")],
)
def test_a_torn_checkpoint_is_stepped_over(torn, file, damage):
    run = put_back()
    DAMAGES[damage](run / NEWEST / file)
    assert is_damaged(run, file) and problem_of(torn, run, file) is None


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_every_file_torn_in_every_way(torn):
    begun, tried, bad = time.perf_counter(), 0, []
    for file in torn.files:
        for damage, do in DAMAGES.items():
            for _ in range(scaled(2) if do is flip else 1):
                run = put_back()
                do(run / NEWEST / file)
                if not is_damaged(run, file):
                    continue  # the file is the same at each step
                tried += 1
                problem = problem_of(torn, run, file)
                if problem:
                    bad.append((file, damage, problem))
    seconds = round(time.perf_counter() - begun, 1)
    record("torn checkpoints", tried, tried - len(bad), run=torn.name, seconds=seconds)
    assert not bad, f"{len(bad)} of {tried}; the first: {bad[:3]}"
    assert tried >= 8 * len(torn.files)


def test_files_a_checkpoint_does_not_list_change_nothing(torn):
    run = put_back()
    (run / NEWEST / "notes.txt").write_text("mine")
    for name in {"model.safetensors.index.json", *ONLY_IN, "generation_config.json"} - {*torn.files}:
        (run / NEWEST / name).write_text("{}")
    assert not [line for line in torn.again() if "skipped" in line]
    assert {name: data for name, data in saving.state_of(run).items() if name in torn.whole} == torn.whole


def test_no_good_checkpoint_left_is_an_error_and_changes_nothing(torn):
    run = put_back()
    (run / NEWEST / "model.safetensors").unlink()
    older = [path for path in run.glob("step-*") if path.name != NEWEST]
    for path in older:
        flip(path / "optimizer.safetensors")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError) as told:
        torn.again()
    message = told.value.message
    assert "step-6: " in message and "model.safetensors' is missing" in message
    for path in older:
        assert f"{path.name}: " in message and f"{str(path / 'optimizer.safetensors')!r} is damaged" in message
    assert "Restore one of these folders" in told.value.hint and "another output_dir" in told.value.hint
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    for path in (run / NEWEST, *older):
        shutil.rmtree(path)
    torn.again()
    assert saving.state_of(run) == torn.whole, "without a step-N the run begins anew"


def test_a_run_that_died_before_its_result_was_written_has_the_same_one(torn):
    run = put_back()
    torn.again()
    (run / "result.json").unlink()
    torn.again()
    assert saving.state_of(run) == torn.whole


def test_a_damaged_model_is_not_loaded(torn):
    run = put_back()
    torn.again()
    chosen = run / (run / "best").read_text().strip()
    state = [chosen / name for name in TRAINING_STATE if (chosen / name).exists()]
    assert len(state) == 2 + (torn.name == "adapters")
    for path in state:
        path.unlink()
    assert Engine.from_pretrained(run).model is not None, "a model needs no state of its training"
    flip(chosen / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors' is damaged") as told:
        Engine.from_pretrained(run).session  # noqa: B018
    assert "name another checkpoint" in told.value.hint and "remove manifest.json" in told.value.hint
    tuned = {**saving.CONFIG, "model": {"checkpoint": saving.RUN}, "output_dir": "tuned", "tokenizer": {}}
    with pytest.raises(CheckpointError, match=r"model\.safetensors' is damaged"):
        saving.train(tuned)
    Engine.from_pretrained(run / "final").save(chosen)
    assert Engine.from_pretrained(run).model is not None, "what is saved over a checkpoint is what it then is"
    assert json.loads((chosen / "config.json").read_text())


class FlipAtTheEnd:
    """A plugin that damages the best checkpoint once all steps are made."""

    at_work = True

    @hookimpl
    def tunecore_run_end(self, run):
        if self.at_work:
            flip(run.best_path / "model.safetensors")


def test_a_damaged_best_checkpoint_costs_none_of_the_last_one(tmp_path, monkeypatch):
    monkeypatch.chdir(saving.small.write_data(tmp_path / "here"))
    config = {**saving.CONFIG, "evaluation": {"every": 2, "max_rows": 4, "metric": "loss"}}  # the highest: the first
    plugin, run = FlipAtTheEnd(), Path(saving.RUN)
    with pytest.raises(CheckpointError, match=r"step-2.*(?s:.)*[Rr]estore it, or remove it"):
        saving.train(config, plugin)
    assert (run / "final" / "model.safetensors").exists() and not (run / "result.json").exists()
    plugin.at_work = False
    shutil.rmtree(run / "step-2")
    saving.train(config, plugin)
    assert (run / "result.json").exists() and resolve_model(run) == run / "final"
