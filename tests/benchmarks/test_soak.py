"""The soak's verdict on made-up samples, and a soak of a minute."""

from __future__ import annotations

import json
import random

import pytest

STEADY = {"rss": 400.0, "files": 40, "threads": 4, "shm": 0, "folder": 0.7}


def samples(grows="", a_minute=0.0, a_process=0.0):
    """Six processes of a minute, a sample a second, with noise."""
    noise = random.Random(0)
    for life in range(6):
        for second in range(60):
            row = {name: value + noise.uniform(-0.02, 0.02) for name, value in STEADY.items()}
            if grows:
                row[grows] += a_minute * second / 60 + a_process * life
            if second < 10:
                row["rss"] -= 100 - 10 * second  # warming up is no growth
            yield {"life": life, "age": second, "done": 10 * second, "step": 600 * life + 10 * second, **row}


@pytest.mark.parametrize(
    ("grows", "a_minute", "a_process", "where"),
    [("", 0, 0, None), ("rss", 8, 0, "within"), ("rss", 1, 0, None), ("rss", 0, 2, "between"),
     ("files", 3, 0, "within"), ("shm", 0, 1, "between"), ("folder", 0, 0.3, "between"), ("threads", 0, 1, "between")],
)  # fmt: skip
def test_growth_is_told_from_noise_and_warming_up(benchmark_module, grows, a_minute, a_process, where):
    soak = benchmark_module("soak")
    verdicts = soak.judge(list(samples(grows, a_minute, a_process)), warm=100)
    assert [(v["figure"], v["where"]) for v in verdicts if v["grows"]] == ([] if where is None else [(grows, where)])


def test_growth_is_the_exit_code(benchmark_module, tmp_path):
    soak = benchmark_module("soak")
    for grows, code in (("", 0), ("files", 1)):
        text = "".join(json.dumps(row) + "\n" for row in samples(grows, a_minute=5))
        (tmp_path / "samples.jsonl").write_text(text + '{"life": 5, "st', encoding="utf-8")
        assert soak.report(tmp_path, {"SIGKILL": 6}, warm=100) == code
    assert json.loads((tmp_path / "summary.json").read_text())["samples"] == 360
    assert (tmp_path / "soak.png").stat().st_size > 1000


@pytest.mark.faults
def test_a_soak_of_a_minute(benchmark_module, tmp_path, monkeypatch):
    soak = benchmark_module("soak")
    monkeypatch.setenv("PYTHONPATH", str(soak.__file__).rpartition("/")[0])
    soak.main(["--minutes", "1.2", "--output", str(tmp_path / "soak"), "--life", "20", "25", "--warm", "1"])
    found = json.loads((tmp_path / "soak" / "summary.json").read_text())
    assert found["processes"] >= 2 and found["steps"] > 5 and sum(found["ended"].values()) == found["processes"]
