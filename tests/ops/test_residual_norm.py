"""The op residual_norm: every kernel variant against float64, and its promises as a custom op."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

from tunecore.errors import ConfigError, NativeError
from tunecore.ops import NormDropout, _native, dropout, residual_norm
from tunecore.ops.reference import residual_norm_reference

native = pytest.mark.skipif(not _native.info().available, reason="this installation has no compiled core")
KEY = torch.tensor(2**61 + 5)
DROPOUT = NormDropout(0.25, KEY, 3)
NAMES = ("out", "dx", "dweight", "dbias", "dresidual", "dinput_bias")


def inputs(shape, dtype, seed=0):
    torch.manual_seed(seed)
    width = shape[-1]
    tensors = [torch.randn(shape), 1 + 0.2 * torch.randn(width), torch.randn(width), torch.randn(shape)]
    return [t.to(dtype) for t in (*tensors, torch.randn(width))]


def gradients(function, tensors, **options):
    x, weight, bias, residual, input_bias = (t.detach().clone().requires_grad_() for t in tensors)
    out = function(x, weight, bias, residual_TE=residual, input_bias_E=input_bias, eps=1e-5, **options)
    out.backward(torch.linspace(-1, 2, out.numel()).view(out.shape).to(out.dtype))
    return [out.detach(), *(t.grad for t in (x, weight, bias, residual, input_bias))]


def composed(x, weight, bias, *, residual_TE, input_bias_E, eps, dropout):
    """As a model's own modules do it, with the op dropout."""
    z = x + input_bias_E
    z = (z if dropout is None else globals()["dropout"](z, *dropout)) + residual_TE
    return torch.nn.functional.layer_norm(z, z.shape[-1:], weight, bias, eps)


def error(got, wanted):
    return ((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-12)).item()


@native
@pytest.mark.parametrize("draw", [None, DROPOUT])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 8), (5, 24), (70, 64), (2, 40, 136), (33, 768)])
def test_no_variant_errs_more_than_twice_as_much_as_torch(shape, dtype, draw, each_variant):
    tensors = inputs(shape, dtype)
    wide = [t.double() for t in tensors]
    wanted = gradients(residual_norm_reference, wide, dropout=draw)
    peers = gradients(composed, tensors, dropout=draw)
    floor = {torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    for variant in each_variant():
        ours = gradients(residual_norm, tensors, dropout=draw)
        for name, got, right, peer in zip(NAMES, ours, wanted, peers, strict=True):
            assert error(got, right) <= max(2 * error(peer, right), floor), (variant, name)


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_alone(dtype, each_variant):
    x, weight, bias, *_ = inputs((50, 41), dtype)
    for centred in (True, False):
        leaves = [t.double().requires_grad_() for t in (x, weight)]
        right = residual_norm_reference(*leaves, bias.double() if centred else None, eps=1e-6, centred=centred)
        right.sin().sum().backward()
        for variant in each_variant():
            ours = [t.clone().requires_grad_() for t in (x, weight)]
            out = residual_norm(*ours, bias if centred else None, eps=1e-6, centred=centred)
            out.sin().sum().backward()
            close = {torch.float32: 2e-6, torch.bfloat16: 1e-2}[dtype]
            assert error(out.detach(), right.detach()) < close, variant
            assert all(error(a.grad, b.grad) < close for a, b in zip(ours, leaves, strict=True)), variant


@native
def test_it_drops_what_the_op_dropout_drops():
    x, weight = torch.randn(37, 48), torch.ones(48)
    wanted = torch.nn.functional.layer_norm(dropout(x, *DROPOUT), (48,), weight, None, 1e-5)
    got = residual_norm(x, weight, eps=1e-5, dropout=DROPOUT)
    assert torch.allclose(got, wanted, atol=1e-5)


@native
@settings(max_examples=30)
@given(
    rows=st.integers(0, 70), width=st.integers(1, 200), residual=st.booleans(), bias=st.booleans(), late=st.booleans()
)
def test_any_shape_and_any_parts(rows, width, residual, bias, late):
    x, weight, b, r, i = inputs((rows, width), torch.float32, seed=width)
    parts = {"residual_TE": r if residual else None, "input_bias_E": i if bias else None}
    wide = {name: None if t is None else t.double() for name, t in parts.items()}
    got = residual_norm(x, weight, b if late else None, eps=1e-5, **parts)
    right = residual_norm_reference(x.double(), weight.double(), b.double() if late else None, eps=1e-5, **wide)
    assert torch.allclose(got.double(), right, atol=2e-4, rtol=1e-4)  # a row of nearly equal numbers is ill-posed


@native
def test_the_same_bits_for_any_number_of_threads(each_thread_count):
    tensors = inputs((999, 40), torch.float32)
    first, *others = [gradients(residual_norm, tensors, dropout=DROPOUT) for _ in each_thread_count()]
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def test_opcheck_gradcheck_and_one_graph():
    x, weight, bias, residual, input_bias = (t.requires_grad_() for t in inputs((4, 8), torch.float32))
    if _native.info().available:
        op = torch.ops.tunecore.residual_norm.default
        for arguments in (
            (x, weight, bias, residual, input_bias, 1e-5, 0.25, KEY, 1, True),
            (x, weight, None, None, None, 1e-5, 0.0, None, 0, False),
        ):
            assert set(opcheck(op, arguments).values()) == {"SUCCESS"}

    def whole(x, weight, bias, residual, input_bias):
        return residual_norm(
            x, weight, bias, eps=1e-5, residual_TE=residual, input_bias_E=input_bias, dropout=DROPOUT
        )

    tensors = (x, weight, bias, residual, input_bias)
    assert torch.autograd.gradcheck(whole, [t.detach().double().requires_grad_() for t in tensors])
    assert torch.equal(torch.compile(whole, fullgraph=True, backend="aot_eager")(*tensors), whole(*tensors))


def test_bad_arguments_are_named():
    x, weight = torch.ones(2, 8), torch.ones(8)
    with pytest.raises(NativeError, match=r"'residual_TE': wanted torch.float32 \[2, 8\], got torch.float32 \[8\]"):
        residual_norm(x, weight, eps=1e-5, residual_TE=weight)
    with pytest.raises(NativeError, match=r"'weight_E': .* got torch\.bfloat16"):
        residual_norm(x, weight.bfloat16(), eps=1e-5)
    with pytest.raises(ConfigError, match=r"p=1.0 is not in \[0, 1\)"):
        residual_norm(x, weight, eps=1e-5, dropout=NormDropout(1.0, KEY, 0))


@native
def test_no_second_derivative_is_said():
    x = torch.randn(3, 8, requires_grad=True)
    with pytest.raises(NativeError, match="residual_norm has no second derivative"):
        torch.autograd.grad(residual_norm(x, torch.ones(8), eps=1e-5).sum(), x, create_graph=True)
