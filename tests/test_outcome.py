"""The test of the chosen model, once, at the end of a run; and a finished run known again."""

import json
from pathlib import Path

import pytest

from tunecore import Engine
from tunecore.config_io import load_config
from tunecore.errors import DataError
from tunecore.run_folder import finished, read_result

WORDS = {"fine": "pos", "great": "pos", "lovely": "pos", "dull": "neg", "poor": "neg", "weak": "neg"}
THINGS = ("film", "book", "play")
ROWS = [{"text": f"a {word} {thing}", "label": label} for thing in THINGS for word, label in WORDS.items()]
OPTIONS = {"batch_size": 4, "learning_rate": 5e-3, "progress": False, "threads": 1}


@pytest.fixture
def engine():
    small = {"max_length": 16, "overrides": {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}}
    return Engine.from_scratch("bert", size="tiny", text=[r["text"] for r in ROWS], vocab_size=300, **small)


def rows_of_tests(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "test/accuracy" in row]


def test_a_run_is_tested_once_with_the_chosen_model(engine, tmp_path):
    folder = tmp_path / "run"
    result = engine.finetune(ROWS[:9], eval=ROWS[6:12], test=ROWS[12:], epochs=3, output_dir=folder, **OPTIONS)
    measured = engine.evaluate(ROWS[12:])
    assert result.metrics["test/accuracy"] == measured["accuracy"] and result.metrics["test/mcc"] == measured["mcc"]
    (row,) = rows_of_tests(folder)
    assert row["step"] == result.steps and row["test/accuracy"] == measured["accuracy"]
    kept = read_result(folder)
    assert kept["test"]["accuracy"] == measured["accuracy"] and kept["best_metric"] == result.best_metric
    report = (folder / "report.html").read_text()
    assert all(part in report for part in ("accuracy (test)", "Test of the chosen model", "Predictions by class, test"))
    config = load_config(folder / "run.yaml")
    assert config.data.test == (str(folder / "data/test.jsonl"),)
    again = Engine.from_config(config).run()
    assert again.metrics["test/accuracy"] == measured["accuracy"] and len(rows_of_tests(folder)) == 1


def test_pretraining_is_tested_on_text(engine, tmp_path):
    texts = [" ".join(row["text"] + "." for row in ROWS[i : i + 6]) for i in range(12)]
    options = {"steps": 2, "evaluation": {"max_rows": 2}, "eval_fraction": 0.2, **OPTIONS}
    result = engine.pretrain(texts, test=texts[:3], output_dir=tmp_path / "run", **options)
    assert result.metrics["test/loss/masked_lm"] > 0
    assert engine.evaluate(texts[:3])["loss"] == pytest.approx(result.metrics["test/loss"])


@pytest.mark.parametrize("bad", ["absent.csv", [{"txt": "x", "label": "pos"}], [{"text": "x", "label": "other"}]])
def test_a_mistake_in_the_test_is_found_before_the_training(engine, tmp_path, bad):
    with pytest.raises(DataError):
        engine.finetune(ROWS, eval_fraction=0, test=bad, epochs=1, output_dir=tmp_path / "run", **OPTIONS)
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_a_finished_run_is_known_by_its_folder(engine, tmp_path):
    folder = tmp_path / "run"
    engine.finetune(ROWS[:12], eval=ROWS[12:], steps=4, output_dir=folder, **OPTIONS)
    config = load_config(folder / "run.yaml")
    assert finished(config)["steps"] == 4
    assert finished(load_config(folder / "run.yaml", ["tracking.progress=true", "training.threads=2"])) is not None
    for change in ("training.steps=8", "training.batch_size=2", "data.test=[x]", f"output_dir={tmp_path / 'other'}"):
        assert finished(load_config(folder / "run.yaml", [change])) is None, change
    result = folder / "result.json"
    text = result.read_text()
    for damaged in ("{", "[]"):
        result.write_text(damaged)
        assert finished(config) is None
    result.write_text(text)
    best = folder / (folder / "best").read_text().strip()
    (best / "model.safetensors").write_bytes(b"")
    assert finished(config) is None


def test_what_is_held_out_can_be_fixed_apart_from_the_seed(engine, tmp_path):
    held_out = {}
    for name, seed, split in (("a", 0, 7), ("b", 1, 7), ("c", 1, None)):
        folder = tmp_path / name
        options = {"training": {"seed": seed}, "split_seed": split, "eval_fraction": 0.3, "steps": 1}
        Engine(engine.config, tokenizer=engine.tokenizer).finetune(ROWS, output_dir=folder, **options, **OPTIONS)
        held_out[name] = json.loads(Path(folder, "data_summary.json").read_text())["digest"]
    assert held_out["a"] == held_out["b"] != held_out["c"]
