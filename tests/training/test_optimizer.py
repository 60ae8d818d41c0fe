from __future__ import annotations

import fake_training as fake
import pytest
import torch
from torch import nn

from tunecore.config import TrainingConfig
from tunecore.errors import CheckpointError, ConfigError
from tunecore.ops import _native
from tunecore.training import optimizer as module
from tunecore.training.optimizer import (
    OPTIMIZERS,
    AdamWOptions,
    MasterOptimizer,
    OptimizerState,
    SgdOptions,
    adamw,
    sgd,
)
from tunecore.types import ParamPlan


def named(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"layer.weight": (5, 3), "layer.bias": (5,), "norm.weight": (3,), "table": (7, 3)}
    return {n: nn.Parameter(torch.randn(s, generator=generator, dtype=dtype)) for n, s in shapes.items()}


def make(parameters, **options):
    make_torch = options.pop("make", adamw(AdamWOptions()))
    return MasterOptimizer(parameters, make_torch, **{"learning_rate": 0.1, "weight_decay": 0.3, **options})


def set_gradients(parameters, seed, names=None):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in parameters.items():
        value = torch.randn(parameter.shape, generator=generator)
        if names is None or name in names:
            # Through backward, as training makes them.
            (parameter.float() * value).sum().backward()


def test_it_is_torchs_adamw_with_the_same_groups():
    ours, theirs = named(), named()
    optimizer = make(ours)
    groups = [
        {"params": [theirs["layer.weight"], theirs["table"]], "weight_decay": 0.3},
        {"params": [theirs["layer.bias"], theirs["norm.weight"]], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.999), eps=1e-8)
    for step, multiplier in enumerate((1.0, 0.5, 0.25)):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        for group in reference.param_groups:
            group["lr"] = 0.1 * multiplier
        optimizer.step(multiplier)
        reference.step()
        reference.zero_grad()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-7)
    assert all(p.grad is None for p in ours.values())


def test_groups_come_from_plans():
    parameters = named()
    optimizer = make(parameters)
    optimizer.apply(
        {
            "layer.weight": ParamPlan(lr_scale=0.5),
            "layer.bias": ParamPlan(weight_decay=0.7),
            "norm.weight": ParamPlan(trainable=False),
        }
    )
    found = {
        (g["lr_scale"], g["weight_decay"]): [n for n, p in parameters.items() if any(p is q for q in g["params"])]
        for g in optimizer.param_groups
    }
    assert found == {(0.5, 0.3): ["layer.weight"], (1.0, 0.7): ["layer.bias"], (1.0, 0.3): ["table"]}
    assert not parameters["norm.weight"].requires_grad
    assert optimizer.trainable == ["layer.weight", "layer.bias", "table"]
    set_gradients({n: p for n, p in parameters.items() if p.requires_grad}, 0)
    optimizer.step(0.5)
    assert sorted(g["lr"] for g in optimizer.param_groups) == pytest.approx([0.025, 0.05, 0.05])


def test_replanning_keeps_state_by_name_and_drops_that_of_the_frozen():
    parameters = named()
    optimizer = make(parameters)
    set_gradients(parameters, 0)
    optimizer.step(1.0)
    kept = {k: v.clone() for k, v in optimizer.state_dict().tensors.items()}
    assert optimizer.apply({"layer.bias": ParamPlan(trainable=False), "table": ParamPlan(lr_scale=0.1)})
    after = optimizer.state_dict().tensors
    assert "exp_avg/layer.bias" in kept and "exp_avg/layer.bias" not in after
    for name in ("table", "layer.weight", "norm.weight"):
        for key in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(after[f"{key}/{name}"], kept[f"{key}/{name}"])
    frozen = parameters["layer.bias"].detach().clone()
    set_gradients({n: p for n, p in parameters.items() if p.requires_grad}, 1)
    optimizer.step(1.0)
    assert torch.equal(parameters["layer.bias"], frozen)
    optimizer.apply({})
    set_gradients(parameters, 2)
    optimizer.step(1.0)
    steps = {n: float(optimizer.state_dict().tensors[f"step/{n}"]) for n in parameters}
    assert steps == {"layer.weight": 3, "layer.bias": 1, "norm.weight": 3, "table": 3}, "each counts its own steps"
    assert not optimizer.apply({}), "the same plans change nothing"


def test_a_parameter_without_a_gradient_stays_as_it_is():
    parameters = named()
    optimizer = make(parameters)
    before = parameters["table"].detach().clone()
    set_gradients(parameters, 0, names={"layer.weight"})
    assert optimizer.gradients()["table"] is None
    optimizer.step(1.0)
    assert torch.equal(parameters["table"], before)
    assert "exp_avg/table" not in optimizer.state_dict().tensors


def test_what_a_wrapper_froze_stays_frozen():
    parameters = named()
    parameters["table"].requires_grad_(False)
    optimizer = make(parameters)
    optimizer.apply({})
    assert "table" not in optimizer.trainable


