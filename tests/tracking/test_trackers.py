import io
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from tunecore.errors import ConfigError, TrainingError
from tunecore.registry import Registry
from tunecore.tracking import tensorboard as tb
from tunecore.tracking.jsonl import JsonlOptions, JsonlTracker, cut_after, read_rows
from tunecore.tracking.progress import ProgressOptions, ProgressTracker, duration, phase_shares, short
from tunecore.tracking.trackers import TRACKERS
from tunecore.tracking.values import number, plain


def make_run(folder, step=0, total=100, per_epoch=50):
    return SimpleNamespace(output_dir=folder, step=step, total_steps=total, steps_per_epoch=per_epoch)


def test_every_tracker_registers_with_its_options():
    registry = Registry()
    for name, (factory, options) in TRACKERS.items():
        registry.add("tracker", name, factory, options, "test")
    assert registry.names("tracker") == ["jsonl", "progress", "tensorboard"]
    assert registry.create("tracker", "jsonl", {"file": "m.jsonl"}).options.file == "m.jsonl"
    with pytest.raises(ConfigError, match="no option 'fiel'"):
        registry.create("tracker", "jsonl", {"fiel": "m.jsonl"})


def test_jsonl_rows_are_valid_json_and_name_what_is_not_finite(tmp_path):
    tracker = JsonlTracker()
    run = make_run(tmp_path)
    tracker.start(run)
    odd = {"grad_norm": math.nan, "a": math.inf, "b": -math.inf}
    tracker.log(10, {"loss": 2.5, "learning_rate": np.float32(0.5), **odd})
    tracker.log(20, {"eval/confusion_matrix": np.array([[3, 1], [0, 4]]), "eval/labels": ("x", "y")})
    tracker.end(run, None)

    def refuse(word):
        raise AssertionError(f"bare {word} is not JSON")

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    first, second = (json.loads(line, parse_constant=refuse) for line in lines)
    assert (first["step"], first["epoch"], first["loss"], first["learning_rate"]) == (10, 0.2, 2.5, 0.5)
    assert (first["grad_norm"], first["a"], first["b"]) == ("nan", "inf", "-inf")
    assert first["time"] > 1.6e9
    assert second["eval/confusion_matrix"] == [[3, 1], [0, 4]]
    assert second["eval/labels"] == ["x", "y"]


def test_rows_are_readable_before_the_run_ends(tmp_path):
    tracker = JsonlTracker()
    tracker.start(make_run(tmp_path))
    tracker.log(1, {"loss": 1.0})
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1]
    tracker.end(None, None)


def test_a_killed_and_resumed_run_leaves_no_step_twice(tmp_path):
    tracker = JsonlTracker()
    tracker.start(make_run(tmp_path))
    for step in (10, 20, 30, 40):
        tracker.log(step, {"loss": 1.0 / step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 50, "lo')  # the kill tore this line
    again = JsonlTracker()
    again.start(make_run(tmp_path, step=20))
    for step in (30, 40, 50):
        again.log(step, {"loss": 2.0 / step})
    again.end(None, None)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [10, 20, 30, 40, 50]
    assert [row["loss"] for row in rows] == [1 / 10, 1 / 20, 2 / 30, 2 / 40, 2 / 50]


def test_a_run_that_begins_anew_keeps_nothing(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "eval/loss": 3}\n{"step": 10}\n')
    assert cut_after(path, 0) == 2
    assert path.read_text() == ""
    assert cut_after(tmp_path / "absent.jsonl", 5) == 0


def test_cut_keeps_the_evaluation_of_the_resumed_step_and_ends_the_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "loss": 1}\n{"step": 10, "eval/loss": 2}')
    assert cut_after(path, 10) == 0
    path.write_text('{"step": 10, "loss": 1}\nrubbish\n{"step": 10, "eval/loss": 2}')
    assert cut_after(path, 10) == 1
    assert path.read_text().endswith('"eval/loss": 2}\n')


def test_reading_a_torn_line_warns_with_file_and_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n[1, 2]\n{"step": 2}\n')
    with pytest.warns(UserWarning, match=r"metrics\.jsonl:2"):
        assert [r["step"] for r in read_rows(path)] == [1, 2]


@pytest.mark.parametrize("name", ["", "a/b.jsonl", ".."])
def test_jsonl_file_must_be_a_plain_name(name):
    with pytest.raises(ConfigError, match="plain file name"):
        JsonlOptions(file=name)


def test_logging_before_start_is_an_error():
    with pytest.raises(TrainingError, match="before it was started"):
        JsonlTracker().log(1, {})


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, True), (3, 3), (np.int64(3), 3), (np.nan, "nan"), ([1.0, np.inf], [1.0, "inf"]), ({1: None}, {"1": None})],
)
def test_plain(value, expected):
    assert plain(value) == expected


