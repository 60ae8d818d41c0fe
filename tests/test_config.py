"""Run files: reading, overriding, checking, writing, comparing, explaining."""

from __future__ import annotations

import dataclasses
import json
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunecore import config as config_module
from tunecore.config import DataConfig, RunConfig, TrainingConfig
from tunecore.config_diff import RESUMABLE_KEYS, check_resumable, diff_configs
from tunecore.config_io import (
    check_components,
    dump_config,
    load_config,
    to_plain,
)
from tunecore.config_schema import commented_yaml, field_docs, json_schema
from tunecore.config_yaml import parse_yaml
from tunecore.errors import ConfigError
from tunecore.plugins import load_plugins
from tunecore.registry import Registry


@pytest.fixture
def run_file(tmp_path: Path):
    """``run_file(text)`` writes run.yaml and returns its path."""

    def write(text: str | bytes) -> Path:
        path = tmp_path / "run.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def refusal(source: Any, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    return str(caught.value)


def test_options_of_readers_are_checked_by_name():
    registry = load_plugins().registry
    check_components(load_config({"data": {"sources": {"csv": {"columns": ["text"]}}}}), registry)
    for sources, message in (
        ({"xlsx": {}}, "data.sources.xlsx: unknown source 'xlsx'; known: conll, csv"),
        ({"conll": {"encodng": "latin-1"}}, "data.sources.conll: source 'conll' has no option 'encodng'"),
        ({"conll": {"encoding": 3}}, "data.sources.conll: source 'conll': encoding is 3"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_components(load_config({"data": {"sources": sources}}), registry)
    schema = json_schema(registry)["$defs"]["DataConfig"]["properties"]["sources"]
    assert set(schema["properties"]) == set(registry.names("source")) and schema["additionalProperties"] is False


def test_nothing_gives_the_defaults():
    assert load_config() == load_config(None, []) == load_config({}) == RunConfig()


def test_a_file_is_read(run_file):
    path = run_file(
        "model: {family: bert}\ntraining:\n  learning_rate: 1e-3\n  steps: 10\ndata:\n  train: corpus.txt\n"
        "objectives: {masked_lm: {mask_rate: 0.3}}\nstrategies: head_only\n"
    )
    config = load_config(path)
    assert config.model.family == "bert"
    assert config.training.learning_rate == 1e-3 and config.training.steps == 10
    assert config.data.train == ("corpus.txt",), "one item stands for a list of one"
    assert config.strategies == ("head_only",)
    assert config.objectives == {"masked_lm": {"mask_rate": 0.3}}
    assert load_config(str(path)) == config


@pytest.mark.parametrize("text", ["", "# nothing\n", "training:\n"])
def test_an_empty_file_or_section_is_the_defaults(run_file, text):
    assert load_config(run_file(text)) == RunConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {lerning_rate: 1}", "training.lerning_rate is not an option; did you mean learning_rate?"),
        ("trainings: {}", "trainings is not an option; did you mean training?"),
        ("steps: 3", "steps is not an option; did you mean training.steps?"),
        ("data: {qqq: 3}", "data.qqq is not an option; known here: train, eval, "),
        ("training: {steps: x}", "training.steps is 'x'; it must be a valid integer"),
        ("training: {steps: '5'}", "training.steps is '5'; it must be a valid integer"),
        ("training: {steps: 2.5}", "training.steps is 2.5; it must be a valid integer"),
        ("training: {batch_size: true}", "training.batch_size is True; it must be a valid integer"),
        ("training: 3", "training is 3; it must be {key: value} pairs"),
        ("training: {schedule: 5}", "training.schedule is 5; it must be a valid string or {key: value} pairs"),
        ("data: {train: [a, 1]}", "data.train.1 is 1; it must be a valid string"),
        ("data: {normalization: nfd}", "data.normalization is 'nfd'; it must be 'none', 'nfc' or 'nfkc'"),
        ("training: {steps: 0}", "training.steps is 0; it must be greater than 0"),
        ("training: {epochs: 0}", "training.epochs is 0.0; it must be greater than 0"),
        ("training: {learning_rate: -1e-3}", "training.learning_rate is -0.001; it must be greater than 0"),
        ("training: {learning_rate: .nan}", "training.learning_rate is nan; it must be a finite number"),
        ("training: {weight_decay: .inf}", "training.weight_decay is inf; it must be a finite number"),
        ("objectives: {masked_lm: -1}", "objectives.masked_lm: the weight is -1; it must be a number greater than 0"),
        ("objectives: {masked_lm: 1}\nhead: x", "objectives and head are both set"),
        ("data: {max_length: 3}", "data.max_length is 3; it must be at least 4"),
        ("training: {steps: 1, epochs: 1}", "training.steps and training.epochs are both set"),
        ("training:\n  steps: 1\n  steps: 2\n", "line 3, column 3 key 'steps' is given twice"),
        ("training: [1\n", "line 2, column 1 expected ',' or ']'"),
        ("- a\n- b\n", "a run file holds keys and values, not a list"),
        ("objectives: {1: 2}", "objectives has the key 1, which is not text; quote it"),
        ("head: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        (b"head: \xff", "cannot be read: 'utf-8' codec can't decode"),
    ],
)
def test_every_mistake_names_the_file_and_the_key(run_file, text, message):
    path = run_file(text)
    told = refusal(path)
    assert told.startswith(str(path)) and message in told


def test_a_missing_file_says_how_to_make_one(tmp_path):
    assert "there is no such file" in refusal(tmp_path / "none.yaml")
    assert "tunecore init" in refusal(tmp_path / "none.yaml")
    assert "cannot be read" in refusal(tmp_path)


def test_all_wrong_types_are_told_at_once(run_file):
    told = refusal(run_file("training: {steps: x, batch_size: y}\nhead: 3"))
    assert len(told.splitlines()) == 3


def test_a_mapping_is_read_like_a_file():
    tree = dataclasses.asdict(RunConfig(output_dir="a"))
    assert load_config(tree) == RunConfig(output_dir="a")
    given = {"data": {"train": [Path("a/b.txt")], "max_length": np.int64(16)}, "training": {"warmup": np.float32(0.5)}}
    config = load_config(given)
    assert config.data == DataConfig(train=("a/b.txt",), max_length=16)
    assert type(config.data.max_length) is int and config.training.warmup == 0.5
    assert "head is <object" in refusal({"head": object()}) and "cannot be kept in a configuration" in refusal(
        {"head": object()}
    )


def test_overrides_are_typed_yaml_and_the_last_wins():
    config = load_config(
        {"training": {"steps": 5}},
        ["training.steps=7", "training.steps=9", "training.learning_rate=3e-5", "data.train=[a, b]", "data.text="],
    )
    assert config.training == TrainingConfig(steps=9, learning_rate=3e-5)
    assert config.data == DataConfig(train=("a", "b"), text=None)


def test_overrides_reach_into_components():
    config = load_config(
        {
            "objectives": {"masked_lm": 2}, "training": {"optimizer": "adamw"},
            "strategies": ["full", {"slow": {"a": 1}}],
        },
        [
            "objectives.masked_lm.mask_rate=0.3", "objectives.next_sentence=0.5", "training.optimizer.adamw.beta2=0.98",
            "strategies.1.slow.b=2", "model.overrides.hidden_dropout_prob=0.0",
        ],
    )  # fmt: skip
    assert config.model.overrides == {"hidden_dropout_prob": 0.0}
    assert config.objectives == {"masked_lm": {"weight": 2, "mask_rate": 0.3}, "next_sentence": 0.5}
    assert config.training.optimizer == {"adamw": {"beta2": 0.98}}
    assert config.strategies == ("full", {"slow": {"a": 1, "b": 2}})
    assert load_config({"head": "x"}, ["head.x.text=review"]).head == {"x": {"text": "review"}}
    replaced = load_config({"training": {"optimizer": "adamw"}}, ["training.optimizer.sgd.momentum=0.9"])
    assert replaced.training.optimizer == {"sgd": {"momentum": 0.9}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.steps", "--set 'training.steps' is not of the form key=value"),
        ("=3", "is not of the form key=value"),
        ("a..b=3", "is not of the form key=value"),
        ("training.stepz=3", "--set training.stepz=3: training.stepz is not an option; did you mean steps?"),
        ("training.steps=0", "--set training.steps=0: training.steps is 0; it must be greater than 0"),
        ("training.steps=x", "--set training.steps=x: training.steps is 'x'; it must be a valid integer"),
        ("training.steps={", "--set training.steps={: line 1, column 2"),
        ("strategies.3=full", "--set strategies.3=full: '3' is not a place in a list of 1"),
        ("data.deduplicate.x=1", "--set data.deduplicate.x=1: 'x' would be set inside True, which holds no keys"),
    ],
)
def test_a_wrong_override_is_named_as_such(run_file, override, message):
    path = run_file("strategies: [full]\ndata: {deduplicate: true}\n")
    assert message in refusal(path, (override,))


