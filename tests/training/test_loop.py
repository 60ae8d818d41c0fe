from __future__ import annotations

import math
import os
import signal

import fake_training as fake
import pytest

from tunecore.errors import CheckpointError, ConfigError, Interrupted, TrainingError
from tunecore.hookspecs import hookimpl
from tunecore.training.loop import is_better, train
from tunecore.training.state import resume


class Recorder:
    """Every hook and every tracker call, in order."""

    def __init__(self):
        self.events, self.rows = [], []

    @hookimpl
    def tunecore_run_start(self, run):
        self.events.append(("start", run.step))

    @hookimpl
    def tunecore_step_end(self, run, metrics):
        self.events.append(("step", run.step))

    @hookimpl
    def tunecore_evaluated(self, run, metrics):
        self.events.append(("evaluated", run.step))

    @hookimpl
    def tunecore_checkpoint_saved(self, run, path):
        assert (path / "manifest.json").exists()
        self.events.append(("saved", path.name))

    @hookimpl
    def tunecore_run_end(self, run, error):
        self.events.append(("end", error))

    def start(self, run):
        self.rows.append(("start", run.step))

    def log(self, step, metrics):
        self.rows.append((step, dict(metrics)))

    def end(self, run, error):
        self.rows.append(("end", error))


def fit(folder, recorder=None, steps=6, unit=None, plugins=(), rows=None, **config):
    recorder = recorder or Recorder()
    run = fake.make_fake_run(
        fake.make_config(folder, **config), steps=steps, unit=unit, hooks=fake.make_hooks(recorder, *plugins), rows=rows
    )
    return run, fake.fit(run, trackers=[recorder], rows=rows), recorder


def test_hooks_fire_as_drawn(tmp_path):
    _, result, recorder = fit(tmp_path / "run", evaluate_every=2, save_every=3, metric="loss")  # the first stays best
    assert recorder.events == [
        ("start", 0), ("step", 1), ("step", 2), ("evaluated", 2), ("saved", "step-2"), ("step", 3), ("saved", "step-3"),
        ("step", 4), ("evaluated", 4), ("step", 5), ("step", 6), ("evaluated", 6), ("saved", "step-6"), ("end", None),
    ]  # fmt: skip
    assert result.steps == 6 and not result.interrupted and result.exit_code == 0 and result.seconds > 0


def test_rows_are_averages_of_their_window(tmp_path):
    steps = []

    class Steps:
        @hookimpl
        def tunecore_step_end(self, run, metrics):
            steps.append(dict(metrics))

    _, result, recorder = fit(tmp_path / "run", steps=7, log_every=3, evaluate_every=100, plugins=[Steps()])
    assert recorder.rows[0] == ("start", 0) and recorder.rows[-1] == ("end", None)
    rows = {step: row for step, row in recorder.rows[1:-1] if "loss" in row}
    assert list(rows) == [3, 6, 7]
    for step, window in ((3, steps[:3]), (6, steps[3:6]), (7, steps[6:])):
        row = rows[step]
        for name in ("loss", "loss/words_lm", "grad_norm", "accuracy/words_lm"):
            assert row[name] == pytest.approx(sum(m[name] for m in window) / len(window))
        assert row["learning_rate"] == window[-1]["learning_rate"]
        assert row["tokens"] == sum(m["tokens"] for m in steps[:step])
        assert row["epoch"] == step / 4
        assert row["time/forward"] == pytest.approx(sum(m["time/forward"] for m in window))
        seconds = sum(v for k, v in row.items() if k.startswith("time/") and k[5:] not in ("evaluation", "checkpoint"))
        assert row["tokens_per_second"] == pytest.approx(sum(m["tokens"] for m in window) / seconds)
        assert "time/data" in row
    assert [step for step, row in recorder.rows[1:-1] if "eval/loss" in row] == [7]
    assert result.metrics["loss"] == rows[7]["loss"] and result.metrics["eval/loss"] > 0


def test_a_resumed_run_logs_the_rows_of_an_uninterrupted_one(tmp_path):
    class StopAt2:
        @hookimpl
        def tunecore_step_end(self, run):
            if run.step == 2:
                run.stop.request()

    def losses(rows):
        return [(s, r["loss"], r["tokens"]) for s, r in rows[1:-1] if "loss" in r]

    _, _, whole = fit(tmp_path / "a", log_every=5)
    _, first, cut = fit(tmp_path / "b", log_every=5, plugins=[StopAt2()])
    _, second, rest = fit(tmp_path / "b", log_every=5)
    assert first.interrupted and not second.interrupted and rest.rows[0] == ("start", 2)
    assert losses(cut.rows) + losses(rest.rows) == losses(whole.rows)


def test_best_checkpoint_is_kept_and_pruned_around(tmp_path):
    values = iter([3.0, 1.0, 2.0, 4.0, 5.0, 6.0])
    run = fake.make_fake_run(fake.make_config(tmp_path / "run", evaluate_every=1, keep=1), steps=6)
    save = fake.make_saver(run, fake.write_model)
    result = train(run, fake.make_loader(run), evaluate=lambda: {"loss": next(values)}, save=save)
    assert result.best_metric == 1.0 and result.best_path == tmp_path / "run" / "step-2"
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["step-2", "step-6"]


