from __future__ import annotations

import json
import shutil
import warnings

import fake_training as fake
import pytest
import torch
from safetensors.torch import load_file, save_file

from tunecore.checkpoint import commit
from tunecore.errors import CheckpointError, ConfigError
from tunecore.hookspecs import hookimpl
from tunecore.training.plans import combine_plans
from tunecore.training.state import load_state, make_saver, resume
from tunecore.training.step import train_step
from tunecore.training.unit import Task, TrainUnit
from tunecore.types import ParamPlan, Progress


class Unfreeze:
    """Trains the top only, then everything from step 4 on; counts how often it was asked."""

    name = "unfreeze"

    def __init__(self):
        self.seen = 0

    def plan(self, plans, progress):
        self.seen = max(self.seen, progress.step)
        below = {n: ParamPlan(trainable=False) for n in plans if n.startswith("body.")}
        return below if progress.step < 4 else {}

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


class Discount:
    name = "discount"

    def plan(self, plans, progress):
        return {n: ParamPlan(lr_scale=0.5) for n in plans if n.startswith("body.")}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def a_run(folder, precision="fp32", strategies=(), seed=0, steps=12, counter=None, **config):
    return fake.make_fake_run(
        fake.make_config(folder, precision=precision, seed=seed, **config), steps=steps,
        unit=fake.make_unit(seed=seed, dropout=0.2), strategies=strategies,
        hooks=fake.make_hooks(counter or fake.Counter()),
    )  # fmt: skip


def final_bytes(folder, name="step-12"):
    return {p.name: p.read_bytes() for p in sorted((folder / name).iterdir())}


@pytest.fixture(autouse=True)
def no_slow_warning(monkeypatch):
    monkeypatch.setattr("tunecore.training.precision.cpu_computes_bf16", lambda: True)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cut_at_any_step_leaves_every_byte_of_the_end_state_as_it_is(tmp_path, precision):
    """26 rows of 8 a step: four steps an epoch, so most cuts are in the middle of one."""
    strategies = lambda: (Unfreeze(), Discount())  # noqa: E731
    whole = a_run(tmp_path / "whole", precision, strategies(), log_every=5)
    fake.fit(whole)
    wanted = final_bytes(tmp_path / "whole")
    for cut in (1, 3, 4, 5, 10, 11):
        folder = tmp_path / f"cut-{cut}"
        first = a_run(folder, precision, strategies(), counter=StopAt(cut), log_every=5)
        assert fake.fit(first).interrupted and first.step == cut
        second = a_run(folder, precision, strategies(), log_every=5)
        assert fake.fit(second).steps == 12
        assert final_bytes(folder) == wanted, f"cut at {cut}"


class StopAt(fake.Counter):
    def __init__(self, step):
        super().__init__()
        self.step = step

    @hookimpl
    def tunecore_step_end(self, run):
        if run.step == self.step:
            run.stop.request()


@pytest.fixture
def saved(tmp_path):
    """A run of six steps with a checkpoint at each third, and the same run before its first step."""
    run = a_run(tmp_path / "run", steps=6, strategies=(Unfreeze(),), save_every=3)
    fake.fit(run, evaluation=False)
    return tmp_path / "run", run


def fresh(folder, **options):
    return a_run(folder, **{"steps": 6, "strategies": (Unfreeze(),), "save_every": 3, **options})


def snapshot(run):
    tensors = {**run.optimizer.full_state(run.unit), **run.optimizer.state_dict().tensors}
    return run.step, {n: t.clone() for n, t in tensors.items()}, run.optimizer.plans, run.strategies[0].state_dict()


def assert_untouched(run, before):
    step, tensors, plans, state = snapshot(run)
    assert (step, plans, state) == (before[0], before[2], before[3])
    assert tensors.keys() == before[1].keys() and all(torch.equal(tensors[n], before[1][n]) for n in tensors)


def test_resume_restores_everything(saved):
    folder, run = saved
    again = fresh(folder)
    path = resume(again)
    assert path == folder / "step-6" and again.step == 6
    assert again.counters == run.counters and again.counters.tokens > 0
    for name, value in snapshot(run)[1].items():
        assert torch.equal(snapshot(again)[1][name], value)
    assert again.untaken == {"counter": {"batches": run.tracked["counter"].batches}}
    counter = fake.Counter()
    again.track("counter", counter)
    assert counter.batches == run.tracked["counter"].batches and not again.untaken


