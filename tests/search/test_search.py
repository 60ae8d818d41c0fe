"""Whole searches, in this process."""

import dataclasses
import json
import re
import sys

import pytest
import small_world as small

from tunecore import Engine, hookimpl
from tunecore.checkpoint import verify
from tunecore.config import PluginsConfig
from tunecore.config_io import load_config
from tunecore.errors import ConfigError, DataError, TrainingError
from tunecore.plugins import load_plugins
from tunecore.run_folder import model_digest, resolve_model
from tunecore.search.study import import_optuna


def config_of(**changes):
    config = {**small.SEARCH, **changes}
    config["search"] = {**small.SEARCH["search"], **changes.get("search", {})}
    return config


def run(config, *plugins):
    loaded = load_plugins(PluginsConfig(load=False), extra=plugins)
    return Engine(load_config(config), plugins=loaded).run()


@pytest.fixture
def here(world, monkeypatch):
    folder = world()
    monkeypatch.chdir(folder)
    return folder


class Count:
    """Counts steps, and does something at one of them."""

    def __init__(self, at=None, then=None):
        self.steps, self.at, self.then = 0, at, then

    @hookimpl
    def tunecore_step_end(self, run):
        self.steps += 1
        if self.steps == self.at:
            self.then(run)


def test_a_search_keeps_the_best_model_and_its_options(here):
    count = Count()
    engine = Engine(load_config(config_of()), plugins=load_plugins(PluginsConfig(load=False), extra=[count]))
    result = engine.run()
    assert [t.state for t in result.trials] == ["complete"] * 3 and count.steps == 3 * 6
    assert result.best.value == max(t.value for t in result.trials) == result.best_metric
    folder = here / "search"
    assert model_digest(folder) == model_digest(folder / f"trial-{result.best.number}")
    assert resolve_model(folder).samefile(result.best_path) and verify(result.best_path).name == "final"
    assert not {"optimizer.safetensors", "state.json"} & {p.name for p in result.best_path.iterdir()}
    # The engine now holds that model; the test's figures are those it gives.
    measured = engine.evaluate("test.jsonl")
    assert result.metrics["test/accuracy"] == measured["accuracy"]
    assert result.metrics["test/loss"] == pytest.approx(measured["loss"])
    assert engine.predict("this film is fine")[0].label in ("neg", "pos")
    # The trials have seeds and checkpoints of their own, but the same held-out rows.
    runs = [load_config(folder / f"trial-{n}/run.yaml") for n in range(3)]
    assert len({r.training.seed for r in runs}) == 3 and len({r.data.split_seed for r in runs}) == 1
    assert all(r.data.test == () for r in runs), "no trial sees the test's rows"
    # Once more: nothing is trained or measured again.
    before = (folder / "metrics.jsonl").read_text()
    again = run(config_of(), count)
    assert count.steps == 3 * 6 and (folder / "metrics.jsonl").read_text() == before
    assert dataclasses.replace(again, seconds=0) == dataclasses.replace(result, seconds=0)


def test_the_best_run_file_gives_the_same_model(here):
    result = run(config_of())
    again = Engine.from_config(here / "search/best.yaml").run()
    assert again.best_metric == result.best_metric and again.metrics["test/loss"] == result.metrics["test/loss"]
    weights = [resolve_model(f) / "model.safetensors" for f in ("search", "search-best")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_more_trials_go_on_from_those_that_are_there(here):
    first = run(config_of(search={"trials": 2}))
    count = Count()
    more = run(config_of(search={"trials": 4}), count)
    assert count.steps == 2 * 6 and more.trials[:2] == first.trials and len(more.trials) == 4


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"search": {"seed": 4}}, "search.seed was None and is now 4"),
        ({"training": {**small.SEARCH["training"], "epochs": 3}}, "training.epochs was 2.0 and is now 3.0"),
        ({"search": {"space": {"training.epochs": [1]}}}, "search.space"),
    ],
)
def test_another_search_in_the_folder_is_refused(here, change, key):
    run(config_of(search={"trials": 1}))
    with pytest.raises(ConfigError, match=re.escape(key)):
        run(config_of(**{**change, "search": {"trials": 1, **change.get("search", {})}}))


def test_changed_rows_are_refused(here):
    run(config_of(search={"trials": 1}))
    with (here / "train.jsonl").open("a") as file:
        file.write('{"text": "one more", "label": "pos"}\n')
    with pytest.raises(ConfigError, match="has changed since it began"):
        run(config_of())


@pytest.mark.parametrize("name", ["train", "eval", "test"])
def test_a_mistake_in_a_file_is_found_before_the_first_trial_and_can_be_mended(here, name):
    data = {**small.COMMON["data"], name: ["absent.jsonl"]}
    count = Count()
    with pytest.raises(DataError, match=r"absent\.jsonl"):
        run(config_of(data=data), count)
    assert count.steps == 0
    assert run(config_of(search={"trials": 1})).best is not None, "the folder is not taken by the failed one"


