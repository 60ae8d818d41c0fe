"""What the campaigns tried, for the record.

    python tests/faults/record.py FILE      the rows of FILE as one table
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def record(line: str, tried: int, passed: int, **more: Any) -> None:
    """Append one JSON row to the file named by TUNECORE_FAULTS_RECORD; without it, do nothing."""
    path = os.environ.get("TUNECORE_FAULTS_RECORD")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"line": line, "tried": tried, "passed": passed, **more}) + "\n")


def table(rows: list[dict[str, Any]]) -> str:
    """The rows summed by line, in the order of their first."""
    lines = ["| line | tried | passed |", "| --- | ---: | ---: |"]
    for line in dict.fromkeys(row["line"] for row in rows):
        tried, passed = (sum(row[key] for row in rows if row["line"] == line) for key in ("tried", "passed"))
        lines.append(f"| {line} | {tried:,} | {passed:,} |")
    return "\n".join(lines)


if __name__ == "__main__":
    given = Path(sys.argv[1])
    print(table([json.loads(row) for row in given.read_text(encoding="utf-8").splitlines()] if given.exists() else []))
