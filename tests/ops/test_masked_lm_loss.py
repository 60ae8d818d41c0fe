"""masked_lm_loss: numbers against float64, gradients, the torch.library contract, compilation, bad input."""

from __future__ import annotations

import importlib
import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from tunecore.errors import ConfigError, DataError, NativeError
from tunecore.ops import _native, masked_lm_loss
from tunecore.ops.masked_lm_loss import CHUNK_ROWS, _workspaces, release_workspaces
from tunecore.ops.reference import masked_lm_loss_reference

OP = torch.ops.tunecore.masked_lm_loss.default
BACKWARD = torch.ops.tunecore.masked_lm_loss_backward.default
OPTIONS = [(0.0, 0.0), (0.1, 0.0), (0.1, 1e-2)]


def make(n: int, e: int, v: int, dtype: torch.dtype, *, ignored: int = 3, seed: int = 0) -> tuple[Tensor, ...]:
    """hidden, weight, bias that want gradients, and targets with every ``ignored``-th row ignored (0: none)."""
    g = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(n, e, generator=g), torch.randn(v, e, generator=g) * (2 / e**0.5)
    bias, targets = torch.randn(v, generator=g), torch.randint(0, v, (n,), generator=g)
    if ignored:
        targets[::ignored] = -100
    return (*(x.to(dtype).requires_grad_() for x in (hidden, weight, bias)), targets)


def run(fn, inputs, scale: float = 1.0, **options):
    """Total, count, correct and the gradients of scale * total, of leaves of their own."""
    leaves = [None if x is None else x.detach().clone().requires_grad_() for x in inputs[:3]]
    total, count, correct = fn(*leaves, inputs[3], **options)
    (total * scale).backward()
    return total.detach(), int(count), int(correct), [x.grad for x in leaves if x is not None]


def error(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).norm() / exact.norm().clamp_min(1e-30))


@pytest.fixture(params=["default", "best", "torch"])
def core(request, monkeypatch):
    """The same tests on the portable kernels, on this machine's best, and without the compiled core."""
    if request.param == "torch":
        monkeypatch.setattr(_native, "load", lambda: None)
        yield request.param
        return
    module = _native.load()
    if module is None:
        pytest.skip("no compiled core in this installation")
    before = module.capability()
    module.set_capability("default" if request.param == "default" else "")
    yield request.param
    module.set_capability(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize(("smoothing", "z_loss"), OPTIONS)
def test_error_is_at_most_twice_that_of_torch(core, dtype, smoothing, z_loss):
    inputs = make(700, 32, 1203, dtype, ignored=5)  # two chunks, a vocabulary that is no multiple of any vector
    options = {"label_smoothing": smoothing, "z_loss": z_loss}
    exact = run(masked_lm_loss_reference, [*(x.detach().double() for x in inputs[:3]), inputs[3]], 1 / 560, **options)
    theirs = run(masked_lm_loss_reference, inputs, 1 / 560, **options)
    ours = run(masked_lm_loss, inputs, 1 / 560, **options)
    eps = torch.finfo(dtype).eps * (64 if dtype == torch.float64 else 1)  # float64 has nothing finer to be held to
    assert ours[1] == exact[1] == 560
    assert error(ours[0], exact[0]) <= 2 * error(theirs[0], exact[0]) + eps / 560**0.5
    for a, b, c in zip(ours[3], theirs[3], exact[3], strict=True):
        assert a.dtype == b.dtype
        assert error(a, c) <= 2 * error(b, c) + eps / 4


def test_correct_counts_the_first_of_the_largest(core):
    hidden, weight = torch.eye(3), torch.tensor([[1.0, 0, 2], [1, 0, 2], [0, 5, 0]])
    # logits of the rows: [1, 1, 0], [0, 0, 5], [2, 2, 0]
    assert int(masked_lm_loss(hidden, weight, None, torch.tensor([0, 2, 0])).num_correct) == 3
    assert int(masked_lm_loss(hidden, weight, None, torch.tensor([1, 1, 1])).num_correct) == 0


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    n=st.integers(0, 40), e=st.integers(1, 9), v=st.integers(1, 70), ignored=st.integers(0, 4), seed=st.integers(0, 99),
    smoothing=st.floats(0, 1), z_loss=st.floats(0, 0.1), bias=st.booleans(),
)  # fmt: skip
def test_any_shape_equals_the_reference(n, e, v, ignored, seed, smoothing, z_loss, bias):
    inputs = list(make(n, e, v, torch.float32, ignored=ignored, seed=seed))
    inputs[2] = inputs[2] if bias else None
    options = {"label_smoothing": smoothing, "z_loss": z_loss}
    exact_inputs = [None if x is None else x.detach().double() for x in inputs[:3]]
    exact = run(masked_lm_loss_reference, [*exact_inputs, inputs[3]], **options)
    ours = run(masked_lm_loss, inputs, **options)
    assert ours[1:3] == exact[1:3]
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=1e-5, atol=1e-5)
    for a, b in zip(ours[3], exact[3], strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("smoothing", "z_loss"), OPTIONS)
