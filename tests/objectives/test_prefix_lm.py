"""Prefix language modelling: masks, shares and targets; losses and gradients against explicit [L, L] masks."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from tunecore.data.packing import pack
from tunecore.data.rows import PretrainRows
from tunecore.data.streams import PhiloxStream
from tunecore.errors import ConfigError
from tunecore.models.families.builtin import FAMILIES
from tunecore.models.loading import enable_gradient_checkpointing
from tunecore.objectives.prefix_lm import PrefixLM, PrefixLMOptions
from tunecore.testing import make_corpus as make_tiny_corpus
from tunecore.testing import make_model, make_tokenizer
from tunecore.training.unit import Task, TrainUnit
from tunecore.types import Progress

START = Progress(0, 1, 0.0, 1.0)
CLS, SEP, MASK = 2, 3, 4


def numbered(make_corpus, lengths, rows=1):
    """Rows of the words 10, 11, ... in sentences of these lengths."""
    table = []
    for row in range(rows):
        ids = iter(range(10, 10 + sum(lengths)))
        table.append((row, [[[next(ids)] for _ in range(n)] for n in lengths]))
    return make_corpus(table)


def one_kind(kind, **options):
    shares = dict.fromkeys(("bidirectional_share", "left_to_right_share", "sequence_to_sequence_share"), 0.0)
    return PrefixLM(PrefixLMOptions(**{**shares, f"{kind}_share": 1.0, **options}))


def visible(length, prefix):
    """The definition, token by token: who sees whom."""
    return torch.tensor([[j < prefix or j <= i for j in range(length)] for i in range(length)])


# What is assembled


def test_every_kind_has_its_layout_and_prefix(make_corpus):
    corpus = numbered(make_corpus, [3, 4])
    chunk = list(range(10, 17))
    example = one_kind("bidirectional").assemble(corpus, 0, PhiloxStream(0))
    assert example.input_ids.tolist() == [CLS, *chunk[:3], SEP, *chunk[3:], SEP]
    assert example.prefix_len == 10 and example.token_type_ids.tolist() == [0] * 5 + [1] * 5
    example = one_kind("left_to_right").assemble(corpus, 0, PhiloxStream(0))
    assert example.input_ids.tolist() == [CLS, *chunk, SEP] and example.prefix_len == 0
    example = one_kind("sequence_to_sequence").assemble(corpus, 0, PhiloxStream(0))
    assert example.input_ids.tolist() == [CLS, *chunk[:3], SEP, *chunk[3:], SEP]
    assert example.prefix_len == 5 and example.token_type_ids.tolist() == [0] * 5 + [1] * 5


def test_a_single_token_is_bidirectional_and_the_shares_are_kept(make_corpus):
    lone = numbered(make_corpus, [1])
    for kind in ("bidirectional", "sequence_to_sequence"):
        example = one_kind(kind).assemble(lone, 0, PhiloxStream(0))
        assert example.input_ids.tolist() == [CLS, 10, SEP] and example.prefix_len == 3
    corpus = numbered(make_corpus, [3, 4])
    objective = PrefixLM(PrefixLMOptions(bidirectional_share=1, left_to_right_share=1, sequence_to_sequence_share=2))
    n = 2000
    prefixes = [objective.assemble(corpus, 0, PhiloxStream(seed)).prefix_len for seed in range(n)]
    for prefix, share in ((0, 0.25), (5, 0.5), (10, 0.25)):
        assert abs(prefixes.count(prefix) - n * share) < 4.5 * math.sqrt(n * share * (1 - share))


def test_cloze_hides_one_two_or_three_tokens_in_a_row_and_asks_for_the_originals(make_corpus):
    corpus = numbered(make_corpus, [40, 40])
    objective = one_kind("left_to_right", mask_rate=0.03, mask_probability=1.0, random_probability=0.0)
    corpus.max_length = 100
    lengths = {1: 0, 2: 0, 3: 0}
    for seed in range(1500):
        before = objective.assemble(corpus, 0, PhiloxStream(seed))
        after = objective.corrupt(before, corpus, PhiloxStream(seed, purpose="hide"), START)
        targets = after.targets["prefix_lm"]
        assert len(targets) == 2 and np.array_equal(targets.labels, before.input_ids[targets.index])
        assert (after.input_ids[targets.index] == MASK).all() and after.prefix_len == before.prefix_len
        assert not before.columns["special"][targets.index].any()
        lengths[2 if np.diff(targets.index)[0] == 1 else 1] += 1
    # A first draw of two or three takes both tokens (the budget ends there): 20 %, and a few neighbours by chance.
    assert lengths[2] / 1500 == pytest.approx(0.2 + 0.8 * 2 / 80, abs=4.5 * math.sqrt(0.16 / 1500))


def test_next_token_cuts_anywhere_and_asks_for_all_that_follows(make_corpus):
    corpus = numbered(make_corpus, [3, 4])
    objective = PrefixLM(PrefixLMOptions(prediction="next_token"))
    assert objective.unit == "document" and objective.columns == ()
    cuts = set()
    for seed in range(200):
        example = objective.corrupt(objective.assemble(corpus, 0, PhiloxStream(seed)), corpus, PhiloxStream(0), START)
        targets, ids = example.targets["prefix_lm"], example.input_ids.tolist()
        cuts.add(example.prefix_len)
        assert targets.index.tolist() == list(range(example.prefix_len - 1, len(ids) - 1))
        assert targets.labels.tolist() == ids[example.prefix_len :]
        # No answer is seen where it is asked for.
        mask = visible(len(ids), example.prefix_len)
        assert not any(mask[i, i + 1] for i in targets.index.tolist())
    assert cuts == set(range(1, 9))


# In a model


def build(name, folder, dropout=None, **options):
    objective, family, tokenizer = PrefixLM(PrefixLMOptions(**options)), FAMILIES[name], make_tokenizer(name)
    model = make_model([objective.name, *objective.uses], tokenizer, name)
    corpus = make_tiny_corpus(tokenizer, folder, unit=objective.unit, columns=objective.columns)
    unit = TrainUnit(model, family, [Task(objective.name, objective, objective.build(model, family), 1.0)]).eval()
    rows = PretrainRows(corpus, [objective], seed=1)
    examples = [rows.examples(row, 0, START)[0] for row in range(len(corpus))][:16]
    return unit, examples, {"position_offset": family.position_offset(model), "pad_id": corpus.pad_id}


def gradients(unit):
    return {name: p.grad.clone() for name, p in unit.model.named_parameters() if p.grad is not None}


def reference(unit, examples):
    """Loss and gradients of plain transformers in eager mode, one example after another under its [L, L] mask."""
    config = copy.deepcopy(unit.model.config)
    config._attn_implementation = "eager"
    plain = type(unit.model)(config)
    plain.load_state_dict(unit.model.state_dict())
    plain.eval()
    total = torch.zeros(())
    for example in examples:
        ids = torch.from_numpy(example.input_ids)[None]
        seen = visible(len(example), example.prefix_len)
        mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]
        inputs = {"input_ids": ids, "attention_mask": mask}
        if example.token_type_ids is not None:
            inputs["token_type_ids"] = torch.from_numpy(example.token_type_ids)[None]
        logits = plain(**inputs).logits[0]
        targets = example.targets.get("prefix_lm")
        if targets is not None:
            labels = torch.from_numpy(targets.labels)
            at = torch.from_numpy(targets.index)
            total = total + torch.nn.functional.cross_entropy(logits[at], labels, reduction="sum")
    total.backward()
    return total.item(), {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}


CASES = [
    ("bert", {"mask_rate": 0.3}), ("roberta", {"mask_rate": 0.3}), ("bert", {"prediction": "next_token"}),
    ("gpt2", {"prediction": "next_token"}),
]  # fmt: skip


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_loss_and_gradients_equal_eager_attention_under_explicit_masks(name, options, checkpointing, tmp_path):
    unit, examples, packing = build(name, tmp_path, **options)
    kinds = {0 if e.prefix_len == 0 else 2 if e.prefix_len == len(e) else 1 for e in examples}
    assert kinds == ({1} if "prediction" in options else {0, 1, 2})  # all kinds lie in the one batch
    if checkpointing:
        enable_gradient_checkpointing(unit.model)
        unit.model.train()
        for module in unit.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    (batch,) = pack(examples, max_tokens=4096, view="prefix", **packing)
    assert batch.layout.prefix_lens.tolist()[: len(examples)] == [e.prefix_len for e in examples]
    loss = unit(batch)["prefix_lm"]
    loss.total.backward()
    expected, grads = reference(unit, examples)
    assert loss.num_targets == sum(e.num_targets.get("prefix_lm", 0) for e in examples)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    mine = gradients(unit)
    compared = 0
    for parameter, gradient in grads.items():
        got = mine.get(parameter, torch.zeros_like(gradient))
        torch.testing.assert_close(got, gradient, rtol=2e-3, atol=1e-4, msg=lambda text, n=parameter: f"{n}: {text}")
        compared += bool(gradient.abs().sum() > 0)
    assert compared > 20


@pytest.mark.parametrize(("name", "options"), CASES)
def test_eight_rows_at_once_and_two_by_two_have_one_gradient(name, options, tmp_path):
    unit, examples, packing = build(name, tmp_path, **options)
    found = []
    for parts in (1, 4):
        batches = pack(examples[:8], max_tokens=4096, min_micro_batches=parts, view="prefix", **packing)
        assert len(batches) == parts
        count = sum(batch.num_targets.get("prefix_lm", 0) for batch in batches)
        unit.zero_grad()
        for batch in batches:
            if batch.num_targets:
                (unit(batch)["prefix_lm"].total / count).backward()
        found.append(gradients(unit))
    for parameter, gradient in found[0].items():
        torch.testing.assert_close(found[1][parameter], gradient, rtol=1e-3, atol=1e-6)


def test_a_tokenizer_without_a_mask_token_is_told_of_next_token(make_corpus):
    corpus = numbered(make_corpus, [3, 4])
    corpus.mask_id = None
    objective = PrefixLM(PrefixLMOptions())
    with pytest.raises(ConfigError, match=r"no mask token[\s\S]*prediction: next_token"):
        objective.corrupt(objective.assemble(corpus, 0, PhiloxStream(0)), corpus, PhiloxStream(0), START)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction": "previous"}, "prediction is 'previous'"),
        ({"left_to_right_share": -1.0}, "none may be negative"),
        (dict.fromkeys(("bidirectional_share", "left_to_right_share", "sequence_to_sequence_share"), 0.0), "above 0"),
        ({"bidirectional_share": math.inf}, "shares"),
        ({"ngram_probability": 1.5}, "ngram_probability"),
        ({"mask_rate": 0.0}, r"prefix_lm\.mask_rate"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        PrefixLMOptions(**options)
