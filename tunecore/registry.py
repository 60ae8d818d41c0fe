"""Names to components: what plugins registered, who owns each name, and what options it takes."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from tunecore.errors import ConfigError, PluginError, described, unknown_name

Kind = Literal["objective", "head", "strategy", "optimizer", "schedule", "source", "family", "tracker"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """Options of a component that has none."""


class Entry(NamedTuple):
    """One registered component."""

    kind: Kind
    name: str
    factory: Callable[[Any], Any]
    options: type
    owner: str
    """Plugin that registered it, with its distribution and version."""


class Registry:
    """All registered components of a process or a run, by kind and name."""

    def __init__(self) -> None:
        self._entries: dict[tuple[Kind, str], Entry] = {}

    def add(self, kind: Kind, name: str, factory: Callable[[Any], Any], options: type | None, owner: str) -> None:
        """Add a component.

        Raises:
            PluginError: the name is taken (both owners are named), is not a string, the factory is not
                callable, or ``options`` is not a frozen dataclass.
        """
        if not isinstance(name, str) or not name:
            raise PluginError(f"{owner}: a {kind} was registered under {name!r}; names are non-empty strings")
        if not callable(factory):
            raise PluginError(f"{owner}: the factory of {kind} {name!r} is {factory!r}, which cannot be called")
        options = NoOptions if options is None else options
        params = getattr(options, "__dataclass_params__", None)
        if not isinstance(options, type) or params is None or not params.frozen:
            raise PluginError(f"{owner}: Options of {kind} {name!r} must be a class made by @dataclass(frozen=True)")
        taken = self._entries.get((kind, name))
        if taken is not None:
            raise PluginError(
                f"{kind} {name!r} of {owner} is already taken by {taken.owner}",
                hint="Rename one of them, or leave a plugin out with plugins.block.",
            )
        self._entries[kind, name] = Entry(kind, name, factory, options, owner)

    def remove_owner(self, owner: str) -> None:
        """Take back everything ``owner`` registered (a plugin that failed half way)."""
        self._entries = {k: e for k, e in self._entries.items() if e.owner != owner}

    def names(self, kind: Kind) -> list[str]:
        return sorted(name for k, name in self._entries if k == kind)

    def __iter__(self) -> Iterator[Entry]:
        return iter(sorted(self._entries.values(), key=lambda e: (KINDS.index(e.kind), e.name)))

    def entry(self, kind: Kind, name: str) -> Entry:
        """Look a component up.

        Raises:
            ConfigError: nothing has that name; the known ones are listed, nearest first.
        """
        try:
            return self._entries[kind, name]
        except KeyError:
            raise ConfigError(unknown_name(kind, name, self.names(kind))) from None

    def create(self, kind: Kind, name: str, options: Mapping[str, Any] | None = None) -> Any:
        """Make a component from its options.

        Raises:
            ConfigError: unknown name, unknown option, or a value the options refuse.
            PluginError: the factory failed.
        """
        entry = self.entry(kind, name)
        parsed = parse_options(entry, options or {})
        try:
            return entry.factory(parsed)
        except ConfigError:
            raise
        except Exception as error:
            raise PluginError(f"{entry.owner}: making {kind} {name!r} failed: {described(error)}") from error


def parse_options(entry: Entry, options: Mapping[str, Any]) -> Any:
    """Build the Options dataclass of ``entry``; lists become tuples, and one item stands for a list of one."""
    fields = {f.name: f for f in dataclasses.fields(entry.options)}
    for key in options:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It takes: {', '.join(fields) or 'no options'}."
            raise ConfigError(f"{entry.kind} {entry.name!r} has no option {key!r}. {hint}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    hints = get_type_hints(entry.options) if any(isinstance(value, str) for value in values.values()) else {}
    values = {key: (value,) if _is_one_item(value, hints.get(key)) else value for key, value in values.items()}
    try:
        return entry.options(**values)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{entry.kind} {entry.name!r}: {error}") from error


def takes_a_list(hint: Any) -> bool:
    """Whether an option of this type is a list whatever is given: no text is taken as it is."""
    alternatives = get_args(hint) if isinstance(hint, UnionType) or get_origin(hint) is Union else (hint,)
    kinds = {get_origin(alternative) or alternative for alternative in alternatives}
    return tuple in kinds and not {str, Literal} & kinds


def _is_one_item(value: Any, hint: Any) -> bool:
    return isinstance(value, str) and takes_a_list(hint)


def name_and_options(value: str | Mapping[str, Any], what: str) -> tuple[str, Mapping[str, Any]]:
    """Read "name" or {name: options}.

    Raises:
        ConfigError: anything else.
    """
    if isinstance(value, str):
        return value, {}
    if isinstance(value, Mapping) and len(value) == 1:
        name, options = next(iter(value.items()))
        if options is None:
            options = {}
        if isinstance(name, str) and isinstance(options, Mapping):
            return name, options
    raise ConfigError(f"{what}: {value!r} is neither a name nor a single {{name: options}}")