@pytest.mark.parametrize("ignored", [0, 2])
def test_gradcheck_in_float64(smoothing, z_loss, ignored):
    *leaves, targets = make(5, 3, 7, torch.float64, ignored=ignored)

    def total(*args: Tensor) -> Tensor:
        return masked_lm_loss(*args, targets, label_smoothing=smoothing, z_loss=z_loss).total

    assert torch.autograd.gradcheck(total, tuple(leaves))
    assert torch.autograd.gradcheck(lambda h, w: total(h, w, None), tuple(leaves[:2]))


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [
        (torch.float32, (True, True, True)),
        (torch.bfloat16, (True, True, True)),
        (torch.bfloat16, (False, True, False)),
        (torch.float64, (False, False, False)),
    ],
    ids=str,
)
def test_opcheck(dtype, wanted):
    for n, ignored, ignore_index in [(6, 3, -100), (6, 0, None), (4, 1, -100), (0, 0, -100)]:
        *leaves, targets = make(n, 8, 19, dtype, ignored=ignored)
        args = [x if w else x.detach() for x, w in zip(leaves, wanted, strict=True)]
        call = (*args, targets, ignore_index, 0.1, 1e-3, *wanted)
        assert set(opcheck(OP, call).values()) == {"SUCCESS"}
        saved = [x.detach() for x in OP(*call)[3:]]
        assert set(opcheck(BACKWARD, (torch.tensor(0.5), *saved)).values()) == {"SUCCESS"}


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_in_one_graph(dynamic):
    """Targets without ignored rows: the count is a shape and nothing is read from the data."""

    def step(h, w, b, t):
        loss = masked_lm_loss(h, w, b, t, ignore_index=None, label_smoothing=0.1)
        assert loss.num_targets == h.shape[0]
        return loss.total, loss.num_targets, loss.num_correct

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for n in (6, 9):
        inputs = make(n, 8, 19, torch.float32, ignored=0)
        got, wanted = run(compiled, inputs, 0.5), run(step, inputs, 0.5)
        assert got[:3] == wanted[:3]
        for a, b in zip(got[3], wanted[3], strict=True):
            assert torch.equal(a, b)


def test_the_op_compiles_in_one_graph_with_ignored_rows():
    def step(h, w, b, t):
        total, count, correct, *_ = OP(h, w, b, t, -100, 0.0, 0.0, True, True, True)
        return total / count, count, correct

    inputs = make(9, 8, 19, torch.float32)
    got = run(torch.compile(step, fullgraph=True, backend="aot_eager"), inputs)
    wanted = run(step, inputs)
    assert got[:3] == wanted[:3]
    assert all(torch.equal(a, b) for a, b in zip(got[3], wanted[3], strict=True))


