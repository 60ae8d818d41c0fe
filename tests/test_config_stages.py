"""What a stage inherits, and what it may not say."""

import json

import pytest

from tunecore.config import PluginsConfig, RunConfig
from tunecore.config_io import dump_config, load_config, load_stages
from tunecore.config_schema import commented_yaml, json_schema
from tunecore.errors import ConfigError
from tunecore.plugins import load_plugins

BASE = {
    "output_dir": "runs/r", "model": {"family": "bert", "size": "small"}, "tokenizer": {"path": "t"},
    "data": {"train": "train.csv", "eval": "dev.csv", "test": "test.csv", "max_length": 64},
    "training": {"epochs": 2, "batch_size": 16}, "evaluation": {"metric": "f1", "patience": 2}, "strategies": ["full"],
    "head": {"sequence_classification": {"label": "y"}},
}  # fmt: skip
TEXT = {"objectives": {"masked_lm": 1.0}}


def stages_of(*stages, **changes):
    made = load_stages(load_config({**BASE, **changes, "stages": list(stages)}))
    return [stage.config for stage in made]


def refusal(*stages, **changes):
    with pytest.raises(ConfigError) as caught:
        stages_of(*stages, **changes)
    return str(caught.value)


def test_a_run_without_stages_has_none():
    assert load_stages(load_config(BASE)) == () and RunConfig().stages == ()


def test_a_stage_that_says_nothing_is_the_run_itself():
    (config,) = stages_of({"name": "only"})
    wanted = load_config({**BASE, "output_dir": "runs/r/only"})
    assert config == wanted


def test_what_is_inherited_and_what_is_not():
    first, second, third = stages_of(
        {"name": "domain", **TEXT, "data": {"train": ["c.txt"]}, "training": {"steps": 9}},
        {"name": "task", **TEXT, "data": {"text": "question"}, "strategies": ["head_only"], "evaluation": {"every": 3}},
        {"name": "last", "training": {"batch_size": 4}, "tokenizer": None},
    )
    assert first.model.family == "bert" and first.tokenizer.path == "t" and first.output_dir == "runs/r/domain"
    assert first.head is None and first.strategies == () and first.evaluation.metric is None
    assert first.evaluation.patience == 2, "the rest of a section stays"
    assert (first.training.steps, first.training.epochs, first.training.batch_size) == (9, None, 16)
    assert (first.data.train, first.data.eval, first.data.test) == (("c.txt",), (), ())
    assert second.model.checkpoint == "runs/r/domain" and second.model.family is None
    assert second.tokenizer.path is None, "the stage before brings its own"
    assert (second.data.train, second.data.eval, second.data.test) == (("train.csv",), ("dev.csv",), ())
    assert second.data.text == "question" and second.data.max_length == 64 and second.strategies == ("head_only",)
    assert third.head == BASE["head"] and third.objectives == {} and third.evaluation.metric == "f1"
    assert third.data.test == ("test.csv",) and third.strategies == ("full",)
    assert (third.training.epochs, third.training.batch_size) == (2.0, 4)
    assert third.model.checkpoint == "runs/r/task"


def test_the_last_stage_may_search():
    space = {"training.epochs": [1, 2]}
    first, last = stages_of({"name": "a", **TEXT}, {"name": "b", "search": {"space": space, "trials": 4}})
    assert not first.search.space and last.search.space == space and last.search.num_trials == 4


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (["x"], "stages.0 is 'x'; it must be {key: value} pairs"),
        ([{"head": "h"}], "stages.0 has no name"),
        ([{"name": 3}], "stages.0 has no name"),
        ([{"name": "a/b"}], "the name 'a/b' cannot be that of a stage's folder"),
        ([{"name": "final"}], "'final' cannot be"),
        ([{"name": "step-3"}], "'step-3' cannot be"),
        ([{"name": "run.yaml"}], "'run.yaml' cannot be"),
        ([{"name": "a"}, {"name": "a"}], "two are named 'a'"),
        ([{"name": "a", "trainin": {}}], "stage 'a': trainin is not an option; did you mean training?"),
        ([{"name": "a", "training": {"step": 1}}], "stage 'a': training.step is not an option; did you mean steps?"),
        ([{"name": "a", "training": {"steps": "x"}}], "stage 'a': training.steps is 'x'; it must be a valid integer"),
        ([{"name": "a", "training": 3}], "stage 'a': training is 3; it must be"),
        ([{"name": "a", "training": {"steps": 0}}], "stage 'a': training.steps is 0; it must be greater"),
        ([{"name": "a", "output_dir": "x"}], "stage 'a': output_dir belongs to the whole file"),
        ([{"name": "a", "stages": []}], "stage 'a': stages belongs to the whole file"),
        ([{"name": "a", "plugins": {}}], "stage 'a': plugins belongs to the whole file"),
        ([{"name": "a", **TEXT, "head": "h"}], "stage 'a': objectives and head are both set"),
        ([{"name": "a"}, {"name": "b", "model": {"family": "gpt2"}}], "stage 'b': model.family belongs to the first"),
        ([{"name": "a"}, {"name": "b", "tokenizer": {"path": "x"}}], "stage 'b': tokenizer belongs to the first"),
        ([{"name": "a", "search": {"space": {"training.epochs": [1]}}}, {"name": "b"}], "only the last stage may"),
        ([{"name": "a", "search": {"spac": {}}}], "stage 'a': search.spac is not an option; did you mean space?"),
    ],
)  # fmt: skip
def test_a_mistake_names_its_stage(stages, message):
    assert message in refusal(*stages)


def test_a_stage_must_train_something():
    assert "stage 'a' has neither objectives nor a head" in refusal({"name": "a"}, head=None)


def test_a_search_over_all_stages_is_refused():
    told = refusal({"name": "a"}, search={"space": {"training.epochs": [1]}})
    assert "stages and search.space are both set" in told


def test_the_file_and_the_override_are_named(tmp_path):
    path = tmp_path / "road.yaml"
    path.write_text("head: h\nstages:\n- {name: a, training: {steps: x}}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: stage 'a': training.steps is 'x'")
    path.write_text("head: h\nstages:\n- {name: a, training: {steps: 3}}\n")
    assert load_stages(load_config(path, ["stages.0.training.steps=5"]))[0].config.training.steps == 5
    with pytest.raises(ConfigError, match=r"--set stages\.0\.trainin\.steps=5: stage 'a': trainin is not an option"):
        load_config(path, ["stages.0.trainin.steps=5"])


def test_what_is_written_is_read_back(tmp_path):
    config = load_config({**BASE, "stages": [{"name": "a", **TEXT}, {"name": "b", "training": {"epochs": 1.5}}]})
    for text in (dump_config(config), commented_yaml(config)):
        (tmp_path / "r.yaml").write_text(text)
        assert load_config(tmp_path / "r.yaml") == config


def test_the_schema_knows_stages_and_searches():
    schema = json_schema(load_plugins(PluginsConfig(load=False)).registry)
    items = schema["properties"]["stages"]["items"]
    assert items["required"] == ["name"] and not items["additionalProperties"]
    assert {"name", "head", "objectives", "training", "search"} <= items["properties"].keys()
    assert not {"stages", "output_dir", "plugins"} & items["properties"].keys()
    for part in items["properties"].values():
        if "$ref" in part:
            assert part["$ref"].removeprefix("#/properties/") in schema["properties"]
    assert "dotted option" in json.dumps(schema["$defs"]["SearchConfig"]["properties"]["space"]).lower()
