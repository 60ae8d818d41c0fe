"""The proof of packing: hidden states, loss and every gradient equal those of transformers' eager, padded."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tunecore.models.families.builtin import FAMILIES
from tunecore.models.loading import enable_gradient_checkpointing
from tunecore.ops.sequence_vectors import sequence_means

MODEL_TYPES = sorted(name for name, family in FAMILIES.items() if not family.encoder_decoder)
PACKED_TYPES = [name for name in MODEL_TYPES if not getattr(FAMILIES[name], "padded", False)]
LANGUAGE_MODEL = {name: "causal_lm" if FAMILIES[name].causal else "masked_lm" for name in MODEL_TYPES}
CASES = [
    *LANGUAGE_MODEL.items(),
    *[(name, "sequence_classification") for name in MODEL_TYPES],
    ("bert", "masked_lm+next_sentence"),
    ("ernie", "masked_lm+next_sentence"),
    ("albert", "masked_lm+sentence_order"),
    ("electra", "replaced_token_detection"),
]


@dataclasses.dataclass
class Draw:
    """A random small configuration and batch."""

    layers: int
    heads: int
    head_width: int
    lengths: list[int]
    seed: int
    labels: int
    tied: bool
    checkpointing: bool
    names: str

    def overrides(self, model_type: str) -> dict:
        found = {
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "hidden_size": self.heads * self.head_width,
            "tie_word_embeddings": self.tied,
            "num_labels": self.labels,
        }
        odd = self.seed % 2
        if model_type in ("electra", "albert"):
            found["embedding_size"] = 24 if odd else self.heads * self.head_width
        if model_type == "albert":
            found |= {"num_hidden_groups": min(1 + odd, self.layers), "inner_group_num": 1 + self.seed % 3 // 2}
        if model_type == "ernie":
            found["use_task_id"] = bool(odd)
        if model_type == "modernbert":
            found |= {"local_attention": 6, "classifier_pooling": "mean" if odd else "cls"}
        if model_type in ("llama", "mistral"):
            found |= {"pad_token_id": 0, "num_key_value_heads": 1 if odd else self.heads}
        if model_type == "mistral":
            found["sliding_window"] = 5
        if model_type.startswith("deberta"):
            found["legacy"] = bool(odd)
        if model_type == "deberta-v2":
            found |= {"conv_kernel_size": 3 * odd, "position_buckets": 8 if odd else -1, "share_att_key": not odd}
        if model_type == "gpt2":
            found |= {"pad_token_id": 0, "scale_attn_by_inverse_layer_idx": bool(odd)}
        return found


draws = st.builds(
    Draw,
    layers=st.integers(1, 3),
    heads=st.integers(1, 4),
    head_width=st.sampled_from([8, 16, 20]),
    lengths=st.lists(st.integers(1, 17), min_size=1, max_size=6),
    seed=st.integers(0, 10_000),
    labels=st.integers(2, 5),
    tied=st.booleans(),
    checkpointing=st.booleans(),
    names=st.sampled_from(["packed", "cu_seq_lens"]),
)


def token_targets(batch, seed):
    """Labels [T] with -100 where there is no target; at least one target."""
    total = sum(len(s) for s in batch.sequences)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 60, (total,), generator=generator)
    ignored = torch.rand(total, generator=generator) < 0.6
    ignored[0] = False
    return labels.masked_fill(ignored, -100)


def padded_labels(batch, labels_T):
    padded = torch.full(batch.padded_ids.shape, -100)
    padded[batch.mask.bool()] = labels_T
    return padded


def vocabulary_loss(family, model, hidden_TE, labels_T):
    at = (labels_T != -100).nonzero()[:, 0]
    hidden_NE, weight_VE, bias_V = family.token_head(model, hidden_TE[at])
    assert hidden_NE.shape[0] == at.shape[0]
    return F.cross_entropy(F.linear(hidden_NE, weight_VE, bias_V), labels_T[at])


def losses(task, family, model, eager, batch, hidden_TE, draw):
    """The loss over packed rows, and that of the padded twin's own forward."""
    total = sum(len(s) for s in batch.sequences)
    first = torch.tensor([rows.start for rows in batch.rows])
    last = torch.tensor([rows.stop - 1 for rows in batch.rows])
    rows_BE = hidden_TE[last if family.sequence_row == "last" else first]
    if family.sequence_pooling(model) == "mean":
        rows_BE = sequence_means(hidden_TE, torch.cat([first, last[-1:] + 1]))
    classes = torch.arange(len(batch.sequences)) % (2 if "+" in task else draw.labels)
    if task == "sequence_classification":
        ours = F.cross_entropy(family.sequence_head(model, rows_BE), classes)
        return ours, eager(**batch.padded_inputs(), labels=classes).loss
    if task == "replaced_token_detection":
        replaced = (torch.arange(total) % 3 == 0).float()
        ours = F.binary_cross_entropy_with_logits(model.discriminator_predictions(hidden_TE[:total]), replaced)
        return ours, eager(**batch.padded_inputs(), labels=padded_labels(batch, replaced.long())).loss
    if task == "causal_lm":
        labels = torch.cat([torch.cat([s[1:], torch.tensor([-100])]) for s in batch.sequences])
        if (labels == -100).all():
            labels[0] = 5
            logits = eager(**batch.padded_inputs()).logits
            return vocabulary_loss(family, model, hidden_TE[:total], labels), F.cross_entropy(
                batch.unpad(logits)[:1], labels[:1]
            )
        inputs = batch.padded_inputs()
        theirs = eager(**inputs, labels=inputs["input_ids"].masked_fill(batch.mask == 0, -100)).loss
        return vocabulary_loss(family, model, hidden_TE[:total], labels), theirs
    labels = token_targets(batch, draw.seed)
    ours = vocabulary_loss(family, model, hidden_TE[:total], labels)
    if task == "masked_lm":
        return ours, eager(**batch.padded_inputs(), labels=padded_labels(batch, labels)).loss
    labels = padded_labels(batch, labels)
    if task.endswith("sentence_order"):
        ours = ours + F.cross_entropy(family.sentence_order(model, rows_BE), classes)
        return ours, eager(**batch.padded_inputs(), labels=labels, sentence_order_label=classes).loss
    ours = ours + F.cross_entropy(family.sequence_relationship(model, rows_BE), classes)
    return ours, eager(**batch.padded_inputs(), labels=labels, next_sentence_label=classes).loss


