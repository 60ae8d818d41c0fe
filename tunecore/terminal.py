"""What the commands print with, and how they reach the parts that bring in torch."""

from __future__ import annotations

import importlib
import json
from typing import Annotated, Any

import typer
from rich.console import Console

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, whole and for programs.")]


def part(name: str) -> Any:
    """A module of tunecore, imported when a command needs it: ``--help`` and ``plugins list`` do without torch."""
    return importlib.import_module(f"tunecore.{name}")


def print_json(value: Any, indent: int | None = 2) -> None:
    """Print a value as JSON; ``indent`` None is one line."""
    print(json.dumps(value, indent=indent, ensure_ascii=False, default=lambda item: item.tolist()))