def test_a_mistake_of_the_file_is_not_blamed_on_an_override(run_file):
    path = run_file("training: {steps: x}")
    assert refusal(path, ("training.batch_size=4",)).startswith(f"{path}: training.steps")


_texts = st.text(alphabet=string.ascii_letters + string.digits + " :#-'\"{}[],\n\té~", max_size=12)
_numbers = st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False)
_values = st.none() | st.booleans() | _texts | _numbers | st.lists(_numbers, max_size=2)
_options = st.dictionaries(_texts, _values, max_size=3)


@settings(max_examples=60, deadline=None)
@example(output_dir="0E0", train=["1e5"], rate=1.0, overrides={"": "0E0"}, optimizer="0E0", strategies=[])
@given(
    output_dir=_texts.filter(str.strip),
    train=st.lists(_texts, max_size=3),
    rate=st.floats(1e-12, 1e3),
    overrides=_options,
    optimizer=_texts | _options,
    strategies=st.lists(_texts | _options, max_size=2),
)
def test_what_is_written_is_read_back(tmp_path_factory, output_dir, train, rate, overrides, optimizer, strategies):
    config = load_config(
        {
            "output_dir": output_dir, "data": {"train": train}, "model": {"overrides": overrides},
            "training": {"learning_rate": rate, "optimizer": optimizer}, "strategies": strategies,
        }
    )  # fmt: skip
    path = tmp_path_factory.getbasetemp() / "round.yaml"
    for text in (dump_config(config), commented_yaml(config, header="x\n\ny")):
        path.write_text(text, encoding="utf-8")
        assert load_config(path) == config
    assert yaml.safe_load(dump_config(RunConfig())) == to_plain(RunConfig())