@pytest.mark.slow
def test_compiles_with_inductor():
    inputs = make(9, 8, 19, torch.float32, ignored=0)
    compiled = torch.compile(lambda *a: masked_lm_loss(*a, ignore_index=None), fullgraph=True)
    assert run(compiled, inputs)[:3] == run(masked_lm_loss, inputs)[:3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("n", [0, 4])
def test_nothing_to_predict_is_zero(core, dtype, n):
    *leaves, targets = make(n, 8, 19, dtype, ignored=1)
    loss = masked_lm_loss(*leaves, targets, z_loss=0.1)
    loss.total.backward()
    assert (loss.total.item(), loss.num_targets, int(loss.num_correct)) == (0.0, 0, 0)
    for leaf in leaves:
        assert leaf.grad.shape == leaf.shape
        assert not leaf.grad.any()


def test_only_wanted_gradients_are_made(monkeypatch):
    products = []
    module = importlib.import_module("tunecore.ops.masked_lm_loss")  # the package has the op under the same name
    into = module.matmul_into
    monkeypatch.setattr(module, "matmul_into", lambda *args, **kwargs: (products.append(args), into(*args, **kwargs)))
    *leaves, targets = make(6, 8, 19, torch.float32)
    for wanted in itertools.product([False, True], repeat=3):
        inputs = [x.detach().requires_grad_(w) for x, w in zip(leaves, wanted, strict=True)]
        loss = masked_lm_loss(*inputs, targets)
        assert loss.total.requires_grad == any(wanted)
        if any(wanted):
            loss.total.backward()
        assert [x.grad is not None for x in inputs] == list(wanted)
        shapes = [tuple(x.shape) for x in OP(*leaves, targets, -100, 0.0, 0.0, *wanted)[3:]]
        assert shapes == [tuple(x.shape) if w else (0,) for x, w in zip(leaves, wanted, strict=True)]
    with torch.no_grad():
        products.clear()
        assert not masked_lm_loss(*leaves, targets).total.requires_grad
    assert len(products) == 1, "evaluation needs one product, not three"


def test_backward_twice_and_never_a_second_derivative():
    *leaves, targets = make(6, 8, 19, torch.float32)
    loss = masked_lm_loss(*leaves, targets)
    loss.total.backward(retain_graph=True)
    first = [x.grad.clone() for x in leaves]
    for x in leaves:
        x.grad.zero_()  # must not reach what is saved
    (loss.total * 3).backward()
    for x, grad in zip(leaves, first, strict=True):
        torch.testing.assert_close(x.grad, 3 * grad)
    with pytest.raises(RuntimeError, match="second time"):
        loss.total.backward()
    loss = masked_lm_loss(*leaves, targets)
    with pytest.raises(NativeError, match="no second derivative"):
        torch.autograd.grad(loss.total, leaves, create_graph=True)


def test_in_place_scaling_equals_copying(monkeypatch):
    inputs = make(6, 8, 19, torch.bfloat16)
    in_place = run(masked_lm_loss, inputs, 0.3)[3]
    monkeypatch.delattr(torch._C._autograd, "_get_current_graph_task_keep_graph")
    for a, b in zip(in_place, run(masked_lm_loss, inputs, 0.3)[3], strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="this torch has no grad_dtype")
def test_weight_gradient_stays_float32_where_the_parameter_takes_it(core):
    hidden, weight, bias, targets = make(1200, 8, 33, torch.bfloat16)
    weight.grad_dtype = torch.float32
    masked_lm_loss(hidden, weight, bias, targets).total.backward()
    assert weight.grad.dtype == torch.float32
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight, bias)]
    masked_lm_loss_reference(*exact, targets)[0].backward()
    assert error(weight.grad, exact[1].grad) < 5e-3