def test_early_stopping_counts_evaluations_and_survives_a_resume(tmp_path):
    def go(folder, steps_before_stop=None):
        values = {1: 3.0, 2: 1.0, 3: 2.0, 4: math.nan, 5: 1.0, 6: 0.5}
        run = fake.make_fake_run(fake.make_config(folder, evaluate_every=1, patience=3), steps=6)
        resume(run)

        class Stop:
            @hookimpl
            def tunecore_step_end(self, run):
                if run.step == steps_before_stop:
                    run.stop.request()

        run.hooks = fake.make_hooks(Stop())
        save = fake.make_saver(run, fake.write_model)
        return train(run, fake.make_loader(run), evaluate=lambda: {"loss": values[run.step]}, save=save)

    whole = go(tmp_path / "a")
    assert whole.steps == 5 and not whole.interrupted and whole.best_metric == 1.0
    assert go(tmp_path / "b", 4).interrupted
    again = go(tmp_path / "b")
    assert again.steps == 5 and not again.interrupted
    assert (tmp_path / "a/step-5/state.json").read_bytes() == (tmp_path / "b/step-5/state.json").read_bytes()
    assert go(tmp_path / "b").steps == 5, "a run that has ended early stays ended"


def test_a_finished_run_started_again_does_nothing(tmp_path):
    fit(tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    _, result, recorder = fit(tmp_path / "run")
    assert result.steps == 6 and recorder.events == [("start", 6), ("end", None)]
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}


def test_defaults_are_ten_evaluations_a_pretraining_and_one_an_epoch_of_finetuning(tmp_path):
    _, _, recorder = fit(tmp_path / "pre", steps=25)
    assert [e[1] for e in recorder.events if e[0] == "evaluated"] == [3, 6, 9, 12, 15, 18, 21, 24, 25]
    unit = fake.make_unit(head=True)
    rows = fake.FakeRows(words=False)
    recorder = Recorder()
    config = fake.make_config(tmp_path / "fine")
    config = type(config)(
        **{n: getattr(config, n) for n in config.__slots__ if n not in ("head", "objectives")}, head="parity"
    )
    run = fake.make_fake_run(config, steps=10, unit=unit, hooks=fake.make_hooks(recorder), rows=rows)
    result = fake.fit(run, rows=rows)
    assert [e[1] for e in recorder.events if e[0] == "evaluated"] == [4, 8, 10]
    assert result.metrics["eval/confusion_matrix"] == [[8]]
    assert result.best_metric == max(result.best_metric, result.metrics["eval/accuracy"]), "chosen by the head's metric"


@pytest.mark.parametrize(
    ("metric", "best", "value", "wanted"),
    [("accuracy", None, 0.5, True), ("accuracy", 0.5, 0.6, True), ("accuracy", 0.5, 0.5, False),
     ("-accuracy", 0.5, 0.4, True), ("-accuracy", 0.5, 0.6, False), ("accuracy", None, math.nan, False),
     ("-accuracy", 0.5, math.nan, False)],
)  # fmt: skip
def test_better(metric, best, value, wanted):
    assert is_better({"accuracy": value, "confusion_matrix": [[1]]}, metric, best) is wanted


def test_a_metric_nobody_measures_lists_those_there_are():
    with pytest.raises(ConfigError, match=r"'acuracy'; known: accuracy, loss\. Did you mean 'accuracy'"):
        is_better({"accuracy": 1.0, "loss": 0.1, "confusion_matrix": []}, "-acuracy", None)


def test_the_end_hook_and_trackers_learn_of_an_error(tmp_path):
    class Break:
        @hookimpl
        def tunecore_step_end(self, run):
            if run.step == 2:
                raise ValueError("broken plugin")

    recorder = Recorder()
    with pytest.raises(ValueError, match="broken plugin") as error:
        fit(tmp_path / "run", recorder, plugins=[Break()])
    assert recorder.events[-1] == ("end", error.value) and recorder.rows[-1] == ("end", error.value)


def test_a_full_disk_ends_the_run_with_the_earlier_checkpoint_whole(tmp_path):
    run = fake.make_fake_run(fake.make_config(tmp_path / "run", evaluate_every=2), steps=6)
    real = fake.make_saver(run, fake.write_model)

    def write(folder, tensors):
        fake.write_model(folder, tensors)
        if run.step == 4:
            raise OSError(28, "No space left on device")

    save = fake.make_saver(run, write)
    with pytest.raises(CheckpointError, match=r"step-4.*No space left"):
        train(run, fake.make_loader(run), evaluate=lambda: {"loss": 1.0}, save=save)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["step-2"]
    again = fake.make_fake_run(fake.make_config(tmp_path / "run", evaluate_every=2), steps=6)
    assert resume(again) == tmp_path / "run" / "step-2" and real is not save


