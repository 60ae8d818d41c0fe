"""The ops on CUDA kernels: on a GPU where there is one, and everywhere over the emulated kernels, whose library has the
same C entries and takes tensors of the CPU (made by ``make test-cuda-emulated``).
"""

from __future__ import annotations

import ctypes

import pytest
import torch

from tunecore.errors import NativeError
from tunecore.ops import NormDropout, _cuda, bias_gelu, dropout, embedding, masked_lm_loss, residual_norm
from tunecore.ops.adamw import AdamWTensor, adamw_step
from tunecore.ops.reference import (
    bias_gelu_reference,
    dropout_reference,
    masked_lm_loss_reference,
    residual_norm_reference,
)

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}


def gradients(function, *inputs):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype))
    return [out.detach(), *(x.grad for x in leaves)]


def assert_close(ours, wanted, dtype):
    for got, right in zip(ours, wanted, strict=True):
        assert got.dtype == dtype
        assert (got.double() - right).norm() <= TOLERANCE[dtype] * (1e-6 + right.norm())


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("tanh", [False, True])
def test_bias_gelu(calls, dtype, tanh):
    torch.manual_seed(0)
    x, bias = (2 * torch.randn(2, 3, 37)).to(dtype), torch.randn(37).to(dtype)
    ours = gradients(lambda a, b: bias_gelu(a, b, tanh=tanh), x, bias)
    wanted = gradients(lambda a, b: bias_gelu_reference(a, b, tanh=tanh), x.double(), bias.double())
    assert_close(ours, wanted, dtype)
    assert calls == ["bias_gelu_forward", "bias_gelu_backward"]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("centred", [True, False])
def test_residual_norm_draws_the_same_dropout_as_the_reference(calls, dtype, centred):
    torch.manual_seed(1)
    x, residual, dropped = (
        torch.randn(5, 24).to(dtype),
        torch.randn(5, 24).to(dtype),
        NormDropout(0.3, torch.tensor(77), 4),
    )
    small = [torch.randn(24).to(dtype) for _ in range(3)]

    def run(op, *tensors):
        def both(x, residual, input_bias, weight, bias):
            return op(
                x,
                weight,
                bias,
                eps=1e-5,
                residual_TE=residual,
                input_bias_E=input_bias,
                dropout=dropped,
                centred=centred,
            )

        return gradients(both, *tensors)

    ours = run(residual_norm, x, residual, *small)
    wanted = run(residual_norm_reference, *(t.double() for t in (x, residual, *small)))
    assert_close(ours, wanted, dtype)
    assert calls == ["residual_norm_forward", "residual_norm_backward"]


def test_a_plain_norm_and_no_rows(calls):
    x, weight = torch.randn(3, 40), torch.randn(40)
    ours = gradients(lambda a, w: residual_norm(a, w, eps=1e-6, centred=False), x, weight)
    wanted = gradients(
        lambda a, w: residual_norm_reference(a, w, None, eps=1e-6, centred=False), x.double(), weight.double()
    )
    assert_close(ours, wanted, torch.float32)
    none = gradients(lambda a, w: residual_norm(a, w, eps=1e-6), torch.randn(0, 40), weight)
    assert none[0].shape == (0, 40)
    assert not none[2].any()
    none = gradients(bias_gelu, torch.randn(0, 8), torch.randn(8))
    assert not none[2].any()


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_masked_lm_loss(calls, dtype):
    torch.manual_seed(2)
    hidden, weight, bias = (torch.randn(*shape).to(dtype) for shape in ((9, 16), (101, 16), (101,)))
    targets = torch.randint(101, (9,))
    targets[3] = -100
    options = {"label_smoothing": 0.1, "z_loss": 1e-3}

    def summed(op):
        def total(h, w, b):
            out = op(h, w, b, targets, **options)
            found.append((int(out[1]), int(out[2])))
            return out[0]

        return total

    found = []
    ours = gradients(summed(masked_lm_loss), hidden, weight, bias)
    wanted = gradients(summed(masked_lm_loss_reference), hidden.double(), weight.double(), bias.double())
    assert found[0] == found[1]
    assert calls == ["masked_lm_loss"]
    assert abs(ours[0].double() - wanted[0]) <= 3 * TOLERANCE[dtype] * abs(wanted[0])
    assert_close(ours[1:], wanted[1:], dtype)


def test_masked_lm_loss_of_static_shape_leaves_rows_out(calls):
    logits, targets = torch.randn(3, 11), torch.tensor([4, -100, 0])
    wanted = torch.nn.functional.cross_entropy(logits.double(), targets, reduction="sum")
    loss, correct = _cuda.masked_lm_loss(logits, None, targets, 0.0, 0.0, True)
    assert torch.allclose(loss, wanted)
    assert int(correct) <= 2
    assert not logits[1].any()


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("shape", [(0,), (7,), (3, 5, 40), (33, 65)])
def test_dropout_has_the_bits_of_the_reference(calls, dtype, shape):
    torch.manual_seed(4)
    x, key = torch.randn(shape).to(dtype), torch.tensor(-(2**60) + 77)
    ours = gradients(lambda v: dropout(v, 0.3, key, 5), x)
    assert calls == ["dropout", "dropout"]
    wanted = gradients(lambda v: dropout_reference(v, 0.3, key, 5), x)
    assert all(torch.equal(a, b) for a, b in zip(ours, wanted, strict=True))


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("padding", [None, 3, -1])
@pytest.mark.parametrize("shape", [(0,), (1,), (4, 70)])
def test_the_gradient_of_embedding_is_summed_in_float32(calls, dtype, padding, shape):
    torch.manual_seed(5)
    ids, weight, dout = torch.randint(5, shape), torch.randn(7, 40).to(dtype), torch.randn(*shape, 40).to(dtype)

    def gradient(function, table, dout):
        leaf = table.requires_grad_()
        if table.dtype != torch.float64:
            leaf.grad_dtype = torch.float32
        out = function(ids, leaf)
        out.backward(dout)
        return out.detach(), leaf.grad

    out, got = gradient(lambda i, w: embedding(i, w, padding_idx=padding), weight.clone(), dout)
    assert calls == ["embedding_backward"]
    plain = torch.nn.functional.embedding
    right, wanted = gradient(lambda i, w: plain(i, w, padding), weight.double(), dout.double())
    assert torch.equal(out, right.to(dtype))
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), wanted, rtol=1e-6, atol=1e-5)
    assert padding is None or not got[padding].any()


