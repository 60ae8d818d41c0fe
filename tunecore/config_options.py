"""Options as keyword arguments: a field of any section by its bare name."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from tunecore.config import RunConfig
from tunecore.config_io import load_config
from tunecore.errors import ConfigError

SECTIONS = ("model", "tokenizer", "data", "training", "evaluation", "checkpoint", "tracking", "plugins", "search")


def _flat_options() -> dict[str, str]:
    """Option name -> its section, for the names that only one section has."""
    owners: dict[str, list[str]] = {}
    defaults = RunConfig()
    for section in SECTIONS[:-1]:  # a search has a seed and a metric of its own, which are not meant by these names
        for field in dataclasses.fields(getattr(defaults, section)):
            owners.setdefault(field.name, []).append(section)
    return {name: sections[0] for name, sections in owners.items() if len(sections) == 1}


def with_options(config: RunConfig, options: Mapping[str, Any]) -> RunConfig:
    """Return ``config`` with options set: a field of any section by its bare name (``batch_size=64``), a whole
    section as a mapping (``evaluation={"every": 100}``), or a top-level field.

    Raises:
        ConfigError: an unknown option (the nearest is named) or a value out of range.
    """
    tree = dataclasses.asdict(config)
    flat = _flat_options()
    for name, value in options.items():
        if name in SECTIONS:
            if not isinstance(value, Mapping):
                raise ConfigError(f"{name} is a section; give it a mapping, such as {name}={{...}}")
            tree[name].update(value)
        elif name in tree:
            tree[name] = value
        elif name in flat:
            tree[flat[name]][name] = value
        else:
            near = difflib.get_close_matches(name, [*flat, *tree], n=3)
            raise ConfigError(f"unknown option {name!r}. {'Did you mean ' + ', '.join(near) + '?' if near else ''}")
    return load_config(tree, [])