def test_nothing_left_to_train_and_unknown_names_are_refused():
    optimizer = make(named())
    with pytest.raises(ConfigError, match="no parameter to train"):
        optimizer.apply(dict.fromkeys(named(), ParamPlan(trainable=False)))
    with pytest.raises(ConfigError, match=r"'layer\.wieght'"):
        optimizer.apply({"layer.wieght": ParamPlan()})


@pytest.fixture(params=["grad_dtype", "hook"])
def gradient_path(request, monkeypatch):
    if request.param == "hook":
        monkeypatch.setattr(module, "_HAS_GRAD_DTYPE", False)
    elif not module._HAS_GRAD_DTYPE:
        pytest.skip("this torch has no grad_dtype")
    return request.param


def test_bf16_weights_follow_fp32_masters(gradient_path):
    parameters, exact = named(), named()
    optimizer, reference = make(parameters, dtype=torch.bfloat16), make(exact)
    assert all(p.dtype == torch.bfloat16 for p in parameters.values())
    for name, master in optimizer.masters.items():
        assert torch.equal(master, exact[name]), "masters are made before weights are rounded"
    for step in range(3):
        for micro in range(2):  # accumulation
            set_gradients(parameters, 10 * step + micro)
            set_gradients(exact, 10 * step + micro)
        ours, theirs = optimizer.gradients(), reference.gradients()
        for name in exact:
            assert ours[name].dtype == torch.float32
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-2, atol=2e-2)
            ours[name].copy_(theirs[name])
        optimizer.step(1.0)
        reference.step(1.0)
    for name, parameter in parameters.items():
        assert torch.equal(optimizer.masters[name], reference.masters[name])
        assert torch.equal(parameter, optimizer.masters[name].bfloat16())
        assert parameter.grad is None and optimizer.masters[name].grad is None


def test_gradients_of_bf16_weights_add_up_in_fp32(gradient_path):
    """In bf16 1 + 1/512 is 1: what micro-batches add must not be lost."""
    parameters = {"w": nn.Parameter(torch.ones(4))}
    optimizer = make(parameters, dtype=torch.bfloat16)
    for value in (1.0, *[1 / 512] * 64):
        (parameters["w"] * value).sum().backward()
    assert torch.equal(optimizer.gradients()["w"], torch.full((4,), 1 + 64 / 512))


def test_frozen_bf16_weights_keep_their_exact_master(gradient_path):
    parameters, exact = named(), named()
    parameters["table"].requires_grad_(False)
    optimizer = make(parameters, dtype=torch.bfloat16)
    assert not parameters["table"].requires_grad
    assert torch.equal(optimizer.masters["table"], exact["table"])


def test_float64_and_buffers_are_left_alone():
    unit = fake.make_unit().double()
    optimizer = MasterOptimizer(unit.parameters_by_name(), adamw(AdamWOptions()), learning_rate=1, dtype=torch.bfloat16)
    assert all(p.dtype == torch.float64 and optimizer.masters[n] is p for n, p in unit.parameters_by_name().items())
    low = fake.make_unit()
    MasterOptimizer(low.parameters_by_name(), adamw(AdamWOptions()), learning_rate=1, dtype=torch.bfloat16)
    assert low.model.body.scale.dtype == torch.float32 and low.model.body.mix.weight.dtype == torch.bfloat16
    assert low.model.decoder.weight is low.model.body.words.weight


def test_full_state_is_fp32_with_tied_names_and_loads_back():
    unit = fake.make_unit(seed=3)
    optimizer = MasterOptimizer(unit.parameters_by_name(), adamw(AdamWOptions()), learning_rate=1, dtype=torch.bfloat16)
    state = {n: t.clone() for n, t in optimizer.full_state(unit.model).items()}
    assert state.keys() == unit.model.state_dict().keys()
    assert all(t.dtype == torch.float32 for t in state.values())
    other = fake.make_unit(seed=4)
    target = MasterOptimizer(other.parameters_by_name(), adamw(AdamWOptions()), learning_rate=1, dtype=torch.bfloat16)
    target.load_full_state(other.model, {n: t for n, t in state.items() if n != "decoder.weight"})
    for name, value in target.full_state(other.model).items():
        assert torch.equal(value, state[name])
    for name, value in other.model.state_dict().items():
        assert torch.equal(value, state[name].to(value.dtype))


@pytest.mark.parametrize("make_torch", [adamw(AdamWOptions()), sgd(SgdOptions())])
def test_clip_is_torchs(make_torch):
    ours, theirs = named(), named()
    optimizer = MasterOptimizer(ours, make_torch, learning_rate=0.1)
    peer = make_torch([{"params": list(theirs.values()), "lr": 0.1, "weight_decay": 0.0}])
    for step, max_norm in enumerate((0.7, 0.0, 1e9)):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        norm = optimizer.grad_norm()
        peers_norm = torch.nn.utils.clip_grad_norm_(theirs.values(), max_norm or 1e9)
        assert norm == pytest.approx(float(peers_norm), rel=1e-6)
        optimizer.clip(norm, max_norm)
        optimizer.step(1.0)
        peer.step()
        peer.zero_grad()
        for name in ours:
            torch.testing.assert_close(ours[name].detach(), theirs[name].detach(), rtol=1e-5, atol=1e-7)


