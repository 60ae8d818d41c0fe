"""Translation language modelling: layout, positions and language ids by hand, the loss against plain transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tunecore.data.packing import pack
from tunecore.data.rows import PretrainRows
from tunecore.data.streams import PhiloxStream
from tunecore.errors import ConfigError
from tunecore.models.families.builtin import FAMILIES
from tunecore.objectives.translation_lm import NAME, TranslationLM, TranslationLMOptions
from tunecore.testing import make_corpus, make_model, make_tokenizer
from tunecore.training.unit import Task, TrainUnit
from tunecore.types import Progress

START = Progress(0, 1, 0.0, 1.0)
PAIRS = ("word_starts", "second_starts")


def world(folder, family="bert", **options):
    tokenizer = make_tokenizer(family)
    objective = TranslationLM(TranslationLMOptions(**options))
    corpus = make_corpus(tokenizer, folder, unit="text_pair", columns=PAIRS)
    model = make_model([NAME, *objective.uses], tokenizer, family)
    unit = TrainUnit(model, FAMILIES[family], [Task(NAME, objective, None, 1.0)]).eval()
    rows = PretrainRows(corpus, [objective], seed=2)
    return tokenizer, corpus, objective, unit, [rows.examples(row, 0, START)[0] for row in range(8)]


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_layout_positions_and_language_ids(tmp_path, family):
    tokenizer, corpus, objective, _, _ = world(tmp_path, family)
    for row in range(len(corpus)):
        example = objective.assemble(corpus, row, PhiloxStream(0))
        ids, chunk = example.input_ids.tolist(), corpus[row]
        cut = chunk.columns["second_starts"].tolist().index(True)
        first, second = chunk.ids[:cut].tolist(), chunk.ids[cut:].tolist()
        # As the tokenizer itself lays out two texts.
        backend = tokenizer.backend_tokenizer
        both = [backend.encode("a", add_special_tokens=False), backend.encode("b", add_special_tokens=False)]
        special = backend.post_process(*both, add_special_tokens=True).special_tokens_mask
        between = special[2:].index(0)
        tail = len(special) - 3 - between
        head, middle = ids[:1], ids[1 + len(first) : 1 + len(first) + between]
        assert ids == [*head, *first, *middle, *second, *ids[-tail:]]
        begin = 1 + len(first) + between
        assert example.token_type_ids.tolist() == [0] * begin + [1] * (len(ids) - begin)
        # From 1 on, where the second text would stand alone after its own beginning token.
        assert example.position_ids.tolist() == [*range(begin), *range(1, len(ids) - begin + 1)]


def test_options_leave_positions_and_language_ids_alone(tmp_path):
    _, corpus, objective, _, _ = world(tmp_path, restart_positions=False, language_ids=False)
    example = objective.assemble(corpus, 0, PhiloxStream(0))
    assert example.position_ids.tolist() == list(range(len(example)))
    assert example.token_type_ids is None


@pytest.mark.parametrize(("side", "language"), [("first", 0), ("second", 1)])
def test_one_text_alone_keeps_its_language_id_and_positions(tmp_path, side, language):
    _, corpus, pair, _, _ = world(tmp_path)
    alone = TranslationLM(TranslationLMOptions(texts=side, masked=side))
    for row in range(6):
        both = pair.assemble(corpus, row, PhiloxStream(0))
        one = alone.assemble(corpus, row, PhiloxStream(0))
        kept = (both.token_type_ids == language) & ~both.columns["special"]
        body = ~one.columns["special"]
        assert one.input_ids[body].tolist() == both.input_ids[kept].tolist()
        positions = np.arange(len(one)) if one.position_ids is None else one.position_ids
        assert positions[body].tolist() == both.position_ids[kept].tolist()
        assert set(one.token_type_ids.tolist()) == {language}


@pytest.mark.parametrize("masked", ["both", "first", "second"])
def test_targets_lie_in_the_texts_asked_for_and_hold_the_originals(tmp_path, masked):
    _, corpus, objective, _, _ = world(tmp_path, masked=masked, mask_rate=0.5)
    languages = set()
    for row in range(len(corpus)):
        plain = objective.assemble(corpus, row, PhiloxStream(row))
        made = objective.corrupt(plain, corpus, PhiloxStream(row), START)
        targets = made.targets[NAME]
        assert targets.labels.tolist() == plain.input_ids[targets.index].tolist()
        changed = np.flatnonzero(made.input_ids != plain.input_ids)
        assert set(changed) <= set(targets.index)
        assert not plain.columns["special"][targets.index].any()
        languages |= set(plain.token_type_ids[targets.index].tolist())
        assert np.array_equal(made.position_ids, plain.position_ids)
    assert languages == {"both": {0, 1}, "first": {0}, "second": {1}}[masked]


@pytest.mark.parametrize("side", ["first", "second"])
def test_the_same_tokens_are_masked_with_the_other_text_and_without(tmp_path, side):
    def masked(texts):
        _, _, _, _, examples = world(tmp_path, texts=texts, masked=side, mask_rate=0.3)
        for example in examples:
            targets = example.targets[NAME]
            positions = np.arange(len(example)) if example.position_ids is None else example.position_ids
            shown = example.input_ids[targets.index]
            yield sorted(zip(positions[targets.index].tolist(), shown.tolist(), targets.labels.tolist(), strict=True))

    assert list(masked("both")) == list(masked(side))


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_loss_equals_plain_transformers_row_by_row(tmp_path, family):
    _, corpus, _, unit, examples = world(tmp_path, family)
    offset = {"bert": 0, "roberta": corpus.pad_id + 1}[family]
    batches = pack(
        examples, max_tokens=4096, position_offset=FAMILIES[family].position_offset(unit.model), pad_id=corpus.pad_id,
        view=NAME,
    )
    total, count = 0.0, 0
    with torch.no_grad():
        (ours,) = [unit(batch)[NAME] for batch in batches]
        for example in examples:
            targets, ids = example.targets[NAME], torch.from_numpy(example.input_ids)[None]
            types = {"token_type_ids": torch.from_numpy(example.token_type_ids)[None]} if family == "bert" else {}
            positions = torch.from_numpy(example.position_ids)[None] + offset
            logits = unit.model(input_ids=ids, position_ids=positions, **types).logits[0]
            picked, labels = logits[torch.from_numpy(targets.index)].double(), torch.from_numpy(targets.labels)
            total += torch.nn.functional.cross_entropy(picked, labels, reduction="sum").item()
            count += len(targets)
    assert ours.num_targets == count
    assert ours.total.item() == pytest.approx(total, rel=1e-4)


def test_splitting_a_step_changes_no_gradient(tmp_path, assert_same_gradients):
    _, corpus, _, unit, examples = world(tmp_path)
    found = []
    for parts in (1, 4):
        unit.zero_grad(set_to_none=True)
        for batch in pack(
            examples, max_tokens=4096, position_offset=0, pad_id=corpus.pad_id, min_micro_batches=parts, view=NAME
        ):
            unit(batch)[NAME].total.backward()
        found.append({n: p.grad.clone() for n, p in unit.parameters_by_name().items() if p.grad is not None})
    assert_same_gradients(*found)


def test_a_causal_family_is_refused():
    model = make_model(["causal_lm"], make_tokenizer("gpt2"), "gpt2")
    with pytest.raises(ConfigError, match="reads both ways"):
        TranslationLM(TranslationLMOptions()).build(model, FAMILIES["gpt2"])


@pytest.mark.parametrize(
    "options", [{"mask_rate": 1.5}, {"texts": "third"}, {"masked": "none"}, {"texts": "first", "masked": "second"}]
)
def test_options_out_of_range_are_named(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        TranslationLMOptions(**options)
