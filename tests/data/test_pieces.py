"""Pieces with their places: those of the tokenizer itself, laid out as it lays them out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunecore.data.pieces import PieceEncoder, offset_of_second
from tunecore.testing import make_tokenizer

FAMILIES = ("bert", "roberta", "gpt2", "llama", "t5")
TOKENIZERS = {name: make_tokenizer(name) for name in FAMILIES}
ENCODERS = {name: PieceEncoder(tokenizer) for name, tokenizer in TOKENIZERS.items()}
CHARACTERS = st.sampled_from("aerivtTM.,-\u00e9\u4e2d") | st.characters(categories=["Ll", "So", "Cc", "Cf"])
WORDS = st.lists(st.text(CHARACTERS))


@pytest.mark.parametrize("name", FAMILIES)
def test_examples_are_those_of_the_tokenizer(name):
    encoder, tokenizer = ENCODERS[name], TOKENIZERS[name]
    first, second = "The river carries", "a long, long letter."
    for texts in ((first,), (first, second)):
        example = encoder.example(3, *(encoder.pieces(text).ids for text in texts))
        plain = tokenizer(*texts)
        assert example.input_ids.tolist() == plain["input_ids"] and example.row_id == 3
        types = plain.get("token_type_ids")
        if types is None or not any(types):
            assert example.token_type_ids is None
        else:
            assert example.token_type_ids.tolist() == types
    at = offset_of_second(encoder.pair, len(encoder.pieces(first).ids))
    pieces = encoder.pieces(second)
    assert example.input_ids[at : at + len(pieces.ids)].tolist() == pieces.ids.tolist()


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "llama"])
def test_a_special_token_written_in_a_text_is_text_and_a_lone_surrogate_is_replaced(name):
    encoder, tokenizer = ENCODERS[name], TOKENIZERS[name]
    special = tokenizer.all_special_ids
    assert not set(encoder.pieces(f"the {tokenizer.eos_token or tokenizer.sep_token} end").ids) & (
        set(special) - {tokenizer.unk_token_id}
    )
    assert encoder.pieces("the \ud800 end").ids.tolist() == encoder.pieces("the \ufffd end").ids.tolist()


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_places_are_those_of_the_text(name):
    text = "The  old teacher\tREMEMBERS windows."
    pieces = ENCODERS[name].pieces(text)
    shown = [text[a:b] for a, b in zip(pieces.starts, pieces.stops, strict=True)]
    assert "".join(shown).replace(" ", "").replace("\t", "") == text.replace(" ", "").replace("\t", "")


@pytest.mark.parametrize("name", FAMILIES)
@settings(deadline=None, max_examples=60)
@given(words=WORDS)
def test_every_word_has_its_own_pieces(name, words):
    encoder = ENCODERS[name]
    found = encoder.words(words)
    assert len(found.ends) == len(words) + 1 and found.ends[-1] == len(found.ids)
    assert (found.sizes >= 1).all()
    # The pieces of the joined text in their order, and one more for each word that the tokenizer drops.
    rest = iter(found.ids.tolist())
    joined = encoder.pieces(" ".join(words)).ids.tolist() if words else []
    assert all(any(piece == other for other in rest) for piece in joined)
    if name in ("roberta", "gpt2") and all(word.strip() for word in words):  # of bytes nothing is dropped
        assert found.ids.tolist() == joined


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2"])
def test_words_have_the_pieces_that_they_have_alone(name):
    words = ["The", "teacher", "remembers", "Seven-grey", "stones", "."]
    encoder = ENCODERS[name]
    found = encoder.words(words)
    for number, word in enumerate(words):
        alone = encoder.pieces(word if number == 0 or name == "bert" else f" {word}").ids
        assert found.ids[found.ends[number] : found.ends[number + 1]].tolist() == alone.tolist()


def test_a_word_that_the_tokenizer_drops_is_one_unknown_piece():
    encoder, tokenizer = ENCODERS["bert"], TOKENIZERS["bert"]
    found = encoder.words(["\u200b", "the", "\x07\x07", "", "river", "\ufe0f"])
    unknown = tokenizer.unk_token_id
    assert [found.ids[found.ends[i]] for i in (0, 2, 3, 5)] == [unknown] * 4
    assert np.all(found.sizes[[0, 2, 3, 5]] == 1)
    known = [encoder.pieces(word).ids.tolist() for word in ("the", "river")]
    assert [found.ids[found.ends[i] : found.ends[i + 1]].tolist() for i in (1, 4)] == known


def test_nothing_at_all_is_one_filler():
    encoder = ENCODERS["gpt2"]
    example = encoder.example(0, encoder.words([]).ids)
    assert example.input_ids.tolist() == [TOKENIZERS["gpt2"].eos_token_id]