def test_a_damaged_checkpoint_is_stepped_over_with_the_reason(saved):
    folder, _ = saved
    (folder / "step-6" / "optimizer.safetensors").write_bytes(b"")
    again = fresh(folder)
    with pytest.warns(UserWarning, match=r"step-6 is skipped: .*optimizer\.safetensors"):
        assert resume(again) == folder / "step-3"
    assert again.step == 3


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(saved):
    folder, _ = saved
    (folder / "step-6" / "optimizer.safetensors").write_bytes(b"")
    (folder / "step-3" / "state.json").unlink()
    before = final_bytes(folder, "step-6")
    again = fresh(folder)
    untouched = snapshot(again)
    both = r"step-6: .*optimizer\.safetensors.*; step-3: .*state\.json' is missing"
    with pytest.raises(CheckpointError, match=both) as told:
        resume(again)
    assert "Restore one of these folders" in told.value.hint and "another output_dir" in told.value.hint
    assert_untouched(again, untouched)
    assert final_bytes(folder, "step-6") == before


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "unmerged.safetensors", "objectives.safetensors"])
def test_a_file_that_the_manifest_does_not_list_is_never_read(tmp_path, name):
    run = fake.make_fake_run(
        fake.make_config(tmp_path, save_every=3), steps=3, rows=fake.FakeRows(parity=False), unit=words_only()
    )
    fake.fit(run, evaluation=False, rows=fake.FakeRows(parity=False))
    assert not (tmp_path / "step-3" / name).exists()
    (tmp_path / "step-3" / name).write_bytes(b"not of this checkpoint")
    again = fake.make_fake_run(fake.make_config(tmp_path), steps=3, unit=words_only(seed=5))
    assert resume(again) == tmp_path / "step-3"
    wanted, found = (one.optimizer.full_state(one.unit) for one in (run, again))
    assert all(torch.equal(found[n], wanted[n]) for n in wanted)


def words_only(seed=0):
    """A unit without parameters of its tasks."""
    return TrainUnit(fake.FakeModel(seed), fake.FakeFamily(), [Task("words_lm", fake.Words(), None, 1.0)])


def test_nothing_there_is_a_start(tmp_path):
    run = fresh(tmp_path / "new")
    assert resume(run) is None and run.step == 0


def rewritten(folder, change):
    """Commit step-6 again with a changed file, its digests in order."""

    def write(stage):
        shutil.copytree(folder / "step-6", stage, dirs_exist_ok=True)
        (stage / "manifest.json").unlink()
        change(stage)

    commit(folder, "step-6", write, {})


def edit_json(change):
    def edit(stage):
        state = json.loads((stage / "state.json").read_text())
        change(state)
        (stage / "state.json").write_text(json.dumps(state))

    return edit


def edit_tensors(file, change):
    def edit(stage):
        tensors = load_file(stage / file)
        change(tensors)
        (stage / file).unlink()
        save_file(tensors, stage / file)

    return edit


MISMATCHES = {
    "another model": (edit_tensors("model.safetensors", lambda t: t.update(extra=torch.zeros(1))), "has 'extra'"),
    "a lost tensor": (edit_tensors("model.safetensors", lambda t: t.pop("body.mix.bias")), r"lacks 'body\.mix\.bias'"),
    "another width": (
        edit_tensors("model.safetensors", lambda t: t.update({"body.mix.bias": torch.zeros(9)})), r"shape \(9,\) there",
    ),
    "another head": (
        edit_tensors("objectives.safetensors", lambda t: t.update({"parity.weight": torch.zeros(3, 8)})), r"\(3, 8\)",
    ),
    "no head": (lambda stage: (stage / "objectives.safetensors").unlink(), r"lacks 'parity\.bias'"),
    "no state": (lambda stage: (stage / "state.json").unlink(), "holds a model, but no state"),
    "no optimizer": (lambda stage: (stage / "optimizer.safetensors").unlink(), r"optimizer\.safetensors' is missing"),
    "a renamed parameter": (
        edit_tensors("optimizer.safetensors", lambda t: t.update({"exp_avg/x": t.pop("exp_avg/decoder.bias")})), "'x'",
    ),
    "another seed": (edit_json(lambda s: s.update(seed=5)), r"training\.seed 5"),
    "other strategies": (edit_json(lambda s: s.update(strategies=[])), "strategies"),
    "a newer format": (edit_json(lambda s: s.update(format=9)), "format 9"),
}  # fmt: skip


@pytest.mark.parametrize("mismatch", MISMATCHES)
def test_a_checkpoint_of_another_run_is_refused_and_the_run_left_as_it_was(saved, mismatch):
    folder, _ = saved
    change, message = MISMATCHES[mismatch]
    rewritten(folder, change)
    run = fresh(folder)
    before = snapshot(run)
    with pytest.raises(CheckpointError, match=message) as error:
        resume(run)
    assert "step-6" in error.value.message
    assert_untouched(run, before)


