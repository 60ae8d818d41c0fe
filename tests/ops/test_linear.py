"""The op linear: every kernel variant against float64, and its promises as a custom op."""

import pytest
import torch
from torch.library import opcheck

from tunecore.errors import NativeError
from tunecore.ops import _native, linear
from tunecore.ops.linear import matmul_into

native = pytest.mark.skipif(not _native.info().available, reason="this installation has no compiled core")
own_bf16 = pytest.mark.skipif(
    not _native.multiplies_bf16(torch.zeros(1).bfloat16()), reason="this processor has no arithmetic of bfloat16"
)
OP = torch.ops.tunecore.linear.default
BIG = 40, 400, 300  # rows, K, N: past the sizes that are left to torch


def plain(x, weight, bias, transposed):
    return torch.nn.functional.linear(x, weight.t() if transposed else weight, bias)


def tensors(rows, width, out, transposed, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    weight = torch.randn((width, out) if transposed else (out, width)) / width**0.5
    return [x.to(dtype) for x in (torch.randn(rows, width), weight, torch.randn(out))]


def gradients(function, inputs, transposed):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves, transposed)
    out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype))
    return [out.detach(), *(x.grad for x in leaves)]


def ours(x, weight, bias, transposed):
    return linear(x, weight, bias, transposed=transposed)


def error(got, wanted):
    return ((got.double() - wanted).norm() / wanted.norm()).item()


def calls_of_core(monkeypatch):
    """Names of what is asked of the compiled core from here on."""
    calls, core = [], _native.core()

    class Spy:
        def __getattr__(self, name):
            calls.append(name)
            return getattr(core, name)

    monkeypatch.setattr(_native, "load", Spy)
    return calls


@native
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [BIG, (200, 129, 257), (64, 1300, 70), (33, 64, 3100)])
def test_no_variant_errs_more_than_twice_as_much_as_torch(shape, transposed, each_variant):
    inputs = tensors(*shape, transposed)
    wanted = gradients(plain, [x.double() for x in inputs], transposed)
    peers = gradients(plain, inputs, transposed)
    for variant in each_variant():
        found = gradients(ours, inputs, transposed)
        for name, got, right, peer in zip(("out", "dx", "dweight", "dbias"), found, wanted, peers, strict=True):
            assert error(got, right) <= max(2 * error(peer, right), 3e-7), (variant, name)


@native
def test_the_kernel_is_what_runs(monkeypatch):
    calls = calls_of_core(monkeypatch)
    monkeypatch.setattr(_native, "multiplies_bf16", lambda x: False)
    gradients(ours, tensors(*BIG, False), False)
    assert calls.count("gemm") == 3 and calls.count("column_sum") == 1
    calls.clear()
    gradients(ours, tensors(4, 400, 300, False), False)  # few rows
    gradients(ours, tensors(*BIG, False, torch.bfloat16), False)
    assert not calls


@own_bf16
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [BIG, (33, 400, 500), (301, 129, 257), (64, 1300, 70)])
def test_bfloat16_multiplies_bf16_errs_no_more_than_torch(shape, transposed, each_thread_count, monkeypatch):
    inputs = tensors(*shape, transposed, torch.bfloat16)
    wanted = gradients(plain, [x.double() for x in inputs], transposed)
    peers, calls, found = gradients(plain, inputs, transposed), calls_of_core(monkeypatch), []
    for _ in each_thread_count():
        calls.clear()
        found.append(gradients(ours, inputs, transposed))
        assert calls.count("gemm_bf16") == 3
        for name, got, right, peer in zip(("out", "dx", "dweight", "dbias"), found[-1], wanted, peers, strict=True):
            assert error(got, right) <= max(2 * error(peer, right), 1e-3), name
    first, *others = found
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


@native
@pytest.mark.parametrize("rows", [64, 77])
def test_bfloat16_operands_may_lie_either_way(rows, each_thread_count):
    a, b = torch.randn(rows, 400).bfloat16(), torch.randn(rows, 390).bfloat16()
    wanted = a.double().t() @ b.double()
    for _ in each_thread_count():
        for left in (a.t(), a.t().contiguous()):
            for right in (b, b.t().contiguous().t()):
                out = torch.empty(400, 390).bfloat16()
                matmul_into(out, left, right)
                assert error(out, wanted) < 4e-3


@own_bf16
def test_the_product_of_bfloat16_into_float32():
    a, b = torch.randn(50, 70).bfloat16(), torch.randn(70, 90).bfloat16()
    wanted, out = a.double() @ b.double(), torch.full((50, 90), float("nan"))
    matmul_into(out, a, b)
    assert error(out, wanted) < 1e-6
    matmul_into(out, a, b, add=True)
    assert error(out, 2 * wanted) < 1e-6


