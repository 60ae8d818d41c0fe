"""The comparison of strategies: its samples, its table, its plot, and that it goes on where it stopped."""

import json
import sys
from pathlib import Path

import pytest


@pytest.fixture
def compare(benchmark_module):
    return benchmark_module("compare_strategies")


def test_samples_are_even_and_the_seed_s(compare):
    rows = [{"text": str(i), "label": "01"[i % 3 == 0]} for i in range(90)]
    one = compare.sample(rows, 20, 3)
    assert one == compare.sample(rows, 20, 3) != compare.sample(rows, 20, 4)
    assert [row["label"] for row in one] == ["0", "1"] * 10 and len({row["text"] for row in one}) == 20
    assert compare.sample(rows, 10, 3) == one[:10]


def test_every_contestant_can_be_made(compare):
    from tunecore.config import PluginsConfig
    from tunecore.plugins import load_plugins
    from tunecore.training.plans import make_strategies

    registry = load_plugins(PluginsConfig(load=False)).registry
    for name, contestant in compare.CONTESTANTS.items():
        if name not in ("lora", "ia3"):
            assert make_strategies(contestant.strategies, registry)


def test_the_table_and_plot_of_what_was_run(compare, monkeypatch, tmp_path, capsys):
    calls = []

    def run(args, name, count, seed):
        calls.append((name, count, seed))
        return {
            "strategy": name, "examples": count, "seed": seed, "accuracy": 0.5 + 0.1 * seed, "seconds": 4.0,
            "epochs": args.epochs, "model": Path(args.model).name, "rows_measured": len(args.held_out),
            "learning_rate": compare.CONTESTANTS[name].learning_rate,
        }  # fmt: skip

    data = tmp_path / "rows.tsv"
    data.write_text("sentence\tlabel\n" + "".join(f"text {i}\t{i % 2}\n" for i in range(9)), encoding="utf-8")
    words = ["--model", "m", "--data", str(data), "--eval", str(data), "--seeds", "2"]
    monkeypatch.setattr(compare, "run", run)
    words += ["--strategies", "full", "head_only", "--examples", "4", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["x", *words])
    compare.main()
    assert "| full | 0.5500 ± 0.0707 | 0.5000 | 4 |" in capsys.readouterr().out
    assert calls == [("full", 4, 0), ("head_only", 4, 0), ("full", 4, 1), ("head_only", 4, 1)]
    assert (tmp_path / "out/strategies.png").stat().st_size > 1000
    compare.main()
    assert len(calls) == 4, "what has a row is not run again"
    rows = [json.loads(line) for line in (tmp_path / "out/strategies.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and {"torch", "cpu", "accuracy"} <= set(rows[0])