@pytest.mark.parametrize(("model_type", "task"), CASES)
@settings(max_examples=6, deadline=None, derandomize=True, database=None)
@given(draw=draws)
def test_hidden_states_loss_and_every_gradient(model_type, task, draw, make_small, make_packed):
    family = FAMILIES[model_type]
    overrides = draw.overrides(model_type)
    if task.endswith("sentence_order"):
        overrides["num_labels"] = 2
    model = make_small(model_type, set(task.split("+")), seed=draw.seed, max_length=17, **overrides)
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"
    eager = type(model)(config)
    eager.load_state_dict(model.state_dict())
    assert eager.config._attn_implementation == "eager"
    model.train()
    eager.train()
    if draw.checkpointing:
        enable_gradient_checkpointing(model)
    batch = make_packed(model_type, model, draw.lengths, seed=draw.seed)
    total = sum(draw.lengths)

    hidden_TE = batch.hidden(model_type, model, draw.names)
    padded_BLE = family.backbone(eager)(**batch.padded_inputs()).last_hidden_state
    torch.testing.assert_close(hidden_TE[:total], batch.unpad(padded_BLE), rtol=1e-4, atol=2e-5)

    ours, theirs = losses(task, family, model, eager, batch, hidden_TE, draw)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    ours.backward()
    theirs.backward()
    reference = dict(eager.named_parameters())
    assert reference.keys() == dict(model.named_parameters()).keys()
    compared = 0
    for name, parameter in model.named_parameters():
        got, want = parameter.grad, reference[name].grad
        if got is None and want is None:
            continue
        got = torch.zeros_like(parameter) if got is None else got
        want = torch.zeros_like(parameter) if want is None else want
        rounding = 6e-5 * max(1.0, float(want.abs().max()))  # a sum near 0 is rounded as its largest terms are
        torch.testing.assert_close(got, want, rtol=1e-3, atol=rounding, msg=lambda text, name=name: f"{name}: {text}")
        compared += bool(want.abs().sum() > 0)
    assert compared > 5


