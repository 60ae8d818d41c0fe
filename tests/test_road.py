"""Runs with stages: what starts from what, what is passed over, what is refused."""

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / "search"))

import small_world as small

from tunecore import Engine, hookimpl
from tunecore.config import PluginsConfig
from tunecore.config_io import load_config
from tunecore.errors import ConfigError, DataError
from tunecore.plugins import load_plugins
from tunecore.reports import draw
from tunecore.road import RoadResult
from tunecore.run_folder import model_digest, resolve_model


class Count:
    """Counts the steps of each run by its folder's name; stops a run at one of them."""

    def __init__(self, stop=None):
        self.steps, self.stop = {}, stop

    @hookimpl
    def tunecore_step_end(self, run):
        name = run.output_dir.name
        self.steps[name] = self.steps.get(name, 0) + 1
        if self.stop == (name, self.steps[name]):
            run.stop.request()


def road(**changes):
    return {**small.ROAD, **changes}


def with_stage(number, **changes):
    stages = [dict(stage) for stage in small.ROAD["stages"]]
    stages[number] |= changes
    return road(stages=stages)


def run(config, *plugins):
    return Engine(load_config(config), plugins=load_plugins(PluginsConfig(load=False), extra=plugins)).run()


@pytest.fixture
def here(tmp_path, monkeypatch):
    folder = small.write_data(tmp_path / "world")
    monkeypatch.chdir(folder)
    return folder


def test_each_stage_starts_from_the_best_of_the_one_before(here):
    count = Count()
    engine = Engine(load_config(small.ROAD), plugins=load_plugins(PluginsConfig(load=False), extra=[count]))
    result = engine.run()
    assert isinstance(result, RoadResult) and [s.name for s in result.stages] == ["domain", "task", "classify"]
    assert count.steps == {"domain": 4, "task": 4, "classify": 6} and not any(s.skipped for s in result.stages)
    configs = [load_config(here / "road" / name / "run.yaml") for name in ("domain", "task", "classify")]
    assert [c.model.checkpoint for c in configs] == [None, "road/domain", "road/task"]
    assert [c.data.train for c in configs] == [("corpus.jsonl",), ("train.jsonl",), ("train.jsonl",)]
    assert [c.data.eval for c in configs] == [(), ("dev.jsonl",), ("dev.jsonl",)]
    assert [bool(c.data.test) for c in configs] == [False, False, True]
    tokenizers = [(here / "road" / name / "tokenizer/tokenizer.json").read_bytes() for name in ("domain", "task")]
    assert tokenizers[0] == tokenizers[1]
    assert model_digest(here / "road") == model_digest(here / "road/classify")
    assert resolve_model("road").samefile(result.best_path)
    measured = engine.evaluate("test.jsonl")
    assert result.metrics["test/accuracy"] == measured["accuracy"]
    assert engine.predict("this film is fine")[0].label in ("neg", "pos")
    report = (here / "road/report.html").read_text()
    assert "3 of 3 stages have ended." in report and "Test of the final model" in report
    assert draw("road").read_text() == report


def test_what_has_ended_is_passed_over_and_the_rest_goes_on(here):
    whole = run(road(output_dir="whole"))
    stopped = run(small.ROAD, Count(stop=("task", 3)))
    assert stopped.interrupted and stopped.exit_code == 130 and stopped.best_path is None
    assert [s.name for s in stopped.stages] == ["domain", "task"]
    count = Count()
    result = run(small.ROAD, count)
    assert count.steps == {"task": 1, "classify": 6} and [s.skipped for s in result.stages] == [True, False, False]
    weights = [(here / name / "final/model.safetensors").read_bytes() for name in ("road", "whole")]
    assert weights[0] == weights[1] and result.metrics["test/loss"] == whole.metrics["test/loss"]
    again = run(small.ROAD, count)
    assert count.steps == {"task": 1, "classify": 6} and all(s.skipped for s in again.stages)
    assert again.metrics == {k: v for k, v in result.metrics.items() if k.startswith(("eval/", "test/"))}
    assert again.stages[0].result.best_metric == whole.stages[0].result.best_metric


