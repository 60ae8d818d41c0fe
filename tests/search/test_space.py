import dataclasses

import pytest

from tunecore.config import PluginsConfig
from tunecore.config_io import dump_config, load_config
from tunecore.config_search import Choices, Range, SearchConfig
from tunecore.errors import ConfigError
from tunecore.plugins import load_plugins
from tunecore.search.space import best_config, check_space, metric_of, trial_config, values_of

RATE = {"training.learning_rate": {"low": 1e-5, "high": 1e-4, "log": True}}


@pytest.fixture(scope="module")
def registry():
    return load_plugins(PluginsConfig(load=False)).registry


def config_of(space=None, **options):
    base = {"model": {"checkpoint": "m"}, "data": {"train": "t.csv", "eval": "d.csv"}}
    search = {"space": RATE if space is None else space}
    return load_config({"head": "sequence_classification", **base, "search": search, **options})


def test_a_space_is_read():
    space = {**RATE, "training.epochs": {"low": 1, "high": 5, "step": 2}, "strategies": [[], [{"full": {}}], ["full"]]}
    parameters = config_of(space).search.parameters
    assert parameters["training.learning_rate"] == Range(1e-5, 1e-4, log=True)
    assert parameters["training.epochs"] == Range(1, 5, step=2) and parameters["training.epochs"].is_whole
    assert not parameters["training.learning_rate"].is_whole
    assert parameters["strategies"].labels == ("[]", '[{"full": {}}]', '["full"]')


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"training.epochs": 3}, "search.space.training.epochs is 3; it must be a list of values, or a range"),
        ({"training.epochs": "2,3"}, "it must be a list of values"),
        ({"training.epochs": []}, "it must be a list of values"),
        ({"training.epochs": [2, 3, 2]}, "search.space.training.epochs lists a value twice"),
        ({"strategies": [["full"], ["full"]]}, "search.space.strategies lists a value twice"),
        ({"training.epochs": {"low": 1}}, "a range has low and high, and may have log and step"),
        ({"training.epochs": {"low": 1, "high": 2, "steps": 1}}, "a range has low and high"),
        ({"training.epochs": {"low": 1, "high": True}}, "training.epochs.high is True; it must be a number"),
        ({"training.epochs": {"low": None, "high": 2}}, "training.epochs.low is None; it must be a number"),
        ({"training.epochs": {"low": 2, "high": 2}}, "low is 2 and high 2; low must be below high"),
        ({"training.epochs": {"low": 0, "high": 2, "log": True}}, "low is 0; it must be greater than 0 where log"),
        ({"training.epochs": {"low": 1, "high": 2, "log": 1}}, "log is 1; it must be true or false"),
        ({"training.epochs": {"low": 1, "high": 2, "log": True, "step": 1}}, "step is 1; it must be greater"),
        ({"training.epochs": {"low": 1, "high": 2, "step": 0.5}}, "a range of whole numbers takes whole steps"),
        ({"training..epochs": [1]}, "is no dotted option"),
        ({"output_dir": ["a"]}, "search.space.output_dir: output_dir is the same in every trial"),
        ({"checkpoint.keep": [1]}, "checkpoint is the same in every trial"),
        ({"data.test": [["a"]]}, "data.test is the same in every trial"),
    ],
)
def test_a_wrong_space_is_told(space, message):
    with pytest.raises(ConfigError) as caught:
        config_of(space)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        ({"training.lerning_rate": [1]}, {}, "search.space: training.lerning_rate=1: training.lerning_rate is not"),
        ({"training.batch_size": [8, "x"]}, {}, "search.space: training.batch_size=\"x\": training.batch_size is 'x'"),
        ({"training.batch_size": {"low": -1, "high": 8}}, {}, "training.batch_size is -1; it must be greater than 0"),
        ({"strategies": [[], ["head_onyl"]]}, {}, "unknown strategy 'head_onyl'"),
        ({"head.sequence_classification.label_smoothing": [0.1, 1.5]}, {}, "label_smoothing is 1.5; it must be"),
        ({"training.epochs": [1, 2]}, {"training": {"steps": 3}}, "training.steps and training.epochs are both set"),
        (None, {"data": {"train": "t.csv", "eval_fraction": 0}}, "a search needs held-out data to choose by"),
    ],
)
def test_every_end_of_a_space_is_tried_before_anything_is_trained(registry, space, options, message):
    config = config_of(space, **options)
    with pytest.raises(ConfigError) as caught:
        check_space(config, registry)
    assert message in str(caught.value)


