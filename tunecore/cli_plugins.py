"""``tunecore plugins``: what is installed, and whether it keeps the contract."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from tunecore import __version__
from tunecore.errors import ConfigError
from tunecore.plugins import BUILTIN, list_plugins, load_plugins
from tunecore.registry import Entry, Registry
from tunecore.terminal import AsJson, out, part, print_json

plugins_app = typer.Typer(no_args_is_help=True, help="See and check the plugins that are installed.")


@plugins_app.command("list")
def plugins_list(as_json: AsJson = False) -> None:
    """List installed plugins and whether a run would load them; imports none."""
    listed = list_plugins(warn=True)
    if as_json:
        keys = ("name", "distribution", "version", "value")
        print_json([
            {**{key: getattr(item.info, key) for key in keys}, "loads": item.selected, "reason": item.reason}
            for item in listed
        ])  # fmt: skip
        return
    table = Table("plugin", "distribution", "entry point", "loads", box=None, pad_edge=False)
    table.add_row("builtin", f"tunecore {__version__}", BUILTIN, "yes")
    for item in listed:
        info = item.info
        loads = "yes" if item.selected else f"no: {item.reason}"
        table.add_row(info.name, f"{info.distribution} {info.version}", info.value, loads)
    out.print(table)


@plugins_app.command("check")
def plugins_check(
    names: Annotated[list[str] | None, typer.Argument(help="Plugins to check; none checks all installed.")] = None,
    contract: Annotated[
        bool, typer.Option("--contract", help="Also try each component, with its defaults, on a tiny random model.")
    ] = False,
) -> None:
    """Import plugins and check their hooks, arguments and names; exit with 1 if one does not keep the contract."""
    loaded = load_plugins(strict=False)
    infos = [*loaded.loaded, *(broken.info for broken in loaded.broken)]
    errors = {broken.info: broken.error for broken in loaded.broken}
    _known(names or (), [name for info in infos for name in (info.name, info.distribution)])
    bad = 0
    for info in infos:
        if names and not any(info.is_called(name) for name in names):
            continue
        entries = [entry for entry in loaded.registry if entry.owner == info.owner]
        problems = [str(errors[info])] if info in errors else []
        if contract:
            problems += [problem for entry in entries if (problem := _broken_contract(loaded.registry, entry))]
        bad += bool(problems)
        out.print("[bold red]broken[/]" if problems else "[green]ok[/]    ", escape(info.owner))
        for entry in entries:
            out.print(f"         {entry.kind} {escape(entry.name)}")
        for problem in problems:
            out.print(escape(f"         {problem}".replace("\n", "\n         ")))
    if bad:
        raise typer.Exit(1)


def _broken_contract(registry: Registry, entry: Entry) -> str | None:
    """What is wrong with a component, or None."""
    try:
        part("conformance").check_component(registry, entry, {}, None)
    except Exception as error:  # a plugin's code may raise anything; all of it is what was asked for
        return f"{entry.kind} {entry.name}: {type(error).__name__}: {error}"
    return None


def _known(names: Iterable[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"no plugin {name!r} is installed", hint="`tunecore plugins list` shows those that are.")
