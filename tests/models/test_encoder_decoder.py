"""T5 and BART packed: hidden states, loss and every gradient equal those of transformers' eager, padded."""

from __future__ import annotations

import copy
import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForSeq2SeqLM

from tunecore.data.packing import pack
from tunecore.errors import ConfigError
from tunecore.models import encoder_decoder, packed
from tunecore.models.families.builtin import FAMILIES
from tunecore.models.fused import swap_modules
from tunecore.models.loading import build_model, enable_gradient_checkpointing, load_model, save_model
from tunecore.ops import _native
from tunecore.training.unit import ForwardPass
from tunecore.types import Example, Targets

VOCAB, MAX_LENGTH = 61, 24
NO_DROPOUT = {"t5": {"dropout_rate": 0.0}, "bart": {"dropout": 0.0}}
KINDS = [
    ("t5", {}),
    ("t5", {"feed_forward_proj": "gated-gelu", "scale_decoder_outputs": False}),
    ("bart", {}),
    ("bart", {"scale_embedding": True, "tie_word_embeddings": False}),
]
PAD = {"t5": 0, "bart": 1}


def make(model_type, seed=0, layers=2, heads=2, width=32, dtype=torch.float32, **overrides):
    """A model whose weights and biases are all far from 0, so that nothing is compared with nothing."""
    family = FAMILIES[model_type]
    fields = {
        "t5": {"num_layers": layers, "num_heads": heads, "d_model": width, "d_kv": width // heads, "d_ff": 48},
        "bart": {
            "d_model": width, "encoder_layers": layers, "decoder_layers": layers, "encoder_attention_heads": heads,
            "decoder_attention_heads": heads, "encoder_ffn_dim": 48, "decoder_ffn_dim": 40,
        },
    }[model_type]  # fmt: skip
    scale = overrides.pop("scale_decoder_outputs", None)
    extra = {} if scale is None else {"scale_decoder_outputs": scale}
    model = build_model(
        family, frozenset({family.default_objective}), size="tiny", vocab_size=VOCAB, max_length=MAX_LENGTH,
        overrides={**fields, **NO_DROPOUT[model_type], **overrides}, extra_config=extra, seed=seed,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        if model_type == "bart":
            model.final_logits_bias.copy_(torch.randn(1, VOCAB, generator=generator))
    return model.to(dtype)


def eager_twin(model):
    """The same weights in a model of plain transformers."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"
    twin = type(model)(config).to(model.dtype)
    twin.load_state_dict(model.state_dict())
    assert not any(hasattr(module, packed.BUCKETS) for module in twin.modules())
    return twin.train(model.training)


def rows(lengths, seed=0):
    """Examples with (encoder, decoder) lengths, every decoder token with a target but some."""
    rng = np.random.default_rng(seed)
    made = []
    for row, (encoder, decoder) in enumerate(lengths):
        index = np.flatnonzero(rng.random(decoder) < 0.7)
        index = index if len(index) or row else np.arange(decoder)
        ids, decoder_ids, labels = (rng.integers(4, VOCAB, n) for n in (encoder, decoder, len(index)))
        targets = {"loss": Targets(index, labels)} if len(index) else {}
        made.append(Example(row_id=row, input_ids=ids, decoder_input_ids=decoder_ids, targets=targets))
    return made


def packed_batch(examples, model_type, parts=1):
    return pack(
        examples, max_tokens=1 << 20, position_offset=0, pad_id=PAD[model_type], min_micro_batches=parts, view="seq2seq"
    )


def padded_inputs(examples, pad):
    """What transformers takes: ids and masks of both stacks, padded on the right, and labels with -100."""
    shape = len(examples), max(len(e) for e in examples)
    decoder_shape = len(examples), max(len(e.decoder_input_ids) for e in examples)
    found = {
        "input_ids": np.full(shape, pad), "attention_mask": np.zeros(shape, np.int64),
        "decoder_input_ids": np.full(decoder_shape, pad), "decoder_attention_mask": np.zeros(decoder_shape, np.int64),
        "labels": np.full(decoder_shape, -100),
    }  # fmt: skip
    for row, example in enumerate(examples):
        n, m = len(example), len(example.decoder_input_ids)
        found["input_ids"][row, :n], found["attention_mask"][row, :n] = example.input_ids, 1
        found["decoder_input_ids"][row, :m], found["decoder_attention_mask"][row, :m] = example.decoder_input_ids, 1
        for targets in example.targets.values():
            found["labels"][row, targets.index] = targets.labels
    return {name: torch.from_numpy(values) for name, values in found.items()}


def packed_loss(model, batch):
    """Hidden states of the real decoder tokens, and the summed loss of the batch's targets."""
    family = FAMILIES[model.config.model_type]
    hidden = ForwardPass(model, family, batch).hidden()
    real = int(batch.layout.decoder_cu_seqlens[batch.num_sequences])
    targets = batch.targets["loss"]
    head, weight, bias = family.token_head(model, hidden[targets.index])
    return hidden[:real], F.cross_entropy(F.linear(head, weight, bias), targets.labels, reduction="sum")


def same_gradients(model, eager, rtol, atol):
    reference = dict(eager.named_parameters())
    assert reference.keys() == dict(model.named_parameters()).keys()
    compared = set()
    for name, parameter in model.named_parameters():
        got, want = parameter.grad, reference[name].grad
        if want is None or not want.abs().sum() > 0:
            assert got is None or got.abs().max() < atol, name
            continue
        torch.testing.assert_close(got, want, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")
        compared.add(name)
    return compared


@dataclasses.dataclass
class Draw:
    """A random small configuration and batch."""

    layers: int
    heads: int
    head_width: int
    lengths: list[tuple[int, int]]
    seed: int
    checkpointing: bool
    swapped: bool


length = st.integers(1, 17)
draws = st.builds(
    Draw,
    layers=st.integers(1, 3),
    heads=st.integers(1, 4),
    head_width=st.sampled_from([8, 16, 20]),
    lengths=st.lists(st.tuples(length, length), min_size=1, max_size=5),
    seed=st.integers(0, 10_000),
    checkpointing=st.booleans(),
    swapped=st.booleans(),
)


@pytest.mark.parametrize(("model_type", "overrides"), KINDS)
@settings(max_examples=6, deadline=None, derandomize=True, database=None)
@given(draw=draws)
def test_hidden_states_loss_and_every_gradient(model_type, overrides, draw):
    shape = {"layers": draw.layers, "heads": draw.heads, "width": draw.heads * draw.head_width}
    model = make(model_type, draw.seed, **shape, **overrides).train()
    eager = eager_twin(model)
    if draw.checkpointing:
        enable_gradient_checkpointing(model)
    if draw.swapped:
        swap_modules(model)
    examples = rows(draw.lengths, draw.seed)
    (batch,) = packed_batch(examples, model_type)
    padded = padded_inputs(examples, PAD[model_type])

    hidden, ours = packed_loss(model, batch)
    output = eager(**padded, output_hidden_states=True, use_cache=False)
    wanted = output.decoder_hidden_states[-1][padded["decoder_attention_mask"].bool()]
    torch.testing.assert_close(hidden, wanted, rtol=1e-4, atol=3e-5)
    theirs = output.loss * batch.num_targets["loss"]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    ours.backward()
    theirs.backward()
    assert len(same_gradients(model, eager, 1e-3, 1e-3)) > 15


@pytest.mark.parametrize(("model_type", "overrides"), KINDS)
def test_in_float64_they_agree_to_many_digits(model_type, overrides):
    """Every gradient there is: both stacks, cross attention, the tables of relative positions."""
    model = make(model_type, 3, dtype=torch.float64, **overrides).train()
    eager = eager_twin(model)
    examples = rows([(1, 5), (17, 1), (1, 1), (9, 16)], seed=2)
    (batch,) = packed_batch(examples, model_type)
    padded = padded_inputs(examples, PAD[model_type])
    hidden, ours = packed_loss(model, batch)
    output = eager(**padded, output_hidden_states=True, use_cache=False)
    wanted = output.decoder_hidden_states[-1][padded["decoder_attention_mask"].bool()]
    torch.testing.assert_close(hidden, wanted, rtol=1e-10, atol=1e-10)
    theirs = output.loss * batch.num_targets["loss"]
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    ours.backward()
    theirs.backward()
    compared = same_gradients(model, eager, 1e-9, 1e-10)
    unused = {"model.shared.weight"} if overrides.get("tie_word_embeddings") is False else set()
    assert {name for name, _ in model.named_parameters()} - compared == unused


@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_eight_rows_in_one_batch_are_two_in_four(model_type):
    model = make(model_type, 1, dtype=torch.float64).train()
    examples = rows([(3, 4), (9, 2), (1, 7), (12, 12), (5, 1), (8, 8), (2, 3), (16, 5)])
    gradients = []
    for parts in (1, 4):
        model.zero_grad()
        batches = packed_batch(examples, model_type, parts)
        assert len(batches) == parts
        sum(packed_loss(model, batch)[1] for batch in batches if batch.targets).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-9, atol=1e-11, msg=name)


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
    twin.set_attn_implementation(packed.ATTENTION)
    (batch,) = packed_batch(examples, "t5")
    with pytest.raises(ConfigError, match="position_bias is"):
        ForwardPass(twin, FAMILIES["t5"], batch).hidden()
    encoder_decoder.prepare(twin)
    encoder_decoder.prepare(twin)
    hooks = twin.encoder.block[0].layer[0].SelfAttention._forward_pre_hooks
    assert len(hooks) == 1
    ForwardPass(twin, FAMILIES["t5"], batch).hidden()


@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_dropout_survives_recomputation(model_type):
    """One key: the same hidden states and gradients with and without recomputation."""
    results = []
    rates = {"dropout_rate": 0.4} if model_type == "t5" else {"attention_dropout": 0.4}
    for checkpointing in (False, True):
        model = make(model_type, **rates).train()
        source = swap_modules(model)
        if checkpointing:
            enable_gradient_checkpointing(model)
        (batch,) = packed_batch(rows([(7, 9), (5, 1)]), model_type)
        source.key = torch.tensor(1234)
        batch = dataclasses.replace(batch, layout=batch.layout._replace(rng_key=source.key))
        torch.manual_seed(checkpointing)
        hidden, loss = packed_loss(model, batch)
        loss.backward()
        results.append((hidden.detach(), [p.grad for p in model.parameters() if p.grad is not None]))
    assert torch.equal(results[0][0], results[1][0])
    for one, other in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    source.key = torch.tensor(5)
    batch = dataclasses.replace(batch, layout=batch.layout._replace(rng_key=source.key))
    assert not torch.allclose(packed_loss(model, batch)[0], results[0][0], atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_compiles_as_one_graph(model_type):
    model = make(model_type).eval()
    (batch,) = packed_batch(rows([(7, 9), (5, 1)]), model_type)
    backbone = FAMILIES[model_type].backbone(model)
    inputs = {
        "input_ids": batch.input_ids, "position_ids": batch.position_ids, "packed": batch.layout, "use_cache": False,
        "decoder_input_ids": batch.decoder_input_ids, "decoder_position_ids": batch.decoder_position_ids,
    }  # fmt: skip
    with torch.no_grad():
        want = backbone(**inputs).last_hidden_state
        torch._dynamo.reset()
        compiled = torch.compile(lambda **k: backbone(**k).last_hidden_state, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(**inputs), want, rtol=1e-4, atol=2e-5)


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
