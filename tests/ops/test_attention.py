"""The op attention against loops over single scores in float64, and its promises as a custom op.

Shape letters: T query tokens, S key tokens, H heads, K kv-heads, D head width.
"""

import itertools
import math

import pytest
import torch
from torch.library import opcheck

from tunecore.errors import ConfigError, NativeError
from tunecore.ops import DropoutKey, attention
from tunecore.ops.reference import attention_keep, philox4x32

LENGTHS = [(3, 3), (1, 1), (0, 0), (5, 5), (2, 4)]
HEADS, KV_HEADS, WIDTH = 4, 2, 8
REACH = 3
BUCKETS = torch.tensor([0, 1, 1, 2, 3, 3, 4], dtype=torch.int32)


def offsets(lengths):
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def inputs(dtype=torch.float64, seed=0, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(seed)
    cu_q, cu_k = offsets([q for q, _ in lengths]), offsets([k for _, k in lengths])

    def draw(tokens, heads):
        # [heads, tokens, D] transposed: the strides transformers hands over
        x = torch.randn(heads, tokens, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
        return x.transpose(0, 1).requires_grad_()

    q, k, v = draw(int(cu_q[-1]), HEADS), draw(int(cu_k[-1]), KV_HEADS), draw(int(cu_k[-1]), KV_HEADS)
    return q, k, v, cu_q, cu_k, max(q for q, _ in lengths), max(k for _, k in lengths)


def brute_force(q, k, v, cu_q, cu_k, _mq, _mk, *, causal=False, prefix_lens=None, window=None, scale=None,
                alibi_slopes=None, relative_bias_BH=None, buckets=None):  # fmt: skip
    """One score after another, as the docstring of ``attention`` says it."""
    scale = WIDTH**-0.5 if scale is None else scale
    rows = []
    for b in range(len(cu_q) - 1):
        q_len, k_len = int(cu_q[b + 1] - cu_q[b]), int(cu_k[b + 1] - cu_k[b])
        for i, h in itertools.product(range(q_len), range(HEADS)):
            scores, values = [], []
            for j in range(k_len):
                d = j - (i + k_len - q_len)
                masked = causal or prefix_lens is not None
                prefix = 0 if prefix_lens is None else int(prefix_lens[b])
                if (masked and d > 0 and j >= prefix) or (window is not None and abs(d) >= window):
                    continue
                kv = h // (HEADS // KV_HEADS)
                score = scale * (q[cu_q[b] + i, h] * k[cu_k[b] + j, kv]).sum()
                if alibi_slopes is not None:
                    score = score - alibi_slopes[h].double() * abs(d)
                if buckets is not None:
                    score = score + relative_bias_BH[buckets[min(max(d, -REACH), REACH) + REACH], h]
                scores.append(score)
                values.append(v[cu_k[b] + j, kv])
            if scores:
                rows.append((torch.stack(scores).softmax(0)[:, None] * torch.stack(values)).sum(0))
            else:
                rows.append(torch.zeros(WIDTH, dtype=q.dtype))
    return torch.stack(rows).view(-1, HEADS, WIDTH)


TABLE = torch.randn(5, HEADS, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
OPTIONS = {
    "plain": {},
    "scale": {"scale": 0.3},
    "causal": {"causal": True},
    "prefix": {"causal": True, "prefix_lens": torch.tensor([2, 0, 0, 5, 1], dtype=torch.int32)},
    "window": {"window": 2},
    "causal window": {"causal": True, "window": 2},
    "alibi": {"alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 1.0])},
    "buckets": {"relative_bias_BH": TABLE, "buckets": BUCKETS},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_equals_brute_force_with_every_gradient(name):
    options = dict(OPTIONS[name])
    results = []
    for compute in (attention, brute_force):
        arguments = inputs()
        if "buckets" in options:
            options["relative_bias_BH"] = TABLE.clone().requires_grad_()
        out = compute(*arguments, **options)
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        table = options.get("relative_bias_BH")
        results.append([out, *(x.grad for x in arguments[:3]), *([] if table is None else [table.grad])])
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_is_at_most_twice_that_of_sdpa(dtype):
    lengths = [(37, 37), (64, 64)]
    errors = {}
    exact = attention(*inputs(lengths=lengths))
    arguments = inputs(dtype, lengths=lengths)
    q, k, v, cu = *arguments[:3], arguments[3].tolist()
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            *(x[a:b].transpose(0, 1) for x in (q, k, v)), enable_gqa=True
        ).transpose(0, 1)
        for a, b in itertools.pairwise(cu)
    ]
    errors["sdpa"] = (torch.cat(parts).double() - exact).norm()
    errors["ours"] = (attention(*arguments).double() - exact).norm()
    assert errors["ours"] <= 2 * errors["sdpa"] + 1e-7 * exact.norm()


def test_nothing_to_do():
    out = attention(*inputs(lengths=[(0, 0)]))
    assert out.shape == (0, HEADS, WIDTH)
    out.sum().backward()


def test_a_query_without_keys_gives_zero():
    assert not attention(*inputs(lengths=[(2, 0), (1, 1)]))[:2].any()


def dropped(lengths, row_ids, key=7, site=3, p=0.25, seed=0):
    rng = DropoutKey(torch.tensor(key), torch.tensor(row_ids), site)
    return attention(*inputs(lengths=lengths, seed=seed), dropout_p=p, rng=rng)


def test_dropout_is_of_the_row_and_not_of_its_place():
    pair = [(6, 6), (6, 6)]
    arguments = inputs(lengths=pair)
    rng = DropoutKey(torch.tensor(7), torch.tensor([11, 12]), 3)
    both = attention(*arguments, dropout_p=0.25, rng=rng)
    second = [x[6:] for x in arguments[:3]]
    cu = offsets([6])
    alone = attention(*second, cu, cu, 6, 6, dropout_p=0.25, rng=rng._replace(row_ids=torch.tensor([12])))
    assert torch.equal(both[6:], alone)
    for other in ({"site": 4}, {"key": 8}):
        assert not torch.equal(dropped(pair, [11, 12], **other), both)


def test_dropout_keeps_what_it_says_and_scales_it():
    keep = attention_keep(torch.tensor(5), torch.tensor(2), 1, 8, 64, 64, round(0.1 * 65536))
    assert keep.double().mean().item() == pytest.approx(0.9, abs=4 * math.sqrt(0.09 / keep.numel()))
    value = torch.ones(64, 1, 16, dtype=torch.float64)
    cu = offsets([64])
    rng = DropoutKey(torch.tensor(5), torch.tensor([2]), 1)
    out = attention(torch.zeros_like(value), torch.zeros_like(value), value, cu, cu, 64, 64, dropout_p=0.1, rng=rng)
    threshold = round(0.1 * 65536)
    kept = attention_keep(torch.tensor(5), torch.tensor(2), 1, 1, 64, 64, threshold)[0].double().sum(-1) / 64
    torch.testing.assert_close(out[:, 0, 0], kept * 65536 / (65536 - threshold))


def test_dropout_in_the_backward_pass_is_that_of_the_forward():
    cu = offsets([4, 3])
    arguments = [x.detach().contiguous().requires_grad_() for x in inputs(lengths=[(4, 4), (3, 3)])[:3]]
    rng = DropoutKey(torch.tensor(1), torch.tensor([0, 1]), 0)

    def once(q, k, v, table):
        return attention(q, k, v, cu, cu, 4, 4, dropout_p=0.3, rng=rng, causal=True, relative_bias_BH=table,
                         buckets=BUCKETS)  # fmt: skip

    assert torch.autograd.gradcheck(once, (*arguments, TABLE.clone().requires_grad_()))


def test_philox_is_that_of_random123():
    ones = 0xFFFFFFFF
    for key, counter, wanted in (
        (0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (ones, ones, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ):
        words = philox4x32((key, key), tuple(torch.tensor([counter]) for _ in range(4)))
        assert tuple(int(w) & ones for w in words) == wanted


@pytest.mark.parametrize("name", ["causal", "buckets"])
def test_opcheck(name):
    options = OPTIONS[name]
    q, k, v, cu_q, cu_k, max_q, max_k = inputs(torch.float32)
    table = options.get("relative_bias_BH")
    call = (q, k, v, cu_q, cu_k, max_q, max_k, name == "causal", None, None, 0.35, None, 0.0, None, None, 0,
            None if table is None else table.float().requires_grad_(), options.get("buckets"))  # fmt: skip
    assert set(opcheck(torch.ops.tunecore.attention.default, call).values()) == {"SUCCESS"}


def test_compiles_as_one_graph():
    arguments = inputs(torch.float32)
    compiled = torch.compile(lambda *a: attention(*a, causal=True), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), attention(*arguments, causal=True))


def test_no_second_derivative():
    arguments = inputs(lengths=[(3, 3)])
    (gradient,) = torch.autograd.grad(attention(*arguments).sum(), arguments[0], retain_graph=True)
    assert gradient.shape == arguments[0].shape
    with pytest.raises(NativeError, match="no second derivative"):
        torch.autograd.grad(attention(*arguments).sum(), arguments[0], create_graph=True)


def test_bad_arguments_are_named():
    q, k, v, cu_q, cu_k, max_q, max_k = inputs()
    with pytest.raises(NativeError, match="argument 'k'"):
        attention(q, k[..., :4], v, cu_q, cu_k, max_q, max_k)
    with pytest.raises(NativeError, match="cu_seqlens_q"):
        attention(q, k, v, cu_q.flip(0), cu_k, max_q, max_k)
    with pytest.raises(NativeError, match="max_seqlen_k"):
        attention(q, k, v, cu_q, cu_k, max_q, max_k - 1)
    with pytest.raises(ConfigError, match="rng is None"):
        attention(q, k, v, cu_q, cu_k, max_q, max_k, dropout_p=0.1)
    with pytest.raises(ConfigError, match="window=0"):
        attention(q, k, v, cu_q, cu_k, max_q, max_k, window=0)