def test_adamw(calls):
    def entries(seed):
        torch.manual_seed(seed)
        for count, rounds in ((5, True), (4097, False), (0, False)):
            tensors = [torch.randn(count) for _ in range(4)]
            rounded = torch.zeros(count, dtype=torch.bfloat16) if rounds else None
            yield AdamWTensor(*tensors[:3], tensors[3].square(), rounded, keep=0.99, step_size=0.02, root=1.2)

    ours, same = list(entries(3)), list(entries(3))
    adamw_step(ours, beta1=0.9, beta2=0.999, eps=1e-8, scale=0.5)
    assert calls == ["adamw"]
    for got, old in zip(ours, same, strict=True):
        gradient = 0.5 * old.gradient.double()
        mean = 0.9 * old.mean.double() + 0.1 * gradient
        square = 0.999 * old.square.double() + 0.001 * gradient.square()
        weight = 0.99 * old.weight.double() - 0.02 * mean / (square.sqrt() * 1.2 + 1e-8)
        assert torch.allclose(got.weight.double(), weight, atol=1e-6)
        assert torch.allclose(got.mean.double(), mean, atol=1e-6)
        assert torch.allclose(got.square.double(), square, atol=1e-6)
        if got.rounded is not None:
            assert torch.equal(got.rounded, got.weight.to(torch.bfloat16))


def test_a_fault_of_a_kernel_is_an_error_with_a_way_out(calls):
    params = _cuda.ResidualNorm(width=9000, rows=1)
    with pytest.raises(NativeError, match=r"residual_norm_forward failed: .*8192 elements.*\n.*TUNECORE_NO_CUDA=1"):
        _cuda._call("residual_norm_forward", params, torch.zeros(1))


class MmaProbe(ctypes.Structure):
    _fields_ = [("a", ctypes.c_void_p), ("b", ctypes.c_void_p), ("d", ctypes.c_void_p), ("device", ctypes.c_int32),
                ("dtype", ctypes.c_int32)]  # fmt: skip


class LdmatrixProbe(ctypes.Structure):
    _fields_ = [("rows", ctypes.c_void_p), ("r", ctypes.c_void_p), ("device", ctypes.c_int32),
                ("tiles", ctypes.c_int32), ("transposed", ctypes.c_int32)]  # fmt: skip


@pytest.fixture
def probe(calls):
    """``probe(entry, params, like)`` for an entry that only tests call."""

    def run(entry, params, like):
        function = getattr(_cuda._library, f"tunecore_cuda_{entry}")
        function.restype, function.argtypes = ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_void_p]
        _cuda._call(entry, params, like)

    return run


def registers(tile, places):
    """The 32-bit registers [lane, register] that hold a tile of 16-bit numbers by ``places(row, column)``."""
    count = 1 + max(places(i, j)[1] for i in range(tile.shape[0]) for j in range(tile.shape[1]))
    halves = torch.zeros(32, count, 2, dtype=torch.int16)
    bits = tile.view(torch.int16)
    for i in range(tile.shape[0]):
        for j in range(tile.shape[1]):
            lane, register, half = places(i, j)
            halves[lane, register, half] = bits[i, j]
    return halves.view(torch.int32).contiguous()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mma_has_the_layout_of_the_manual(probe, dtype):
    """Every element of A and B has a value of its own row and column, so a wrong place shows in the product."""
    a = (torch.arange(16)[:, None] * 3 - torch.arange(16) * 5).to(dtype)
    b = (torch.arange(16)[:, None] * 7 - torch.arange(8) * 11).to(dtype)
    a_regs = registers(a, lambda i, k: (i % 8 * 4 + k % 8 // 2, i // 8 + k // 8 * 2, k % 2))
    b_regs = registers(b, lambda k, j: (j * 4 + k % 8 // 2, k // 8, k % 2))
    d = torch.zeros(32, 4)
    params = MmaProbe(a_regs.data_ptr(), b_regs.data_ptr(), d.data_ptr(), dtype=_cuda.DTYPES[dtype])
    probe("probe_mma", params, d)
    wanted = a.float() @ b.float()
    for i in range(16):
        for j in range(8):
            assert d[i % 8 * 4 + j // 2, i // 8 * 2 + j % 2] == wanted[i, j], (i, j)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("tiles", [1, 2, 4])
def test_ldmatrix_has_the_layout_of_the_manual(probe, tiles, transposed):
    rows = torch.arange(256, dtype=torch.int16).view(4, 8, 8)
    r = torch.zeros(32, tiles, dtype=torch.int32)
    params = LdmatrixProbe(rows.data_ptr(), r.data_ptr(), tiles=tiles, transposed=transposed)
    probe("probe_ldmatrix", params, rows)
    wanted = (rows.mT if transposed else rows)[:tiles].reshape(tiles, 32, 2).transpose(0, 1)
    assert torch.equal(r.view(torch.int16).view(32, tiles, 2), wanted)