def test_a_loader_that_is_not_the_runs_is_an_error(tmp_path):
    run = fake.make_fake_run(fake.make_config(tmp_path), steps=4)
    steps = list(fake.make_loader(run))
    with pytest.raises(TrainingError, match="gave step 1 where step 0 of 4 is due"):
        train(run, steps[1:])
    with pytest.raises(TrainingError, match="ended where step 3 of 4"):
        train(run, steps[:3])


def test_no_steps_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least 1"):
        fake.make_fake_run(fake.make_config(tmp_path), steps=0)


def test_training_mode_is_restored_around_evaluation(tmp_path):
    modes = []

    class Modes:
        @hookimpl
        def tunecore_evaluated(self, run):
            modes.append({name: m.training for name, m in run.unit.named_modules()})

    class KeepNorm:
        @hookimpl
        def tunecore_run_start(self, run):
            run.model.body.norm.eval()

    fit(tmp_path / "run", plugins=[Modes(), KeepNorm()])
    assert modes and all(not mode["model.body.norm"] and mode["model.body.mix"] for mode in modes)


# --- signals -------------------------------------------------------------------------------------------------


class Kill:
    """Sends this process signals at a step or a save."""

    def __init__(self, at, *signals):
        self.at, self.signals = at, signals

    @hookimpl
    def tunecore_batch_ready(self, run):
        if self.at == run.step:
            self.at = None
            for number in self.signals:
                os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_saves_and_leaves(tmp_path, number, code):
    before = signal.getsignal(number)
    _, result, recorder = fit(tmp_path / "run", plugins=[Kill(2, number)], steps=20, save_every=100)
    assert result.interrupted and result.steps == 3 and result.exit_code == code
    assert recorder.events[-2:] == [("saved", "step-3"), ("end", None)]
    assert signal.getsignal(number) is before
    _, rest, _ = fit(tmp_path / "run", steps=20, save_every=100)
    assert rest.steps == 20 and not rest.interrupted and rest.exit_code == 0


def test_a_second_signal_leaves_at_once(tmp_path):
    recorder = Recorder()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "run", recorder, plugins=[Kill(2, signal.SIGINT, signal.SIGINT)])
    assert isinstance(recorder.events[-1][1], KeyboardInterrupt)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_signal_while_saving_waits_for_the_save(tmp_path):
    run = fake.make_fake_run(fake.make_config(tmp_path / "run", evaluate_every=2), steps=6)
    real = fake.make_saver(run, fake.write_model)

    def save(name):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        return real(name)

    with pytest.raises(Interrupted) as stopped:
        train(run, fake.make_loader(run), evaluate=lambda: {"loss": 1.0}, save=save)
    assert stopped.value.number == signal.SIGTERM
    again = fake.make_fake_run(fake.make_config(tmp_path / "run", evaluate_every=2), steps=6)
    assert resume(again) == tmp_path / "run" / "step-2"


def test_a_signal_during_evaluation_saves_without_it_and_makes_up_for_it(tmp_path):
    folder = tmp_path / "cut"
    fit(tmp_path / "whole", evaluate_every=3)
    run = fake.make_fake_run(fake.make_config(folder, evaluate_every=3), steps=6)

    def stopped():
        os.kill(os.getpid(), signal.SIGTERM)
        batches = fake.eval_batches(fake.FakeRows(11), max_tokens=64, position_offset=1, pad_id=0)
        return fake.evaluate(run.unit, batches, stop=run.stop)

    result = train(run, fake.make_loader(run), evaluate=stopped, save=fake.make_saver(run, fake.write_model))
    assert result.interrupted and result.steps == 3 and "eval/loss" not in result.metrics
    _, _, recorder = fit(folder, evaluate_every=3)
    assert recorder.events[:3] == [("start", 3), ("evaluated", 3), ("saved", "step-3")]
    for file in (tmp_path / "whole" / "step-6").iterdir():
        assert file.read_bytes() == (folder / "step-6" / file.name).read_bytes(), file.name


def test_a_signal_at_the_last_step_still_owes_the_last_evaluation(tmp_path):
    _, first, _ = fit(tmp_path / "run", plugins=[Kill(5, signal.SIGTERM)])
    assert first.interrupted and first.steps == 6
    _, second, recorder = fit(tmp_path / "run")
    assert not second.interrupted and ("evaluated", 6) in recorder.events


def test_off_the_main_thread_signals_are_left_alone(tmp_path):
    import threading

    before = signal.getsignal(signal.SIGTERM)
    results = []

    def work():
        results.append(fit(tmp_path / "run")[1])
        results.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results[0].steps == 6 and results[1] is before is signal.getsignal(signal.SIGTERM)


def test_a_plugin_that_changes_the_metrics_it_is_given_changes_no_result(tmp_path):
    class Clears:
        @hookimpl
        def tunecore_step_end(self, run, metrics):
            metrics.clear()

        @hookimpl
        def tunecore_evaluated(self, run, metrics):
            metrics.clear()

    config = fake.make_config(tmp_path / "run", evaluate_every=2, log_every=1)
    result = fake.fit(fake.make_fake_run(config, steps=2, unit=fake.make_unit(), hooks=fake.make_hooks(Clears())))
    assert "eval/loss" in result.metrics and "loss" in result.metrics
