"""What a campaign tried, for the table of reliability."""

from __future__ import annotations

import json
import os
from typing import Any


def record(line: str, tried: int, passed: int, **more: Any) -> None:
    """Append one JSON row to the file that TUNECORE_FAULTS_RECORD names; nothing where it is unset."""
    path = os.environ.get("TUNECORE_FAULTS_RECORD")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"line": line, "tried": tried, "passed": passed, **more}) + "\n")
