"""Checks of a plugin's hooks, made when it is loaded and each time one of them is called.

Misspelt hooks, wrong arguments and wrong return types do nothing at all in pluggy; here each is an error that names the
plugin, the hook and the way out.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from tunecore import hookspecs
from tunecore.config import RunConfig
from tunecore.errors import PluginError, TunecoreError, described

MARK = f"{hookspecs.PROJECT}_impl"
"""Attribute that ``@tunecore.hookimpl`` leaves on a function."""

HOOKS: dict[str, tuple[str, ...]] = {
    name: tuple(inspect.signature(spec).parameters)
    for name, spec in vars(hookspecs).items()
    if hasattr(spec, f"{hookspecs.PROJECT}_spec")
}
"""Every hook with its arguments, in the order of the contract."""

RETURNS: dict[str, type] = {"tunecore_configure": RunConfig}
"""What a hook may return besides None."""


class Proxy:
    """The checked hooks of one plugin; what is registered with pluggy in its place."""

    def __init__(self, owner: str, hooks: Mapping[str, Callable[..., Any]]) -> None:
        self.owner = owner
        vars(self).update(hooks)


def check_api(plugin: Any, owner: str) -> None:
    """Check the range of hook versions a plugin states as ``tunecore_api``.

    Raises:
        PluginError: the range is malformed or does not hold this version.
    """
    wanted = getattr(plugin, "tunecore_api", None)
    if wanted is None:
        return
    version = ".".join(map(str, hookspecs.HOOKSPEC_VERSION))
    try:
        fits = SpecifierSet(wanted).contains(version)
    except (InvalidSpecifier, TypeError, AttributeError) as error:
        raise PluginError(
            f"{owner}: tunecore_api is {wanted!r}, which is no version range",
            hint='Write it as tunecore_api = ">=1,<2".',
        ) from error
    if not fits:
        raise PluginError(
            f"{owner} was written for tunecore hooks {wanted!r}; this tunecore has version {version}",
            hint="Install a version of the plugin, or of tunecore, that fits the other.",
        )


def proxy_of(plugin: Any, owner: str) -> Proxy:
    """Check every hook a plugin implements and return them guarded.

    Raises:
        PluginError: a hook is misspelt, unmarked, takes a wrong argument, is a wrapper or coroutine, or there is none.
    """
    if inspect.isclass(plugin):
        raise PluginError(f"{owner}: {plugin.__name__} is a class", hint="Name an instance of it in the entry point.")
    found: dict[str, Callable[..., Any]] = {}
    for name, function in _functions(plugin):
        options = getattr(function, MARK, None)
        if options is None:
            if name in HOOKS:
                raise PluginError(
                    f"{owner}: function {name} is not marked, so it would never be called",
                    hint="Put @tunecore.hookimpl above it.",
                )
            continue
        hook = options.get("specname") or name
        _check(function, hook, options, owner)
        if hook in found:
            raise PluginError(f"{owner} implements hook {hook} twice")
        guarded = guard(function, hook, owner)
        setattr(guarded, MARK, {**options, "specname": None})
        found[hook] = guarded
    if not found:
        raise PluginError(
            f"{owner} has no function marked with @tunecore.hookimpl, so it would do nothing",
            hint="Mark its hooks, or name the module that has them in the entry point.",
        )
    return Proxy(owner, found)


def _functions(plugin: Any) -> list[tuple[str, Callable[..., Any]]]:
    """Functions and methods of a module or object; properties are not evaluated."""
    names = [n for n in dir(plugin) if not isinstance(inspect.getattr_static(plugin, n, None), property)]
    values = [(name, getattr(plugin, name, None)) for name in names if not name.startswith("__")]
    return [(name, value) for name, value in values if inspect.isroutine(value)]


def _check(function: Callable[..., Any], hook: str, options: Mapping[str, Any], owner: str) -> None:
    if hook not in HOOKS:
        near = difflib.get_close_matches(hook, HOOKS, n=3, cutoff=0.5)
        known = f"Did you mean {' or '.join(near)}?" if near else f"Known hooks: {', '.join(HOOKS)}."
        raise PluginError(f"{owner}: there is no hook {hook!r}. {known}")
    if options.get("wrapper") or options.get("hookwrapper"):
        raise PluginError(f"{owner}: hook {hook} is a wrapper; hooks of tunecore are plain functions")
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise PluginError(f"{owner}: hook {hook} is a coroutine or generator; hooks of tunecore are plain functions")
    takes = ", ".join(HOOKS[hook])
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name not in HOOKS[hook]:
            near = difflib.get_close_matches(parameter.name, HOOKS[hook], n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]!r}?" if near else None
            raise PluginError(f"{owner}: hook {hook} takes ({takes}), but not {parameter.name!r}", hint=hint)
        if parameter.kind is parameter.KEYWORD_ONLY or parameter.default is not parameter.empty:
            raise PluginError(
                f"{owner}: argument {parameter.name!r} of hook {hook} is keyword-only or has a default, "
                f"so it would never be given",
                hint=f"Write it as a plain argument: def {hook}({takes}).",
            )


def guard(function: Callable[..., Any], hook: str, owner: str) -> Callable[..., Any]:
    """``function`` with its failures and wrong return values turned into errors that name plugin and hook.

    An error of tunecore keeps its type; KeyboardInterrupt passes as it is.
    """

    @wraps(function)
    def guarded(*args: Any) -> Any:
        try:
            result = function(*args)
        except TunecoreError as error:
            error.message = f"{owner} in hook {hook}: {error.message}"
            error.args = (error.message if error.hint is None else f"{error.message}\n{error.hint}",)
            raise
        except (Exception, SystemExit) as error:
            raise PluginError(f"{owner} in hook {hook}: {described(error)}") from error
        wanted = RETURNS.get(hook)
        if result is not None and (wanted is None or not isinstance(result, wanted)):
            may = "nothing" if wanted is None else f"a {wanted.__name__} or nothing"
            raise PluginError(f"{owner}: hook {hook} returned a {type(result).__name__}; it returns {may}")
        return result

    return guarded
