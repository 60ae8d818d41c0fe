"""Attention on the CUDA kernels: on a GPU where there is one, and everywhere over the emulated kernels."""

import itertools

import pytest
import torch

from tunecore.ops import DropoutKey, _attention_native, _native, attention
from tunecore.ops.reference import AttentionOptions, attention_keep, attention_reference

DTYPES = [torch.bfloat16, torch.float16]
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 1.5e-3}
LENGTHS = [(3, 3), (1, 1), (0, 0), (70, 70), (2, 5), (6, 2)]
HEADS, KV_HEADS = 4, 2
BOTH = ["attention_forward", "attention_backward"]


def offsets(lengths):
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def inputs(dtype, width=32, lengths=LENGTHS, heads=HEADS, kv_heads=KV_HEADS):
    torch.manual_seed(width)
    cu_q, cu_k = (offsets([pair[side] for pair in lengths]) for side in (0, 1))

    def draw(tokens, of_heads):
        # [heads, tokens, D] transposed: the strides transformers hands over
        return torch.randn(of_heads, tokens, width).to(dtype).transpose(0, 1)

    keys = int(cu_k[-1])
    return draw(int(cu_q[-1]), heads), draw(keys, kv_heads), draw(keys, kv_heads), cu_q, cu_k


def with_gradients(compute, tensors, table=None):
    """out, dq, dk, dv and the gradient of the table."""
    leaves = [x.detach().clone().requires_grad_() for x in (*tensors, *([] if table is None else [table]))]
    out = compute(*leaves)
    out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype))
    return [out.detach(), *(x.grad for x in leaves)]


def assert_close(ours, wanted, tolerance):
    for got, right in zip(ours, wanted, strict=True):
        assert (got.double() - right).norm() <= tolerance * (1e-6 + right.norm())


def run_both(dtype, width, options, table=None, lengths=LENGTHS):
    q, k, v, cu_q, cu_k = inputs(dtype, width, lengths)
    longest = [max(pair[side] for pair in lengths) for side in (0, 1)]
    dropped = options.get("dropout_p", 0.0)
    row_ids = torch.arange(len(lengths)) * 7 + 2**33
    rng = DropoutKey(torch.tensor(0x7EDCBA9876543210), row_ids, 9) if dropped else None

    def ours(q, k, v, table=None):
        return attention(q, k, v, cu_q, cu_k, *longest, **options, rng=rng, relative_bias_BH=table)

    def exact(q, k, v, table=None):
        named = {"causal", "prefix_lens", "window", "scale", "alibi_slopes", "dropout_p", "buckets"} & options.keys()
        key, ids, site = rng or (None, None, 0)
        chosen = AttentionOptions(**{name: options[name] for name in named})
        chosen = chosen._replace(rng_key=key, row_ids=ids, site=site, relative_bias=table)
        return attention_reference(q, k, v, cu_q, cu_k, chosen)[0]

    doubles = [x.double() for x in (q, k, v)]
    wide = None if table is None else table.double()
    return with_gradients(ours, (q, k, v), table), with_gradients(exact, doubles, wide)


def some_options(name):
    return {
        "plain": {},
        "causal": {"causal": True, "scale": 0.3},
        "prefix": {"prefix_lens": torch.tensor([2, 0, 0, 40, 1, 1], dtype=torch.int32)},
        "window": {"window": 7},
        "alibi": {"alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 1.0])},
        "dropout": {"dropout_p": 0.2, "causal": True, "window": 33},
    }[name]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["plain", "causal", "prefix", "window", "alibi", "dropout"])
def test_each_option_with_every_gradient(calls, dtype, name):
    assert_close(*run_both(dtype, 32, some_options(name)), TOLERANCE[dtype])
    assert calls == BOTH


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_table_of_a_relative_bias_gets_its_gradient(calls, dtype):
    buckets = torch.tensor([0, 1, 1, 2, 3, 3, 4], dtype=torch.int32)
    options = {"buckets": buckets, "causal": True, "dropout_p": 0.1}
    assert_close(*run_both(dtype, 16, options, torch.randn(5, HEADS)), TOLERANCE[dtype])
    assert calls == BOTH


@pytest.mark.parametrize("width", [5, 40, 100, 256])
def test_widths_without_a_kernel_are_padded(calls, width):
    lengths = [(3, 3), (9, 17)]
    assert_close(*run_both(torch.bfloat16, width, {}, lengths=lengths), TOLERANCE[torch.bfloat16])
    assert calls == (BOTH if width <= 128 else BOTH[:1])  # wider gradients are PyTorch's