def test_a_signal_stops_a_search_and_the_same_call_goes_on(here):
    whole = run(config_of(output_dir="whole"))
    stopped = run(config_of(), Count(8, lambda r: r.stop.request()))
    assert stopped.interrupted and stopped.exit_code == 130 and stopped.best_path is None
    assert [t.state for t in stopped.trials] == ["complete", "running"]
    result = run(config_of())
    assert not result.interrupted and result.trials == whole.trials
    assert model_digest("search") == model_digest("whole")


def test_poor_trials_are_pruned(here):
    """A learning rate of almost 0 learns nothing: with two good trials before it, such a trial does not end."""
    space = {"training.learning_rate": [2e-2, 1e-2, 1e-12, 1e-11]}
    search = {"space": space, "sampler": "grid", "trials": None, "pruner": "median", "startup_trials": 2}
    count = Count()
    epochs = {**small.SEARCH["training"], "epochs": 6}
    result = run(config_of(search={**search, "metric": "-loss"}, training=epochs), count)
    assert [t.state for t in result.trials] == ["complete", "complete", "pruned", "pruned"]
    evaluations = [len(t.curve) for t in result.trials]
    assert evaluations[:2] == [6, 6] and max(evaluations[2:]) < 6 and count.steps < 4 * 18
    assert result.best.value == min(t.value for t in result.trials[:2])
    assert not list((here / "search").glob("trial-[23]/step-*"))


def test_a_trial_whose_loss_runs_away_fails_and_the_others_go_on(here):
    space = {"training.learning_rate": [1e-2, 1e30]}
    with pytest.warns(UserWarning, match="trial 1 failed"):
        result = run(config_of(search={"space": space, "sampler": "grid", "trials": None}))
    assert [t.state for t in result.trials] == ["complete", "failed"] and "is nan on rows" in result.trials[1].reason
    report = (here / "search/report.html").read_text()
    assert "why it failed" in report


def test_a_search_of_failures_says_why(here):
    with pytest.warns(UserWarning), pytest.raises(TrainingError, match=r"no trial .* came to its end: trial 0: "):
        run(config_of(search={"space": {"training.learning_rate": [1e30, 2e30]}, "sampler": "grid", "trials": None}))


def test_options_that_make_no_run_fail_their_trial_or_the_search_where_nothing_works(here):
    space = {"model.overrides.num_attention_heads": [2, 3]}  # of a width of 16
    with pytest.warns(UserWarning, match="trial 1 failed"):
        result = run(config_of(search={"space": space, "sampler": "grid", "trials": None}))
    assert result.trials[1].state == "failed"
    with pytest.raises(ConfigError, match="unknown metric 'acuracy'"):
        run(config_of(output_dir="other", search={"metric": "acuracy"}))


def test_text_is_searched_over_too(here):
    config = config_of(head=None, objectives={"masked_lm": 1.0}, evaluation={"every": 3, "max_rows": 8})
    config["training"] = {**small.COMMON["training"], "steps": 6}
    config["search"] = {"space": {"objectives.masked_lm.mask_rate": [0.15, 0.4]}, "sampler": "grid"}
    files = {"train": ["corpus.jsonl"], "test": ["test.jsonl"]}
    config["data"] = {**files, "text": "text", "max_length": 24, "eval_fraction": 0.2}
    result = run(config)
    assert result.metric == "-loss" and result.metrics["test/loss/masked_lm"] > 0
    assert len(list((here / "search/cache").glob("*.arrow"))) >= 1
    assert not list((here / "search").glob("trial-*/cache"))


def test_the_engine_searches_rows_in_memory(here):
    rows = small.rows()
    engine = Engine.from_scratch("bert", size="tiny", text=[r["text"] for r in rows], vocab_size=300, max_length=24,
                                 plugins={"load": False})  # fmt: skip
    options = {"epochs": 1, "batch_size": 8, "progress": False, "overrides": small.MODEL["overrides"]}
    result = engine.search(
        rows[:30], eval=rows[30:40], test=iter(rows[40:]), space={"training.learning_rate": [1e-3, 1e-2]},
        search={"sampler": "grid"}, output_dir=here / "api", **options,
    )  # fmt: skip
    assert len(result.trials) == 2 and "test/accuracy" in result.metrics
    assert engine.config.model.checkpoint == str(here / "api") and not engine.config.search.space
    assert engine.predict("a dull book")[0].label in ("neg", "pos")
    tuned = engine.finetune(rows[:30], eval=rows[30:], output_dir=here / "more", **{**options, "overrides": {}})
    assert tuned.steps == 4, "after a search, a run is a run again"


def test_without_optuna_the_way_out_is_named(monkeypatch, here):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'tunecore[search]'")):
        import_optuna()
    with pytest.raises(ConfigError, match="a search needs optuna"):
        run(config_of())


def test_what_is_kept_of_a_trial(here):
    run(config_of(search={"trials": 2}))
    told = json.loads((here / "search/trials.json").read_text())
    assert told["metric"] == "accuracy" and [t["number"] for t in told["trials"]] == [0, 1]
    for number in range(2):
        names = {p.name for p in (here / f"search/trial-{number}").iterdir()}
        assert {"run.yaml", "metrics.jsonl", "report.html", "result.json"} <= names
