from __future__ import annotations

import math
import warnings
from types import SimpleNamespace

import fake_ranks
import fake_training as fake
import pytest
import torch

from tunecore.errors import TrainingError
from tunecore.hookspecs import hookimpl
from tunecore.training.distributed import Ranks
from tunecore.training.step import train_step

STEPS = (0, 3)  # 8 rows, and the short last step of an epoch with 2


def assert_same_gradient(one, other):
    skip = {"micro_batches", "targets"}
    assert one.keys() == other.keys()
    for name in one.keys() - skip:
        torch.testing.assert_close(one[name], other[name], rtol=1e-10, atol=1e-13, msg=name)


@pytest.mark.parametrize("step", STEPS)
def test_micro_batches_do_not_change_the_gradient(step):
    whole = fake_ranks.gradient_of(Ranks(), 8, 1000, 1, step)
    assert int(whole["micro_batches"]) == 1
    assert float(whole["metric grad_norm"]) > 0
    for max_tokens, accumulation in ((1000, 2), (1000, 8), (8, 1), (40, 3)):
        split = fake_ranks.gradient_of(Ranks(), 8, max_tokens, accumulation, step)
        assert int(split["micro_batches"]) >= min(2, accumulation)
        assert_same_gradient(whole, split)


def test_the_split_has_uneven_counts_and_a_micro_batch_without_targets():
    """What the test above relies on: averaging per micro-batch, the usual mistake, would be caught."""
    counts = fake_ranks.gradient_of(Ranks(), 8, 8, 1, 0)["targets"].tolist()
    assert 0 in counts and len(set(counts)) > 2


