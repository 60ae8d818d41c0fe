"""metrics.jsonl: one JSON object a logged row, so that any tool can follow a run, and the report be drawn from it."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from tunecore.durable import cannot_write, make_folder, replacing, sync
from tunecore.errors import ConfigError, TrainingError
from tunecore.tracking.values import plain

METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class JsonlOptions:
    """Options of the ``jsonl`` tracker."""

    file: str = METRICS_FILE
    """Name of the file inside the run's folder."""

    def __post_init__(self) -> None:
        if self.file in ("", "..") or Path(self.file).name != self.file:
            raise ConfigError(f"tracker jsonl: file is {self.file!r}; it must be a plain file name")


def parse_row(line: str) -> dict[str, Any] | None:
    """Read one line; None where it is not an object with an integer ``step`` (a torn write)."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        return None
    return row


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read all rows of a metrics file; [] where there is none. A line that cannot be read is named in a warning."""
    if not path.exists():
        return []
    rows = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            row = parse_row(line)
            if row is not None:
                rows.append(row)
            elif line.strip():
                warnings.warn(f"{path}:{number}: not a row of metrics, left out (was the run killed?)", stacklevel=2)
    return rows


def cut_after(path: Path, step: int) -> int:
    """Keep the rows up to ``step`` only, and return how many lines went.

    A run that was killed has rows beyond its newest checkpoint, and perhaps a torn last line. The resumed run
    makes those steps again. At step 0 nothing is kept: the run begins anew. The file is replaced in one rename.
    """
    if not path.exists():
        return 0
    kept, cut = [], 0
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            row = parse_row(line)
            if row is not None and row["step"] <= step and step > 0:
                kept.append(line if line.endswith("\n") else line + "\n")
            else:
                cut += 1
    if cut:
        with replacing(path) as out:
            out.writelines(kept)
    return cut


def append_row(path: Path, step: int, metrics: Mapping[str, Any]) -> None:
    """Add a row to the metrics of a run that is over.

    Raises:
        CheckpointError: the disk is full or refuses the write.
    """
    row = {"step": step, "time": round(time.time(), 3), **{name: plain(value) for name, value in metrics.items()}}
    try:
        with open(path, "ab", buffering=0) as file:
            _write_line(file, row)
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error) from error


def _write_line(file: FileIO, row: Mapping[str, Any]) -> None:
    """Nothing is kept back: what a failed write leaves is at most its own row, torn, which a resumed run cuts off."""
    line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    while line:
        line = line[file.write(line) or 0 :]


class JsonlTracker:
    """Append every logged row to ``metrics.jsonl`` in the run's folder.

    A row holds ``step``, ``epoch``, ``time`` (seconds since 1970) and all metrics as given. Rows are flushed one by
    one, so a killed process loses none; they reach the disk for certain when the run ends.
    """

    def __init__(self, options: JsonlOptions | None = None) -> None:
        self.options = options or JsonlOptions()
        self._file: FileIO | None = None
        self._path = Path(self.options.file)
        self._epoch_at: Callable[[int], float] | None = None

    def start(self, run: Any) -> None:
        """Open the file for appending, rows beyond the step the run starts from cut off."""
        self._path = path = Path(run.output_dir) / self.options.file
        cut_after(path, int(run.step))
        per_epoch = int(run.steps_per_epoch)
        self._epoch_at = getattr(run, "epoch_at", None) or ((lambda step: step / per_epoch) if per_epoch > 0 else None)
        make_folder(path.parent)
        try:
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed in end)
            sync(path.parent)
        except OSError as error:
            raise cannot_write(path, error) from error

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write one row.

        Raises:
            TrainingError: the tracker was not started.
            CheckpointError: the disk is full or refuses the write.
        """
        if self._file is None:
            raise TrainingError("the jsonl tracker logs before it was started", hint="Call start(run) first.")
        row: dict[str, Any] = {"step": int(step)}
        if "epoch" not in metrics and self._epoch_at is not None:
            row["epoch"] = round(self._epoch_at(step), 4)
        row["time"] = round(time.time(), 3)
        row.update((str(k), plain(v)) for k, v in metrics.items() if k != "step")
        try:
            _write_line(self._file, row)
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def end(self, run: Any, error: BaseException | None) -> None:
        """Bring the rows to the disk and close.

        Raises:
            CheckpointError: the disk refuses them.
        """
        file, self._file = self._file, None
        if file is not None:
            try:
                with file:
                    os.fsync(file.fileno())
            except OSError as failure:
                raise cannot_write(self._path, failure) from failure