def test_a_good_space_passes(registry):
    check_space(config_of({**RATE, "strategies": [[], ["head_only"]], "training.epochs": [1, 2.5]}), registry)
    with pytest.raises(ConfigError, match="nothing to search over"):
        check_space(config_of({}), registry)


def test_a_trial_is_the_run_with_its_values_and_a_seed_of_its_own():
    config = config_of(search={"space": {**RATE, "strategies": [[], ["full"]]}, "seed": 5}, training={"seed": 3})
    values = {"training.learning_rate": 2e-5, "strategies": ["full"]}
    made = [trial_config(config, number, values, "mcc") for number in (0, 1)]
    for number, trial in enumerate(made):
        assert trial.training.learning_rate == 2e-5 and trial.strategies == ("full",)
        assert trial.output_dir.endswith(f"trial-{number}") and trial.search == SearchConfig()
        assert trial.evaluation.metric == "mcc" and trial.data.split_seed == 3, "all trials hold out the same rows"
    assert made[0].training.seed != made[1].training.seed
    assert made[0] == trial_config(config, 0, values, "mcc")
    other = dataclasses.replace(config, search=dataclasses.replace(config.search, seed=6))
    assert trial_config(other, 0, values, "mcc").training.seed != made[0].training.seed
    assert trial_config(config, 0, {"training.seed": 11}, "mcc").training.seed == 11


def test_labels_stand_for_their_values():
    parameters = {"a": Choices((1, True, "1", None, [1], {"x": 2.0})), "b": Range(0.0, 1.0)}
    for label, value in zip(parameters["a"].labels, parameters["a"].values, strict=True):
        found = values_of(parameters, {"a": label, "b": 0.5})
        assert found == {"a": value, "b": 0.5} and type(found["a"]) is type(value)


def test_the_metric_is_the_searchs_the_evaluations_or_the_heads(registry):
    assert metric_of(config_of(), registry) == "accuracy"
    assert metric_of(config_of(evaluation={"metric": "mcc"}), registry) == "mcc"
    given = {"space": RATE, "metric": "-loss"}
    assert metric_of(config_of(search=given, evaluation={"metric": "mcc"}), registry) == "-loss"
    text = load_config({"objectives": {"masked_lm": 1.0}, "search": {"space": RATE}})
    assert metric_of(text, registry) == "-loss"


def test_the_best_run_file_trains_the_best_trial_again(tmp_path):
    config = config_of(data={"train": "t.csv", "eval": "d.csv", "test": "e.csv"}, output_dir="runs/s")
    trial = trial_config(config, 2, {"training.learning_rate": 3e-5}, "accuracy")
    path = tmp_path / "best.yaml"
    path.write_text(dump_config(best_config(trial, config)))
    read = load_config(path)
    assert read.training == trial.training and read.data.test == ("e.csv",) and not read.search.space
    assert read.output_dir == "runs/s-best"


def test_how_many_trials():
    grid = {"training.epochs": [1, 2, 3], "strategies": [[], ["full"]]}
    assert SearchConfig(space=grid, sampler="grid").num_trials == 6
    assert SearchConfig(space=grid, sampler="grid", trials=4).num_trials == 4
    assert SearchConfig(space=grid, sampler="grid", trials=9).num_trials == 6
    assert SearchConfig(space=grid).num_trials == 20 and SearchConfig(space=grid, trials=9).num_trials == 9
    with pytest.raises(ConfigError, match="the grid sampler takes lists only"):
        SearchConfig(space=RATE, sampler="grid")
    with pytest.raises(ConfigError, match=r"search\.trials is 0"):
        SearchConfig(space=grid, trials=0)