def test_rows_that_begin_at_odd_places_are_copied(calls):
    q, k, v, cu_q, cu_k = inputs(torch.bfloat16)
    wanted = attention(q, k, v, cu_q, cu_k, 70, 70)
    odd = []
    for x in (q, k, v):
        storage = torch.zeros(x.numel() + 1, dtype=x.dtype)
        odd.append(storage[1:].view(x.shape).copy_(x))
    assert torch.equal(attention(*odd, cu_q, cu_k, 70, 70), wanted)


@pytest.mark.parametrize("causal", [False, True])
def test_error_is_at_most_twice_that_of_sdpa(calls, causal):
    lengths = [(37, 37), (64, 64)]
    tensors = inputs(torch.bfloat16, 64, lengths)
    cu = tensors[3].tolist()

    def sdpa(q, k, v):
        parts = [
            torch.nn.functional.scaled_dot_product_attention(
                *(x[a:b].transpose(0, 1)[None] for x in (q, k, v)), is_causal=causal, enable_gqa=True
            )[0].transpose(0, 1)
            for a, b in itertools.pairwise(cu)
        ]
        return torch.cat(parts)

    exact = with_gradients(sdpa, [x.double() for x in tensors[:3]])
    theirs = with_gradients(sdpa, tensors[:3])
    ours = with_gradients(lambda q, k, v: attention(q, k, v, *tensors[3:], 64, 64, causal=causal), tensors[:3])
    for got, other, right in zip(ours, theirs, exact, strict=True):
        assert (got.double() - right).norm() <= 2 * (other.double() - right).norm()
    assert calls == BOTH


def test_dropout_draws_the_masks_of_the_cpu_bit_by_bit(calls):
    """Equal scores and values that name their key show in the output which keys each query keeps."""
    rows, width, p = 70, 128, 0.3
    q, k = torch.zeros(rows, 2, width), torch.zeros(rows, 2, width)
    v = torch.eye(rows, width)[:, None].expand(rows, 2, width)
    key, row_ids = torch.tensor(-77), torch.tensor([123456789012])
    cu = offsets([rows])
    bf16 = [x.to(torch.bfloat16) for x in (q, k, v)]
    out = attention(*bf16, cu, cu, rows, rows, dropout_p=p, rng=DropoutKey(key, row_ids, 5))
    kept = out[:, :, :rows].transpose(0, 1) != 0
    assert torch.equal(kept, attention_keep(key, row_ids[0], 5, 2, rows, rows, round(p * 65536)))
    core = _native.load()
    if core is not None:
        options = AttentionOptions(dropout_p=p, rng_key=key.cpu(), row_ids=row_ids.cpu(), site=5)
        on_cpu = _attention_native.forward(core, *(x.cpu() for x in (*bf16, cu, cu)), options)[0]
        assert torch.equal(kept.cpu(), on_cpu[:, :, :rows].transpose(0, 1) != 0)


def test_a_second_run_gives_the_same_bits(calls):
    buckets = torch.tensor([0, 1, 2], dtype=torch.int32)
    table = torch.ones(3, HEADS)
    options = {"buckets": buckets, "dropout_p": 0.1}
    first, second = (run_both(torch.bfloat16, 32, options, table)[0] for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_what_the_kernels_do_not_take_runs_elsewhere(calls):
    lengths = [(3, 3)]
    assert_close(*run_both(torch.float32, 16, {}, lengths=lengths), 1e-5)
    assert calls == []
    far = {"buckets": torch.zeros(2 * 513 + 1, dtype=torch.int32)}
    run_both(torch.float16, 16, far, torch.ones(1, HEADS), lengths)
    assert calls == ["attention_forward"]


def test_nothing_to_do(calls):
    q, k, v, cu_q, cu_k = inputs(torch.bfloat16, 16, [(0, 0)])
    table, buckets = torch.ones(2, HEADS), torch.tensor([0, 1, 1], dtype=torch.int32)
    made = with_gradients(
        lambda *x: attention(*x[:3], cu_q, cu_k, 0, 0, relative_bias_BH=x[3], buckets=buckets), (q, k, v), table
    )
    assert made[0].shape == (0, HEADS, 16)
    assert not made[4].any()