def test_a_plugin_that_changes_options_does_not_make_a_finished_stage_another(here):
    class NoDecay:
        @hookimpl
        def tunecore_configure(self, config):
            return dataclasses.replace(config, training=dataclasses.replace(config.training, weight_decay=0.0))

    run(small.ROAD, NoDecay())
    assert load_config("road/task/run.yaml").training.weight_decay == 0.0
    count = Count()
    assert all(stage.skipped for stage in run(small.ROAD, NoDecay(), count).stages) and count.steps == {}


def test_a_damaged_result_is_made_again_and_not_passed_over(here):
    run(small.ROAD)
    digest = model_digest("road/task")
    (resolve_model("road/task") / "model.safetensors").write_bytes(b"damaged")
    count = Count()
    with pytest.warns(UserWarning, match="step-4 is skipped"):
        run(small.ROAD, count)
    assert count.steps == {"task": 2} and model_digest("road/task") == digest


def test_a_stage_that_would_start_from_another_model_is_refused(here):
    run(small.ROAD)
    longer = with_stage(1, training={"steps": 6})
    with pytest.raises(ConfigError) as caught:
        run(longer)
    assert "stage 'classify': 'road/classify' was begun from another result" in str(caught.value)
    assert "Remove that folder" in str(caught.value)


def test_a_stage_can_be_added_and_one_whose_folder_is_removed_is_run_again(here):
    first = run(road(stages=small.ROAD["stages"][:2]))
    assert first.head is None and model_digest("road") == model_digest("road/task")
    digest = model_digest("road/domain")
    shutil.rmtree("road/domain")
    count = Count()
    result = run(small.ROAD, count)
    assert count.steps == {"domain": 4, "classify": 6}, "the same run gives the same model, so task still stands"
    assert model_digest("road/domain") == digest and "test/accuracy" in result.metrics


@pytest.mark.parametrize(
    ("number", "change", "error", "message"),
    [
        (2, {"data": {"train": ["absent.csv"]}}, DataError, "stage 'classify': absent.csv"),
        (2, {"head": {"sequence_classification": {"label": "lable"}}}, DataError, "no column 'lable'"),
        (1, {"objectives": {"masked_ml": 1.0}}, ConfigError, "stage 'task': objectives.masked_ml: unknown objective"),
        (2, {"strategies": ["head_onyl"]}, ConfigError, "stage 'classify': strategies.0: unknown strategy"),
        (2, {"search": {"space": {"training.epoch": [1]}}}, ConfigError, "'classify': search.space: training.epoch"),
    ],
)
def test_a_mistake_in_a_later_stage_is_told_before_the_first_is_run(here, number, change, error, message):
    count = Count()
    with pytest.raises(error) as caught:
        run(with_stage(number, **change), count)
    assert message in str(caught.value) and count.steps == {} and not (here / "road").exists()


def test_a_changed_option_of_a_stage_names_it(here):
    run(small.ROAD)
    with pytest.raises(ConfigError, match=re.escape("stage 'domain': output_dir 'road/domain' holds another run")):
        run(with_stage(0, training={"steps": 4, "batch_size": 4}))


def test_a_folder_of_another_run_is_refused(here):
    run({**small.COMMON, "head": "sequence_classification", "training": {"steps": 1, "batch_size": 8}})
    with pytest.raises(ConfigError, match="holds another run, one without stages"):
        run(small.ROAD)


def test_a_search_can_be_the_last_stage(here):
    search = {"space": {"training.learning_rate": [1e-3, 1e-2]}, "sampler": "grid"}
    result = run(with_stage(2, search=search))
    last = result.stages[-1].result
    assert len(last.trials) == 2 and model_digest("road") == model_digest(f"road/classify/trial-{last.best.number}")
    assert result.metrics["test/accuracy"] == last.metrics["test/accuracy"]
    assert json.loads((here / "road/classify/result.json").read_text())["trial"] == last.best.number
    assert load_config("road/classify/trial-0/run.yaml").model.checkpoint == "road/task"


def test_a_test_file_that_is_added_later_is_measured_without_training(here):
    data = {**small.COMMON["data"], "test": []}
    first = run(road(data=data))
    assert not any(name.startswith("test/") for name in first.metrics)
    count = Count()
    assert "test/accuracy" in run(small.ROAD, count).metrics and count.steps == {}
