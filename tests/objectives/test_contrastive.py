"""Contrastive learning against InfoNCE written out in plain Python, and groups that no split can part."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunecore.data.packing import pack
from tunecore.data.rows import PretrainRows, examples_of
from tunecore.data.streams import PhiloxStream
from tunecore.errors import ConfigError
from tunecore.models.families.builtin import FAMILIES
from tunecore.objectives.contrastive import NAME, Contrastive, ContrastiveOptions
from tunecore.testing import make_corpus, make_model, make_tokenizer
from tunecore.training.unit import ForwardPass, Task, TrainUnit
from tunecore.types import Progress

START = Progress(0, 1, 0.0, 1.0)
BERT = FAMILIES["bert"]


def world(folder, rows=10, **options):
    objective = Contrastive(ContrastiveOptions(**{"group_size": 4, **options}))
    tokenizer = make_tokenizer()
    corpus = make_corpus(tokenizer, folder, unit=objective.unit, columns=objective.columns)
    model = make_model([NAME], tokenizer)
    torch.manual_seed(0)
    module = objective.build(model, BERT)
    if module is not None:
        torch.nn.init.normal_(module.weight, std=0.3)
    unit = TrainUnit(model, BERT, [Task(NAME, objective, module, 1.0)]).eval()
    source = PretrainRows(corpus, [objective], seed=0)
    examples = examples_of(source, range(rows), 0, START, NAME)
    return SimpleNamespace(corpus=corpus, objective=objective, unit=unit, module=module, examples=examples, rows=source)


def packed(examples, parts=1, max_tokens=4096):
    return pack(examples, max_tokens=max_tokens, position_offset=0, pad_id=0, min_micro_batches=parts, view=NAME)


def vector(world, example, pooling):
    """The sentence vector of one example, by the plain model on that row alone."""
    types = None if example.token_type_ids is None else torch.from_numpy(example.token_type_ids)[None]
    with torch.no_grad():
        hidden = world.unit.model(input_ids=torch.from_numpy(example.input_ids)[None], token_type_ids=types)[0][0]
        if pooling == "mean":
            return hidden.mean(0).tolist()
        return torch.tanh(world.module.weight @ hidden[0] + world.module.bias).tolist()


def info_nce(texts, counterparts, temperature):
    """Sum of -log softmax of each text's own counterpart, by the definition."""

    def cosine(a, b):
        product = sum(x * y for x, y in zip(a, b, strict=True))
        return product / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(x * x for x in b))

    total = hits = 0.0
    for i, text in enumerate(texts):
        scores = [cosine(text, other) / temperature for other in counterparts]
        total -= scores[i] - math.log(sum(math.exp(s) for s in scores))
        hits += scores[i] == max(scores)
    return total, hits


@pytest.mark.parametrize("pooling", ["token", "mean"])
@pytest.mark.parametrize("pairs", [True, False])
def test_the_loss_is_info_nce_within_each_group(tmp_path, pooling, pairs):
    made = world(tmp_path, pooling=pooling, pairs=pairs, temperature=0.1)
    (batch,) = packed(made.examples)
    with torch.no_grad():
        loss = made.unit(batch)[NAME]
    vectors = [vector(made, example, pooling) for example in made.examples]
    texts, counterparts = vectors[0::2], vectors[1::2]
    expected = [info_nce(texts[i : i + 4], counterparts[i : i + 4], 0.1) for i in range(0, 10, 4)]  # the last has 2
    assert loss.num_targets == 10
    assert loss.total.item() == pytest.approx(sum(total for total, _ in expected), rel=1e-3, abs=1e-3)
    assert int(loss.num_correct) == sum(hits for _, hits in expected)


