"""The report of any run's folder: of one run, a search, or a run with stages."""

from __future__ import annotations

import os
from pathlib import Path

from tunecore.config_io import load_config
from tunecore.run_folder import RUN_FILE
from tunecore.tracking.report import write_report
from tunecore.tracking.road_report import write_road_report
from tunecore.tracking.search_report import TRIALS_FILE, write_search_report


def draw(run_dir: str | os.PathLike[str]) -> Path:
    """Draw ``report.html`` anew from what lies in a folder; returns its path.

    Raises:
        DataError: it is not the folder of a run.
    """
    folder = Path(run_dir)
    if (folder / TRIALS_FILE).exists():
        return write_search_report(folder)
    if (folder / RUN_FILE).exists() and load_config(folder / RUN_FILE).stages:
        return write_road_report(folder)
    return write_report(folder)