def test_differences_are_dotted_and_blind_to_spelling():
    old = load_config({"objectives": {"masked_lm": 1.0}, "strategies": ["full"], "training": {"optimizer": "adamw"}})
    long_spelling = {"objectives": {"masked_lm": {"weight": 1}}, "strategies": [{"full": None}]}
    same = load_config({**long_spelling, "training": {"optimizer": {"adamw": {}}}})
    assert diff_configs(old, same) == []
    other = load_config(
        {
            "objectives": {"masked_lm": {"mask_rate": 0.3}},
            "strategies": [{"full": {}}, "head_only"],
            "training": {"optimizer": {"adamw": {"beta2": 0.9}}, "steps": 4},
        }
    )
    assert diff_configs(old, other) == [
        "objectives.masked_lm.mask_rate", "strategies", "training.optimizer.adamw.beta2", "training.steps",
    ]  # fmt: skip
    swapped = load_config(
        {"objectives": {"masked_lm": 1.0}, "strategies": ["full"], "training": {"optimizer": "sgd"}}
    )
    assert diff_configs(old, swapped) == ["training.optimizer.adamw", "training.optimizer.sgd"]


def test_resuming_may_change_only_what_changes_no_step():
    old = load_config({"training": {"steps": 10}})
    changes = {
        "training.steps": 20, "training.threads": 3, "data.num_workers": 2, "checkpoint.every": 5, "checkpoint.keep": 3,
        "tracking.every": 1, "tracking.progress": False, "evaluation.every": 9, "output_dir": "elsewhere",
    }  # fmt: skip
    new = load_config({"training": {"steps": 10}}, [f"{key}={json.dumps(value)}" for key, value in changes.items()])
    assert set(diff_configs(old, new)) == set(changes)
    check_resumable(old, new)
    check_resumable(old, load_config({"training": {"epochs": 2}}))
    with pytest.raises(ConfigError) as caught:
        check_resumable(old, load_config({"training": {"steps": 10, "batch_size": 8, "seed": 1}}))
    assert "training.batch_size was 32 and is now 8, training.seed was 0 and is now 1" in caught.value.message
    assert "training.steps" in str(caught.value.hint)


def test_resumable_keys_exist():
    plain = to_plain(RunConfig())
    for key in RESUMABLE_KEYS:
        section, _, name = key.rpartition(".")
        assert name in (plain[section] if section else plain)


@dataclass(frozen=True)
class Options:
    """What echo takes."""

    rate: float = 0.5
    """How ``often``
    it echoes."""
    words: tuple[str, ...] = ()
    bare: int | None = None

    def __post_init__(self) -> None:
        if self.rate > 1:
            raise ConfigError("rate is above 1")
        if self.rate < 0:
            raise ValueError("rate is below 0")


class Strange:
    """A type pydantic knows nothing of."""