@pytest.mark.parametrize("pairs", [True, False])
def test_a_row_is_two_examples_with_ids_of_their_own(tmp_path, pairs):
    made = world(tmp_path, pairs=pairs)
    n = len(made.corpus)
    for row in range(6):
        text, counterpart = made.objective.assemble(made.corpus, row, PhiloxStream(0))
        assert (text.row_id, counterpart.row_id) == (row, row + n)
        assert text.targets[NAME].labels.tolist() == [row + n] and not counterpart.targets
        assert (text.input_ids.tolist() == counterpart.input_ids.tolist()) is not pairs


def test_the_two_copies_of_a_text_are_dropped_differently_and_by_counter(tmp_path):
    made = world(tmp_path, rows=4)
    (batch,) = packed(made.examples)
    batch = replace(batch, layout=batch.layout._replace(rng_key=torch.tensor(5)))
    made.unit.dropout.key = batch.layout.rng_key

    def vectors():
        with torch.no_grad():
            return ForwardPass(made.unit.model, BERT, batch).sequence_rows()

    still = vectors()
    torch.testing.assert_close(still[0::2], still[1::2])
    made.unit.train()
    first, again = vectors(), vectors()
    assert torch.equal(first, again)
    assert ((first[0::2] - first[1::2]).norm(dim=1) > 0.1).all()


def test_attention_alone_drops_the_copies_differently(tmp_path):
    """It counts rows by their id, which is why the copies have two."""
    made = world(tmp_path, rows=4)
    for name, module in made.unit.named_modules():
        if isinstance(module, torch.nn.Dropout) and not name.endswith("attention.self.dropout"):
            module.p = 0.0
    made.unit.train()
    (batch,) = packed(made.examples)
    layout = batch.layout._replace(rng_key=torch.tensor(5))
    same_ids = layout._replace(row_ids=layout.row_ids.remainder(len(made.corpus)))
    with torch.no_grad():
        own, same = (
            ForwardPass(made.unit.model, BERT, replace(batch, layout=x)).sequence_rows() for x in (layout, same_ids)
        )
    assert ((own[0::2] - own[1::2]).norm(dim=1) > 1e-3).all()
    torch.testing.assert_close(same[0::2], same[1::2])


@pytest.mark.parametrize("pairs", [True, False])
def test_splitting_a_step_changes_no_gradient(tmp_path, pairs, assert_same_gradients):
    made = world(tmp_path, rows=12, pairs=pairs)
    found = []
    for batches in (packed(made.examples), packed(made.examples, parts=3), packed(made.examples, max_tokens=8)):
        made.unit.zero_grad(set_to_none=True)
        assert all(len(set(batch.groups)) == (3 if len(batches) == 1 else 1) for batch in batches)
        for batch in batches:
            made.unit(batch)[NAME].total.backward()
        found.append({n: p.grad.clone() for n, p in made.unit.parameters_by_name().items() if p.grad is not None})
    assert len(found) == 3
    for split in found[1:]:
        assert_same_gradients(found[0], split, tolerance=2e-3)  # vectors of new weights are all alike: they cancel


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(8)))
def test_the_order_of_sequences_in_a_batch_does_not_matter(tmp_path_factory, order):
    made = world(tmp_path_factory.mktemp("order"), rows=4, pooling="mean", pairs=True)
    with torch.no_grad():
        one, other = (
            made.unit(packed(examples)[0])[NAME].total.item()
            for examples in (made.examples, [made.examples[i] for i in order])
        )
    assert other == pytest.approx(one, rel=1e-4)


def test_a_model_without_dropout_cannot_tell_copies_apart():
    rates = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    model = make_model([NAME], make_tokenizer(), config=rates)
    with pytest.raises(ConfigError, match="no dropout"):
        Contrastive(ContrastiveOptions()).build(model, BERT)
    assert Contrastive(ContrastiveOptions(pairs=True, pooling="mean")).build(model, BERT) is None


@pytest.mark.parametrize("options", [{"group_size": 1}, {"temperature": 0.0}, {"pooling": "max"}])
def test_options_out_of_range_are_named(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        ContrastiveOptions(**options)
