"""YAML as run files have it: safe and without surprises; nothing in it is executed or grows without bound."""

from __future__ import annotations

import re
from typing import Any

import yaml

from tunecore.errors import ConfigError

_MOST_VALUES = 100_000
"""Values of a run file, each alias counted as often as it is used."""
_NO_VALUE = (ValueError, KeyError, AttributeError, TypeError, OverflowError)
"""What constructors of PyYAML raise for a text that is none of their kind."""


class _Loader(yaml.SafeLoader):
    """Safe YAML, in which 1e-3 is a number (YAML 1.1 reads a text) and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(str(key))
        return super().construct_mapping(node, deep=deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except _NO_VALUE as error:
            problem = f"{str(node.value)[:40]!r} is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


class _Dumper(yaml.SafeDumper):
    """Safe YAML that quotes every text :class:`_Loader` would take for a number, such as "0E0"."""


_EXPONENT = re.compile(r"[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$")
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text.

    Raises:
        ConfigError: it is not YAML, is nested too deep, or its aliases make too much of it; ``where`` and the line are
            named.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count(node, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        line, column = text.count("\n", 0, error.position) + 1, error.position - text.rfind("\n", 0, error.position)
        found = f"the character #x{error.character:04x} is not allowed"
        raise ConfigError(f"{where}: line {line}, column {column} {found}", hint="Take it out.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise ConfigError(f"{where}:{place} {getattr(error, 'problem', None) or error}") from error
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deep for a run file") from error


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node makes, those of its aliases included; an anchor inside itself would make no end."""
    if id(node) in known:
        if known[id(node)] == 0:
            raise yaml.constructor.ConstructorError(None, None, "an anchor's aliases are inside it", node.start_mark)
        return known[id(node)]
    known[id(node)] = 0
    parts = [] if isinstance(node, yaml.ScalarNode) else node.value
    size = 1
    for part in parts:
        for inner in part if isinstance(part, tuple) else (part,):
            size += _count(inner, known)
        if size > _MOST_VALUES:
            problem = f"its aliases make more than {_MOST_VALUES} values"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    known[id(node)] = size
    return size


def to_yaml(plain: Any, **style: Any) -> str:
    """YAML that :func:`parse_yaml` reads back as the same value; ``style`` goes to ``yaml.dump``."""
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **style)