def test_number_reads_words_back():
    assert math.isnan(number("nan"))
    assert number("-inf") == -math.inf
    assert number("high") is None
    assert number(True) is None
    assert number(np.float32(0.25)) == 0.25
    assert number([1]) is None


def log_to_text(folder, rows, *, live=False, step=0, error=None, last=100):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=live, width=200)
    tracker = ProgressTracker(ProgressOptions(live=live), console=console)
    run = make_run(folder, step=step)
    tracker.start(run)
    for at, metrics in rows:
        tracker.log(at, metrics)
    run.step = last
    tracker.end(run, error)
    return stream.getvalue()


TRAIN_ROW = {
    "loss": 4.21875, "loss/masked_lm": 3.5, "loss/next_sentence": 0.71875, "learning_rate": 3e-4, "grad_norm": 1.5,
    "tokens_per_second": 3210.4, "time/data": 1.0, "time/forward/backward": 7.0, "time/optimizer": 2.0,
}  # fmt: skip


def test_plain_progress_is_one_line_a_row(tmp_path):
    evaluation = {"eval/loss": 2.0, "eval/accuracy": 0.875, "eval/labels": ["a"]}
    text = log_to_text(tmp_path, [(10, TRAIN_ROW), (20, evaluation)])
    lines = text.splitlines()
    assert len(lines) == 4  # start, the row, the evaluation, the end
    for piece in ("10/100", "10%", "loss 4.219", "masked_lm 3.5", "lr 3.00e-04", "3,210 tok/s", "eta"):
        assert piece in lines[1], piece
    assert "forward/backward 70% optimizer 20% data 10%" in lines[1]
    assert lines[2] == "step 20  evaluation: loss 2  accuracy 0.875"
    assert lines[3].startswith("done at step 100")


def test_progress_of_one_loss_does_not_say_it_twice(tmp_path):
    text = log_to_text(tmp_path, [(10, {"loss": 0.5, "loss/classification": 0.5})])
    assert "classification" not in text


def test_progress_shows_nan_as_nan(tmp_path):
    assert "loss nan" in log_to_text(tmp_path, [(10, {"loss": math.nan})])


def test_progress_does_not_read_names_as_markup(tmp_path):
    assert "[red]x 1" in log_to_text(tmp_path, [(10, {"eval/[red]x": 1})])


def test_live_progress_draws_and_cleans_up(tmp_path):
    text = log_to_text(tmp_path, [(10, TRAIN_ROW), (20, {"eval/accuracy": 0.5})], live=True)
    assert "10/100" in text
    assert "evaluation: accuracy 0.5" in text


def test_progress_names_the_error_and_the_resumed_step(tmp_path):
    text = log_to_text(tmp_path, [], step=40, error=ValueError("x"), last=40)
    assert "resumed at step 40" in text
    assert "by ValueError" in text
    assert "stopped at step 60" in log_to_text(tmp_path, [], last=60)


def test_phase_shares_sum_to_one():
    shares = phase_shares(TRAIN_ROW)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["forward/backward"] == pytest.approx(0.7)
    assert phase_shares({"loss": 1.0, "time": 5.0}) == {}
    assert phase_shares({"time/data": 0.0}) == {}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.4, "59s"), (185, "3m 05s"), (7620, "2h 07m"), (273600, "3d 04h"), (math.inf, "?"), (-1, "?")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.12345, "0.1235"), (3e-5, "3.00e-05"), (12345.6, "12,346"), (2e7, "2.00e+07"), (math.nan, "nan")],
)
def test_short(value, text):
    assert short(value) == text


def test_tensorboard_writes_scalars_and_purges_on_resume(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for step, rows in ((0, (10, 20, 30)), (20, (30, 40))):
        tracker = tb.TensorboardTracker()
        run = make_run(tmp_path, step=step)
        tracker.start(run)
        for at in rows:
            tracker.log(at, {"loss": float(at + step), "eval/confusion_matrix": [[1]], "step": at})
        tracker.end(run, None)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(10, 10.0), (20, 20.0), (30, 50.0), (40, 60.0)]


def test_tensorboard_absent_says_what_to_do(monkeypatch):
    monkeypatch.setattr(tb.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        tb.TensorboardTracker()
    assert not tb.installed()
