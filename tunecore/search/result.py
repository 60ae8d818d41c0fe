"""What a search tells: its trials, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class SearchResult:
    """How a search ended."""

    trials: tuple[Trial, ...]
    best: Trial | None
    """The complete trial with the best metric."""
    metric: str
    """What was searched for; a leading "-" means lower is better."""
    metrics: Mapping[str, Any]
    """Of the final model: the test's, under ``test/``."""
    steps: int
    """Optimizer steps of the best trial."""
    best_metric: float | None
    best_path: Path | None
    """The final model."""
    interrupted: bool
    """A signal ended the search before its last trial; the same command again goes on."""
    seconds: float
    """Wall time of this call."""
    exit_code: int = 0
    """0, or 128 + the signal."""


def describe(params: Mapping[str, Any]) -> str:
    """The options of a trial in one line."""
    shown = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in params.items()}
    return ", ".join(f"{name}={value}" for name, value in shown.items())
