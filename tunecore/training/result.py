"""How a run, a search or a road ended, in the terms they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Result:
    """What there is to say of whatever was run."""

    steps: int
    """Optimizer steps done, those before a resume included; of the best trial, of the last stage."""
    metrics: Mapping[str, Any]
    """The last logged row, the last evaluation under ``eval/``, and the test of the chosen model under ``test/``."""
    best_metric: float | None
    """Best value of the metric that chooses checkpoints."""
    best_path: Path | None
    """Where that model is: the checkpoint; of a search or a road, the final model."""
    interrupted: bool
    """A signal came before the end; the same command again goes on."""
    seconds: float
    """Wall time of this call."""
    exit_code: int = 0
    """0, or 128 + the signal: 130 after Ctrl-C, 143 after SIGTERM."""


@dataclass(frozen=True, kw_only=True)
class TrainResult(Result):
    """How a run ended."""
