"""Sequences that grow: the length of each step, and rows cut to it by their unit."""

from __future__ import annotations

import numpy as np
import pytest

from tunecore.data.lengths import LengthWarmup
from tunecore.data.rows import PretrainRows
from tunecore.errors import ConfigError
from tunecore.objectives.causal_lm import CausalLM, CausalLMOptions
from tunecore.objectives.masked_lm import MaskedLM, MaskedLMOptions
from tunecore.objectives.next_sentence import NextSentence, NextSentenceOptions
from tunecore.objectives.sentence_order import SentenceOrder, SentenceOrderOptions
from tunecore.objectives.span_corruption import SpanCorruption, SpanCorruptionOptions
from tunecore.objectives.translation_lm import TranslationLM, TranslationLMOptions
from tunecore.testing import make_corpus, make_tokenizer
from tunecore.types import Progress

MAKE = {
    "masked_lm": ("bert", lambda: MaskedLM(MaskedLMOptions(whole_word=True))),
    "next_sentence": ("bert", lambda: NextSentence(NextSentenceOptions())),
    "sentence_order": ("bert", lambda: SentenceOrder(SentenceOrderOptions())),
    "translation_lm": ("bert", lambda: TranslationLM(TranslationLMOptions())),
    "causal_lm": ("gpt2", lambda: CausalLM(CausalLMOptions())),
    "span_corruption": ("t5", lambda: SpanCorruption(SpanCorruptionOptions())),
}


@pytest.fixture(params=list(MAKE))
def world(request, tmp_path):
    family, make = MAKE[request.param]
    objective = make()
    tokenizer = make_tokenizer(family)
    corpus = make_corpus(tokenizer, tmp_path, unit=objective.unit, columns=tuple(objective.columns))
    return objective, corpus


def at(step):
    return Progress(step, 100, 0.0, 1.0)


def test_lengths_grow_in_a_straight_line_of_eights():
    warmup = LengthWarmup(16, 64, 12)
    assert [warmup.at(step) for step in (0, 1, 2, 3, 4, 6, 10, 11, 12, 500)] == [16, 16, 24, 24, 32, 40, 56, 56, 64, 64]
    assert [LengthWarmup(10, 20, 5).at(step) for step in range(6)] == [10, 10, 10, 16, 16, 20]


def test_every_example_fits_its_step_and_the_full_length_comes_back(world):
    objective, corpus = world
    rows = PretrainRows(corpus, [objective], 1, lengths=LengthWarmup(12, corpus.max_length, 10))
    plain = PretrainRows(corpus, [objective], 1)
    longest = []
    for step in (0, 4, 7, 10, 99):
        made = [e for row in range(len(corpus)) for e in rows.examples(row, 0, at(step))]
        again = [e for row in range(len(corpus)) for e in rows.examples(row, 0, at(step))]
        assert [e.input_ids.tolist() for e in made] == [e.input_ids.tolist() for e in again]
        longest.append(max(len(e) for e in made))
        decoders = [len(e.decoder_input_ids) for e in made if e.decoder_input_ids is not None]
        assert max(decoders, default=0) <= LengthWarmup(12, corpus.max_length, 10).at(step)
        assert any(len(targets) for e in made for targets in e.targets.values())
        if step >= 10:
            whole = [e for row in range(len(corpus)) for e in plain.examples(row, 0, at(step))]
            assert [e.input_ids.tolist() for e in made] == [e.input_ids.tolist() for e in whole]
    lengths = [LengthWarmup(12, corpus.max_length, 10).at(step) for step in (0, 4, 7, 10, 99)]
    assert all(found <= allowed for found, allowed in zip(longest, lengths, strict=True))
    assert longest[0] < longest[-1] and longest[0] >= 8


def test_evaluation_is_at_the_full_length(world):
    objective, corpus = world
    cut = PretrainRows(corpus, [objective], 1, evaluation=True, lengths=LengthWarmup(12, corpus.max_length, 10))
    plain = PretrainRows(corpus, [objective], 1, evaluation=True)
    for row in range(3):
        pairs = zip(cut.examples(row, 0, at(0)), plain.examples(row, 0, at(0)), strict=True)
        assert all(one.input_ids.tolist() == other.input_ids.tolist() for one, other in pairs)


def test_the_tokens_that_stay_are_the_first_ones(world):
    objective, corpus = world
    cut = corpus.cut_to(16, 16)
    room = 16 - corpus.num_special
    assert len(cut) == len(corpus)
    for row in range(len(corpus)):
        whole, part = corpus[row], cut[row]
        assert part.row_id == whole.row_id and part.start == whole.start and 0 < len(part.ids) <= room
        assert all(len(column) == len(part.ids) for column in part.columns.values())
        if objective.unit == "text_pair":
            (first,) = np.flatnonzero(whole.columns["second_starts"])
            (kept,) = np.flatnonzero(part.columns["second_starts"])
            assert part.ids.tolist() == [*whole.ids[:kept], *whole.ids[first : first + len(part.ids) - kept]]
            assert kept >= min(first, room // 2) and len(part.ids) == min(len(whole.ids), room)
            continue
        assert part.ids.tolist() == whole.ids[: len(part.ids)].tolist()
        if objective.unit == "document":
            assert len(part.ids) == min(room, len(whole.ids))
        elif len(part.ids) < min(room, len(whole.ids)):  # then a sentence ends here, and the next would not fit
            starts = np.flatnonzero(whole.columns["sentence_starts"])
            assert len(part.ids) in starts and not any(len(part.ids) < start <= room for start in starts)


def test_a_length_without_room_is_said_at_once(world):
    objective, corpus = world
    if corpus.num_special and not hasattr(objective, "row_length"):  # whose examples are shorter than the row
        with pytest.raises(ConfigError, match="max_length_start leaves sequences of"):
            least = corpus.num_special
            PretrainRows(corpus, [objective], 1, lengths=LengthWarmup(least, corpus.max_length, 10))