def test_a_row_longer_than_the_position_table(make_small, make_packed):
    """T may exceed the table: only single sequences have to fit."""
    for model_type in MODEL_TYPES:
        model = make_small(model_type, {"masked_lm", "causal_lm"}, max_length=8).eval()
        batch = make_packed(model_type, model, [8, 8, 8, 8])
        with torch.no_grad():
            packed = batch.hidden(model_type, model)
            alone = FAMILIES[model_type].backbone(model)(**batch.padded_inputs()).last_hidden_state
        torch.testing.assert_close(packed, batch.unpad(alone), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("model_type", PACKED_TYPES)
def test_dropout_is_the_rows_own_and_survives_recomputation(model_type, make_small, make_packed, attention_dropout):
    """One key: the same hidden states and gradients with and without recomputation, and in any packing."""
    family = FAMILIES[model_type]
    task = {LANGUAGE_MODEL[model_type]}
    results = []
    for checkpointing in (False, True):
        model = make_small(model_type, task, **{attention_dropout[model_type]: 0.4}).train()
        for module in model.modules():
            if hasattr(module, "out_drop"):
                module.out_drop.p = 0.0  # ModernBERT's rate is also that of a dropout after attention
        if checkpointing:
            enable_gradient_checkpointing(model)
        batch = make_packed(model_type, model, [7, 9, 5], key=1234)
        hidden = family.backbone(model)(**batch.inputs()).last_hidden_state[0]
        hidden.square().sum().backward()
        results.append((hidden.detach(), [p.grad for p in model.parameters() if p.grad is not None]))
    assert torch.equal(results[0][0], results[1][0])
    assert len(results[0][1]) == len(results[1][1]) > 10
    for one, other in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        other_key = batch.inputs() | {"packed": batch.layout._replace(rng_key=torch.tensor(99))}
        assert not torch.allclose(family.backbone(model)(**other_key).last_hidden_state[0], hidden, atol=1e-3)
        keyless = batch.inputs() | {"packed": batch.layout._replace(rng_key=None)}
        model.eval()
        plain = family.backbone(model)(**batch.inputs()).last_hidden_state
        model.train()
        assert torch.equal(family.backbone(model)(**keyless).last_hidden_state, plain)


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "albert", "llama"])
def test_dropout_does_not_depend_on_the_packing(model_type, make_small, make_packed, attention_dropout):
    family = FAMILIES[model_type]
    model = make_small(model_type, {"masked_lm", "causal_lm"}, **{attention_dropout[model_type]: 0.4}).train()
    batch = make_packed(model_type, model, [7, 9, 5], key=1234)
    both = family.backbone(model)(**batch.inputs()).last_hidden_state[0]
    rows = batch.rows[1]
    alone = {
        key: value[:, rows] if isinstance(value, torch.Tensor) else value for key, value in batch.inputs().items()
    }
    alone["packed"] = batch.layout._replace(
        cu_seqlens=torch.tensor([0, 9], dtype=torch.int32), max_seqlen=9, row_ids=batch.layout.row_ids[1:2]
    )
    torch.testing.assert_close(
        family.backbone(model)(**alone).last_hidden_state[0], both[rows], rtol=1e-4, atol=2e-5
    )


def test_dropout_under_transformers_names_draws_from_torchs_generator(make_small, make_packed):
    results = []
    for seed in (1, 1, 2):
        model = make_small("bert", {"masked_lm"}, attention_probs_dropout_prob=0.4).train()
        enable_gradient_checkpointing(model)
        batch = make_packed("bert", model, [7, 9, 5])
        torch.manual_seed(seed)
        hidden = model.bert(**batch.inputs("cu_seq_lens")).last_hidden_state
        hidden.square().sum().backward()
        results.append((hidden.detach(), model.bert.embeddings.word_embeddings.weight.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert not torch.allclose(results[0][0], results[2][0], atol=1e-3)


QUICK = ("bert", "gpt2")
"""Compiled in every run of the tests; the others where there is time."""


@pytest.mark.parametrize(
    "model_type", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PACKED_TYPES]
)
def test_compiles_as_one_graph(model_type, make_small, make_packed, attention_dropout):
    family = FAMILIES[model_type]
    model = make_small(model_type, {"masked_lm", "causal_lm"}, **{attention_dropout[model_type]: 0.2})
    for module in model.modules():
        if hasattr(module, "out_drop"):
            module.out_drop.p = 0.0
    batch = make_packed(model_type, model, [7, 9, 5], key=7)
    backbone = family.backbone(model).train()
    inputs = batch.inputs()
    want = backbone(**inputs).last_hidden_state
    torch._dynamo.reset()
    compiled = torch.compile(lambda **kwargs: backbone(**kwargs).last_hidden_state, fullgraph=True, backend="aot_eager")
    got = compiled(**inputs)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5)
    got.square().sum().backward()
    assert all(p.grad is not None for p in family.backbone(model).get_submodule(family.blocks_path).parameters())
