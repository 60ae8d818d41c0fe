"""What options mean, for people and editors: field docstrings, a commented run file, and a JSON Schema.

The text comes from the docstring under each field of the option dataclasses, of plugins' ``Options`` too.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import re
import textwrap
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pydantic

from tunecore.config import RunConfig
from tunecore.config_io import adapter, to_plain
from tunecore.config_stages import OF_THE_WHOLE
from tunecore.config_yaml import to_yaml
from tunecore.registry import Entry, Kind, Registry

Schema = dict[str, Any]
WIDTH = 100
DIALECT = "https://json-schema.org/draft/2020-12/schema"


@cache
def field_docs(cls: type) -> dict[str, str]:
    """The docstring under each field of a class and its bases, on one line; empty where there is no source."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):  # built in, or made at run time
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for field, text in itertools.pairwise(body):
            named = isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            if named and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                docs[field.target.id] = " ".join(str(text.value.value).replace("``", "`").split())  # type: ignore[attr-defined]
    return docs


def commented_yaml(config: Any, *, header: str = "") -> str:
    """A configuration as YAML with every option explained in a comment above it."""
    lines = [f"# {line}" if line else "#" for line in header.splitlines()]
    return "\n".join([*lines, *([""] if lines else []), *_commented(config, 0)]) + "\n"


def _commented(config: Any, depth: int) -> list[str]:
    indent = "  " * depth
    cls: type = type(config)
    docs = field_docs(cls)
    lines: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        text = docs.get(field.name, "")
        if dataclasses.is_dataclass(value):
            text = inspect.getdoc(type(value)) or text
            lines.append("")
        text = re.sub(r"\bNone\b", "null", text)
        lines += [f"{indent}# {line}" for line in textwrap.wrap(text, WIDTH - len(indent))]
        if dataclasses.is_dataclass(value):
            lines += [f"{indent}{field.name}:", *_commented(value, depth + 1)]
        else:
            plain = to_plain(value)
            flow = None if isinstance(plain, dict | list) else False
            dumped = to_yaml({field.name: plain}, default_flow_style=flow)
            lines += [indent + line for line in dumped.splitlines()]
    return lines


def json_schema(registry: Registry) -> Schema:
    """JSON Schema of a run file: every section, and every registered component with its options and descriptions.

    Editors take it as it is (``# yaml-language-server: $schema=run.schema.json``).
    """
    schema: Schema = adapter(RunConfig).json_schema()
    definitions: dict[str, Schema] = schema.setdefault("$defs", {})
    sections = {name: typing.cast(type, hint) for name, hint in typing.get_type_hints(RunConfig).items()}
    _describe(schema, RunConfig)
    for cls in sections.values():
        if dataclasses.is_dataclass(cls):
            _describe(definitions[cls.__name__], cls)
    choices = {kind: _options_of(registry, kind, definitions) for kind in typing.get_args(Kind)}
    top = schema["properties"]
    objectives = {entry.name: {"anyOf": [_WEIGHT, ref]} for entry, ref in choices["objective"]}
    top["objectives"] |= {"properties": objectives, **_CLOSED}
    top["head"] |= {"anyOf": [*_choice(choices["head"]), {"type": "null"}]}
    one = _choice(choices["strategy"])
    default, description = top["strategies"]["default"], top["strategies"]["description"]
    many = {"type": "array", "items": {"anyOf": one}}
    top["strategies"] = {"default": default, "description": description, "anyOf": [*one, many]}
    training = definitions["TrainingConfig"]["properties"]
    for key in ("optimizer", "schedule"):
        training[key] |= {"anyOf": _choice(choices[key])}
    sources = {entry.name: ref for entry, ref in choices["source"]}
    definitions["DataConfig"]["properties"]["sources"] |= {"properties": sources, **_CLOSED}
    top["stages"] |= {"items": _stage_schema(top)}
    families = [e.name for e, _ in choices["family"]]
    definitions["ModelConfig"]["properties"]["family"]["anyOf"][0] |= {"enum": families} if families else {}
    return {"$schema": DIALECT, **schema, "title": "tunecore run"}


_CLOSED: Schema = {"additionalProperties": False}
_WEIGHT: Schema = {
    "type": "number", "exclusiveMinimum": 0, "default": 1.0, "description": "Share of this objective in the loss."
}  # fmt: skip


def _stage_schema(top: Mapping[str, Schema]) -> Schema:
    """A stage: its name, and the keys of a run file that are its own."""
    own = {key: {"$ref": f"#/properties/{key}"} for key in top if key not in OF_THE_WHOLE}
    name: Schema = {"type": "string", "description": "Its name, and that of its folder in output_dir."}
    return {"type": "object", "properties": {"name": name, **own}, "required": ["name"], **_CLOSED}


def _describe(schema: Schema, cls: type) -> None:
    """Add the docstrings, close the object to unknown keys, and let one item stand for a list of one."""
    docs = field_docs(cls)
    schema["description"] = inspect.getdoc(cls) or ""
    schema |= _CLOSED
    for name, part in schema.get("properties", {}).items():
        part.pop("title", None)
        if docs.get(name):
            part["description"] = docs[name]
        if part.get("type") == "array" and part.get("items", {}).get("type") == "string":
            items = part.pop("items")
            part.pop("type")
            part["anyOf"] = [items, {"type": "array", "items": items}]


def _options_of(registry: Registry, kind: Kind, definitions: dict[str, Schema]) -> list[tuple[Entry, Schema]]:
    """Every component of a kind with a reference to the schema of its options, which joins ``definitions``."""
    found = []
    for entry in (entry for entry in registry if entry.kind == kind):
        key = f"{kind}.{entry.name}"
        schema = _options_schema(entry, f"#/$defs/{key}/$defs/{{model}}")
        if kind == "objective":
            schema["properties"] = {"weight": _WEIGHT, **schema.get("properties", {})}
        definitions[key] = schema
        found.append((entry, {"$ref": f"#/$defs/{key}"}))
    return found


def _options_schema(entry: Entry, template: str) -> Schema:
    try:
        schema: Schema = adapter(entry.options).json_schema(ref_template=template)
    except pydantic.errors.PydanticUserError:  # types JSON cannot say: the names at least
        schema = {"type": "object", "properties": {f.name: {} for f in dataclasses.fields(entry.options)}}
    _describe(schema, entry.options)
    return schema


def _choice(entries: Sequence[tuple[Entry, Schema]]) -> list[Schema]:
    """A component's name, or {name: options}."""
    names = [entry.name for entry, _ in entries]
    single = {entry.name: {"anyOf": [ref, {"type": "null"}]} for entry, ref in entries}
    return [{"type": "string", "enum": names}, {"type": "object", "properties": single, "maxProperties": 1, **_CLOSED}]
