"""Swapped modules: same state dict, the engine's key, and the same mask again under recomputation."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tunecore.models.families.builtin import FAMILIES
from tunecore.models.fused import CounterDropout, FusedIntermediate, FusedOutput, KernelRMSNorm, swap_modules
from tunecore.models.loading import enable_gradient_checkpointing
from tunecore.ops import _native

pytestmark = pytest.mark.skipif(not _native.info().available, reason="this installation has no compiled core")


@pytest.fixture
def layers():
    return nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5), nn.Linear(16, 16), nn.Dropout(0.5)).train()


def test_state_and_evaluation_are_unchanged(layers):
    before, x = copy.deepcopy(layers), torch.randn(5, 16)
    source = swap_modules(layers)
    source.key = torch.tensor(3)
    assert layers.state_dict().keys() == before.state_dict().keys()
    assert torch.equal(layers.eval()(x), before.eval()(x))


def test_the_key_fixes_the_mask_and_layers_differ(layers):
    source, x = swap_modules(layers), torch.ones(64, 16)
    assert [layers[i].site for i in (1, 3)] == [0, 1]
    source.key = torch.tensor(3)
    first = layers(x)
    torch.manual_seed(99)
    assert torch.equal(layers(x), first)
    assert not torch.equal(layers[1](x), layers[3](x))
    source.key = torch.tensor(4)
    assert not torch.equal(layers(x), first)


def test_without_a_key_it_is_torchs_own(layers):
    swapped, x = copy.deepcopy(layers), torch.randn(5, 16)
    swap_modules(swapped)
    torch.manual_seed(1)
    wanted = layers(x)
    torch.manual_seed(1)
    assert torch.equal(swapped(x), wanted)


def test_recomputation_draws_the_same_mask(layers):
    source = swap_modules(layers)
    source.key, x = torch.tensor(3), torch.randn(5, 16, requires_grad=True)
    layers(x).sum().backward()
    wanted, x.grad = x.grad, None
    checkpoint(layers, x, use_reentrant=False, preserve_rng_state=False).sum().backward()
    assert torch.equal(x.grad, wanted)


def test_copies_have_a_source_of_their_own(layers):
    source = swap_modules(layers)
    other = copy.deepcopy(layers)
    source.key = torch.tensor(3)
    assert other[1].source is other[3].source is not source and other[1].source.key is None
    assert swap_modules(layers) is not source and isinstance(layers[1], CounterDropout)


def test_shared_and_derived_modules_are_left_alone(layers):
    class Own(nn.Dropout):
        pass

    shared = nn.Dropout(0.1)
    model = nn.ModuleDict({"a": shared, "b": nn.ModuleDict({"c": shared})})
    swap_modules(model)
    assert type(shared) is nn.Dropout
    own = nn.Sequential(Own(0.1))
    swap_modules(own)
    assert type(own[0]) is Own


ONE_STACK = sorted(name for name, family in FAMILIES.items() if not family.encoder_decoder)


@pytest.mark.parametrize("model_type", sorted(set(ONE_STACK) - {"llama", "mistral"}))
def test_every_familys_dropout_is_the_keys_also_under_checkpointing(
    model_type, make_small, make_packed, hidden_dropout, attention_dropout
):
    family, results = FAMILIES[model_type], []
    rates = hidden_dropout[model_type] | {attention_dropout[model_type]: 0.2}
    for checkpointing in (False, True):
        model = make_small(model_type, {"masked_lm", "causal_lm"}, **rates).train()
        source = swap_modules(model)
        assert not [m for m in family.backbone(model).modules() if type(m) is nn.Dropout]
        if checkpointing:
            enable_gradient_checkpointing(model)
        source.key = torch.tensor(1234)
        torch.manual_seed(17 + checkpointing)  # torch's generator has no part in it
        batch = make_packed(model_type, model, [7, 9, 5], key=1234)
        hidden = batch.hidden(model_type, model)
        hidden.square().sum().backward()
        results.append([hidden.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        source.key = torch.tensor(5)
        assert not torch.allclose(batch.hidden(model_type, model), hidden, atol=1e-3)
    assert torch.equal(results[0][0], results[1][0])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def _model(family, act, dropout):
    config = FAMILIES[family].config_fields(
        layers=2, width=32, heads=2, vocab_size=50, max_length=40, tokenizer=None
    )
    kind = FAMILIES[family].auto_class(frozenset({"masked_lm", "causal_lm"}))
    activation, rate = {
        "gpt2": ("activation_function", "resid_pdrop"),
        "distilbert": ("activation", "dropout"),
        "modernbert": ("hidden_activation", "mlp_dropout"),
        "llama": ("hidden_act", "attention_dropout"),
        "mistral": ("hidden_act", "attention_dropout"),
    }.get(family, ("hidden_act", "hidden_dropout_prob"))
    torch.manual_seed(0)
    return kind(kind.config_class(**config, **{activation: act, rate: dropout})).train()


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("family", ONE_STACK)
def test_a_swapped_model_computes_the_same(family, act):
    model = _model(family, act, 0.0)
    swapped, ids = copy.deepcopy(model), torch.randint(0, 50, (2, 9))
    swap_modules(swapped)
    assert swapped.state_dict().keys() == model.state_dict().keys()
    outputs = []
    for one in (model, swapped):
        one.eval()
        logits = one(ids).logits
        logits.square().mean().backward()
        outputs.append((logits.detach(), {n: p.grad for n, p in one.named_parameters() if p.grad is not None}))
    assert torch.allclose(outputs[0][0], outputs[1][0], atol=2e-6)
    assert outputs[0][1].keys() == outputs[1][1].keys()
    for name, gradient in outputs[0][1].items():
        assert torch.allclose(gradient, outputs[1][1][name], atol=1e-6), name


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "ernie", "xlm-roberta", "deberta-v2"])
def test_fused_layers_are_used_and_make_way(family):
    model = _model(family, "gelu", 0.2)
    source = swap_modules(model)
    layer = next(m for m in model.modules() if type(m).__name__.endswith("Layer") and hasattr(m, "intermediate"))
    output, intermediate = layer.output, layer.intermediate
    x, residual = torch.randn(3, intermediate.dense.out_features), torch.randn(3, 32)
    assert isinstance(output, FusedOutput) and isinstance(intermediate, FusedIntermediate)
    theirs = type(output).__mro__[2]
    assert theirs.__name__.endswith("Output") and theirs.__module__.endswith(f"modeling_{family.replace('-', '_')}")
    source.key = torch.tensor(7)
    fused, seen = output(x, residual), []
    output.dropout.register_forward_hook(lambda *_: seen.append("called"))
    assert torch.allclose(output(x, residual), fused, atol=1e-5) and seen == ["called"]
    before = intermediate(residual)
    intermediate.dense = nn.Sequential(intermediate.dense)  # an adapter wrapped it
    assert torch.allclose(intermediate(residual), before, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert output(x, residual).dtype == torch.float32  # as the layer norm of torch has it


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_rms_norms_are_used_and_make_way(family):
    model = _model(family, "silu", 0.0)
    swap_modules(model)
    norms = [m for m in model.modules() if hasattr(m, "variance_epsilon")]
    assert len(norms) == 5 and all(isinstance(norm, KernelRMSNorm) for norm in norms)
    norm, x = norms[0], 3 * torch.randn(7, 32, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2.0)
    want = x / (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt() * norm.weight.double()
    torch.testing.assert_close(norm(x.float()).double(), want, rtol=1e-5, atol=1e-6)
    assert norm(x.bfloat16()).dtype == torch.float32  # bfloat16 on a float32 weight: the module's own way
    torch.testing.assert_close(norm(x.bfloat16()).double(), want, rtol=3e-2, atol=3e-2)
