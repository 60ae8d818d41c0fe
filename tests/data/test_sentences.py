"""The rule for sentences."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunecore.data.sentences import sentence_ends, split_long, split_sentences


@pytest.mark.parametrize(
    "sentences",
    [
        ["It rained.", " We stayed!", " Did you?", " 7 did."],
        ["Mr. Smith met J. R. Jones, e.g. in St. Ives.", " He left."],
        ["It cost 3.50 at 5 p.m. or so."],
        ["\u201cStop!\u201d", " \u201cWhy?\u201d he said.", " (It was late.)", " Then on."],
        ["A title", "\n\nThe text begins", "\n \nand goes on."],
        ["He is Mr.", "\n\nA new paragraph."],
        ["\u4eca\u65e5\u306f\u3002", "\u660e\u65e5\uff01", "\u6625"],
        ["wait... and see\u2026", " Then go."],
    ],
)
def test_sentences(sentences):
    assert split_sentences("".join(sentences)) == sentences


@given(st.text(alphabet="aA. !?\n\"'\u3002M1r", max_size=80))
def test_sentences_joined_are_the_text(text):
    ends = sentence_ends(text)
    assert "".join(split_sentences(text)) == text
    assert ends == sorted(set(ends)) and all(0 < e <= len(text) for e in ends)


@given(st.text(alphabet="ab \n", max_size=200), st.integers(1, 30))
def test_long_text_is_cut_into_short_pieces_that_join_again(text, longest):
    pieces = split_long(text, longest)
    assert "".join(pieces) == text and all(len(p) <= longest for p in pieces)


def test_cuts_prefer_paragraphs_then_lines_then_spaces():
    assert split_long("aaaaaa\n\nb\nc d", 10)[0] == "aaaaaa"
    assert split_long("aa\n\naaa b ccc", 10)[0] == "aa\n\naaa b"  # too early a cut for an empty line
    assert split_long("aaaaaa\nb c ddd", 10)[0] == "aaaaaa"
    assert split_long("aaaaaa b ccccc", 10)[0] == "aaaaaa b"
    assert split_long("a" * 12, 10) == ["a" * 10, "aa"]
