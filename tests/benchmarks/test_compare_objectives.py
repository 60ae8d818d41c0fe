"""The comparison of objectives runs from text to table, arm by arm, and goes on where it was stopped."""

from __future__ import annotations

import json
import sys
import zipfile

import pytest

from tunecore.testing import tiny_documents


@pytest.fixture
def compare(benchmark_module):
    return benchmark_module("compare_objectives")


@pytest.fixture
def command(tmp_path):
    """Small data in the form of the real one, and the options that name it."""
    texts = tiny_documents()
    with zipfile.ZipFile(tmp_path / "novels.zip", "w") as archive:
        for number in range(4):
            archive.writestr(f"{number}.txt", " ".join(texts[3 * number : 3 * number + 3]))
    with zipfile.ZipFile(tmp_path / "blimp.zip", "w") as archive:
        for uid in ("first", "second"):
            pairs = [{"sentence_good": t[:30], "sentence_bad": t[30:60], "UID": uid} for t in texts[:3]]
            archive.writestr(f"data/{uid}.jsonl", "\n".join(map(json.dumps, pairs)))
    for name in ("train", "dev", "test"):
        rows = "".join(f"{text[:30]}\t{number % 2}\n" for number, text in enumerate(texts))
        (tmp_path / f"{name}.tsv").write_text(f"sentence\tlabel\n{rows}", encoding="utf-8")
    given = {
        "output": tmp_path / "out", "text": tmp_path / "novels.zip", "blimp": tmp_path / "blimp.zip", "sst2": tmp_path,
        "held-out": 1, "size": "tiny", "vocab-size": 300, "max-length": 32, "steps": 3, "batch-size": 4,
        "blimp-per-uid": 2, "sst2-rows": 16, "sst2-seeds": 1, "time-steps": 2, "threads": 1,
    }  # fmt: skip
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]


def test_arms_are_measured_and_set_side_by_side(compare, command, tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit, match="time the steps first"):
        compare.main([*command, "--arm", "electra"])
    compare.main([*command, "--time"])
    for arm in ("random", "masked_lm", "electra"):
        compare.main([*command, "--arm", arm])
    arms = sys.modules["objective_arms"]
    monkeypatch.setattr(arms, "pretrain", lambda *given: pytest.fail("what is known is made again"))
    compare.main([*command, "--arm", "masked_lm"])
    with pytest.raises(SystemExit, match="other settings"):
        compare.main([*command, "--arm", "masked_lm", "--steps", "4"])
    capsys.readouterr()
    compare.main(["--output", str(tmp_path / "out"), "--table"])
    printed = capsys.readouterr().out
    assert [line.split(" | ")[0] for line in printed.splitlines()[2:5]] == ["| random", "| masked_lm", "| electra"]
    (line,) = (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()
    found = json.loads(line)
    assert set(found["timing"]["median"]) == {"masked_lm", "electra"}
    for row in found["arms"].values():
        assert 0 < row["masked_lm_loss"] < 8 and 0 <= row["blimp_pairs"] <= 1 and len(row["sst2_runs"]) == 1
    assert found["arms"]["random"]["steps"] == 0 and found["arms"]["masked_lm"]["steps"] == 3
