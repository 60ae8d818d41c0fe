"""Layers called several times in one forward: every call has dropout of its own, and has it again when recomputed."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tunecore.models import packed
from tunecore.models.fused import CounterDropout, swap_modules
from tunecore.models.invocation import invocation, site_of_call
from tunecore.models.loading import enable_gradient_checkpointing
from tunecore.ops import _native
from tunecore.ops.reference import attention_keep, dropout_reference, dropout_threshold
from tunecore.types import PackedLayout

KEY, LENGTHS = 4711, [7, 9, 5]
RATES = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.25}
needs_core = pytest.mark.skipif(not _native.info().available, reason="this installation has no compiled core")


def albert(make_small, **options):
    shape = {"num_hidden_layers": 5, "num_hidden_groups": 2, "inner_group_num": 2, "initializer_range": 0.1}
    return make_small("albert", {"masked_lm"}, **shape, **RATES, **options).train()


def attend_by_hand(layer, hidden_TE, batch, number):
    """Attention of one call, a sequence at a time, its dropout from the words that the design names."""
    heads, out = layer.num_attention_heads, torch.zeros_like(hidden_TE)
    p, site = RATES["attention_probs_dropout_prob"], getattr(layer, packed.SITE) + number * 2**16
    ends, rows = batch.layout.cu_seqlens.tolist(), batch.layout.row_ids
    for row, (start, stop) in enumerate(pairwise(ends)):
        q, k, v = (
            part(hidden_TE[start:stop]).unflatten(-1, (heads, -1)).transpose(0, 1)
            for part in (layer.query, layer.key, layer.value)
        )
        weights = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(-1)
        n = stop - start
        keep = attention_keep(torch.tensor(KEY), rows[row], site, heads, n, n, dropout_threshold(p))
        out[start:stop] = (weights * keep / (1 - p) @ v).transpose(0, 1).flatten(1)
    return layer.dense(out)


def forward_by_hand(model, batch, sites):
    """ALBERT written out, with ``sites`` by name of the dropout modules."""
    config, encoder, key = model.config, model.albert.encoder, torch.tensor(KEY)
    parts, p = model.albert.embeddings, RATES["hidden_dropout_prob"]
    hidden = parts.word_embeddings(batch.input_ids) + parts.position_embeddings(batch.position_ids)
    hidden = parts.LayerNorm(hidden + parts.token_type_embeddings(batch.token_type_ids))
    hidden_TE = encoder.embedding_hidden_mapping_in(dropout_reference(hidden, p, key, sites["embeddings.dropout"]))[0]
    for number in range(config.num_hidden_layers):
        group = [0, 0, 0, 1, 1][number]
        for inner, layer in enumerate(encoder.albert_layer_groups[group].albert_layers):
            name = f"encoder.albert_layer_groups.{group}.albert_layers.{inner}.attention.output_dropout"
            attended = attend_by_hand(layer.attention, hidden_TE, batch, number)
            attended = dropout_reference(attended, p, key, sites[name] + number * 2**16)
            attended = layer.attention.LayerNorm(hidden_TE + attended)
            fed = layer.ffn_output(layer.activation(layer.ffn(attended)))
            hidden_TE = layer.full_layer_layer_norm(fed + attended)
    return hidden_TE


@needs_core
@pytest.mark.parametrize("checkpointing", [False, True])
def test_albert_draws_anew_in_every_call(make_small, make_packed, checkpointing):
    """Hidden states and gradients equal those of a forward written out, each call with a site of its own."""
    model = albert(make_small)
    plain = copy.deepcopy(model)
    source = swap_modules(model)
    if checkpointing:
        enable_gradient_checkpointing(model)
    batch = make_packed("albert", model, LENGTHS, key=KEY)
    sites = {n: m.site for n, m in model.albert.named_modules() if isinstance(m, CounterDropout)}
    source.key = torch.tensor(KEY)
    ours, want = model.albert(**batch.inputs()).last_hidden_state[0], forward_by_hand(plain, batch, sites)
    torch.testing.assert_close(ours, want, rtol=1e-4, atol=2e-5)
    used = slice(0, sum(LENGTHS))
    ours[used].square().sum().backward()
    want[used].square().sum().backward()
    gradients = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    assert len(gradients) > 30
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=2e-3, atol=2e-4, msg=name)


def test_without_dropout_the_loop_is_that_of_transformers(make_small):
    model = albert(make_small).eval()
    theirs = type(model)(copy.deepcopy(model.config))
    theirs.load_state_dict(model.state_dict())
    assert type(theirs.albert.encoder) is not type(model.albert.encoder)
    kept = [list(one.albert.encoder.albert_layer_groups) for one in (model, theirs)]
    for layers, groups in ((12, 1), (7, 3), (10, 6), (11, 11)):
        for one, parts in zip((model, theirs), kept, strict=True):
            one.config.num_hidden_layers, one.config.num_hidden_groups = layers, groups
            one.albert.encoder.albert_layer_groups = nn.ModuleList(parts[i % 2] for i in range(groups))
        ids = torch.arange(4, 14)[None]
        with torch.no_grad():
            assert torch.equal(model(ids).logits, theirs.eval()(ids).logits)


def test_checkpointing_recomputes_every_call(make_small, make_packed):
    calls = []
    model = albert(make_small)
    for group in model.albert.encoder.albert_layer_groups:
        group.register_forward_pre_hook(lambda *_: calls.append(site_of_call(0) >> 16))
    batch = make_packed("albert", model, LENGTHS, key=KEY)
    enable_gradient_checkpointing(model)
    loss = model.albert(**batch.inputs()).last_hidden_state.square().sum()
    assert calls == [0, 1, 2, 3, 4]
    loss.backward()
    assert calls == [0, 1, 2, 3, 4, 4, 3, 2, 1, 0] and site_of_call(0) == 0


def test_an_invocation_ends_with_its_scope():
    with invocation(2):
        with pytest.raises(RuntimeError), invocation(3):
            assert site_of_call(5) == 5 + 3 * 2**16
            raise RuntimeError
        assert site_of_call(5) == 5 + 2 * 2**16
    assert site_of_call(5) == 5


class Stack(nn.Module):
    """One attention module under three names, as a plugin's model may hold it."""

    class Attention(nn.Module):
        is_causal = False

        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x_TE, layout):
            heads = x_TE.unflatten(-1, (2, -1)).transpose(0, 1)[None]
            out = packed.attention_forward(self, heads, heads, heads, None, dropout=0.4, packed=layout)[0]
            return self.drop(out[0].flatten(1))

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([self.Attention()] * 3)

    def forward(self, x_TE, layout, recompute=False):
        outputs = []
        for layer in self.layers:
            outputs.append(checkpoint(layer, x_TE, layout, use_reentrant=False) if recompute else layer(x_TE, layout))
        return torch.stack(outputs)


