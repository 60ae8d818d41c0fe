"""Asking and telling, with the processes of a search played by objects of one, and by real ones where locks matter."""

import itertools

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunecore.checkpoint import commit
from tunecore.config_search import SearchConfig
from tunecore.errors import CheckpointError
from tunecore.locks import FileLock
from tunecore.search.sampling import grid_point, make_sampler, suggest
from tunecore.search.study import JOURNAL, MOST_DEATHS, TrialStudy

SPACE = {
    "training.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
    "training.epochs": {"low": 1, "high": 4},
    "training.warmup": {"low": 0.0, "high": 0.5},
    "strategies": [[], ["head_only"]],
}


def open_study(folder, seed=0, lower=False, **options):
    return TrialStudy(folder, SearchConfig(**{"space": SPACE, "trials": 4, **options}), seed, lower_is_better=lower)


def claim(study):
    with study.locked():
        return study.claim()


def run_all(study, value=lambda trial: trial.params["training.learning_rate"]):
    while (trial := claim(study)) is not None:
        study.complete(trial.number, value(trial))
    return study.trials()


def test_every_trial_has_a_value_of_every_option_and_the_budget_is_kept(tmp_path):
    trials = run_all(open_study(tmp_path, trials=8))
    assert [t.number for t in trials] == list(range(8)) and {t.state for t in trials} == {"complete"}
    for trial in trials:
        assert list(trial.params) == list(SPACE)
        assert 1e-5 <= trial.params["training.learning_rate"] <= 1e-2 and trial.params["training.epochs"] in range(1, 5)
        assert 0 <= trial.params["training.warmup"] <= 0.5
        assert trial.params["strategies"] in ("[]", '["head_only"]')
    assert len({t.params["training.learning_rate"] for t in trials}) == 8
    assert open_study(tmp_path, trials=8).is_over() and not open_study(tmp_path, trials=9).is_over()


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_what_is_tried_does_not_depend_on_the_processes(tmp_path, sampler):
    """One process, or a new one for each trial that dies before it ends: the same trials (the model of tpe works
    from the eleventh on)."""
    options = {"trials": 14, "sampler": sampler}
    whole = run_all(open_study(tmp_path / "whole", **options))
    for _ in range(14):
        left = claim(open_study(tmp_path / "cut", **options))
        study = open_study(tmp_path / "cut", **options)
        taken = claim(study)
        assert taken == left
        study.complete(taken.number, taken.params["training.learning_rate"])
    assert open_study(tmp_path / "cut", **options).trials() == whole
    assert run_all(open_study(tmp_path / "other", seed=1, **options)) != whole


def test_parameters_are_drawn_apart(tmp_path):
    """A seed shared by the parameters of a trial would put them all at the same place of their ranges."""
    ranges = {name: {"low": 0.0, "high": 1.0} for name in ("training.warmup", "training.weight_decay")}
    trials = run_all(open_study(tmp_path, space=ranges, trials=6, sampler="random"), value=lambda _: 0.0)
    assert all(abs(a - b) > 1e-3 for a, b in (t.params.values() for t in trials))


def test_a_grid_takes_every_combination_once(tmp_path):
    space = {"training.epochs": [1, 2, 3], "strategies": [[], ["full"]]}
    trials = run_all(open_study(tmp_path, space=space, trials=None, sampler="grid"), value=lambda _: 1.0)
    wanted = [{"training.epochs": e, "strategies": s} for e, s in itertools.product([1, 2, 3], ["[]", '["full"]'])]
    assert [t.params for t in trials] == wanted
    parameters = SearchConfig(space=space).parameters
    assert [grid_point(parameters, n) for n in range(6)] == wanted


@settings(max_examples=25, deadline=None)
@given(low=st.integers(1, 50), width=st.integers(1, 50), step=st.integers(1, 5), log=st.booleans(), seed=st.integers(0))
def test_draws_stay_in_their_range(low, width, step, log, seed):
    given_range = {"low": low, "high": low + width, "log": log, **({} if log else {"step": step})}
    search = SearchConfig(space={"training.batch_size": given_range})
    study = optuna.create_study(sampler=make_sampler(optuna, search, seed))
    trial = study.ask()
    suggest(trial, "training.batch_size", search.parameters["training.batch_size"])
    value = trial.params["training.batch_size"]
    assert isinstance(value, int) and low <= value <= low + width and (log or (value - low) % step == 0)


