"""Plugins: found through entry points, checked before they take part, named whenever they fail.

A plugin is a module or object with functions marked ``@tunecore.hookimpl``, named in an entry point of the group
``tunecore.plugins``. Listing imports nothing; loading takes one entry point at a time, in the order of (distribution,
name) after the built-ins, which come through the same door. A plugin that fails half way leaves no trace.

Which plugins take part: ``plugins.allow``, ``block``, ``require`` and ``load`` of the run's configuration, and the
environment variables ``TUNECORE_PLUGINS`` (only these), ``TUNECORE_DISABLE_PLUGINS`` (never these; ``*`` is all) and
``TUNECORE_DISABLE_PLUGIN_AUTOLOAD=1`` (only those asked for by name). Names are of entry points or distributions.
"""

from __future__ import annotations

import difflib
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from typing import Any

import pluggy

from tunecore import __version__, hookspecs
from tunecore.config import PluginsConfig
from tunecore.errors import PluginError, described
from tunecore.hook_check import HOOKS, Proxy, check_api, proxy_of
from tunecore.registry import Kind, Registry

GROUP = "tunecore.plugins"
BUILTIN = "tunecore.builtin"
GIVEN = "given in code"
REGISTER_KINDS: dict[str, Kind] = {
    "tunecore_register_objectives": "objective",
    "tunecore_register_heads": "head",
    "tunecore_register_strategies": "strategy",
    "tunecore_register_optimizers": "optimizer",
    "tunecore_register_schedules": "schedule",
    "tunecore_register_sources": "source",
    "tunecore_register_families": "family",
    "tunecore_register_trackers": "tracker",
}


class PluginWarning(UserWarning):
    """A plugin option that has no effect."""


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """Where a plugin comes from; known without importing it."""

    name: str
    """Its entry-point name."""
    distribution: str
    """Name of the installed distribution that declares it."""
    version: str
    """Version of that distribution."""
    value: str
    """What the entry point names: ``module`` or ``module:object``."""

    @property
    def owner(self) -> str:
        """How messages and manifests call it."""
        return f"plugin {self.name!r} ({f'{self.distribution} {self.version}'.strip()})"

    def is_called(self, name: str) -> bool:
        """Whether ``name`` is its entry-point name or its distribution (case and -_. do not matter)."""
        return name == self.name or _normal(name) in (_normal(self.name), _normal(self.distribution))


@dataclass(frozen=True, slots=True)
class Listed:
    """One installed plugin, and whether a run would load it."""

    info: PluginInfo
    selected: bool
    reason: str
    """Why not, where ``selected`` is False; else empty."""


@dataclass(frozen=True, slots=True)
class BrokenPlugin:
    """A plugin that did not load, and why."""

    info: PluginInfo
    error: PluginError


class Hooks:
    """Calls hooks on every plugin: ``hooks.tunecore_step_end(run=run, metrics=metrics)``.

    The built-ins are called first, then the others in loading order; ``tryfirst`` and ``trylast`` of the marker move
    one. What a plugin raises comes out as an error that names it.
    """

    def __init__(self, manager: pluggy.PluginManager) -> None:
        self._manager = manager
        self._hook = manager.hook

    @contextmanager
    def joined_by(self, plugin: Any) -> Iterator[None]:
        """Call the hooks of one more object too, for as long as the context lasts.

        Raises:
            PluginError: a hook of it is misspelt or takes an argument that is not there.
        """
        proxy = proxy_of(plugin, type(plugin).__name__)
        self._manager.register(proxy)
        try:
            yield
        finally:
            self._manager.unregister(proxy)

    def tunecore_configure(self, *, config: Any) -> Any:
        """Hand the configuration from plugin to plugin; return the last one given back."""
        # pluggy would show every plugin the same config; here each sees what the one before it made.
        for implementation in reversed(self._hook.tunecore_configure.get_hookimpls()):
            arguments = {"config": config}
            changed = implementation.function(*(arguments[name] for name in implementation.argnames))
            config = config if changed is None else changed
        return config

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in HOOKS:
            raise AttributeError(f"{name!r} is not a hook of tunecore")
        caller: Callable[..., Any] = getattr(self._hook, name)
        return caller