def test_the_gradient_is_that_of_the_mean_over_all_targets():
    """The same gradient made by hand: one batch, the mean of each loss, weighted."""
    caught = fake_ranks.gradient_of(Ranks(), 8, 1000, 1, 0)
    unit = fake.make_unit().double()
    run = fake.make_fake_run(fake.make_config(), unit=unit)
    (batch,) = fake.make_loader(run, max_tokens=1000).step(0).micro_batches
    losses = unit(batch)
    loss = sum(unit.weights[n] * s.total / s.num_targets for n, s in losses.items())
    loss.backward()
    assert float(caught["metric loss"]) == pytest.approx(loss.item(), rel=1e-12)
    for name, parameter in unit.parameters_by_name().items():
        torch.testing.assert_close(caught[name], parameter.grad, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("step", STEPS)
def test_two_ranks_give_the_gradient_of_one(on_ranks, step):
    whole = fake_ranks.gradient_of(Ranks(), 8, 1000, 1, step)
    for part in on_ranks(2, fake_ranks.gradient_of, 8, 16, 1, step):
        assert_same_gradient(whole, part)


def test_a_rank_without_rows_takes_part(on_ranks):
    """Step 3 has two rows for three ranks."""
    whole = fake_ranks.gradient_of(Ranks(), 8, 1000, 1, 3)
    parts = on_ranks(3, fake_ranks.gradient_of, 8, 1000, 1, 3)
    assert [int(p["micro_batches"]) for p in parts] == [1, 1, 0]
    for part in parts:
        assert_same_gradient(whole, part)


class Events:
    def __init__(self):
        self.seen = []

    @hookimpl
    def tunecore_batch_ready(self, run, batch):
        self.seen.append(("batch", run.step, batch.row_ids))

    @hookimpl
    def tunecore_before_optimizer_step(self, run):
        self.seen.append(("before", run.step, all(g is not None for g in run.optimizer.gradients().values())))

    @hookimpl
    def tunecore_step_end(self, run, metrics):
        self.seen.append(("end", run.step, metrics["tokens"]))


def test_hooks_fire_in_order_and_metrics_are_floats():
    events = Events()
    run = fake.make_fake_run(fake.make_config(), hooks=fake.make_hooks(events))
    batches = fake.make_loader(run, max_tokens=40).step(0)
    metrics = train_step(run, batches)
    assert [e[0] for e in events.seen] == ["batch"] * len(batches.micro_batches) + ["before", "end"]
    assert events.seen[-2] == ("before", 0, True) and events.seen[-1][1] == 1
    assert metrics["tokens"] == sum(b.num_tokens for b in batches.micro_batches)
    assert metrics["loss"] == pytest.approx(2 * metrics["loss/words_lm"] + 0.5 * metrics["loss/parity"])
    assert 0 <= metrics["accuracy/words_lm"] <= 1 and "accuracy/parity" not in metrics
    assert metrics["learning_rate"] == pytest.approx(0.01)  # one warm-up step of ten
    assert {"time/forward", "time/backward", "time/reduce", "time/optimizer"} <= metrics.keys()
    assert all(isinstance(v, float | int) for v in metrics.values())


def test_a_hook_that_changes_gradients_is_clipped_after_it():
    class Enlarge:
        @hookimpl
        def tunecore_before_optimizer_step(self, run):
            for gradient in run.optimizer.gradients().values():
                gradient.mul_(1e6)

    config = fake.make_config(optimizer="sgd", learning_rate=1.0, max_grad_norm=0.5, weight_decay=0.0, warmup=0.0)
    run = fake.make_fake_run(config, hooks=fake.make_hooks(Enlarge()))
    before = {n: p.detach().clone() for n, p in run.optimizer.masters.items()}
    train_step(run, fake.make_loader(run).step(0))
    moved = torch.cat([(p.detach() - before[n]).flatten() for n, p in run.optimizer.masters.items()])
    assert float(moved.norm()) == pytest.approx(0.5, rel=1e-4)


def test_dropout_is_a_function_of_seed_step_and_micro_batch():
    def losses(seed, draws=0):
        run = fake.make_fake_run(fake.make_config(seed=seed), unit=fake.make_unit(dropout=0.5))
        loader = fake.make_loader(run, fake.FakeRows())
        found = []
        for step in range(2):
            torch.rand(draws)  # whoever else draws does not matter
            found.append(train_step(run, loader.step(step))["loss"])
        return found

    assert losses(1) == losses(1, draws=5)
    assert losses(1) != losses(2)


def test_a_batch_carries_its_dropout_key():
    keys = []

    class Keys:
        @hookimpl
        def tunecore_batch_ready(self, batch):
            keys.append(int(batch.layout.rng_key))
            assert batch.layout.row_ids.tolist()[: batch.num_sequences] == list(batch.row_ids)

    run = fake.make_fake_run(fake.make_config(), hooks=fake.make_hooks(Keys()))
    loader = fake.make_loader(run, max_tokens=24)
    train_step(run, loader.step(0))
    train_step(run, loader.step(1))
    assert len(set(keys)) == len(keys) > 4 and min(keys) >= 0


def poison(run, name="words_lm"):
    """Make one loss NaN from here on, by the layer only it uses."""
    layer = run.model.decoder if name == "words_lm" else run.unit.task_modules["parity"]
    layer.register_forward_hook(lambda module, given, logits: logits * math.nan)


@pytest.mark.parametrize("name", ["words_lm", "parity"])
def test_a_nan_loss_is_named_with_its_rows_and_reaches_no_weight(name):
    run = fake.make_fake_run(fake.make_config())
    poison(run, name)
    before = {n: p.detach().clone() for n, p in run.optimizer.masters.items()}
    batches = fake.make_loader(run, max_tokens=24).step(0)
    rows = next(b.row_ids for b in batches.micro_batches if b.num_targets.get(name))
    with pytest.raises(TrainingError, match=f"step 1: loss '{name}' is nan on rows") as error:
        train_step(run, batches)
    assert ", ".join(map(str, rows)) in error.value.message
    other = {"words_lm": "parity", "parity": "words_lm"}[name]
    assert f"loss {other!r}" not in error.value.message
    for n, p in run.optimizer.masters.items():
        torch.testing.assert_close(p.detach(), before[n], rtol=0, atol=0, equal_nan=True)


class SpoilGradient:
    """Stands for a kernel that overflows in backward: loss finite, gradient not."""

    def __init__(self, run, at):
        self.at, self.run = at, run
        run.model.decoder.bias.register_hook(self.spoil)

    def spoil(self, gradient):
        return gradient * math.inf if self.run.step == self.at else gradient


def test_a_gradient_that_is_not_finite_is_named():
    run = fake.make_fake_run(fake.make_config())
    SpoilGradient(run, at=0)
    with pytest.raises(TrainingError, match=r"the gradient of 'decoder\.bias' .*rows \d+"):
        train_step(run, fake.make_loader(run).step(0))


def test_skip_leaves_the_step_out_loudly_and_goes_on():
    run = fake.make_fake_run(fake.make_config(on_nonfinite="skip"))
    SpoilGradient(run, at=1)
    loader = fake.make_loader(run)
    train_step(run, loader.step(0))
    before = {n: p.detach().clone() for n, p in run.optimizer.masters.items()}
    with pytest.warns(UserWarning, match="step 2: the gradient"):
        metrics = train_step(run, loader.step(1))
    assert metrics["skipped"] == 1.0 and not math.isfinite(metrics["grad_norm"])
    assert run.step == 2 and run.counters.skipped_steps == 1
    assert all(torch.equal(p, before[n]) for n, p in run.optimizer.masters.items())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "skipped" not in train_step(run, loader.step(2))
    assert any(not torch.equal(p, before[n]) for n, p in run.optimizer.masters.items())


def test_a_skipped_nan_loss_is_never_a_finite_number():
    run = fake.make_fake_run(fake.make_config(on_nonfinite="skip"))
    poison(run)
    with pytest.warns(UserWarning, match="words_lm"):
        metrics = train_step(run, fake.make_loader(run).step(0))
    assert math.isnan(metrics["loss"]) and math.isnan(metrics["loss/words_lm"])
    assert math.isfinite(metrics["loss/parity"])


def test_a_step_without_any_target_changes_nothing():
    rows = fake.FakeRows(words=False, parity=False)
    run = fake.make_fake_run(fake.make_config(weight_decay=0.5), rows=rows)
    before = {n: p.detach().clone() for n, p in run.optimizer.masters.items()}
    metrics = train_step(run, fake.make_loader(run, rows).step(0))
    assert metrics["grad_norm"] == 0.0 and "loss" not in metrics
    assert all(torch.equal(p, before[n]) for n, p in run.optimizer.masters.items())


def test_a_loss_without_targets_contributes_nothing():
    rows = fake.FakeRows(words=False)
    run = fake.make_fake_run(fake.make_config(), rows=rows)
    metrics = train_step(run, fake.make_loader(run, rows).step(0))
    assert "loss/words_lm" not in metrics and metrics["loss"] == pytest.approx(0.5 * metrics["loss/parity"])


def test_no_micro_batches_at_all():
    run = fake.make_fake_run(fake.make_config())
    metrics = train_step(run, SimpleNamespace(step=0, epoch=0, row_ids=(), micro_batches=[]))
    assert metrics["tokens"] == 0 and run.step == 1
