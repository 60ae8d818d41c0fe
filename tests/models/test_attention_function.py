"""The registered attention function: roles, transformers' sdpa without a layout, and what it refuses."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import ModernBertConfig, ModernBertModel

from tunecore.errors import ConfigError
from tunecore.models import packed
from tunecore.models.families.builtin import FAMILIES
from tunecore.types import PackedLayout

MODEL_TYPES = sorted(
    name for name, one in FAMILIES.items() if not one.encoder_decoder and not getattr(one, "padded", False)
)


def twin(model, implementation):
    config = copy.deepcopy(model.config)
    config._attn_implementation = implementation
    other = type(model)(config)
    other.load_state_dict(model.state_dict())
    return other.train(model.training)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("lengths", [[7, 3, 9], [6]])
def test_without_a_layout_it_is_sdpa_to_the_bit(model_type, lengths, make_small, make_packed, attention_dropout):
    """Padded rows and single rows, with dropout from torch's generator."""
    model = make_small(model_type, {"masked_lm", "causal_lm"}, **{attention_dropout[model_type]: 0.3}).train()
    sdpa = twin(model, "sdpa")
    batch = make_packed(model_type, model, lengths)
    inputs = batch.padded_inputs()
    if len(lengths) == 1:
        del inputs["attention_mask"]
    outputs = []
    for one in (model, sdpa):
        torch.manual_seed(3)
        hidden = FAMILIES[model_type].backbone(one)(**inputs).last_hidden_state
        hidden.sum().backward()
        outputs.append((hidden, one.get_input_embeddings().weight.grad))
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert torch.equal(outputs[0][1], outputs[1][1])


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_single_padded_row_keeps_its_mask(model_type, make_small):
    model = make_small(model_type, {"masked_lm", "causal_lm"}).eval()
    ids, mask = torch.arange(4, 14)[None], torch.ones(1, 10, dtype=torch.int64)
    mask[:, :3] = 0
    with torch.no_grad():
        ours, theirs, unmasked = (
            FAMILIES[model_type].backbone(one)(input_ids=ids, attention_mask=m).last_hidden_state
            for one, m in ((model, mask), (twin(model, "sdpa"), mask), (model, None))
        )
    assert torch.equal(ours, theirs) and not torch.allclose(ours[:, 3:], unmasked[:, 3:], atol=1e-3)


def test_masks_of_a_callers_own_function_are_kept():
    def first_two(batch, head, query, key):
        return key < 2

    options = {"batch_size": 1, "q_length": 4, "kv_length": 4, "allow_is_causal_skip": False}
    assert packed.mask_function(**options) is None
    mask = packed.mask_function(**options, mask_function=first_two, use_vmap=True)
    assert mask.shape == (1, 1, 4, 4) and mask[0, 0].tolist() == [[True, True, False, False]] * 4


def test_positions_alone_still_separate_sequences_of_a_causal_row(make_small):
    """transformers takes restarting position_ids in one row for packed sequences; so do we without a layout."""
    model = make_small("gpt2", {"causal_lm"}).eval()
    sdpa = twin(model, "sdpa")
    ids = torch.arange(4, 16)[None]
    for positions in (torch.cat([torch.arange(5), torch.arange(7)])[None], torch.arange(12)[None]):
        with torch.no_grad():
            want = sdpa(input_ids=ids, position_ids=positions, use_cache=False).logits
            assert torch.equal(model(input_ids=ids, position_ids=positions, use_cache=False).logits, want)


def test_a_single_row_keeps_its_sliding_window():
    config = ModernBertConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
        local_attention=4, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
        attn_implementation="tunecore",
    )  # fmt: skip
    torch.manual_seed(0)
    model = ModernBertModel(config).eval()
    sdpa = twin(model, "sdpa")
    ids = torch.arange(3, 23)[None]
    lengths = [12, 8]
    cu = torch.tensor([0, 12, 20], dtype=torch.int32)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).last_hidden_state, sdpa(input_ids=ids).last_hidden_state)
        together = model(input_ids=ids, position_ids=positions, packed=PackedLayout(cu, 12)).last_hidden_state
        for start, stop in ((0, 12), (12, 20)):
            alone = sdpa(input_ids=ids[:, start:stop]).last_hidden_state
            torch.testing.assert_close(together[:, start:stop], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model_type", "options"),
    [("gpt2", {}), ("llama", {"num_key_value_heads": 1}), ("mistral", {"num_key_value_heads": 1, "sliding_window": 6})],
)
def test_generate_of_a_left_padded_batch_equals_eager(model_type, options, make_small):
    model = make_small(model_type, {"causal_lm"}, max_length=40, pad_token_id=0, **options).eval()
    eager = twin(model, "eager")
    ids = torch.randint(4, 60, (3, 9), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 4, 8)):
        ids[row, :padding] = 0
        mask[row, :padding] = 0
    for options in ({}, {"num_beams": 3}):
        options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "use_cache": True, **options}
        ours = model.generate(input_ids=ids, attention_mask=mask, **options)
        assert torch.equal(ours, eager.generate(input_ids=ids, attention_mask=mask, **options))
        assert ours.shape[1] > 9
        alone = model.generate(input_ids=ids[1:2, 4:], attention_mask=mask[1:2, 4:], **options)
        assert torch.equal(ours[1, 9 : 9 + alone.shape[1] - 5], alone[0, 5:])


class Attention(nn.Module):
    def __init__(self, is_causal, **attributes):
        super().__init__()
        self.is_causal = is_causal
        for name, value in attributes.items():
            setattr(self, name, value)


ENCODER = torch.tensor([0, 3, 8], dtype=torch.int32)
DECODER = torch.tensor([0, 2, 6], dtype=torch.int32)
BOTH = PackedLayout(ENCODER, 5, DECODER, 4)


