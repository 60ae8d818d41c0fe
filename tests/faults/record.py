"""What the campaigns tried, for the record."""

from __future__ import annotations

import json
import os
from typing import Any


def record(line: str, tried: int, passed: int, **more: Any) -> None:
    """Append one JSON row to the file named by TUNECORE_FAULTS_RECORD; without it, do nothing."""
    path = os.environ.get("TUNECORE_FAULTS_RECORD")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"line": line, "tried": tried, "passed": passed, **more}) + "\n")
