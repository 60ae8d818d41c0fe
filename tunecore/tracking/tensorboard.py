"""Scalars for TensorBoard, where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunecore.errors import ConfigError, TrainingError
from tunecore.tracking.values import number


@dataclass(frozen=True)
class TensorboardOptions:
    """Options of the ``tensorboard`` tracker."""

    folder: str = "tensorboard"
    """Folder of the event files, inside the run's folder."""

    def __post_init__(self) -> None:
        if not self.folder:
            raise ConfigError("tracker tensorboard: folder is empty; give it a name")


def installed() -> bool:
    """Whether the ``tensorboard`` package can be found; nothing is imported."""
    return importlib.util.find_spec("tensorboard") is not None


class TensorboardTracker:
    """Write every numeric metric as a scalar. Rows beyond the step a run resumes from are hidden by a purge mark.

    Raises:
        ConfigError: tensorboard is not installed.
    """

    def __init__(self, options: TensorboardOptions | None = None) -> None:
        if not installed():
            raise ConfigError(
                "tracker tensorboard: the package tensorboard is not installed",
                hint="pip install tensorboard, or leave it out of tracking.trackers.",
            )
        self.options = options or TensorboardOptions()
        self._writer: Any = None

    def start(self, run: Any) -> None:
        """Open the event file."""
        from torch.utils.tensorboard import SummaryWriter  # seconds to import, so only where it is used

        step = int(run.step)
        self._writer = SummaryWriter(
            str(Path(run.output_dir) / self.options.folder), purge_step=step + 1 if step else None
        )

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Add each scalar; what is not finite stays so, and tables (a confusion matrix) are left out.

        Raises:
            TrainingError: the tracker was not started.
        """
        if self._writer is None:
            raise TrainingError("the tensorboard tracker logs before it was started", hint="Call start(run) first.")
        for name, value in metrics.items():
            scalar = number(value)
            if scalar is not None and name != "step":
                self._writer.add_scalar(name, scalar, step)

    def end(self, run: Any, error: BaseException | None) -> None:
        """Write what is buffered and close."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