@dataclass(slots=True)
class Plugins:
    """Everything plugins brought."""

    hooks: Hooks
    registry: Registry
    loaded: list[PluginInfo] = field(default_factory=list)
    """The built-ins first, then in loading order."""
    broken: list[BrokenPlugin] = field(default_factory=list)
    """Empty after strict loading."""

    def versions(self) -> dict[str, str]:
        """Plugin name -> "distribution version", for manifests."""
        return {info.name: f"{info.distribution} {info.version}".strip() for info in self.loaded}


def load_plugins(config: PluginsConfig | None = None, *, strict: bool = True, extra: Sequence[Any] = ()) -> Plugins:
    """Load the built-ins, the installed plugins that ``config`` and the environment let through, and ``extra``.

    Args:
        config: which plugins take part; None is the default (all installed).
        strict: raise at the first plugin that cannot be used; False collects them in ``broken``.
        extra: plugin modules or objects handed over in code, loaded last and never blocked.

    Raises:
        PluginError: a plugin cannot be used (import error, misspelt hook, wrong argument, taken name, another API
            version, two distributions with one name), or a required one is not installed.
    """
    config = config or PluginsConfig()
    listed = list_plugins(config, warn=True)
    _check_required(config, listed)
    plugins = Plugins(Hooks(_manager([])), Registry())
    proxies: list[Proxy] = []

    def take(info: PluginInfo, admit: Callable[[], Proxy]) -> None:
        try:
            proxies.append(admit())
        except PluginError as error:
            if strict or info.value == BUILTIN:
                raise
            plugins.broken.append(BrokenPlugin(info, error))
        else:
            plugins.loaded.append(info)

    builtin = PluginInfo("builtin", "tunecore", __version__, BUILTIN)
    take(builtin, partial(_admit, builtin, metadata.EntryPoint("builtin", BUILTIN, GROUP).load, plugins.registry))
    points = {_info(point): point for point in metadata.entry_points(group=GROUP)}
    selected = [item.info for item in listed if item.selected]
    for info in selected:
        twins = [other for other in selected if other.name == info.name]
        admit = partial(_admit, info, points[info].load, plugins.registry)
        take(info, partial(_refuse_twins, twins) if len(twins) > 1 else admit)
    for plugin in extra:
        name = getattr(plugin, "__name__", None) or type(plugin).__name__
        info = PluginInfo(str(name), GIVEN, "", repr(plugin))
        take(info, partial(_admit, info, partial(_given, plugin), plugins.registry))
    plugins.hooks = Hooks(_manager(proxies))
    return plugins


def list_plugins(config: PluginsConfig | None = None, *, warn: bool = False) -> list[Listed]:
    """The installed plugins, sorted by (distribution, name), and which of them a run would load; imports none.

    Args:
        config: which plugins take part; None is the default.
        warn: warn (:class:`PluginWarning`) about names in allow and block lists that match nothing.
    """
    config = config or PluginsConfig()
    infos = sorted(
        {_info(point) for point in metadata.entry_points(group=GROUP)}, key=lambda i: (_normal(i.distribution), i.name)
    )
    lists = [
        ("plugins.allow", config.allow),
        ("plugins.block", config.block),
        ("TUNECORE_PLUGINS", _environment("TUNECORE_PLUGINS")),
        ("TUNECORE_DISABLE_PLUGINS", _environment("TUNECORE_DISABLE_PLUGINS")),
    ]
    if warn:
        for where, names in lists:
            _warn_unmatched(where, names or (), infos)
    return [Listed(info, not (reason := _reason_against(info, config)), reason) for info in infos]


def _reason_against(info: PluginInfo, config: PluginsConfig) -> str:
    """Why ``info`` takes no part, or ""."""

    def named(names: Iterable[str] | None) -> bool:
        return any(info.is_called(name) for name in names or ())

    chosen = _environment("TUNECORE_PLUGINS")
    disabled = _environment("TUNECORE_DISABLE_PLUGINS") or ()
    asked_for = named(config.require) or named(config.allow) or named(chosen)
    if named(config.block):
        return "blocked by plugins.block"
    if "*" in disabled or named(disabled):
        return "blocked by TUNECORE_DISABLE_PLUGINS"
    if not config.load:
        return "plugins.load is false"
    if config.allow is not None and not (named(config.allow) or named(config.require)):
        return "not in plugins.allow"
    if chosen is not None and not (named(chosen) or named(config.require)):
        return "not in TUNECORE_PLUGINS"
    if os.environ.get("TUNECORE_DISABLE_PLUGIN_AUTOLOAD", "0") not in ("", "0") and not asked_for:
        return "TUNECORE_DISABLE_PLUGIN_AUTOLOAD is set"
    return ""


