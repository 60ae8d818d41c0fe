"""The op bias_gelu: every kernel variant against float64, and its promises as a custom op."""

import pytest
import torch
from torch.library import opcheck

from tunecore.errors import NativeError
from tunecore.ops import _native, bias_gelu
from tunecore.ops.reference import bias_gelu_reference

native = pytest.mark.skipif(not _native.info().available, reason="this installation has no compiled core")
APPROXIMATE = {False: "none", True: "tanh"}


def gradients(function, *inputs):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype))
    return [out.detach(), *(x.grad for x in leaves)]


def error(got, wanted):
    return ((got.double() - wanted).norm() / wanted.norm()).item()


@native
@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (70, 64), (2, 40, 129)])
def test_no_variant_errs_more_than_twice_as_much_as_torch(shape, dtype, tanh, each_variant):
    torch.manual_seed(0)
    x, bias = (3 * torch.randn(shape)).to(dtype), torch.randn(shape[-1]).to(dtype)
    wanted = gradients(lambda a, b: bias_gelu_reference(a, b, tanh=tanh), x.double(), bias.double())
    gelu = torch.nn.functional.gelu
    peers = gradients(lambda a, b: gelu(a + b, approximate=APPROXIMATE[tanh]), x, bias)
    floor = {torch.float32: 2e-7, torch.bfloat16: 4e-3}[dtype]
    for variant in each_variant():
        ours = gradients(lambda a, b: bias_gelu(a, b, tanh=tanh), x, bias)
        for name, got, right, peer in zip(("out", "dx", "dbias"), ours, wanted, peers, strict=True):
            assert error(got, right) <= max(2 * error(peer, right), floor), (variant, name)


@native
def test_far_tails_keep_their_relative_accuracy(each_variant):
    x = torch.cat((torch.linspace(-9, 9, 1001), torch.tensor([0.0, 1e-30, -1e-30, 3e4, -3e4])))
    wide = x.double()
    tail = 0.5 * torch.special.erfc(-wide / 2**0.5)
    slope = tail + wide * torch.exp(-wide.square() / 2) / (2 * torch.pi) ** 0.5
    for variant in each_variant():
        out, dx = gradients(bias_gelu, x)
        assert torch.allclose(out.double(), wide * tail, rtol=2e-5, atol=1e-36), variant
        grad = torch.linspace(-1, 1, x.numel()).double()
        assert torch.allclose(dx.double(), slope * grad, rtol=1e-4, atol=2e-7), variant


@native
def test_what_is_not_a_number_stays_visible(each_variant):
    x = torch.full((40,), float("nan"))
    for variant in each_variant():
        assert all(part.isnan().all() for part in gradients(bias_gelu, x)), variant


@native
def test_the_same_bits_for_any_number_of_threads(each_thread_count):
    x, bias = torch.randn(999, 40), torch.randn(40)
    first, *others = [gradients(bias_gelu, x, bias) for _ in each_thread_count()]
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def test_no_rows():
    out, dx, dbias = gradients(bias_gelu, torch.randn(0, 8), torch.randn(8))
    assert out.shape == dx.shape == (0, 8) and torch.equal(dbias, torch.zeros(8))


def test_strides_do_not_matter():
    x = torch.randn(12, 7)
    assert torch.equal(bias_gelu(x.t()), bias_gelu(x.t().contiguous()))


@pytest.mark.parametrize("tanh", [False, True])
def test_opcheck_gradcheck_and_one_graph(tanh):
    x, bias = torch.randn(5, 9, requires_grad=True), torch.randn(9, requires_grad=True)
    if _native.info().available:
        assert set(opcheck(torch.ops.tunecore.bias_gelu.default, (x, bias, tanh)).values()) == {"SUCCESS"}
    assert torch.autograd.gradcheck(lambda a, b: bias_gelu(a, b, tanh=tanh), (x.double(), bias.double()))
    compiled = torch.compile(lambda a, b: bias_gelu(a, b, tanh=tanh), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, bias), bias_gelu(x, bias, tanh=tanh))


def test_a_wrong_bias_is_named():
    with pytest.raises(NativeError, match=r"argument 'bias_F': wanted torch.float32 \[4\], got torch.float32 \[3\]"):
        bias_gelu(torch.ones(2, 4), torch.ones(3))
    with pytest.raises(NativeError, match=r"got torch\.bfloat16"):
        bias_gelu(torch.ones(2, 4), torch.ones(4).bfloat16())


@native
def test_no_second_derivative_is_said():
    x = torch.randn(3, 4, requires_grad=True)
    (first,) = torch.autograd.grad(bias_gelu(x).sum(), x)
    assert first.shape == x.shape
    with pytest.raises(NativeError, match="bias_gelu has no second derivative"):
        torch.autograd.grad(bias_gelu(x).sum(), x, create_graph=True)
