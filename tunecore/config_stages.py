"""Stages of a run file: what each takes from the settings above it, from the stage before, and from itself.

Works on plain trees (dicts, lists, scalars), which ``config_io`` then checks like any run file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from tunecore.errors import ConfigError

Tree = dict[str, Any]
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_TAKEN = re.compile(r"best|final|cache|data|tokenizer|(step|trial)-\d+|.*\.(yaml|json|jsonl|html)")
"""Names of other things in a run's folder."""
OF_THE_WHOLE = ("output_dir", "plugins", "stages")
"""Keys of a run file that no stage has."""
_WHOLE = ("head", "objectives", "strategies", "search")
"""Keys that are taken as a whole, never merged."""
_LENGTHS = ("steps", "epochs")


def stage_trees(run: Mapping[str, Any]) -> Iterator[tuple[str, Tree]]:
    """(name, tree of its run) of every stage of a run whose every key is written out.

    A stage inherits every setting that it does not name (or names as null), but: its own ``objectives`` replace a
    ``head`` and the reverse; ``steps`` replaces ``epochs`` and the reverse; with its own ``data.train`` it does not
    inherit ``data.eval``; ``data.test`` is for the last stage; strategies and ``evaluation.metric`` are for stages
    with a head. From the second on, a stage starts from the model of the one before, with its tokenizer.

    Raises:
        ConfigError: a name is missing, unfit or given twice; a stage has neither objectives nor a head; a model,
            tokenizer or search where it cannot be. The stage is named.
    """
    seen: list[str] = []
    stages: Sequence[Mapping[str, Any]] = run["stages"]
    for number, stage in enumerate(stages):
        name = stage_name(stage, number)
        if name in seen:
            raise ConfigError(f"stages: two are named {name!r}; each needs a folder of its own")
        seen.append(name)
        previous = str(PurePath(run["output_dir"], seen[-2])) if number else None
        tree = _merged(run, stage, is_last=number == len(stages) - 1, previous=previous)
        tree["output_dir"] = str(PurePath(run["output_dir"], name))
        yield name, tree


def stage_name(stage: Any, number: int) -> str:
    """The name of a stage, as messages and folders call it.

    Raises:
        ConfigError: it has none, or one that cannot be a folder's.
    """
    name = stage.get("name") if isinstance(stage, Mapping) else None
    if not isinstance(name, str):
        raise ConfigError(
            f"stages.{number} has no name", hint="For example: stages: [{name: adapt, objectives: {masked_lm: 1.0}}]."
        )
    if not _NAME.fullmatch(name) or _TAKEN.fullmatch(name):
        raise ConfigError(
            f"stages.{number}: the name {name!r} cannot be that of a stage's folder",
            hint="Use letters, digits, - and _; names of other things in the run's folder (final, step-1) are taken.",
        )
    return name


def _merged(run: Mapping[str, Any], stage: Mapping[str, Any], *, is_last: bool, previous: str | None) -> Tree:
    where = f"stage {stage['name']!r}"
    for key in OF_THE_WHOLE:
        if key in stage:
            raise ConfigError(f"{where}: {key} belongs to the whole file")
    own = {key: value for key, value in stage.items() if key != "name" and value is not None}
    if not is_last and _section(own, "search").get("space"):
        raise ConfigError(f"{where} has a search and is not the last; only the last stage may search")
    tree: Tree = {key: value for key, value in run.items() if key != "stages"}
    _choose(tree, own, where)
    if not tree["head"]:
        tree["strategies"] = []
        tree["evaluation"] = {**tree["evaluation"], "metric": None}
    data = {**tree["data"]}
    if "train" in _section(own, "data"):
        data["eval"] = []
    if not is_last:
        data["test"] = []
    tree["data"] = data
    if previous is not None:
        _start_from(tree, own, where, previous)
    for key, value in own.items():
        is_section = isinstance(value, Mapping) and key not in _WHOLE and isinstance(tree.get(key), Mapping)
        tree[key] = {**tree[key], **value} if is_section else value
    return tree


def _choose(tree: Tree, own: Mapping[str, Any], where: str) -> None:
    """Of settings that exclude each other, the stage's own replaces the inherited one."""
    if own.get("objectives") and own.get("head"):
        raise ConfigError(f"{where}: objectives and head are both set; pretrain and fine-tune in two stages")
    if own.get("objectives"):
        tree["head"] = None
    elif own.get("head"):
        tree["objectives"] = {}
        tree["head"] = own["head"]
    elif not tree["objectives"] and not tree["head"]:
        raise ConfigError(
            f"{where} has neither objectives nor a head, so there is nothing to train",
            hint="Set objectives: {masked_lm: 1.0} to pretrain, or head: sequence_classification to fine-tune.",
        )
    training = _section(own, "training")
    for one, other in (_LENGTHS, _LENGTHS[::-1]):
        if training.get(one) is not None:
            tree["training"] = {**tree["training"], other: None}


def _start_from(tree: Tree, own: Mapping[str, Any], where: str, previous: str) -> None:
    """Take the model and tokenizer of the stage before."""
    named = [key for key in _section(own, "model") if key != "gradient_checkpointing"]
    named = [f"model.{key}" for key in named] + (["tokenizer"] if "tokenizer" in own else [])
    if named:
        raise ConfigError(
            f"{where}: {named[0]} belongs to the first stage; this one starts from the model of the stage before"
        )
    tree["model"] = {**tree["model"], "family": None, "checkpoint": previous, "overrides": {}}
    tree["tokenizer"] = {**tree["tokenizer"], "path": None}


def _section(own: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A section of a stage, {} where it has none; a section of another kind is found when the tree is checked."""
    value = own.get(key)
    return value if isinstance(value, Mapping) else {}