def _environment(name: str) -> tuple[str, ...] | None:
    value = os.environ.get(name)
    return None if value is None else tuple(part.strip() for part in value.split(",") if part.strip())


def _warn_unmatched(where: str, names: Iterable[str], infos: Sequence[PluginInfo]) -> None:
    for name in names:
        if name != "*" and not any(info.is_called(name) for info in infos):
            known = [*(i.name for i in infos), *(i.distribution for i in infos)]
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else "`tunecore plugins list` shows what is installed."
            message = f"{where} names {name!r}, which matches no installed plugin; {hint}"
            warnings.warn(message, PluginWarning, stacklevel=4)


def _check_required(config: PluginsConfig, listed: Sequence[Listed]) -> None:
    for name in config.require:
        found = [item for item in listed if item.info.is_called(name)]
        if not found:
            raise PluginError(
                f"plugins.require names {name!r}, which is not installed",
                hint=f"Install it (pip install {name}), or take it out of plugins.require.",
            )
        if not any(item.selected for item in found):
            raise PluginError(
                f"plugins.require names {name!r}, but it may not load: {found[0].reason}", hint="Keep one of the two."
            )


def _refuse_twins(twins: Sequence[PluginInfo]) -> Proxy:
    where = " and ".join(f"{twin.distribution} {twin.version}" for twin in twins)
    raise PluginError(
        f"two distributions have a plugin named {twins[0].name!r}: {where}",
        hint=f"Uninstall one, or leave one out with plugins.block: [{twins[0].distribution}].",
    )


def _admit(info: PluginInfo, get: Callable[[], Any], registry: Registry) -> Proxy:
    """Import a plugin, check it, and let it register its components; all or nothing.

    Raises:
        PluginError: it cannot be used; nothing of it stays in ``registry``.
    """
    try:
        plugin = get()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a plugin must not end the program by being imported
        raise PluginError(
            f"{info.owner} could not be loaded from {info.value!r}: {described(error)}",
            hint=_way_out(info),
        ) from error
    check_api(plugin, info.owner)
    proxy = proxy_of(plugin, info.owner)
    alone = _manager([proxy])
    try:
        for hook, kind in REGISTER_KINDS.items():
            register = _register(registry, kind, info.owner)
            getattr(alone.hook, hook)(register=register)
    except BaseException:
        registry.remove_owner(info.owner)
        raise
    return proxy


def _way_out(info: PluginInfo) -> str:
    if info.value == BUILTIN:
        return "These are tunecore's own parts: `tunecore doctor` shows what is missing; reinstall tunecore."
    leave = f"Leave it out with plugins.block: [{info.name}] or TUNECORE_DISABLE_PLUGINS={info.name}"
    return f"{leave}." if info.distribution == GIVEN else f"{leave}, or uninstall {info.distribution}."


def _given(plugin: Any) -> Any:
    return plugin


def _register(registry: Registry, kind: Kind, owner: str) -> hookspecs.Register:
    # "Options" is what plugin authors write: register(name, factory, Options=MyOptions)
    def register(name: str, factory: Callable[[Any], Any], Options: type | None = None) -> None:
        registry.add(kind, name, factory, Options, owner)

    return register


def _manager(proxies: Sequence[Proxy]) -> pluggy.PluginManager:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    for proxy in reversed(proxies):  # pluggy calls the last registered first
        manager.register(proxy)
    return manager


def _info(point: metadata.EntryPoint) -> PluginInfo:
    distribution = point.dist
    if distribution is None:
        return PluginInfo(point.name, "unknown distribution", "", point.value)
    return PluginInfo(point.name, distribution.name, distribution.version, point.value)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