def test_digests_are_checked_before_anything_changes(saved):
    folder, _ = saved
    data = bytearray((folder / "step-6" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "step-6" / "model.safetensors").write_bytes(bytes(data))
    run = fresh(folder)
    before = snapshot(run)
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_state(run, folder / "step-6")
    assert_untouched(run, before)


def test_checkpoints_hold_fp32_masters_under_the_models_names(saved):
    folder, run = saved
    tensors = load_file(folder / "step-6" / "model.safetensors")
    assert {str(t.dtype) for t in tensors.values()} == {"torch.float32"}
    assert tensors.keys() == run.model.state_dict().keys() - {"decoder.weight"}
    optimizer = load_file(folder / "step-6" / "optimizer.safetensors")
    assert {n.split("/")[1] for n in optimizer} == set(run.optimizer.trainable)
    manifest = json.loads((folder / "step-6" / "manifest.json").read_text())["info"]
    assert manifest["step"] == 6 and manifest["parameters"]["body.mix.weight"] == [[8, 16], "float32"]
    assert manifest["machine"]["threads"] == torch.get_num_threads()


def test_other_conditions_are_said(saved):
    folder, _ = saved
    rewritten(folder, edit_json(lambda s: s["machine"].update(torch="1.0", ranks=4)))
    with pytest.warns(UserWarning, match=r"torch 1\.0 -> .*ranks 4 -> 1.*not bit-equal"):
        resume(fresh(folder))


def test_the_thread_count_comes_back_or_its_change_is_said(saved):
    folder, _ = saved
    before = torch.get_num_threads()
    rewritten(folder, edit_json(lambda s: s["machine"].update(threads=before + 1)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            resume(fresh(folder))
        assert torch.get_num_threads() == before + 1
        torch.set_num_threads(before)
        with pytest.warns(UserWarning, match=f"threads {before + 1} -> {before}"):
            resume(fresh(folder, threads=before))
    finally:
        torch.set_num_threads(before)


def test_a_window_with_a_nan_survives_as_a_nan(tmp_path):
    run = a_run(tmp_path / "run", steps=6)
    run.counters.window = {"loss": (float("nan"), 2), "grad_norm": (0.1 + 0.2, 2)}
    run.step = 2
    make_saver(run, fake.write_model)("step-2")
    again = a_run(tmp_path / "run", steps=6)
    resume(again)
    assert again.counters.window["grad_norm"] == (0.1 + 0.2, 2)
    assert again.counters.window["loss"][0] != again.counters.window["loss"][0]


def test_a_state_no_plugin_takes_back_is_named(saved):
    folder, _ = saved
    run = a_run(folder, steps=6, strategies=(Unfreeze(),), save_every=3)
    run.hooks = fake.make_hooks()
    with pytest.warns(UserWarning, match="'counter' that no loaded plugin"):
        fake.fit(run, evaluation=False)


def test_a_state_that_cannot_be_json_is_an_error_not_a_checkpoint(tmp_path):
    class Bad(fake.Counter):
        def state_dict(self):
            return {"object": object()}

    run = a_run(tmp_path / "run", steps=3, counter=Bad())
    with pytest.raises(TypeError, match="JSON"):
        fake.fit(run, evaluation=False)
    assert list((tmp_path / "run").iterdir()) == []


# --- strategies ----------------------------------------------------------------------------------------------


def test_unfreezing_in_the_middle_of_a_run_and_resumed(tmp_path):
    run = a_run(tmp_path / "run", strategies=(Unfreeze(),), steps=6)
    body = run.model.body.mix.weight.detach().clone()
    loader = fake.make_loader(run)
    for step in range(4):
        assert not run.model.body.mix.weight.requires_grad
        train_step(run, loader.step(step))
    assert torch.equal(run.model.body.mix.weight, body)
    assert run.model.body.mix.weight.requires_grad, "planned after the step, before the next"
    train_step(run, loader.step(4))
    assert not torch.equal(run.model.body.mix.weight, body)
    steps = {n: float(t) for n, t in run.optimizer.state_dict().tensors.items() if n.startswith("step/")}
    assert steps["step/decoder.bias"] == 5 and steps["step/body.mix.weight"] == 1


class Sets:
    def __init__(self, name, plans):
        self.name, self.plans = name, plans

    def plan(self, plans, progress):
        return self.plans


BASE = {"a": ParamPlan(), "b": ParamPlan()}
START = Progress(0, 10, 0.0, 1.0)


def test_strategies_compose_field_by_field():
    one = Sets("one", {"a": ParamPlan(trainable=False), "b": ParamPlan()})
    two = Sets("two", {"a": ParamPlan(lr_scale=0.5), "b": ParamPlan(weight_decay=0.0)})
    three = Sets("three", {"a": ParamPlan(trainable=False, lr_scale=0.5)})
    wanted = {"a": ParamPlan(False, 0.5), "b": ParamPlan(weight_decay=0.0)}
    assert combine_plans(BASE, [one, two, three], START) == wanted
    assert combine_plans(BASE, [three, two, one], START) == wanted


def test_two_strategies_that_disagree_are_named():
    one, two = Sets("one", {"a": ParamPlan(lr_scale=0.5)}), Sets("two", {"a": ParamPlan(lr_scale=0.25)})
    with pytest.raises(ConfigError, match=r"'one' and 'two' both set lr_scale of 'a', to 0\.5 and 0\.25"):
        combine_plans(BASE, [one, two], START)


def test_a_strategy_that_plans_an_unknown_parameter_is_named():
    with pytest.raises(ConfigError, match="'one' plans 'c'"):
        combine_plans(BASE, [Sets("one", {"c": ParamPlan()})], START)
