"""Cleaning: each rule, and each count."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunecore.config import DataConfig
from tunecore.data.clean import Cleaner, CleaningOptions
from tunecore.errors import ConfigError


def clean(text, **options):
    return Cleaner(CleaningOptions(**options)).clean(text)


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("a\r\nb\rc\x0cd\u2028e", "a\nb\nc\nd\ne"),
        ("a\x00b\x07\u200b\ufeffc\x7f", "abc"),
        ("  a \t b\u00a0c \n d ", "a b c\nd"),
        ("a\n\n\n \n\nb", "a\n\nb"),
        ("cafe\u0301", "caf\u00e9"),
    ],
)
def test_each_rule(raw, cleaned):
    assert clean(raw) == cleaned


def test_normal_forms():
    assert clean("\ufb01x", normalization="nfkc") == "fix"
    assert clean("\ufb01x") == "\ufb01x"
    assert clean("e\u0301", normalization="none") == "e\u0301"


def test_rules_can_be_left_out():
    raw = "a\x00\t b\n\n\n\nc"
    assert clean(raw, remove_controls=False, collapse_whitespace=False) == raw
    assert clean(raw, collapse_whitespace=False) == "a\t b\n\n\n\nc"


def test_documents_are_dropped_and_counted():
    cleaner = Cleaner(CleaningOptions(min_chars=3, max_chars=6, deduplicate=True))
    kept = [cleaner.clean(t) for t in ["good", " good ", "", " \x00 ", "ab", "far too long", "cafe\u0301", "caf\u00e9"]]
    assert kept == ["good", None, None, None, None, None, "caf\u00e9", None]
    assert cleaner.summary.as_dict() == {
        "documents": 8, "kept": 2, "normalized": 1, "control_characters": 1, "empty": 2, "too_short": 1, "too_long": 1,
        "duplicates": 2,
    }
    assert cleaner.summary.describe() == (
        "2 of 8 documents kept (dropped: 2 empty, 1 too_short, 1 too_long, 2 duplicates)"
    )


def test_duplicates_stay_unless_dropping_them_is_asked_for():
    cleaner = Cleaner()
    assert [cleaner.clean("a"), cleaner.clean("a")] == ["a", "a"]


def test_options_follow_the_config():
    config = DataConfig(normalization="nfkc", deduplicate=True, min_chars=5, max_chars=9)
    options = CleaningOptions.of(config)
    assert (options.normalization, options.deduplicate, options.min_chars, options.max_chars) == ("nfkc", True, 5, 9)
    with pytest.raises(ConfigError, match="normalization"):
        CleaningOptions(normalization="nfd")


@given(st.text())
def test_cleaning_twice_changes_nothing(text):
    once = clean(text)
    if once is not None:
        assert clean(once) == once
        assert not any(unicodedata.category(c) == "Cc" for c in once if c not in "\n\t")
