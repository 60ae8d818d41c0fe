"""Small T5 and BART models, batches for them packed and padded, and what is compared of the two."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch.nn import functional as F

from tunecore.data.packing import pack
from tunecore.models import packed
from tunecore.models.families.builtin import FAMILIES
from tunecore.models.loading import build_model
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