def test_the_best_is_the_first_of_equals_in_the_metrics_direction(tmp_path):
    values = [2.0, 1.0, 1.0, 3.0]
    for lower, best in ((True, 1), (False, 3)):
        study = open_study(tmp_path / str(lower), lower=lower)
        assert study.best() is None
        run_all(study, value=lambda trial: values[trial.number])
        assert study.best().number == best


def test_a_trial_whose_process_is_alive_is_left_alone(tmp_path, processes):
    study = open_study(tmp_path)
    first = claim(study)
    context = processes
    results = context.Queue()
    other = context.Process(target=_claim_and_tell, args=(str(tmp_path), results))
    other.start()
    assert results.get(timeout=60) == first.number + 1, "the other process takes the next one"
    other.join(60)
    study.complete(first.number, 0.5)
    assert [t.state for t in study.trials()] == ["complete", "running"]
    assert claim(study).number == 1, "the other process ended without a result"


def _claim_and_tell(folder, results):
    from pathlib import Path

    import test_study

    results.put(test_study.claim(test_study.open_study(Path(folder))).number)


def test_a_trial_that_ends_its_process_again_and_again_is_failed(tmp_path):
    first = claim(open_study(tmp_path))
    for _ in range(MOST_DEATHS - 1):
        assert claim(open_study(tmp_path)).number == first.number
    study = open_study(tmp_path)
    assert claim(study).number == first.number + 1
    assert study.trial(first.number).state == "failed" and "died 5 times" in study.trial(first.number).reason


def test_a_trial_that_gets_on_or_was_stopped_in_order_is_not_failed(tmp_path):
    number = claim(open_study(tmp_path)).number
    for step in range(2 * MOST_DEATHS):
        commit(tmp_path / f"trial-{number}", f"step-{step + 1}", lambda folder: (folder / "x").write_text("x"), {})
        assert claim(open_study(tmp_path)).number == number
    for _ in range(2 * MOST_DEATHS):
        study = open_study(tmp_path)
        assert claim(study).number == number
        study.let_go(orderly=True)


def test_evaluations_count_once_and_a_poor_trial_is_pruned(tmp_path):
    study = open_study(tmp_path, trials=6, pruner="median", startup_trials=2)
    for _ in range(2):
        trial = claim(study)
        assert not study.report(trial.number, 10, 1.0, 0.8) and not study.report(trial.number, 20, 2.0, 0.9)
        study.complete(trial.number, 0.9)
    poor = claim(study)
    assert not study.report(poor.number, 10, 0.5, 0.1), "steps of half as many rows: nobody was measured there"
    assert study.report(poor.number, 20, 1.0, 0.1)
    again = open_study(tmp_path, trials=6, pruner="median", startup_trials=2)
    assert claim(again).number == poor.number and again.is_hopeless(poor.number)
    assert again.report(poor.number, 20, 1.0, 0.1) and again.trial(poor.number).curve == ((10, 0.1), (20, 0.1))
    again.prune(poor.number)
    assert again.trial(poor.number).state == "pruned" and again.trial(poor.number).value == 0.1
    good = claim(again)
    assert not again.report(good.number, 10, 1.0, 0.85) and not again.is_hopeless(good.number)
    assert again.best().value == 0.9


def test_a_line_that_a_killed_process_did_not_finish_is_cut_off(tmp_path):
    study = open_study(tmp_path)
    study.complete(claim(study).number, 0.5)
    with open(tmp_path / JOURNAL, "ab") as file:
        file.write(b'{"op_code": 4, "work')
    again = open_study(tmp_path)
    again.complete(claim(again).number, 0.25)
    assert [t.value for t in open_study(tmp_path).trials()] == [0.5, 0.25]


def test_a_damaged_journal_is_told(tmp_path):
    claim(open_study(tmp_path))
    content = (tmp_path / JOURNAL).read_bytes()
    (tmp_path / JOURNAL).write_bytes(b"nothing of the kind\n" + content)
    with pytest.raises(CheckpointError, match=r"study\.journal.* cannot be read"):
        open_study(tmp_path)


def test_a_lock_ends_with_its_process(tmp_path, processes):
    lock, results = FileLock(tmp_path / "a/lock"), processes.Queue()
    holder = processes.Process(target=_hold, args=(str(lock.path), results))
    holder.start()
    assert results.get(timeout=60) and not lock.acquire(wait=False)
    holder.kill()
    holder.join(60)
    assert lock.acquire(wait=False)
    lock.release()
    lock.release()
    with lock.held():
        pass


def _hold(path, results):
    import time
    from pathlib import Path

    results.put(FileLock(Path(path)).acquire())
    time.sleep(60)
