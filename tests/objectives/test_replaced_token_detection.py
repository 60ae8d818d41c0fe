"""Replaced token detection against plain transformers modules on padded rows, with samples made by hand."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from tunecore.data.packing import pack
from tunecore.data.rows import PretrainRows
from tunecore.data.streams import PhiloxStream
from tunecore.errors import ConfigError
from tunecore.models.families.builtin import FAMILIES
from tunecore.models.loading import seeded
from tunecore.objectives.replaced_token_detection import (
    GENERATOR,
    NAME,
    ReplacedTokenDetection,
    ReplacedTokenDetectionOptions,
    sample_tokens,
)
from tunecore.testing import make_corpus, make_model, make_tokenizer
from tunecore.training.unit import Task, TrainUnit
from tunecore.types import Progress

START = Progress(0, 1, 0.0, 1.0)
ELECTRA = FAMILIES["electra"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    tokenizer = make_tokenizer("electra")
    corpus = make_corpus(tokenizer, tmp_path_factory.mktemp("rtd"), unit="document")
    objective = ReplacedTokenDetection(ReplacedTokenDetectionOptions(mask_rate=0.3, generator_size=0.5))
    model = make_model([NAME], tokenizer, "electra")
    with seeded(0):
        module = objective.build(model, ELECTRA)
    with torch.no_grad():  # from the initial weights every token is about as likely, so that samples prove little
        for parameter in (*model.parameters(), *module.parameters()):
            parameter.mul_(3)
        ids = np.concatenate([corpus[row].ids for row in range(len(corpus))])
        counts = torch.bincount(torch.from_numpy(ids), minlength=len(tokenizer)).float()
        module.get_output_embeddings().bias.copy_(2 * (counts + 0.1).log())  # so that some samples hit the original
    unit = TrainUnit(model, ELECTRA, [Task(NAME, objective, module, 1.0)]).eval()
    rows = PretrainRows(corpus, [objective], seed=3)
    examples = [rows.examples(row, 0, START)[0] for row in range(8)]
    return SimpleNamespace(
        corpus=corpus, objective=objective, model=model, generator=module, unit=unit, examples=examples
    )


def packed(examples, parts=1):
    return pack(examples, max_tokens=4096, position_offset=0, pad_id=0, min_micro_batches=parts, view=NAME)


def gradients(unit, batches):
    unit.zero_grad(set_to_none=True)
    totals = {}
    for batch in batches:
        losses = unit(batch)
        sum(loss.total for loss in losses.values()).backward()
        for name, loss in losses.items():
            totals[name] = totals.get(name, 0.0) + loss.total.item()
    return totals, {name: p.grad.clone() for name, p in unit.parameters_by_name().items() if p.grad is not None}


def plain(model_class, model):
    """The same weights in a module of plain transformers, nothing shared, nothing swapped."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"
    made = model_class(config).eval()
    made.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
    return made


def padded(examples):
    shape = (len(examples), max(map(len, examples)))
    ids, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for row, example in enumerate(examples):
        ids[row, : len(example)], mask[row, : len(example)] = example.input_ids, 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def inverted(logits, draws):
    """Tokens by inversion, one at a time in float64."""
    tokens = []
    for row, draw in zip(torch.softmax(logits.double(), -1).tolist(), draws.tolist(), strict=True):
        total, token = 0.0, -1
        while total <= draw / 2**53 and token + 1 < len(row):
            token += 1
            total += row[token]
        tokens.append(token)
    return torch.tensor(tokens)


def test_both_losses_and_all_gradients_equal_plain_transformers(world, assert_same_gradients):
    examples = world.examples
    generator = plain(transformers.ElectraForMaskedLM, world.generator)
    discriminator = plain(transformers.ElectraForPreTraining, world.model)
    ids, mask = padded(examples)
    logits = generator(input_ids=ids, attention_mask=mask).logits
    where = [(row, int(i)) for row, e in enumerate(examples) for i in e.targets[GENERATOR].index]
    labels = torch.from_numpy(np.concatenate([e.targets[GENERATOR].labels for e in examples]))
    chosen = torch.stack([logits[place] for place in where])
    generated = F.cross_entropy(chosen, labels[:, 0], reduction="sum")
    filled, original = ids.clone(), ids.clone()
    for place, token, label in zip(where, inverted(chosen.detach(), labels[:, 1]), labels[:, 0], strict=True):
        filled[place], original[place] = token, label
    scores = discriminator(input_ids=filled, attention_mask=mask).logits
    real = mask.bool()
    replaced = (filled != original)[real]
    assert 0 < int(replaced.sum()) < len(where)  # some samples hit the original
    binary = F.binary_cross_entropy_with_logits(scores[real], replaced.float(), reduction="sum")
    (generated + binary).backward()

    totals, found = gradients(world.unit, packed(examples))
    assert totals[GENERATOR] == pytest.approx(generated.item(), rel=1e-4)
    assert totals[NAME] == pytest.approx(binary.item(), rel=1e-4)
    expected = {name: p.grad for name, p in discriminator.named_parameters() if p.grad is not None}
    for name, parameter in generator.named_parameters():
        if name.startswith("electra.embeddings."):
            expected[name] = expected[name] + parameter.grad  # one parameter, two uses
        elif parameter.grad is not None:
            expected[f"tasks.{NAME}.{name}"] = parameter.grad
    assert_same_gradients(expected, found)


