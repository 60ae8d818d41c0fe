from __future__ import annotations

import json

from record import record, table


def test_rows_are_kept_and_summed_by_line(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    record("kill", 1, 1)  # nowhere to go, and no error
    monkeypatch.setenv("TUNECORE_FAULTS_RECORD", str(path))
    record("kill", 1700, 1699, family="bert")
    record("signal", 2, 2)
    record("kill", 1, 1)
    lines = table([json.loads(row) for row in path.read_text().splitlines()]).splitlines()
    assert lines[2:] == ["| kill | 1,701 | 1,700 |", "| signal | 2 | 2 |"]
