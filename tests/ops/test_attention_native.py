"""The compiled attention kernels against the reference in float64, in every variant this machine runs.

Shape letters: T query tokens, S key tokens, H heads, K kv-heads, D head width.
"""

import itertools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunecore.errors import NativeError
from tunecore.ops import DropoutKey, _attention_native, _native, attention
from tunecore.ops._native import CAPABILITIES
from tunecore.ops.reference import AttentionOptions, attention_backward_reference, attention_reference

pytestmark = pytest.mark.skipif(not _native.info().available, reason="this installation has no compiled core")

VARIANTS = ()
if _native.info().available:
    VARIANTS = CAPABILITIES[: CAPABILITIES.index(_native.load().detected_capability()) + 1]
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 1.5e-2}
LENGTHS = [(3, 3), (1, 1), (0, 0), (129, 129), (2, 40), (50, 7), (300, 300)]
HEADS = 4


@pytest.fixture(params=VARIANTS)
def variant(request):
    core = _native.load()
    core.set_capability(request.param)
    yield request.param
    core.set_capability("")


def offsets(lengths):
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def draw(tokens, heads, width, dtype):
    return torch.randn(heads, tokens, width, dtype=torch.float64).to(dtype).transpose(0, 1)


def relative_error(ours, exact):
    """Of the norms; the floor is for gradients that are zero by the mask (a query that sees one key only)."""
    return ((ours.double() - exact).norm() / (exact.norm() + 0.3 * exact.numel() ** 0.5 + 1e-30)).item()


def compare(dtype, lengths, width, kv_heads, options, dropout_p=0.0):
    """Largest relative error of the output and of every gradient against float64."""
    cu_q, cu_k = offsets([q for q, _ in lengths]), offsets([k for _, k in lengths])
    q, dout = (draw(int(cu_q[-1]), HEADS, width, dtype) for _ in range(2))
    k, v = (draw(int(cu_k[-1]), kv_heads, width, dtype) for _ in range(2))
    if dropout_p:
        rng = {"rng_key": torch.tensor(-(2**61) + 12345), "row_ids": torch.arange(len(lengths)) * 2**33 - 7, "site": 9}
        options = {**options, **rng, "dropout_p": dropout_p}
    native = AttentionOptions(**options)
    core = _attention_native.kernels_for(q)
    out, lse = _attention_native.forward(core, q, k, v, cu_q, cu_k, native)
    grads = _attention_native.backward(core, dout, q, k, v, out, lse, cu_q, cu_k, native, True)
    table = native.relative_bias
    wide = native._replace(relative_bias=None if table is None else table.double())
    exact = [x.double() for x in (q, k, v)]
    wanted_out, wanted_lse = attention_reference(*exact, cu_q, cu_k, wide)
    wanted = attention_backward_reference(dout.double(), *exact, wanted_out, wanted_lse, cu_q, cu_k, wide)
    torch.testing.assert_close(lse.double(), wanted_lse, atol=1e-5, rtol=1e-5)
    pairs = [(out, wanted_out), *zip(grads, wanted, strict=True)]
    return max(relative_error(a, b) for a, b in pairs if b is not None)


OPTIONS = {
    "plain": {},
    "scale": {"scale": -0.2},
    "causal": {"causal": True},
    "prefix": {"causal": True, "prefix_lens": torch.tensor([2, 0, 0, 100, 20, 3, 300], dtype=torch.int32)},
    "window": {"window": 20},
    "causal window": {"causal": True, "window": 7},
    "alibi": {"alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 1.0]), "causal": True},
    "buckets": {
        "relative_bias": torch.linspace(-2, 2, 20).view(5, HEADS),
        "buckets": torch.tensor([0, 1, 1, 2, 3, 3, 4], dtype=torch.int32),
    },
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
@pytest.mark.parametrize("name", OPTIONS)
def test_equals_the_reference_with_every_gradient(variant, name, dropout_p, dtype):
    torch.manual_seed(1)
    assert compare(dtype, LENGTHS, 32, 2, OPTIONS[name], dropout_p) < TOLERANCE[dtype]


@pytest.mark.parametrize("width", [1, 8, 16, 48, 80, 128, 256])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_every_head_width(variant, width, dtype):
    torch.manual_seed(2)
    assert compare(dtype, [(70, 70), (5, 5)], width, HEADS, {"causal": True}) < TOLERANCE[dtype]


@given(
    lengths=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 150)), max_size=5),
    kv_heads=st.sampled_from([1, 2, 4]),
    width=st.sampled_from([4, 16, 64]),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 80),
    dropout_p=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 2**16),
)
@example([(60, 1), (13, 1)], 1, 4, False, None, 0.5, 1)  # the gradient of a lone key is exactly 0
@settings(max_examples=60)
def test_any_lengths(lengths, kv_heads, width, causal, window, dropout_p, seed):
    torch.manual_seed(seed)
    error = compare(torch.float32, lengths, width, kv_heads, {"causal": causal, "window": window}, dropout_p)
    assert error < TOLERANCE[torch.float32]