def test_a_skipped_step_leaves_no_clipping_behind():
    ours, theirs = named(), named()
    optimizer, other = make(ours), make(theirs)
    set_gradients(ours, 0)
    optimizer.clip(optimizer.grad_norm(), 1e-3)
    optimizer.zero_grad()
    for one, parameters in ((optimizer, ours), (other, theirs)):
        set_gradients(parameters, 1)
        one.step(1.0)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("make_torch", [adamw(AdamWOptions()), sgd(SgdOptions(momentum=0.9)), sgd(SgdOptions())])
def test_state_by_name_survives_another_order_of_parameters(make_torch):
    one = named()
    optimizer = make(one, make=make_torch)
    for step in range(2):
        set_gradients(one, step)
        optimizer.step(1.0)
    state = optimizer.state_dict()
    two = {n: nn.Parameter(p.detach().clone()) for n, p in reversed(one.items())}
    other = make(two, make=make_torch)
    other.load_state_dict(OptimizerState({k: v.clone() for k, v in state.tensors.items()}, dict(state.values)))
    for optim, parameters in ((optimizer, one), (other, two)):
        for name in sorted(parameters):
            parameters[name].grad = torch.ones_like(parameters[name])
        optim.step(1.0)
    for name in one:
        assert torch.equal(one[name], two[name])


def trained():
    parameters = named()
    optimizer = make(parameters)
    set_gradients(parameters, 0)
    optimizer.step(1.0)
    state = optimizer.state_dict()
    return optimizer, {k: v.clone() for k, v in state.tensors.items()}


DAMAGES = {
    "unknown": (lambda t: t.update({"exp_avg/gone.weight": torch.zeros(2)}), "'gone.weight'"),
    "renamed": (lambda t: t.update({"exp_avg/layer.wait": t.pop("exp_avg/layer.weight")}), "'layer.wait'"),
    "shape": (lambda t: t.update({"exp_avg/table": torch.zeros(3, 7)}), r"'exp_avg/table' has shape \(3, 7\)"),
    "missing": (lambda t: t.pop("exp_avg_sq/table"), "lacks 'exp_avg_sq/table'"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_state_that_does_not_fit_is_refused_by_name(damage):
    optimizer, tensors = trained()
    change, message = DAMAGES[damage]
    change(tensors)
    before = {k: v.clone() for k, v in optimizer.state_dict().tensors.items()}
    with pytest.raises(CheckpointError, match=message):
        optimizer.load_state_dict(OptimizerState(tensors, {}))
    for key, value in optimizer.state_dict().tensors.items():
        assert torch.equal(value, before[key])


def test_state_of_a_frozen_parameter_is_refused():
    optimizer, tensors = trained()
    optimizer.apply({"table": ParamPlan(trainable=False)})
    with pytest.raises(CheckpointError, match=r"/table'.*frozen"):
        optimizer.load_state_dict(OptimizerState(tensors, {}))


@pytest.mark.parametrize(
    ("options", "values"),
    [(AdamWOptions, {"beta1": 1.0}), (AdamWOptions, {"eps": 0.0}), (AdamWOptions, {"beta2": -0.1}),
     (SgdOptions, {"momentum": 1.0}), (SgdOptions, {"nesterov": True})],
)  # fmt: skip
def test_bad_options_are_config_errors(options, values):
    with pytest.raises(ConfigError, match=next(iter(values)) if "nesterov" not in values else "nesterov"):
        options(**values)


def test_exports_are_registrable():
    assert set(OPTIMIZERS) == {"adamw", "sgd"} and TrainingConfig().optimizer in OPTIMIZERS
    for name in OPTIMIZERS:
        assert callable(fake.make_registry().create("optimizer", name))


@pytest.mark.skipif(not _native.info().available, reason="this installation has no compiled core")
def test_the_step_in_one_pass_is_taken_or_left_whole():
    for dtype, taken in ((torch.float32, True), (torch.bfloat16, True), (torch.float64, False)):
        parameters = named(dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        optimizer = make(parameters, dtype=dtype)
        set_gradients(parameters, 0)
        names = [name for name, gradient in optimizer.gradients().items() if gradient is not None]
        before = {name: master.detach().clone() for name, master in optimizer.masters.items()}
        assert optimizer._step_in_one_pass(names) is taken
        for name, master in optimizer.masters.items():
            assert torch.equal(master, before[name]) is not taken
            assert torch.equal(parameters[name].detach(), master.detach().to(parameters[name].dtype))
