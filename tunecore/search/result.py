"""What a search tells: its trials, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunecore.training.result import Result

COMPLETE, PRUNED, FAILED, RUNNING = "complete", "pruned", "failed", "running"


@dataclass(frozen=True)
class Trial:
    """One run of a search."""

    number: int
    params: Mapping[str, Any]
    """Dotted option -> what was tried; lists and mappings as JSON."""
    state: str
    """complete, pruned, failed or running."""
    value: float | None
    """The metric: of the best checkpoint, or of a pruned trial the last one measured."""
    curve: tuple[tuple[int, float], ...] = ()
    """(step, metric) of its evaluations."""
    reason: str | None = None
    """Why it failed."""


@dataclass(frozen=True, kw_only=True)
class SearchResult(Result):
    """How a search ended."""

    trials: tuple[Trial, ...]
    best: Trial | None
    """The complete trial with the best metric."""
    metric: str
    """What was searched for; a leading "-" means lower is better."""


def describe(params: Mapping[str, Any]) -> str:
    """The options of a trial in one line."""
    shown = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in params.items()}
    return ", ".join(f"{name}={value}" for name, value in shown.items())
