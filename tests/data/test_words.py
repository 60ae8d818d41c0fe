"""Words of running text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunecore.data.words import split_words


def words(text):
    return [text[start:stop] for start, stop in split_words(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Angela Merkel lives in Berlin.", "Angela|Merkel|lives|in|Berlin|."),
        ('"Yes," she said...', '"|Yes|,|"|she|said|...'),
        ("J. Smith of the U.S. (in N.Y.), e.g.", "J.|Smith|of|the|U.S.|(|in|N.Y.|)|,|e.g."),
        ("Smith's dog and I'll go, it\u2019s 's", "Smith|'s|dog|and|I|'ll|go|,|it|\u2019s|'s"),
        ("costs $5,000.50 -- 3-2, 5%!!", "costs|$|5,000.50|--|3-2|,|5|%|!!"),
        ("see http://x.org/y/ (www.z.de).", "see|http://x.org/y/|(|www.z.de|)|."),
        ("@paul #topic # word(s) L'Aquila", "@paul|#topic|#|word(s)|L'Aquila"),
        ("\u6771\u4eac\u306fX\u3002 \u0e01\u0e34", "\u6771|\u4eac|\u306f|X|\u3002|\u0e01\u0e34"),
        ("", ""),
        (" \n\t", ""),
        ("''", "''"),
    ],
)
def test_words_are_parted_as_in_files_of_tagged_words(text, expected):
    assert words(text) == [word for word in expected.split("|") if word]


CHARACTERS = st.sampled_from("ab1 .,'\u2019s()/:@#-\n\u6771\u0e34\u00a0$") | st.characters(exclude_categories=["Cs"])


@settings(deadline=None, max_examples=60)
@given(st.text(CHARACTERS))
def test_every_character_but_blanks_is_in_one_word(text):
    places = split_words(text)
    covered = [at for start, stop in places for at in range(start, stop)]
    assert covered == [at for at, character in enumerate(text) if not character.isspace()]
    assert all(start < stop for start, stop in places)