@own_bf16
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_deep_product_of_bfloat16_is_summed_part_by_part(dtype, monkeypatch):
    calls = calls_of_core(monkeypatch)
    a, b, bias = torch.randn(40, 20000).bfloat16(), torch.randn(20000, 70).bfloat16(), torch.randn(70).bfloat16()
    wanted, out = a.double() @ b.double() + bias.double(), torch.full((40, 70), float("nan"), dtype=dtype)
    matmul_into(out, a, b, bias_N=bias)
    assert "gemm_bf16" in calls
    assert error(out, wanted) < (4e-3 if dtype == torch.bfloat16 else 1e-6)


@own_bf16
def test_what_the_product_of_bfloat16_refuses():
    def multiply(a, b, c, add=False):
        _native.core().gemm_bf16(*map(_native.dl, (a, b, c, None)), add, 1)

    a, b, c = (torch.zeros(size).bfloat16() for size in ((4, 32), (32, 5), (4, 5)))
    with pytest.raises(NativeError, match="argument 'b': wanted 30 rows, got"):
        multiply(a[:, :30], b, c)
    with pytest.raises(NativeError, match="argument 'a': wanted rows or columns that lie in one piece"):
        multiply(a[::2, ::2], b[:16], c[:2])
    with pytest.raises(NativeError, match="argument 'add': only a float32 'c' is added to"):
        multiply(a, b, c, add=True)


@native
def test_which_variants_multiply_bfloat16(each_variant):
    x = torch.ones(2, 2)
    for variant in each_variant():
        assert _native.multiplies_bf16(x.bfloat16()) == (variant in ("avx512_bf16", "amx_bf16"))
        assert not _native.multiplies_bf16(x)


@pytest.mark.parametrize("frozen", ["x", "weight", "bias"])
def test_only_wanted_gradients_are_made(frozen):
    names = ("x", "weight", "bias")
    leaves = [t.requires_grad_(name != frozen) for name, t in zip(names, tensors(*BIG, False), strict=True)]
    linear(*leaves).sum().backward()
    for name, leaf in zip(names, leaves, strict=True):
        assert (leaf.grad is None) == (name == frozen)


@native
def test_the_same_bits_for_any_number_of_threads(each_thread_count):
    inputs = tensors(300, 700, 520, False)
    first, *others = [gradients(ours, inputs, False) for _ in each_thread_count()]
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def test_any_leading_axes_and_strides():
    x, weight, bias = tensors(240, 64, 400, False)
    wanted = linear(x, weight, bias)
    assert torch.equal(linear(x.view(3, 80, 64), weight, bias), wanted.view(3, 80, 400))
    across = x.t().contiguous().t()
    assert torch.equal(linear(across, weight, bias), wanted)
    assert torch.equal(linear(x, weight.t().contiguous(), bias, transposed=True), wanted)
    assert linear(x[:0], weight, bias).shape == (0, 400)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_products_into_a_buffer(dtype):
    a, b, bias = (torch.randn(shape).to(dtype) for shape in ((7, 20), (20, 9), (9,)))
    out = torch.full((7, 9), float("nan"), dtype=dtype)
    matmul_into(out, a, b)
    close = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(out, a @ b, **close)
    matmul_into(out, a, b, add=True)
    torch.testing.assert_close(out, 2 * (a @ b), **close)
    matmul_into(out, a[:, ::2], b[::2], bias_N=bias)  # neither rows nor columns of a lie in one piece
    torch.testing.assert_close(out, a[:, ::2] @ b[::2] + bias, **close)


@pytest.mark.parametrize("transposed", [False, True])
def test_opcheck_gradcheck_and_one_graph(transposed):
    x, weight, bias = (t.requires_grad_() for t in tensors(*BIG, transposed))
    if _native.info().available:
        assert set(opcheck(OP, (x, weight, bias, transposed)).values()) == {"SUCCESS"}
    small = [t.detach().double().requires_grad_() for t in tensors(3, 4, 5, transposed)]
    assert torch.autograd.gradcheck(lambda *t: ours(*t, transposed), small)
    compiled = torch.compile(lambda *t: ours(*t, transposed), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, weight, bias), ours(x, weight, bias, transposed))


def test_what_does_not_fit_is_named():
    with pytest.raises(NativeError, match=r"argument 'x_TK': wanted torch\.float32 \[2, 4\], got .* \[2, 3\]"):
        linear(torch.ones(2, 3), torch.ones(5, 4))
    with pytest.raises(NativeError, match=r"argument 'bias_N': wanted torch.float32 \[5\], got torch\.bfloat16"):
        linear(torch.ones(2, 4), torch.ones(5, 4), torch.ones(5).bfloat16())


@native
def test_no_second_derivative_is_said():
    x, weight, bias = (t.requires_grad_() for t in tensors(*BIG, False))
    with pytest.raises(NativeError, match="linear has no second derivative"):
        torch.autograd.grad(linear(x, weight, bias).sum(), x, create_graph=True)