def test_counts_are_announced_and_special_tokens_are_asked_too(world):
    (batch,) = packed(world.examples)
    losses = world.unit(batch)
    assert losses[NAME].num_targets == sum(map(len, world.examples)) == batch.num_targets[NAME]
    masked = sum(len(e.targets[GENERATOR]) for e in world.examples)
    assert losses[GENERATOR].num_targets == masked == batch.num_targets[GENERATOR]


def test_splitting_a_step_changes_neither_samples_nor_gradients(world, assert_same_gradients):
    (whole_totals, whole), (split_totals, split) = (gradients(world.unit, packed(world.examples, n)) for n in (1, 4))
    assert split_totals == pytest.approx(whole_totals, rel=1e-5)
    assert_same_gradients(whole, split)


def test_the_generator_learns_nothing_from_the_discriminator(world):
    world.unit.zero_grad(set_to_none=True)
    (batch,) = packed(world.examples)
    world.unit(batch)[NAME].total.backward()
    assert all(p.grad is None for n, p in world.unit.parameters_by_name().items() if n.startswith("tasks."))


def test_embeddings_are_shared_and_the_generator_is_narrower(world):
    mine = dict(world.model.electra.embeddings.named_parameters())
    its = dict(world.generator.electra.embeddings.named_parameters())
    assert mine.keys() == its.keys() and all(mine[name] is its[name] for name in mine)
    assert world.generator.get_output_embeddings().weight is world.model.get_input_embeddings().weight
    assert world.generator.config.hidden_size == world.model.config.hidden_size // 2
    assert world.generator.config.num_hidden_layers == world.model.config.num_hidden_layers
    names = world.unit.parameters_by_name()
    assert not any("embeddings.word" in name for name in names if name.startswith("tasks."))


def test_dropout_sites_of_generator_and_model_differ(world):
    sites = [m._tunecore_site for m in world.unit.modules() if hasattr(m, "is_causal")]
    assert len(sites) == len(set(sites)) == 4


@pytest.mark.parametrize(("size", "heads", "width", "inner"), [(0.25, 1, 64, 256), (1.0, 4, 256, 1024)])
def test_sizes_of_the_paper(size, heads, width, inner):
    config = transformers.ElectraConfig(
        vocab_size=50, hidden_size=256, num_attention_heads=4, intermediate_size=1024, num_hidden_layers=2
    )
    model = transformers.ElectraForPreTraining(config)
    generator = ReplacedTokenDetection(ReplacedTokenDetectionOptions(generator_size=size)).build(model, ELECTRA)
    made = generator.config
    assert (made.num_attention_heads, made.hidden_size, made.intermediate_size) == (heads, width, inner)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_samples_follow_the_softmax(seed):
    torch.manual_seed(seed)
    hidden, weight, bias = torch.randn(1, 4), torch.randn(7, 4), torch.randn(7)
    n = 4000
    draws = torch.from_numpy((PhiloxStream(seed).uniform(n) * 2.0**53).astype(np.int64))
    tokens = sample_tokens(hidden.expand(n, 4), weight, bias, draws)
    expected = torch.softmax(hidden @ weight.T + bias, -1)[0]
    share = torch.bincount(tokens, minlength=7) / n
    assert ((share - expected).abs() < 5 * (expected * (1 - expected) / n).sqrt() + 1e-3).all()


def test_the_ends_of_the_draws_stay_inside_the_vocabulary_and_impossible_tokens_are_never_drawn():
    bias = torch.tensor([-200.0, 0.0, 0.0, -200.0])
    draws = torch.tensor([0, 2**53 - 1])
    tokens = sample_tokens(torch.zeros(2, 1), torch.zeros(4, 1), bias, draws)
    assert tokens.tolist() == [1, 2]


def test_a_model_without_the_head_is_refused():
    model = make_model(["masked_lm"], make_tokenizer("bert"), "bert")
    with pytest.raises(ConfigError, match=r"discriminator head(.|\n)*electra"):
        ReplacedTokenDetection(ReplacedTokenDetectionOptions()).build(model, FAMILIES["bert"])


@pytest.mark.parametrize("options", [{"mask_rate": 0.0}, {"generator_size": 1.5}, {"discriminator_weight": 0.0}])
def test_options_out_of_range_are_named(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        ReplacedTokenDetectionOptions(**options)
