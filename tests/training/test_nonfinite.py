"""NaN and Inf put into the loss, a gradient, a weight and what the model reads, under each policy."""

from __future__ import annotations

import math
import re
import warnings

import fake_training as fake
import pytest
import torch

from tunecore.checkpoint import newest_good, verify
from tunecore.errors import TrainingError
from tunecore.training.nonfinite import MOST_IN_A_ROW, nonfinite_weight
from tunecore.training.step import train_step

STEPS, SAVED, AT = 8, 3, 4
"""Of the run; every so many one is saved; at this one (counted from 0) something is not finite."""
PLACES = ("loss", "gradient", "weight", "input")


def spoil(run, place, value, until=AT):
    """From step AT to ``until`` put ``value`` into one number of the run's ``place``; into a weight once only."""
    body = run.model.body

    def due():
        return AT <= run.step <= until

    def one(tensor):
        return torch.cat([torch.full_like(tensor.flatten()[:1], value), tensor.flatten()[1:]]).view_as(tensor)

    if place == "loss":
        run.model.decoder.register_forward_hook(lambda module, given, logits: one(logits) if due() else logits)
    elif place == "gradient":
        body.mix.weight.register_hook(lambda gradient: one(gradient) if due() else gradient)
    elif place == "input":
        body.words.register_forward_hook(lambda module, given, vectors: one(vectors) if due() else vectors)
    else:

        def damage(module, given):
            if run.step == AT and damage.left:
                damage.left = False
                with torch.no_grad():
                    body.mix.weight[0, 0] = value

        damage.left = True
        body.register_forward_pre_hook(damage)


def spoilt_run(tmp_path, policy, place="loss", value=math.nan, until=AT, **options):
    run = fake.make_fake_run(fake.make_config(tmp_path, on_nonfinite=policy, save_every=SAVED, **options), steps=STEPS)
    spoil(run, place, value, until)
    return run


def fit(run):
    return fake.fit(run, evaluation=False)


def weights(run):
    return {name: p.detach().clone() for name, p in run.optimizer.masters.items()}


def all_finite(run):
    return all(bool(p.isfinite().all()) for p in weights(run).values())


def named(place):
    """What the message says of a fault in ``place``."""
    return {
        "loss": "loss 'words_lm' is (nan|inf)",
        "gradient": r"the gradient of 'body\.mix\.weight'",
        "weight": r"the weight 'body\.mix\.weight' is not finite",
        "input": "loss '(words_lm|parity)' is nan",
    }[place]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("policy", ["raise", "skip", "rollback"])
def test_what_is_not_finite_is_named_at_its_step_and_goes_no_further(tmp_path, policy, place, value):
    run = spoilt_run(tmp_path, policy, place, value)
    ends = policy == "raise" or (policy == "skip" and place == "weight")
    message = f"step {AT + 1}: .*{named(place)}"
    if ends:
        with pytest.raises(TrainingError, match=message) as error:
            fit(run)
        assert re.search(r"rows \d+", error.value.message)
    else:
        with pytest.warns(UserWarning, match=message) as said:
            fit(run)
        assert re.search(r"rows \d+", next(str(w.message) for w in said if "step 5" in str(w.message)))
        assert run.step == STEPS and all_finite(run)
        # Back at step 3, the step after it and the faulty one are lost; left out is the faulty one alone.
        assert run.counters.skipped_steps == (1 if policy == "skip" else AT + 1 - SAVED)
    newest, skipped = newest_good(tmp_path)
    assert verify(newest).info["step"] == (SAVED if ends else STEPS) and not skipped


def test_going_back_is_going_on_from_the_checkpoint_with_the_rows_behind_the_fault(tmp_path):
    """By hand: the weights and moments of step 3, then steps 5, 6 and 7 of the same order."""
    run = spoilt_run(tmp_path, "rollback")
    with pytest.warns(UserWarning, match="back to the weights of step 3"):
        fit(run)
    other = fake.make_fake_run(fake.make_config(tmp_path / "other"), steps=STEPS)
    loader = fake.make_loader(other)
    for step in (0, 1, 2, 5, 6, 7):
        other.step = step
        train_step(other, loader.step(step))
    wanted = weights(other)
    assert all(torch.equal(value, wanted[name]) for name, value in weights(run).items())


def test_a_run_that_was_cut_after_going_back_ends_in_the_same_bytes(tmp_path):
    with pytest.warns(UserWarning, match="back to the weights"):
        fit(spoilt_run(tmp_path / "whole", "rollback"))
    cut = spoilt_run(tmp_path / "cut", "rollback")
    observe = cut.observe

    def stop_at_6(metrics):
        observe(metrics)
        if cut.step == 6:
            cut.stop.request()

    cut.observe = stop_at_6
    with pytest.warns(UserWarning, match="back to the weights"):
        assert fit(cut).interrupted
    fit(spoilt_run(tmp_path / "cut", "rollback"))
    for path in (tmp_path / "whole" / f"step-{STEPS}").iterdir():
        assert (tmp_path / "cut" / f"step-{STEPS}" / path.name).read_bytes() == path.read_bytes()


def test_without_a_checkpoint_the_step_is_left_out(tmp_path):
    run = fake.make_fake_run(fake.make_config(tmp_path, on_nonfinite="rollback", save_every=100), steps=STEPS)
    spoil(run, "gradient", math.nan)
    with pytest.warns(UserWarning, match="the step is left out"):
        fit(run)
    assert run.counters.skipped_steps == 1 and all_finite(run)


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_run_that_does_not_mend_ends(tmp_path, policy):
    """With a fault in every step, so that neither going on nor going back can help."""
    run = fake.make_fake_run(fake.make_config(tmp_path, on_nonfinite=policy, save_every=SAVED), steps=40)
    spoil(run, "loss", math.nan, until=40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(TrainingError, match=f"as in the {MOST_IN_A_ROW} steps before"):
            fit(run)
    assert run.step == AT + MOST_IN_A_ROW


@pytest.mark.parametrize("policy", ["raise", "skip", "rollback"])
def test_a_weight_that_a_step_made_infinite_is_not_saved(tmp_path, policy):
    run = fake.make_fake_run(fake.make_config(tmp_path, on_nonfinite=policy, save_every=SAVED), steps=6)
    optimizer_step, left = run.optimizer.step, [1]

    def overflow(multiplier):
        optimizer_step(multiplier)
        if run.step == 5 and left.pop():
            with torch.no_grad():
                run.model.body.mix.weight[0, 0] = math.inf

    run.optimizer.step = overflow
    if policy == "rollback":
        with pytest.warns(UserWarning, match=r"after step 6 the weight 'body\.mix\.weight' .*weights of step 3"):
            fit(run)
        assert all_finite(run) and run.counters.skipped_steps == 3
    else:
        with pytest.raises(TrainingError, match=r"after step 6 the weight 'body\.mix\.weight' .*not saved"):
            fit(run)
    assert newest_good(tmp_path)[0].name == ("step-6" if policy == "rollback" else "step-3")


def test_finite_weights_whose_sum_is_not_finite_are_saved(tmp_path):
    run = fake.make_fake_run(fake.make_config(tmp_path, save_every=SAVED), steps=1)
    with torch.no_grad():
        run.optimizer.masters["body.mix.weight"].fill_(3e38)
    assert nonfinite_weight(run) is None