def test_a_module_under_several_names_draws_from_torchs_generator():
    model, results = Stack().train(), []
    source = swap_modules(model)
    source.key = torch.tensor(KEY)
    assert packed.assign_sites(model) == 1 and type(model.layers[0].drop) is nn.Dropout
    layout = PackedLayout(
        torch.tensor([0, 5, 8], dtype=torch.int32), 5, rng_key=torch.tensor(KEY), row_ids=torch.tensor([3, 4])
    )
    for recompute in (False, True):
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
        torch.manual_seed(5)
        out = model(x, layout, recompute)
        assert not torch.equal(out[0], out[1]) and not torch.equal(out[1], out[2])
        out.square().sum().backward()
        results.append((out.detach(), x.grad))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])
    model.layers[0].drop.p = 0.0
    attended = model(x, layout)
    assert not F.cosine_similarity(attended[0], attended[1], dim=0).allclose(torch.ones(16), atol=1e-3)


def test_modules_shared_elsewhere_keep_the_others_counters():
    """Embeddings under two names (as T5 has them) say nothing of dropout."""
    table = nn.Embedding(4, 8)
    model = nn.ModuleDict({"a": table, "b": nn.Sequential(table, nn.Dropout(0.5))})
    swap_modules(model)
    assert isinstance(model["b"][1], CounterDropout)