@dataclass(frozen=True)
class StrangeOptions:
    """Options with a field no JSON can say."""

    thing: Strange | None = None


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    for kind in ("objective", "head", "strategy", "optimizer", "schedule"):
        registry.add(kind, {"optimizer": "adamw", "schedule": "linear"}.get(kind, "echo"), Options, Options, "test")
    registry.add("strategy", "strange", StrangeOptions, StrangeOptions, "test")
    registry.add("family", "bert", Options, None, "test")
    registry.add("tracker", "board", Options, None, "test")
    return registry


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objectives.ecko=1"], "objectives.ecko: unknown objective 'ecko'; known: echo. Did you mean 'echo'?"),
        (["head=ecko"], "head: unknown head 'ecko'; known: echo."),
        (["strategies=[echo, eko]"], "strategies.1: unknown strategy 'eko'; known: echo, strange."),
        (["training.optimizer=adam"], "training.optimizer: unknown optimizer 'adam'; known: adamw."),
        (["training.schedule={a: 1, b: 2}"], "training.schedule: {'a': 1, 'b': 2} is neither a name nor a single"),
        (["model.family=burt"], "model.family: unknown family 'burt'; known: bert."),
        (["tracking.trackers=bord"], "tracking.trackers: unknown tracker 'bord'; known: board."),
        (["objectives.echo.rat=1"], "objectives.echo: objective 'echo' has no option 'rat'. Did you mean 'rate'?"),
        (["head.echo.rate=high"], "head: head 'echo': rate is 'high'; it must be a valid number"),
        (["head.echo.rate=2"], "head: rate is above 1"),
        (["head.echo.rate=-1"], "head: head 'echo': rate is below 0"),
        (["training.optimizer.adamw.words=[1]"], "optimizer 'adamw': words.0 is 1; it must be a valid string"),
    ],
)
def test_components_are_checked_with_their_key(registry, overrides, message):
    with pytest.raises(ConfigError) as caught:
        check_components(load_config(None, overrides), registry)
    assert message in str(caught.value)


def test_good_components_pass(registry):
    overrides = ["objectives.echo={weight: 2, rate: 1, words: [a]}", "strategies=[echo, strange]", "model.family=bert"]
    check_components(load_config(None, overrides), registry)
    check_components(load_config(None, ["head.echo.words=one", "tracking.trackers=board"]), registry)


def test_every_option_is_documented():
    for name, cls in vars(config_module).items():
        if dataclasses.is_dataclass(cls):
            missing = {field.name for field in dataclasses.fields(cls)} - field_docs(cls).keys()
            assert not missing, f"{name} has undocumented fields"
    assert field_docs(Options) == {"rate": "How `often` it echoes."}


def test_a_commented_file_explains_every_option():
    lines = commented_yaml(RunConfig(), header="A run.").splitlines()
    assert lines[0] == "# A run."
    at = lines.index("  learning_rate: null")
    assert lines[at - 2].startswith("  # Peak learning rate; null is 5e-5 from a checkpoint")
    assert load_config(parse_yaml("\n".join(lines), "init")) == RunConfig()


def test_the_schema_knows_every_option_and_component(registry):
    schema = json_schema(registry)
    json.dumps(schema)
    training = schema["$defs"]["TrainingConfig"]
    assert training["additionalProperties"] is False
    assert training["properties"]["steps"]["description"].startswith("Optimizer steps")
    assert training["properties"].keys() == {field.name for field in dataclasses.fields(TrainingConfig)}
    assert schema["properties"].keys() == {field.name for field in dataclasses.fields(RunConfig)}
    echo = schema["$defs"]["objective.echo"]
    assert echo["properties"].keys() == {"weight", "rate", "words", "bare"}
    assert echo["properties"]["rate"]["description"] == "How `often` it echoes."
    assert "weight" not in schema["$defs"]["head.echo"]["properties"]
    assert schema["$defs"]["strategy.strange"]["properties"] == {"thing": {}}
    assert schema["properties"]["head"]["anyOf"][0]["enum"] == ["echo"]
    assert schema["properties"]["objectives"]["properties"]["echo"]["anyOf"][1] == {"$ref": "#/$defs/objective.echo"}


def test_every_reference_of_the_schema_leads_somewhere(registry):
    schema = json_schema(registry)

    def references(node: Any):
        if isinstance(node, dict):
            yield from ([node["$ref"]] if isinstance(node.get("$ref"), str) else [])
            for item in node.values():
                yield from references(item)
        elif isinstance(node, list):
            for item in node:
                yield from references(item)

    found = set(references(schema))
    assert "#/$defs/head.echo" in found
    for reference in found:
        node: Any = schema
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]