@pytest.mark.parametrize(
    ("module", "layout", "want"),
    [
        (Attention(False), PackedLayout(ENCODER, 5), (8, 8, 5, 5, False)),
        (Attention(True), PackedLayout(ENCODER, 5), (8, 8, 5, 5, True)),
        (Attention(False, is_decoder=False), BOTH, (8, 8, 5, 5, False)),
        (Attention(True, is_decoder=True), BOTH, (6, 6, 4, 4, True)),
        (Attention(False, is_decoder=True), BOTH, (6, 8, 4, 5, False)),
        (Attention(False, is_cross_attention=True), BOTH, (6, 8, 4, 5, False)),
        (Attention(False, config=SimpleNamespace(is_decoder=True)), BOTH, (6, 8, 4, 5, False)),
    ],
)
def test_the_role_comes_from_the_module(module, layout, want, monkeypatch):
    seen = {}

    def record(q, k, v, cu_q, cu_k, max_q, max_k, *, causal, window, scale, dropout_p, rng, **_):
        seen.update(call=(int(cu_q[-1]), int(cu_k[-1]), max_q, max_k, causal), strides=(q.stride(), k.stride()))
        seen.update(window=window, scale=scale, pointers=(q.data_ptr(), k.data_ptr(), v.data_ptr()))
        return q

    monkeypatch.setattr(packed, "attention", record)
    query, key, value = (torch.randn(1, n, 2, 4).transpose(1, 2) for n in (want[0], want[1], want[1]))
    out, weights = packed.attention_forward(
        module, query, key, value, None, scaling=0.3, packed=layout, sliding_window=3, position_ids=None
    )
    assert seen["call"] == want and seen["window"] == 3 and seen["scale"] == 0.3
    assert seen["pointers"] == (query.data_ptr(), key.data_ptr(), value.data_ptr())
    assert seen["strides"] == ((8, 4, 1), (8, 4, 1))
    assert weights is None and out.shape == (1, want[0], 2, 4)


def call(module=None, layout=BOTH, mask=None, batch=1, **kwargs):
    module = Attention(False) if module is None else module
    x = torch.randn(batch, 2, 8, 4)
    return packed.attention_forward(module, x, x, x, mask, packed=layout, **kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [{"softcap": 30.0}, {"s_aux": torch.zeros(2)}, {"head_mask": torch.ones(2)}, {"output_attentions": True}],
)
def test_what_cannot_be_honoured_is_refused_by_name(kwargs):
    with pytest.raises(ConfigError, match=next(iter(kwargs))):
        call(**kwargs)
    call(**dict.fromkeys(kwargs))


def test_incomplete_calls_are_refused():
    with pytest.raises(ConfigError, match="batch size is 2"):
        call(batch=2)
    with pytest.raises(ConfigError, match="attention_mask"):
        call(mask=torch.ones(1, 1, 8, 8))
    with pytest.raises(ConfigError, match="max_length_k is missing"):
        call(layout=None, cu_seq_lens_q=ENCODER, cu_seq_lens_k=ENCODER, max_length_q=5)
    with pytest.raises(ConfigError, match="no decoder sequences"):
        call(Attention(False, is_decoder=True), PackedLayout(ENCODER, 5))
    keyed = PackedLayout(ENCODER, 5, rng_key=torch.tensor(1), row_ids=torch.tensor([0, 1]))
    with pytest.raises(ConfigError, match="assign_sites"):
        call(layout=keyed, dropout=0.1)
    with pytest.raises(ConfigError, match="row_ids"):
        call(Attention(False, **{packed.SITE: 0}), keyed._replace(row_ids=None), dropout=0.1)


def test_every_layer_draws_at_its_own_site(make_small, make_packed, monkeypatch):
    model = make_small("roberta", {"masked_lm"}, num_hidden_layers=3, attention_probs_dropout_prob=0.25).train()
    drawn = []

    def record(q, *args, dropout_p, rng, **kwargs):
        drawn.append((rng.site, dropout_p, int(rng.key), rng.row_ids.tolist()))
        return q

    monkeypatch.setattr(packed, "attention", record)
    batch = make_packed("roberta", model, [5, 6], key=77)
    model.roberta(**batch.inputs())
    assert drawn == [(site, 0.25, 77, [100, 101, -1]) for site in range(3)]
    drawn.clear()
    monkeypatch.setattr(packed, "attention", lambda q, *args, rng, dropout_p, **kw: drawn.append((rng, dropout_p)) or q)
    model.eval()
    model.roberta(**batch.inputs())
    assert drawn == [(None, 0.0)] * 3


def test_sites_are_distinct_and_the_same_each_time(make_small):
    model = make_small("electra", {"masked_lm"}, num_hidden_layers=3)
    sites = [getattr(m, packed.SITE) for m in model.modules() if hasattr(m, packed.SITE)]
    assert sites == [0, 1, 2]
    assert packed.assign_sites(model) == 3
    assert [getattr(m, packed.SITE) for m in model.modules() if hasattr(m, packed.SITE)] == sites


def test_a_prefix_and_a_decoder_do_not_go_together():
    layout = PackedLayout(
        torch.tensor([0, 3], dtype=torch.int32), 3, torch.tensor([0, 3], dtype=torch.int32), 3,
        prefix_lens=torch.tensor([1], dtype=torch.int32),
    )
    heads = torch.randn(1, 2, 3, 4)
    with pytest.raises(ConfigError, match="prefix_lens are for models of one stack"):
        packed.attention_forward(SimpleNamespace(is_causal=True), heads, heads, heads, None, packed=layout)