def test_no_output_aliases_an_input_or_the_buffers():
    *leaves, targets = make(6, 8, 19, torch.float32, ignored=0)
    outputs = OP(*leaves, targets, None, 0.0, 0.0, True, True, True)
    kept = [x.clone() for x in outputs]
    inside = {x.untyped_storage().data_ptr() for x in [*leaves, targets, *_workspaces.__dict__.values()]}
    assert not inside & {x.untyped_storage().data_ptr() for x in outputs}
    masked_lm_loss(*make(6, 8, 19, torch.float32, seed=1)).total.backward()
    assert all(torch.equal(a, b) for a, b in zip(outputs, kept, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_memory_is_one_chunk_whatever_the_rows(dtype):
    release_workspaces()
    bytes_of_chunk = CHUNK_ROWS * 500 * max(4, dtype.itemsize)
    for n in (CHUNK_ROWS, 2 * CHUNK_ROWS, 5 * CHUNK_ROWS):
        run(masked_lm_loss, make(n, 4, 500, dtype, ignored=0))
        logits = [x for name, x in _workspaces.__dict__.items() if name.startswith("logits")]
        assert sum(x.nbytes for x in logits) <= bytes_of_chunk
    release_workspaces()
    assert not _workspaces.__dict__


def test_inference_mode_leaves_usable_buffers():
    release_workspaces()
    inputs = make(6, 8, 19, torch.float32)
    with torch.inference_mode():
        total = float(masked_lm_loss(*inputs).total)
    assert run(masked_lm_loss, inputs)[0].item() == pytest.approx(total)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strided_inputs(core, dtype):
    hidden, weight, bias, targets = make(10, 8, 19, dtype)
    expanded = targets[:, None].expand(10, 2).contiguous()[:, 0]
    strided = (
        hidden.detach().t().contiguous().t(),
        torch.cat([weight.detach()] * 2, dim=1)[:, :8],
        bias.detach().repeat_interleave(2)[::2],
        expanded,
    )
    want, got = masked_lm_loss(hidden, weight, bias, targets), masked_lm_loss(*strided)
    torch.testing.assert_close(got.total, want.total.detach(), rtol=1e-5, atol=1e-5)


def test_extremes_stay_visible(core):
    hidden, weight, bias, targets = (x.detach() for x in make(4, 8, 19, torch.float32, ignored=0))
    bias[3] = -torch.inf
    targets[targets == 3] = 4
    got, want = masked_lm_loss(hidden, weight, bias, targets), masked_lm_loss_reference(hidden, weight, bias, targets)
    torch.testing.assert_close(got.total, want[0])
    hidden[2, 1] = torch.nan
    assert masked_lm_loss(hidden, weight, bias, targets).total.isnan()


def test_autocast_computes_in_its_dtype():
    inputs = make(6, 8, 19, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = run(masked_lm_loss, inputs)
    want = run(masked_lm_loss, [*(x.detach().bfloat16() for x in inputs[:3]), inputs[3]])
    assert got[0] == want[0]
    assert all(g.dtype == torch.float32 for g in got[3])


@pytest.mark.parametrize("bad", [19, -1, 2**40, -101])
def test_a_target_outside_the_vocabulary_is_named(core, bad):
    hidden, weight, bias, targets = make(6, 8, 19, torch.float32, ignored=2)
    targets[3] = bad
    with pytest.raises(DataError, match=rf"target {bad} at row 3 is outside the vocabulary of 19"):
        masked_lm_loss(hidden, weight, bias, targets)
    with pytest.raises(DataError, match="target -100 at row 0"):
        masked_lm_loss(hidden, weight, bias, targets, ignore_index=None)


def test_bad_arguments_are_named():
    hidden, weight, bias, targets = make(6, 8, 19, torch.float32)
    cases = [
        ((hidden[0], weight, bias, targets), "'hidden': wanted floating point"),
        ((hidden, weight[:, :7], bias, targets), "'weight': wanted \\[V, 8\\]"),
        ((hidden, weight.bfloat16(), bias, targets), "'weight'.*got torch.bfloat16"),
        ((hidden, weight, bias[:18], targets), "'bias': wanted \\[19\\]"),
        ((hidden, weight, bias, targets[:5]), "'targets': wanted torch.int64 \\[6\\]"),
        ((hidden, weight, bias, targets.int()), "'targets'.*got torch.int32"),
    ]
    for args, message in cases:
        with pytest.raises(NativeError, match=message):
            masked_lm_loss(*args)
    for name, value in [("label_smoothing", 1.5), ("label_smoothing", float("nan")), ("z_loss", -1.0)]:
        with pytest.raises(ConfigError, match=name):
            masked_lm_loss(hidden, weight, bias, targets, **{name: value})


def test_the_native_pass_is_bit_equal_for_any_thread_count():
    module = _native.load()
    if module is None:
        pytest.skip("no compiled core in this installation")
    g = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        logits, targets = torch.randn(70, 501, generator=g).to(dtype), torch.randint(0, 501, (70,), generator=g)
        results = []
        for threads in (1, 2, 5):
            x, total = logits.clone(), torch.zeros(501)
            loss, correct = module.masked_lm_loss(
                _native.dl(x), None, _native.dl(targets), 0.1, 1e-3, True, threads
            )
            module.column_sum(_native.dl(x), _native.dl(total), threads)
            results.append((loss, correct, x, total))
        for loss, correct, x, total in results[1:]:
            assert (loss, correct) == results[0][:2]
            assert torch.equal(x, results[0][2])
            assert torch.equal(total, results[0][3])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cuda_equals_cpu(dtype):
    inputs = make(700, 32, 1203, dtype)
    want = run(masked_lm_loss, inputs, label_smoothing=0.1)
    got = run(masked_lm_loss, [x.detach().cuda() for x in inputs], label_smoothing=0.1)
    assert got[1] == want[1]
    tolerance = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(got[0].cpu(), want[0], rtol=tolerance, atol=tolerance)
    for a, b in zip(got[3], want[3], strict=True):
        assert error(a.cpu(), b.double()) < tolerance
