"""The measurement of what the other language adds runs from parallel files to a table."""

from __future__ import annotations

import gzip
import json

import pytest

ENGLISH = ("a dog", "two cats", "my old boat", "the red house", "a man", "her brother")
GERMAN = ("ein Hund", "zwei Katzen", "mein altes Boot", "das rote Haus", "ein Mann", "ihr Bruder")


@pytest.fixture
def script(benchmark_module):
    return benchmark_module("translation_lm_german")


@pytest.fixture
def data(tmp_path):
    for name in ("train", "val", "test_2016_flickr"):
        for language, nouns, sees in (("en", ENGLISH, "sees"), ("de", GERMAN, "sieht")):
            lines = [f"{one} {sees} {other}." for one in nouns for other in nouns]
            with gzip.open(tmp_path / f"{name}.{language}.gz", "wt", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")
    return tmp_path


def test_german_is_measured_with_its_english_with_another_and_alone(script, data, tmp_path, capsys):
    command = ["--data", str(data), "--output", str(tmp_path / "run"), "--size", "tiny", "--vocab-size", "300"]
    command += ["--max-length", "40", "--steps", "4", "--batch-size", "8", "--threads", "1"]
    script.main(command)
    script.main(command)  # the run is there: measured again
    first, second = (json.loads(line) for line in (tmp_path / "results.jsonl").read_text("utf-8").splitlines())
    assert first["found"] == second["found"]
    for ways in first["found"].values():
        assert set(ways) == {"its English", "another English", "alone"}
        assert len({figures["loss"] for figures in ways.values()}) == 3
    assert 0 < first["most_frequent"] < 1
    assert "| val | alone |" in capsys.readouterr().out


def test_rotated_pairs_keep_the_german_and_move_the_english(script, data, tmp_path):
    where = tmp_path / "rotated"
    where.mkdir()
    script.rotated(data, "val", where)

    def lines(folder, language):
        with gzip.open(folder / f"val.{language}.gz", "rt", encoding="utf-8") as file:
            return file.read().splitlines()

    assert lines(where, "de") == lines(data, "de")
    assert lines(where, "en")[1:] == lines(data, "en")[:-1]
    assert sorted(lines(where, "en")) == sorted(lines(data, "en"))
