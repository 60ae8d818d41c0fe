"""The op linear: every kernel variant against float64, and its promises as a custom op."""

import pytest
import torch
from torch.library import opcheck

from tunecore.errors import NativeError
from tunecore.ops import _native, linear
from tunecore.ops.linear import matmul_into, weight_gradient_into

native = pytest.mark.skipif(not _native.info().available, reason="this installation has no compiled core")
tiles = pytest.mark.skipif(_native.info().capability != "amx_bf16", reason="this processor has no tile registers")
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
    monkeypatch.setattr(_native, "in_tiles", lambda x: False)
    gradients(ours, tensors(*BIG, False), False)
    assert calls.count("gemm") == 3 and calls.count("column_sum") == 1
    calls.clear()
    gradients(ours, tensors(4, 400, 300, False), False)  # few rows
    gradients(ours, tensors(*BIG, False, torch.bfloat16), False)
    assert not calls


@native
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [BIG, (33, 400, 500), (301, 129, 257), (64, 1300, 70)])
def test_bfloat16_in_tiles_transposes_first_and_errs_no_more_than_torch(shape, transposed, monkeypatch):
    inputs = tensors(*shape, transposed, torch.bfloat16)
    wanted = gradients(plain, [x.double() for x in inputs], transposed)
    peers = gradients(plain, inputs, transposed)
    monkeypatch.setattr(_native, "in_tiles", lambda x: x.dtype == torch.bfloat16)
    torch.full((500 * 400,), float("nan"), dtype=torch.bfloat16)  # freed: what the copy may be given
    found = gradients(ours, inputs, transposed)
    for name, got, right, peer in zip(("out", "dx", "dweight", "dbias"), found, wanted, peers, strict=True):
        assert error(got, right) <= max(2 * error(peer, right), 1e-3), name


@tiles
@pytest.mark.parametrize("transposed", [False, True])
def test_products_that_onednn_leaves_to_one_thread_run_on_ours(transposed, each_thread_count, monkeypatch):
    inputs = tensors(501, 512, 800, transposed, torch.bfloat16)
    wanted = gradients(plain, [x.double() for x in inputs], transposed)
    peers, calls, found = gradients(plain, inputs, transposed), calls_of_core(monkeypatch), []
    for threads in each_thread_count():
        calls.clear()
        found.append(gradients(ours, inputs, transposed))
        assert calls.count("gemm_bf16") == (3 if threads > 1 else 0)
        for name, got, right, peer in zip(("out", "dx", "dweight", "dbias"), found[-1], wanted, peers, strict=True):
            assert error(got, right) <= max(2 * error(peer, right), 1e-3), name
    assert all(torch.equal(a, b) for a, b in zip(found[1], found[2], strict=True))  # of 2 and of 7 threads


@native
@pytest.mark.parametrize("rows", [64, 77])
def test_the_gradient_of_a_weight_takes_any_layout(rows, each_thread_count):
    a, b = torch.randn(rows, 400).bfloat16(), torch.randn(rows, 390).bfloat16()
    wanted = a.double().t() @ b.double()
    for _ in each_thread_count():
        for left in (a, a.t().contiguous().t()):
            for right in (b, b.t().contiguous().t()):
                out = torch.empty(400, 390).bfloat16()
                weight_gradient_into(out, left, right)
                assert error(out, wanted) < 4e-3


@tiles
def test_what_the_product_of_tiles_refuses():
    def multiply(a, b, c, add=False):
        _native.core().gemm_bf16(*map(_native.dl, (a, b, c, None)), add, 1)

    a, b, c = (torch.zeros(size).bfloat16() for size in ((4, 32), (32, 5), (4, 5)))
    with pytest.raises(NativeError, match="argument 'a': wanted a multiple of 32 columns, got 30"):
        multiply(a[:, :30], b[:30], c)
    with pytest.raises(NativeError, match="argument 'b': wanted 32 rows, or fewer that lie in one piece"):
        multiply(a, torch.zeros(5, 31).bfloat16().t(), c)
    with pytest.raises(NativeError, match="argument 'add': only a float32 'c' is added to"):
        multiply(a, b, c, add=True)


@native
def test_a_transposed_copy_ends_in_zeros():
    x = torch.randn(33, 50).bfloat16()
    out = torch.full((50, 96), float("nan"), dtype=torch.bfloat16)
    _native.core().transpose(_native.dl(x), _native.dl(out), 2)
    assert torch.equal(out[:, :33], x.t()) and not out[:, 33:].any()
    with pytest.raises(NativeError, match=r"argument 'out': wanted \[50, at least 33\], got \[50, 32\]"):
        _native.core().transpose(_native.dl(x), _native.dl(torch.empty(50, 32).bfloat16()), 1)


@native
def test_only_amx_has_tiles(each_variant):
    x = torch.ones(2, 2)
    for variant in each_variant():
        assert _native.in_tiles(x.bfloat16()) == (variant == "amx_bf16")
        assert not _native.in_tiles(x)


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
