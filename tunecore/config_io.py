"""Run files: read, override, check, write and compare configurations.

A configuration is YAML (``run.yaml``) or a mapping, changed by ``--set a.b=value``. Everything a user can get wrong is
a :class:`ConfigError` that names the file (or ``--set``), the dotted key, and the nearest key or the type wanted.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import pydantic

from tunecore.config import RunConfig
from tunecore.config_stages import stage_name, stage_trees
from tunecore.config_yaml import parse_yaml, to_yaml
from tunecore.data.surrogates import LONE_SURROGATE, has_lone_surrogate
from tunecore.errors import ConfigError
from tunecore.registry import Entry, Kind, Registry, name_and_options, parse_options, takes_a_list


def load_config(
    source: str | os.PathLike[str] | Mapping[str, Any] | None = None, overrides: Sequence[str] = ()
) -> RunConfig:
    """Read a configuration.

    Args:
        source: a YAML file, a mapping of the same shape, or None for the defaults.
        overrides: ``a.b=value`` each, the value in YAML; later ones win. Options of a component are reached through
            its name: ``objectives.masked_lm.mask_rate=0.3``, ``training.optimizer.adamw.beta2=0.98``.

    Raises:
        ConfigError: the file is missing, no YAML, or holds an unknown key, a wrong type or a value out of range.
    """
    where = None if source is None or isinstance(source, Mapping) else os.fspath(source)
    data = dict(source) if isinstance(source, Mapping) else {} if where is None else _read(where)
    _check_keys(data, RunConfig, "", where)
    _check_stage_keys(data, where)
    parsed = [_split(text) for text in overrides]
    for override in parsed:
        data = _assign(data, override.path, override.value, override.text)
        _check_keys(data, RunConfig, "", f"--set {override.text}")
        _check_stage_keys(data, f"--set {override.text}")
    config = _validate(data, where, parsed)
    load_stages(config, where)
    return config


class Stage(NamedTuple):
    """One stage of a run file."""

    name: str
    config: RunConfig
    """Its run, with what it inherits; ``output_dir`` is its folder inside that of the whole."""


def load_stages(config: RunConfig, where: str | None = None) -> tuple[Stage, ...]:
    """The stages of a configuration, in order; none for a single run.

    Raises:
        ConfigError: a stage cannot be what it says (``config_stages``), or has a wrong type or value; it is named.
    """
    made: list[Stage] = []
    try:
        for name, tree in stage_trees(to_plain(config)):
            try:
                made.append(Stage(name, _validate(tree, None, ())))
            except ConfigError as error:
                raise ConfigError(f"stage {name!r}: {error.message}", hint=error.hint) from error
    except ConfigError as error:
        raise ConfigError(f"{_at(where)}{error.message}", hint=error.hint) from error
    return tuple(made)


class _Override(NamedTuple):
    text: str
    path: tuple[str, ...]
    value: Any


def _read(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file", hint="`tunecore init` writes one to start from.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    data = parse_yaml(text, path)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a run file holds keys and values, not a {type(data).__name__}")
    return data


def _split(text: str) -> _Override:
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise ConfigError(f"--set {text!r} is not of the form key=value", hint="For example: --set training.steps=500")
    return _Override(text, path, parse_yaml(value, f"--set {text}"))


def _assign(node: Any, path: tuple[str, ...], value: Any, text: str) -> Any:
    """A copy of ``node`` with ``value`` at ``path``; short forms on the way grow into their long ones."""
    if not path:
        return value
    key, rest = path[0], path[1:]
    if isinstance(node, Sequence) and not isinstance(node, str):
        if not key.isdigit() or int(key) >= len(node):
            raise ConfigError(f"--set {text}: {key!r} is not a place in a list of {len(node)}")
        items = list(node)
        items[int(key)] = _assign(items[int(key)], rest, value, text)
        return items
    if isinstance(node, bool) or not (node is None or isinstance(node, Mapping | str | int | float)):
        raise ConfigError(f"--set {text}: {key!r} would be set inside {node!r}, which holds no keys")
    if isinstance(node, str):  # "adamw" -> {adamw: {...}}; another name replaces it
        node = {}
    elif isinstance(node, int | float):  # objectives.masked_lm: 1.0 -> {weight: 1.0, ...}
        node = {"weight": node}
    return {**(node or {}), key: _assign((node or {}).get(key), rest, value, text)}


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _check_keys(node: Any, cls: type, path: str, where: str | None) -> None:
    """Refuse keys that ``cls`` (a dataclass) and its sections do not have."""
    if not isinstance(node, Mapping):
        return
    hints = _hints(cls)
    for key, value in node.items():
        dotted = f"{path}{key}"
        if key not in hints:
            elsewhere = [name for name in _all_keys() if name.rpartition(".")[2] == key]
            near = elsewhere or difflib.get_close_matches(str(key), hints, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(hints)}"
            raise ConfigError(f"{_at(where)}{dotted} is not an option; {hint}")
        if dataclasses.is_dataclass(hints[key]):
            _check_keys(value, typing.cast(type, hints[key]), f"{dotted}.", where)


def _check_stage_keys(data: Mapping[str, Any], where: str | None) -> None:
    """Refuse keys that a stage does not have."""
    stages = data.get("stages")
    for number, stage in enumerate(stages if isinstance(stages, list | tuple) else ()):
        if isinstance(stage, Mapping):
            name = stage_name(stage, number)
            own = {key: value for key, value in stage.items() if key != "name"}
            _check_keys(own, RunConfig, "", f"{_at(where)}stage {name!r}")


@cache
def _all_keys() -> tuple[str, ...]:
    hints = _hints(RunConfig)
    sections = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    return (*hints, *(f"{name}.{key}" for name, hint in sections.items() for key in _hints(typing.cast(type, hint))))


def _at(where: str | None) -> str:
    return "" if where is None else f"{where}: "


def _plain(node: Any, path: str, where: str | None) -> Any:
    """JSON-ready copy of what a file or a caller gave.

    Raises:
        ConfigError: a key is not text, a number is not finite, or a value has no place in a file.
    """
    if isinstance(node, Mapping):
        for key in node:
            if not isinstance(key, str):
                raise ConfigError(f"{_at(where)}{path or 'the file'} has the key {key!r}, which is not text; quote it")
        return {key: _plain(value, f"{path}.{key}" if path else key, where) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_plain(value, f"{path}.{i}", where) for i, value in enumerate(node)]
    if isinstance(node, os.PathLike):
        return os.fspath(node)
    if hasattr(node, "item") and getattr(node, "ndim", 0) == 0:  # numpy and torch scalars
        node = node.item()
    if isinstance(node, float) and not math.isfinite(node):
        raise ConfigError(f"{_at(where)}{path} is {node}; it must be a finite number")
    if isinstance(node, str) and has_lone_surrogate(node):
        raise ConfigError(f"{_at(where)}{path} is {node!r}: {LONE_SURROGATE}")
    if node is None or isinstance(node, str | bool | int | float):
        return node
    raise ConfigError(f"{_at(where)}{path} is {node!r}; a {type(node).__name__} cannot be kept in a configuration")


def _lists(node: Any, cls: type) -> Any:
    """Give fields that are lists one when a single item was given: ``train: corpus.txt``."""
    if not isinstance(node, dict):
        return node
    result = dict(node)
    for key, hint in _hints(cls).items():
        value = result.get(key)
        if dataclasses.is_dataclass(hint):
            if key in result:
                result[key] = {} if value is None else _lists(value, typing.cast(type, hint))
        elif isinstance(value, str | dict) and takes_a_list(hint):
            result[key] = [value]
    return result


@cache
def adapter(cls: type) -> pydantic.TypeAdapter[Any]:
    """The pydantic validator of a dataclass, made once."""
    return pydantic.TypeAdapter(cls)


def _validate(data: Any, where: str | None, overrides: Sequence[_Override]) -> RunConfig:
    plain = _lists(_plain(data, "", where), RunConfig)
    try:
        # JSON mode is strict about types (no "5" for 5, no true for 1) and still makes tuples of lists.
        config: RunConfig = adapter(RunConfig).validate_json(json.dumps(plain), strict=True)
    except pydantic.ValidationError as error:
        raise ConfigError("\n".join(_messages(error, plain, where, overrides))) from error
    except ConfigError as error:
        raise ConfigError(f"{_blame(error.message, where, overrides)}{error.message}", hint=error.hint) from error
    return config


def _blame(message: str, where: str | None, overrides: Sequence[_Override]) -> str:
    """The override a message is about, else the file."""
    for override in reversed(overrides):
        if message.startswith(".".join(override.path)):
            return f"--set {override.text}: "
    return _at(where)


def _messages(
    error: pydantic.ValidationError, data: Any, where: str | None, overrides: Sequence[_Override]
) -> Iterable[str]:
    """One line a key: "run.yaml: training.steps is 'x'; it must be a valid integer"."""
    wanted: dict[str, tuple[Any, list[str]]] = {}
    for problem in error.errors(include_url=False):
        path, node = _follow(data, problem["loc"])
        if problem["type"] in ("value_error", "assertion_error"):  # from a __post_init__
            yield f"{_blame(path, where, overrides)}{path and path + ': '}{problem['msg'].partition(', ')[2]}"
            continue
        text = problem["msg"].replace("Input should be ", "")
        text = "{key: value} pairs" if problem["type"] in ("dict_type", "dataclass_type") else text
        wanted.setdefault(path, (node, []))[1].append(text)
    for path, (node, texts) in wanted.items():
        yield f"{_blame(path, where, overrides)}{path} is {node!r}; it must be {' or '.join(dict.fromkeys(texts))}"


def _follow(data: Any, location: tuple[int | str, ...]) -> tuple[str, Any]:
    """Dotted key and value at a pydantic location, which also holds names of union members: those are left out."""
    path: list[str] = []
    for part in location:
        inside_list = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if inside_list or (isinstance(data, dict) and part in data):
            data = data[part]
            path.append(str(part))
    return ".".join(path), data


def components(config: RunConfig) -> list[tuple[str, Kind, str, Mapping[str, Any]]]:
    """Every component a configuration names: (dotted key, kind, name, options)."""
    found: list[tuple[str, Kind, str, Mapping[str, Any]]] = []
    for name, value in config.objectives.items():
        options = {k: v for k, v in value.items() if k != "weight"} if isinstance(value, Mapping) else {}
        found.append((f"objectives.{name}", "objective", name, options))
    if config.head is not None:
        found.append(("head", "head", *name_and_options(config.head, "head")))
    for i, strategy in enumerate(config.strategies):
        found.append((f"strategies.{i}", "strategy", *name_and_options(strategy, f"strategies.{i}")))
    training = config.training
    found.append(("training.optimizer", "optimizer", *name_and_options(training.optimizer, "training.optimizer")))
    found.append(("training.schedule", "schedule", *name_and_options(training.schedule, "training.schedule")))
    found.extend(("tracking.trackers", "tracker", name, {}) for name in config.tracking.trackers)
    found.extend((f"data.sources.{name}", "source", name, given) for name, given in config.data.sources.items())
    if config.model.family is not None:
        found.append(("model.family", "family", config.model.family, {}))
    return found


def check_components(config: RunConfig, registry: Registry) -> None:
    """Check every component the configuration names, and the types of its options, before anything is made.

    Raises:
        ConfigError: an unknown component or option (nearest first), or an option of a wrong type or value; the
            dotted key is named.
    """
    for key, kind, name, options in components(config):
        try:
            check_options(registry.entry(kind, name), options)
        except ConfigError as error:
            raise ConfigError(f"{key}: {error.message}", hint=error.hint) from error


def check_options(entry: Entry, options: Mapping[str, Any]) -> None:
    """Check options against the types of their dataclass, as strictly as the run's own.

    Raises:
        ConfigError: an unknown option, a wrong type, or a value the dataclass refuses.
    """
    plain = _lists(_plain(options, "", None), entry.options)
    try:
        adapter(entry.options).validate_json(json.dumps(plain), strict=True)
    except pydantic.ValidationError as error:
        raise ConfigError(f"{entry.kind} {entry.name!r}: {'; '.join(_messages(error, plain, None, ()))}") from error
    except pydantic.errors.PydanticUserError:
        pass  # a type pydantic does not know (a plugin's own class): the dataclass checks what it checks
    parse_options(entry, options)


def to_plain(value: Any) -> Any:
    """A configuration (or a part) as dicts, lists and scalars."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, list | tuple) else value


def dump_config(config: RunConfig) -> str:
    """The configuration as YAML, every key written out; :func:`load_config` reads back an equal one."""
    return to_yaml(to_plain(config), width=120)
