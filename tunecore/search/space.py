"""From the space of a search to the configuration of one trial."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunecore.config import RunConfig
from tunecore.config_io import check_components, load_config, to_plain
from tunecore.config_search import Choices, Parameter, SearchConfig
from tunecore.data.streams import derive_key
from tunecore.errors import ConfigError
from tunecore.inputs import split_seed
from tunecore.registry import Registry, name_and_options

SEED = "training.seed"


def trial_folder(folder: Path, number: int) -> Path:
    """The run folder of a trial."""
    return folder / f"trial-{number}"


def metric_of(config: RunConfig, registry: Registry) -> str:
    """The metric a search is for; a leading "-" means lower is better."""
    metric = config.search.metric or config.evaluation.metric
    if metric is None and config.head is not None:
        metric = registry.create("head", *name_and_options(config.head, "head")).default_metric
    return metric or "-loss"


def search_seed(config: RunConfig) -> int:
    """What fixes the draws of a search."""
    return config.training.seed if config.search.seed is None else config.search.seed


def values_of(parameters: Mapping[str, Parameter], labels: Mapping[str, Any]) -> dict[str, Any]:
    """Labels of choices, as they are stored and shown, back to the values they stand for."""
    values = {}
    for name, label in labels.items():
        parameter = parameters[name]
        values[name] = parameter.values[_place(parameter, label)] if isinstance(parameter, Choices) else label
    return values


def _place(parameter: Choices, label: Any) -> int:
    # As JSON, for 1 and true are equal in Python.
    return [json.dumps(known) for known in parameter.labels].index(json.dumps(label))


def trial_config(config: RunConfig, number: int, values: Mapping[str, Any], metric: str) -> RunConfig:
    """The run of one trial: the options it tries, a seed of its own, and the held-out rows that all trials share.

    Args:
        config: the search.
        number: the trial's.
        values: dotted option -> value.
        metric: what the search is for.

    Raises:
        ConfigError: the values make no run; the option is named.
    """
    tree = to_plain(_without_search(config))
    tree["output_dir"] = str(trial_folder(Path(config.output_dir), number))
    tree["data"] |= {"split_seed": split_seed(config), "test": []}
    tree["training"]["seed"] = derive_key(search_seed(config), number) % 2**31
    tree["evaluation"]["metric"] = metric
    try:
        return load_config(tree, [f"{name}={json.dumps(value)}" for name, value in values.items()])
    except ConfigError as error:
        message = error.message.replace("--set ", "search.space: ")
        raise ConfigError(message, hint=error.hint) from error


def _without_search(config: RunConfig) -> RunConfig:
    return replace(config, search=SearchConfig())


def check_space(config: RunConfig, registry: Registry) -> None:
    """Try every choice, and both ends of every range, each alone, before anything is trained.

    Raises:
        ConfigError: the space is empty, an option is unknown or a value is wrong; or nothing is held out to choose by.
    """
    if not config.search.space:
        raise ConfigError(
            "search.space is empty, so there is nothing to search over",
            hint="For example: search: {space: {training.learning_rate: {low: 1e-5, high: 1e-4, log: true}}}.",
        )
    if not config.data.eval and config.data.eval_fraction == 0:
        raise ConfigError("a search needs held-out data to choose by", hint="Set data.eval, or data.eval_fraction.")
    for name, parameter in config.search.parameters.items():
        ends = parameter.values if isinstance(parameter, Choices) else (parameter.low, parameter.high)
        for value in ends:
            made = trial_config(config, 0, {name: value}, "-loss")
            try:
                check_components(made, registry)
            except ConfigError as error:
                raise ConfigError(f"search.space: {name}={value!r}: {error.message}", hint=error.hint) from error


def best_config(trial: RunConfig, config: RunConfig) -> RunConfig:
    """The run file that trains the best trial again: its options and seed, in a folder beside the search."""
    data = replace(trial.data, test=config.data.test)
    return replace(trial, output_dir=f"{config.output_dir}-best", data=data)
