"""What another program's order, names, freezing, groups or optimizer do to a saved optimizer state.

The state of every parameter is that of its name, bit for bit, or the resume is refused by name; never another's.
"""

from __future__ import annotations

import shutil

import fake_training as fake
import pytest
import torch
from safetensors.torch import load_file, save_file

from tunecore.checkpoint import commit
from tunecore.errors import CheckpointError
from tunecore.training.optimizer import AdamWOptions, MasterOptimizer, OptimizerState, SgdOptions, adamw, sgd
from tunecore.training.state import resume
from tunecore.types import ParamPlan

SHAPES = {"query.weight": (4, 4), "key.weight": (4, 4), "value.weight": (4, 4), "norm.weight": (4,), "norm.bias": (4,)}
ADAMW, MOMENTUM = adamw(AdamWOptions()), sgd(SgdOptions(momentum=0.9))


def named(names=SHAPES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = {
        name: torch.nn.Parameter(torch.randn(SHAPES.get(name, (4, 4)), generator=generator)) for name in sorted(names)
    }
    return {name: made[name] for name in names}


def optimizer_of(parameters, make=ADAMW, plans=None):
    optimizer = MasterOptimizer(parameters, make, learning_rate=0.1, weight_decay=0.3)
    optimizer.apply(plans or {})
    return optimizer


def step(optimizer, seed):
    """One step; the gradient of a parameter is a function of its name."""
    for name in optimizer.trainable:
        generator = torch.Generator().manual_seed(seed + sum(map(ord, name)))
        optimizer.parameters[name].grad = torch.randn(optimizer.parameters[name].shape, generator=generator)
    optimizer.step(1.0)


def copied(optimizer):
    state = optimizer.state_dict()
    tensors = {name: value.clone() for name, value in state.tensors.items()}
    return OptimizerState(tensors, dict(state.values), state.kind)


def trained(make=ADAMW, plans=None):
    parameters = named()
    optimizer = optimizer_of(parameters, make, plans)
    for seed in range(3):
        step(optimizer, seed)
    return optimizer


ORDERS = {
    "reversed": list(reversed(SHAPES)),
    "equal shapes swapped": ["key.weight", "query.weight", "value.weight", "norm.weight", "norm.bias"],
    "rotated": [*list(SHAPES)[2:], *list(SHAPES)[:2]],
    "sorted": sorted(SHAPES),
}


@pytest.mark.parametrize("make", [ADAMW, MOMENTUM], ids=["adamw", "sgd"])
@pytest.mark.parametrize("order", ORDERS)
def test_another_order_of_parameters_goes_on_bit_for_bit(order, make):
    first = trained(make)
    parameters = {name: torch.nn.Parameter(first.parameters[name].detach().clone()) for name in ORDERS[order]}
    second = optimizer_of(parameters, make)
    second.load_state_dict(copied(first))
    for seed in (7, 8):
        step(first, seed)
        step(second, seed)
    for name in SHAPES:
        assert torch.equal(first.parameters[name], second.parameters[name]), name
    assert all(
        torch.equal(value, second.state_dict().tensors[name]) for name, value in first.state_dict().tensors.items()
    )


@pytest.mark.parametrize("make", [ADAMW, MOMENTUM], ids=["adamw", "sgd"])
def test_other_groups_take_nothing_from_the_state(make):
    """Groups are of the plans alone: other rates and decays need no other state."""
    first = trained(make)
    plans = {"key.weight": ParamPlan(lr_scale=0.5), "norm.bias": ParamPlan(weight_decay=0.7)}
    second = optimizer_of(named(), make, plans)
    second.load_state_dict(copied(first))
    assert len(second.param_groups) > len(first.param_groups)
    for name, value in first.state_dict().tensors.items():
        assert torch.equal(value, second.state_dict().tensors[name]), name


def refused(state, optimizer):
    before = copied(optimizer).tensors
    with pytest.raises(CheckpointError) as caught:
        optimizer.load_state_dict(state)
    after = optimizer.state_dict().tensors
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    return caught.value.message


def test_a_renamed_parameter_is_refused_by_its_old_name():
    names = ["query.weight", "keys.weight", "value.weight", "norm.weight", "norm.bias"]
    assert "no parameter is called 'key.weight'" in refused(copied(trained()), optimizer_of(named(names)))


def test_a_parameter_that_is_gone_is_refused_by_name():
    names = [name for name in SHAPES if name != "value.weight"]
    assert "no parameter is called 'value.weight'" in refused(copied(trained()), optimizer_of(named(names)))


def test_a_parameter_frozen_since_is_refused_by_name():
    frozen = optimizer_of(named(), plans={"norm.bias": ParamPlan(trainable=False)})
    assert "/norm.bias', but that parameter is frozen" in refused(copied(trained()), frozen)


def test_another_shape_is_refused_by_name():
    state = copied(trained())
    state.tensors["exp_avg/key.weight"] = torch.zeros(2, 8)
    assert "'exp_avg/key.weight' has shape (2, 8), its parameter (4, 4)" in refused(state, trained())


def test_a_parameter_added_or_unfrozen_since_starts_anew_and_the_others_go_on():
    """As gradual unfreezing has it: a parameter without state is one that has not learnt yet."""
    first = trained(plans={"norm.bias": ParamPlan(trainable=False)})
    second = optimizer_of(named())
    second.load_state_dict(copied(first))
    found = second.state_dict().tensors
    assert not [name for name in found if name.endswith("/norm.bias")]
    assert all(torch.equal(value, found[name]) for name, value in first.state_dict().tensors.items())
    step(second, 9)
    assert float(second.state_dict().tensors["step/norm.bias"]) == 1
    assert float(second.state_dict().tensors["step/key.weight"]) == 4


OTHERS = {
    "adamw to sgd with momentum": (ADAMW, MOMENTUM),
    "adamw to plain sgd": (ADAMW, sgd(SgdOptions())),
    "sgd with momentum to adamw": (MOMENTUM, ADAMW),
}


@pytest.mark.parametrize("case", OTHERS)
def test_the_state_of_another_optimizer_is_refused(case):
    before, now = OTHERS[case]
    assert "another optimizer" in refused(copied(trained(before)), optimizer_of(named(), now))


# --- whole checkpoints ---------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """A run of four steps with a checkpoint."""
    run = make_run(tmp_path / "run")
    fake.fit(run, evaluation=False)
    return tmp_path / "run", run


def make_run(folder, **options):
    return fake.make_fake_run(fake.make_config(folder, save_every=4, **options), steps=4, unit=fake.make_unit())


def rewritten(folder, change):
    """The checkpoint committed again with its optimizer's tensors changed."""

    def write(stage):
        shutil.copytree(folder / "step-4", stage, dirs_exist_ok=True)
        (stage / "manifest.json").unlink()
        tensors = load_file(stage / "optimizer.safetensors")
        change(tensors)
        save_file(tensors, stage / "optimizer.safetensors")

    commit(folder, "step-4", write, {})


def test_the_order_of_tensors_in_the_file_does_not_matter(saved):
    folder, run = saved
    tensors = load_file(folder / "step-4" / "optimizer.safetensors")
    rewritten(folder, lambda found: [found.update({name: found.pop(name)}) for name in sorted(found, reverse=True)])
    again = make_run(folder)
    resume(again)
    assert all(torch.equal(value, tensors[name]) for name, value in again.optimizer.state_dict().tensors.items())
    assert again.optimizer.state_dict().tensors.keys() == run.optimizer.state_dict().tensors.keys()


def test_another_optimizer_in_the_run_is_refused(saved):
    folder, _ = saved
    run = make_run(folder, optimizer={"sgd": {"momentum": 0.9}})
    with pytest.raises(CheckpointError, match=r"step-4.*another optimizer"):
        resume(run)
    assert run.step == 0
