"""T5 and BART part by part: positions, biases, generation, saving, what is refused."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn
from transformers import AutoModelForSeq2SeqLM
from two_stacks import KINDS, MAX_LENGTH, PAD, VOCAB, eager_twin, make, packed_batch, packed_loss, padded_inputs, rows

from tunecore.errors import ConfigError
from tunecore.models import encoder_decoder, packed
from tunecore.models.families.builtin import FAMILIES
from tunecore.models.fused import swap_modules
from tunecore.models.loading import build_model, load_model, save_model
from tunecore.ops import _native
from tunecore.training.unit import ForwardPass


def test_t5_never_makes_the_bias_of_every_pair(monkeypatch):
    model = make("t5").train()
    (batch,) = packed_batch(rows([(5, 3), (9, 9)]), "t5")
    kind = type(model.encoder.block[0].layer[0].SelfAttention)

    def refuse(*args, **kwargs):
        raise AssertionError("compute_bias was called")

    monkeypatch.setattr(kind, "compute_bias", refuse)
    seen = []
    original = packed.attention

    def recording(*args, **kwargs):
        seen.append(kwargs.get("relative_bias_BH"))
        return original(*args, **kwargs)

    monkeypatch.setattr(packed, "attention", recording)
    packed_loss(model, batch)[1].backward()
    shapes = [None if table is None else tuple(table.shape) for table in seen]
    assert shapes == [(32, 2)] * 2 + [(32, 2), None] * 2  # encoder layers; then self and cross of each decoder layer
    assert model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.grad.abs().max() > 0
    with pytest.raises(AssertionError, match="compute_bias was called"):
        model(**padded_inputs(rows([(5, 3)]), 0))


@pytest.mark.parametrize("is_decoder", [False, True])
@pytest.mark.parametrize(("buckets", "reach"), [(32, 128), (8, 20), (32, 17)])
def test_buckets_are_the_models_own_at_every_distance(is_decoder, buckets, reach):
    overrides = {"relative_attention_num_buckets": buckets, "relative_attention_max_distance": reach}
    model = make("t5", **overrides)
    module = (model.decoder if is_decoder else model.encoder).block[0].layer[0].SelfAttention
    table = getattr(module, packed.BUCKETS)
    assert table.dtype == torch.int32
    radius = len(table) // 2
    with torch.no_grad():
        bias = module.compute_bias(300, 300)[0]  # [H, T, S]
        rows_ = module.relative_attention_bias.weight
    distance = torch.arange(300)[None] - torch.arange(300)[:, None]
    got = rows_[table[distance.clamp(-radius, radius) + radius].long()].permute(2, 0, 1)
    if is_decoder:  # what lies ahead is masked
        got, bias = got.tril(), bias.tril()
    assert torch.equal(got, bias)


@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_without_a_layout_it_is_sdpa_to_the_bit(model_type):
    model = make(model_type, **({"dropout_rate": 0.3} if model_type == "t5" else {"dropout": 0.3})).train()
    config = copy.deepcopy(model.config)
    config._attn_implementation = "sdpa"
    sdpa = type(model)(config).train()
    sdpa.load_state_dict(model.state_dict())
    for lengths in ([(5, 7), (9, 2)], [(6, 6)]):
        padded = padded_inputs(rows(lengths), PAD[model_type])
        if len(lengths) == 1:
            padded = {name: value for name, value in padded.items() if "mask" not in name}
        outputs = []
        for one in (model, sdpa):
            torch.manual_seed(3)
            outputs.append(one(**padded, use_cache=False).logits)
        assert torch.equal(*outputs)


@pytest.mark.parametrize("model_type", ["t5", "bart"])
@pytest.mark.parametrize("beams", [1, 3])
def test_generate_of_a_padded_batch_equals_eager(model_type, beams):
    model = make(model_type, 5).eval()
    eager = eager_twin(model)
    padded = padded_inputs(rows([(9, 1), (1, 1), (6, 1)]), PAD[model_type])
    inputs = {name: padded[name] for name in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 10, "min_new_tokens": 4, "do_sample": False, "num_beams": beams, "use_cache": True}
    ours, theirs = (one.generate(**inputs, **options) for one in (model, eager))
    assert torch.equal(ours, theirs) and ours.shape[1] > 4
    alone = model.generate(input_ids=inputs["input_ids"][1:2, :1], **options)[0]
    assert torch.equal(ours[1, : len(alone)], alone)


@pytest.mark.parametrize(("model_type", "overrides"), KINDS)
def test_saved_models_go_both_ways(model_type, overrides, tmp_path):
    model = make(model_type, 4, **overrides).eval()
    padded = padded_inputs(rows([(5, 3), (2, 8)]), PAD[model_type])
    save_model(model, tmp_path / "ours")
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours").eval()
    assert type(plain) is type(model) and plain.config._attn_implementation == "sdpa"
    plain.save_pretrained(tmp_path / "theirs")
    task = frozenset({FAMILIES[model_type].default_objective})
    with torch.no_grad():
        want = eager_twin(model)(**padded).loss
        torch.testing.assert_close(plain(**padded).loss, want)
        for folder, tasks in (("ours", task), ("theirs", task), ("theirs", frozenset())):
            again = load_model(tmp_path / folder, tasks, FAMILIES).eval()
            assert type(again) is type(model) and again.state_dict().keys() == model.state_dict().keys()
            torch.testing.assert_close(again(**padded).loss, want)
            examples = rows([(5, 3), (2, 8)])
            (batch,) = packed_batch(examples, model_type)
            torch.testing.assert_close(packed_loss(again, batch)[1] / batch.num_targets["loss"], want)


@pytest.mark.skipif(not _native.info().available, reason="this installation has no compiled core")
@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_swapped_modules_leave_the_state_dict_and_run_on_our_ops(model_type):
    model = make(model_type)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kinds = {name: type(module) for name, module in model.named_modules()}
    swap_modules(model)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    swapped = {kinds[name].__name__ for name, module in model.named_modules() if type(module) is not kinds[name]}
    assert swapped >= (
        {"T5LayerNorm", "Embedding", "Dropout"} if model_type == "t5"
        else {"LayerNorm", "BartScaledWordEmbedding", "BartLearnedPositionalEmbedding", "GELUActivation"}
    )
    assert all(isinstance(module, kinds[name]) for name, module in model.named_modules())


def test_positions_of_bart_restart_in_each_sequence_of_each_stack():
    model = make("bart").eval()
    examples = rows([(7, 2), (4, 9)])
    (batch,) = packed_batch(examples, "bart")
    with torch.no_grad():
        hidden, _ = packed_loss(model, batch)
        backbone = FAMILIES["bart"].backbone(model)
        inputs = {"input_ids": batch.input_ids, "decoder_input_ids": batch.decoder_input_ids, "packed": batch.layout}
        positions = {"position_ids": batch.position_ids, "decoder_position_ids": batch.decoder_position_ids}
        for name in positions:
            moved = {**positions, name: positions[name] + 1}
            other = backbone(**inputs, **moved).last_hidden_state[0, : len(hidden)]
            assert not torch.allclose(other, hidden, atol=1e-3)
            with pytest.raises(ConfigError, match=f"needs {name}"):
                backbone(**inputs, **{key: value for key, value in positions.items() if key != name})
        # What was packed leaves no trace in what is not.
        padded = padded_inputs(examples, 1)
        torch.testing.assert_close(model(**padded).logits, eager_twin(model)(**padded).logits)


def test_what_cannot_be_packed_is_refused():
    examples = rows([(7, 2), (4, 9)])
    for model_type, message in (("bart", "cannot tell encoder and decoder apart"), ("t5", r"reads a table")):
        model = make(model_type)
        (batch,) = packed_batch(examples, model_type)
        layout = batch.layout
        names = {
            "cu_seq_lens_q": layout.cu_seqlens, "cu_seq_lens_k": layout.cu_seqlens,
            "max_length_q": layout.max_seqlen, "max_length_k": layout.max_seqlen,
        }  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            FAMILIES[model_type].backbone(model)(
                input_ids=batch.input_ids, decoder_input_ids=batch.decoder_input_ids, use_cache=False, **names
            )
    twin = eager_twin(make("t5"))
    for stack in (twin, twin.encoder, twin.decoder):
        stack.config._attn_implementation = packed.ATTENTION
    (batch,) = packed_batch(examples, "t5")
    with pytest.raises(ConfigError, match="position_bias is"):
        ForwardPass(twin, FAMILIES["t5"], batch).hidden()
    encoder_decoder.prepare(twin)
    encoder_decoder.prepare(twin)
    hooks = twin.encoder.block[0].layer[0].SelfAttention._forward_pre_hooks
    assert len(hooks) == 1
    ForwardPass(twin, FAMILIES["t5"], batch).hidden()


@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_layers_cover_every_parameter_once(model_type):
    family, model = FAMILIES[model_type], make(model_type, layers=3)
    bare = build_model(family, frozenset(), size="tiny", vocab_size=VOCAB, max_length=MAX_LENGTH)
    assert type(bare).__name__ == family.backbone_class and isinstance(family.backbone(bare), nn.Module)
    for one, count in ((model, 6), (bare, 4)):
        layers = family.layers(one)
        assert len(layers.blocks) == count and layers.heads == ()
        groups = [layers.embeddings, *layers.blocks]
        used = set()
        for name, _ in one.named_parameters():
            owners = [i for i, group in enumerate(groups) if any(name.startswith(prefix) for prefix in group)]
            assert len(owners) == 1, name
            used |= set(owners)
        assert used == set(range(len(groups)))
        assert ["encoder." in block[0] for block in layers.blocks] == [True] * (count // 2) + [False] * (count // 2)
    with pytest.raises(ConfigError, match="no prediction head"):
        family.token_head(bare, torch.randn(2, 128))
    with pytest.raises(ConfigError, match="no sequence classification head"):
        family.sequence_head(model, torch.randn(2, 32))


@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_a_sequence_is_read_from_the_decoders_last_token(model_type):
    model = make(model_type).eval()
    (batch,) = packed_batch(rows([(7, 2), (4, 9), (1, 3)]), model_type)
    forward = ForwardPass(model, FAMILIES[model_type], batch)
    last = [stop - 1 for _, stop in pairwise(batch.layout.decoder_cu_seqlens.tolist())][: batch.num_sequences]
    assert torch.equal(forward.sequence_rows(), forward.hidden()[last])
