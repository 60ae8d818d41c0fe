"""Calls of our ops: around torch's dispatcher where nobody looks, through it where somebody does."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from tunecore.ops import _kernel_op
from tunecore.ops._kernel_op import kernel_op

RAN = []
"""What kind of tensor the function of the op was called with."""


@kernel_op("tunecore_test::scaled")
def scaled(x: torch.Tensor, factor: float) -> torch.Tensor:
    """Its result, and a note that it ran."""
    RAN.append(type(x))
    return x * factor


@scaled.register_fake
def _(x, factor):
    return x.new_empty(x.shape)


def _setup_context(ctx, inputs, output):
    ctx.factor = inputs[1]


scaled.register_autograd(lambda ctx, grad: (grad * ctx.factor, None), setup_context=_setup_context)


@pytest.fixture
def dispatched(monkeypatch):
    """Operators that reached the dispatcher."""
    seen, through = [], scaled._dispatched
    monkeypatch.setattr(scaled, "_dispatched", lambda *args: seen.append(args) or through(*args))
    RAN.clear()
    return seen


class Looking(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_plain_call_goes_around_the_dispatcher(dispatched):
    x = torch.ones(3, requires_grad=True)
    out = scaled(x, 2.0)
    out.sum().backward()
    assert torch.equal(out, torch.full((3,), 2.0)) and torch.equal(x.grad, torch.full((3,), 2.0))
    assert torch.equal(scaled(torch.nn.Parameter(torch.ones(2)), 3.0), torch.full((2,), 3.0))
    with torch.no_grad():
        assert not scaled(x, 2.0).requires_grad
    with torch.inference_mode():
        scaled(torch.ones(2), 2.0)
    assert len(RAN) == 4 and not dispatched


def test_who_looks_sees_the_op(dispatched):
    x = torch.ones(3, requires_grad=True)
    with Looking() as mode:
        scaled(x, 2.0)
    assert any("scaled" in name for name in mode.seen)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        scaled(x, 2.0)
    assert any(event.key == "tunecore_test::scaled" for event in seen.key_averages())
    with pytest.raises(RuntimeError, match="functorch transforms"):  # as of any custom op
        torch.func.grad(lambda y: scaled(y, 2.0).sum())(x.detach())
    assert len(dispatched) == 3


def test_tensors_without_memory_and_subclasses_are_dispatched(dispatched):
    class Sub(torch.Tensor):
        pass

    with FakeTensorMode():
        assert scaled(torch.empty(3), 2.0).shape == (3,)
    assert scaled(torch.empty(3, device="meta"), 2.0).is_meta
    assert not RAN
    scaled(torch.ones(2).as_subclass(Sub), 2.0)
    assert len(dispatched) == 3


def test_it_is_one_graph_for_the_compiler(dispatched):
    compiled = torch.compile(lambda x: scaled(x, 2.0) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 3.0))


@pytest.mark.parametrize("gone", ["_MODES", "_TRANSFORMS", "_PROFILED"])
def test_what_torch_no_longer_tells_is_taken_as_somebody_looking(gone, dispatched, monkeypatch):
    monkeypatch.setattr(_kernel_op, gone, None)
    scaled(torch.ones(2), 2.0)
    assert dispatched


def test_a_second_derivative_is_that_of_the_dispatched_op(dispatched):
    results = []
    for watched in (False, True):
        x = torch.ones(3, requires_grad=True)
        with pytest.MonkeyPatch.context() as patch:
            if watched:
                patch.setattr(_kernel_op, "_is_watched", lambda: True)
            (first,) = torch.autograd.grad((scaled(x, 2.0) * x).sum(), x, create_graph=True)
            (second,) = torch.autograd.grad(first.sum(), x)
        results.append((first.detach(), second))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True)) and len(dispatched) == 1
