"""span_corruption and denoising in a whole model: the loss transformers computes from the labels, padded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tunecore.data.packing import pack
from tunecore.data.rows import PretrainRows
from tunecore.errors import ConfigError
from tunecore.models.families.builtin import FAMILIES
from tunecore.objectives.causal_lm import CausalLM, CausalLMOptions
from tunecore.objectives.denoising import Denoising, DenoisingOptions
from tunecore.objectives.masked_lm import MaskedLM, MaskedLMOptions
from tunecore.objectives.next_sentence import NextSentence, NextSentenceOptions
from tunecore.objectives.span_corruption import SpanCorruption, SpanCorruptionOptions
from tunecore.testing import make_corpus, make_model, make_tokenizer
from tunecore.training.unit import Task, TrainUnit
from tunecore.types import Progress

START = Progress(0, 1, 0.0, 1.0)
OBJECTIVES = {"t5": SpanCorruption(SpanCorruptionOptions()), "bart": Denoising(DenoisingOptions())}


def padded(sequences, value):
    found = np.full((len(sequences), max(map(len, sequences))), value)
    for row, sequence in enumerate(sequences):
        found[row, : len(sequence)] = sequence
    return torch.from_numpy(found)


def unit_of(name, objective):
    tokenizer, family = make_tokenizer(name), FAMILIES[name]
    model = make_model([objective.name], tokenizer, name)
    return tokenizer, TrainUnit(model, family, [Task(objective.name, objective, objective.build(model, family), 1.0)])


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_the_loss_is_transformers_own(name, tmp_path):
    objective = OBJECTIVES[name]
    tokenizer, unit = unit_of(name, objective)
    assert type(unit.model).__name__.endswith("ForConditionalGeneration")
    corpus = make_corpus(tokenizer, tmp_path, unit=objective.unit, columns=objective.columns)
    rows = PretrainRows(corpus, [objective], seed=1)
    examples = [rows.examples(row, 0, START)[0] for row in range(10)]
    (batch,) = pack(examples, max_tokens=4096, position_offset=0, pad_id=corpus.pad_id, view=rows.views[0])
    ids = padded([e.input_ids for e in examples], corpus.pad_id)
    labels = padded([e.targets[objective.name].labels for e in examples], -100)
    mask = (padded([np.ones(len(e), np.int64) for e in examples], 0)).long()
    with torch.no_grad():
        ours = unit.eval()(batch)[objective.name]
        plain = unit.model(input_ids=ids, attention_mask=mask, labels=labels)  # it shifts the labels itself
    assert ours.num_targets == int((labels != -100).sum()) == batch.num_targets[objective.name]
    assert (ours.total / ours.num_targets).item() == pytest.approx(plain.loss.item(), rel=1e-5)
    assert int(ours.num_correct) == int((plain.logits.argmax(-1) == labels).sum())


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_objectives_of_one_stack_refuse_it(name):
    tokenizer, family = make_tokenizer(name), FAMILIES[name]
    for objective in (
        MaskedLM(MaskedLMOptions()), CausalLM(CausalLMOptions()), NextSentence(NextSentenceOptions()),
    ):  # fmt: skip
        model = make_model([objective.name], tokenizer, name)
        message = f"{objective.name} needs a model of one stack; {name} is an encoder-decoder"
        with pytest.raises(ConfigError, match=message):
            TrainUnit(model, family, [Task(objective.name, objective, None, 1.0)])


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=lambda objective: objective.name)
def test_one_stack_is_refused(objective):
    for name in ("bert", "gpt2"):
        model = make_model(["masked_lm", "causal_lm"], make_tokenizer(name), name)
        with pytest.raises(ConfigError, match=f"{objective.name} needs an encoder-decoder model; {name} has one stack"):
            objective.build(model, FAMILIES[name])
        with pytest.raises(ConfigError, match=f"{objective.name} needs an encoder-decoder model; {name} has one stack"):
            TrainUnit(model, FAMILIES[name], [Task(objective.name, objective, None, 1.0)])


def test_a_decoder_that_starts_otherwise_is_refused():
    for name, other in (("t5", OBJECTIVES["bart"]), ("bart", OBJECTIVES["t5"])):
        model = make_model([OBJECTIVES[name].name], make_tokenizer(name), name)
        with pytest.raises(ConfigError, match=rf"{other.name} starts the decoder with .*decoder_start_token_id"):
            other.build(model, FAMILIES[name])