def run(lengths, dtype, dropout_p=0.1, seed=0):
    torch.manual_seed(seed)
    cu = offsets(lengths)
    tensors = [draw(int(cu[-1]), HEADS, 64, dtype).requires_grad_() for _ in range(3)]
    rng = DropoutKey(torch.tensor(3), torch.arange(len(lengths)), 1)
    out = attention(*tensors, cu, cu, max(lengths), max(lengths), dropout_p=dropout_p, rng=rng)
    return out, *torch.autograd.grad(out, tensors, torch.ones_like(out))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_same_bits_for_any_number_of_threads(variant, dtype):
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(run([700, 3, 90, 33], dtype))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("lengths", [[37, 64], [512], [5] * 20])
def test_error_is_at_most_twice_that_of_sdpa_gradients_too(variant, dtype, lengths):
    ours = run(lengths, dtype, 0.0)
    torch.manual_seed(0)
    tensors = [draw(sum(lengths), HEADS, 64, dtype).requires_grad_() for _ in range(3)]
    ends = offsets(lengths).tolist()
    out = torch.cat([
        torch.nn.functional.scaled_dot_product_attention(*(x[a:b].transpose(0, 1) for x in tensors)).transpose(0, 1)
        for a, b in itertools.pairwise(ends)
    ])  # fmt: skip
    sdpa = (out, *torch.autograd.grad(out, tensors, torch.ones_like(out)))
    exact = exact_of(lengths, dtype)
    for mine, theirs, wanted in zip(ours, sdpa, exact, strict=True):
        assert relative_error(mine, wanted) <= 2 * relative_error(theirs, wanted) + 1e-7


def exact_of(lengths, dtype):
    """The same in float64 of the inputs as rounded to ``dtype``: only the arithmetic differs."""
    torch.manual_seed(0)
    tensors = [draw(sum(lengths), HEADS, 64, dtype).double().requires_grad_() for _ in range(3)]
    cu = offsets(lengths)
    out = attention_reference(*tensors, cu, cu)[0]
    return (out, *torch.autograd.grad(out, tensors, torch.ones_like(out)))


def test_strided_views_are_read_where_they_lie():
    torch.manual_seed(0)
    cu = offsets([9, 30])
    fused = torch.randn(39, 3, HEADS, 32)
    q, k, v = fused.unbind(1)
    expected = attention(q.contiguous(), k.contiguous(), v.contiguous(), cu, cu, 30, 30)
    assert torch.equal(attention(q, k, v, cu, cu, 30, 30), expected)
    across = fused.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)
    assert across.stride(-1) != 1
    assert torch.equal(attention(*across.unbind(1), cu, cu, 30, 30), expected)


def test_a_nan_stays_visible(variant):
    x = torch.zeros(20, HEADS, 16)
    x[17, 0, 0] = float("nan")
    cu = offsets([10, 10])
    out = attention(x, x, x, cu, cu, 10, 10)
    assert out[10:, 0].isnan().all() and not out[:10].isnan().any() and not out[10:, 1:].isnan().any()


def test_what_the_kernels_do_not_take_goes_to_the_reference():
    assert _attention_native.kernels_for(torch.zeros(1, 1, 16, dtype=torch.float64)) is None
    assert _attention_native.kernels_for(torch.zeros(1, 1, 16, dtype=torch.float16)) is None
    assert _attention_native.kernels_for(torch.zeros(1, 1, 257)) is None
    assert _attention_native.kernels_for(torch.zeros(1, 1, 256)) is _native.load()


def test_a_bucket_outside_the_table_is_an_error():
    x, cu = torch.zeros(4, HEADS, 16), offsets([4])
    with pytest.raises(NativeError, match="5 at 1 is not a row of a table of 5"):
        attention(x, x, x, cu, cu, 4, 4, relative_bias_BH=torch.zeros(5, HEADS),
                  buckets=torch.tensor([0, 5, 1], dtype=torch.int32))  # fmt: skip
