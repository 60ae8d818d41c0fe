"""The objectives through the engine: alone and together, saved, resumed byte for byte, on English and on Chinese."""

# ruff: noqa: RUF001

from __future__ import annotations

import shutil

import pytest
from safetensors.torch import load_file

from tunecore import Engine
from tunecore.errors import TunecoreError

CHINESE = [
    "北京是中华人民共和国的首都。北京大学在北京。长江是中国最长的河流。中国的首都是北京。",
    "长城始建于春秋战国时期。你知道长城有多长吗？水在一百度沸腾。老师在北京大学。",
    "长江流过中国。中国有长城。北京有北京大学。学生去北京大学上学！老师说长江很长。",
] * 8


def bytes_of(folder):
    names = ("model.safetensors", "optimizer.safetensors", "objectives.safetensors")
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


def assert_resumes_exactly(run, folder):
    """Finish ``run``; take its last checkpoint away and let it go on from the one before: the same bytes."""
    run()
    whole = bytes_of(folder / "step-6")
    for name in ("step-6", "final"):
        shutil.rmtree(folder / name)
    run()
    assert bytes_of(folder / "step-6") == whole and len(whole) >= 2


COMBINATIONS = [
    {"masked_lm": {"span": True}, "sentence_order": 0.5},
    {"masked_lm": 1.0, "prefix_lm": {"weight": 0.5}},
    {"phrase_masked_lm": {"min_count": 5}, "next_sentence": 1.0},
]


@pytest.mark.parametrize("objectives", COMBINATIONS, ids="+".join)
def test_objectives_together_resume_exactly(pretrain, tmp_path, objectives):
    def run():
        _, result = pretrain(tmp_path / "run", objectives=objectives, checkpoint={"every": 3, "keep": 3})
        for name in objectives:
            assert result.metrics[f"eval/loss/{name}"] > 0

    assert_resumes_exactly(run, tmp_path / "run")
    own = tmp_path / "run/final/objectives.safetensors"
    assert own.exists() == ("sentence_order" in objectives)
    if own.exists():
        assert set(load_file(own)) == {"sentence_order.weight", "sentence_order.bias"}


def test_the_plain_prefix_language_model_trains_a_decoder(topics, text_file, tmp_path):
    engine = Engine.from_scratch("gpt2", size="tiny", text=topics[:40], vocab_size=600, max_length=48)
    result = engine.pretrain(
        str(text_file), objectives={"prefix_lm": {"prediction": "next_token"}}, steps=3, batch_size=8,
        output_dir=tmp_path / "run", progress=False, eval_fraction=0.02, evaluation={"max_rows": 8},
    )  # fmt: skip
    assert "eval/perplexity/prefix_lm" in result.metrics
    assert type(engine.model).__name__ == "GPT2LMHeadModel"


def test_chinese_with_a_lexicon_phrases_and_names(tmp_path):
    (tmp_path / "words.txt").write_text("北京大学\n北京\n首都\n长江\n长城\n老师\n学生\n", encoding="utf-8")
    (tmp_path / "names.txt").write_text("北京大学\n长江\n", encoding="utf-8")
    objectives = {
        "phrase_masked_lm": {"entities": str(tmp_path / "names.txt"), "min_count": 4},
        "sentence_order": 1.0,
    }

    def run():
        engine = Engine.from_scratch("bert", size="tiny", text=CHINESE, vocab_size=400, max_length=32)
        words = {"segmenter": "lexicon", "lexicon": str(tmp_path / "words.txt")}
        return engine.pretrain(
            CHINESE, objectives=objectives, steps=6, batch_size=8, learning_rate=1e-3, output_dir=tmp_path / "run",
            evaluation={"every": 3}, eval_fraction=0.1, checkpoint={"every": 3, "keep": 3}, progress=False, **words,
        )  # fmt: skip

    assert_resumes_exactly(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/final")
    shutil.rmtree(tmp_path / "run/step-6")
    (tmp_path / "names.txt").write_text("北京大学\n", encoding="utf-8")
    with pytest.raises(TunecoreError, match="data"):  # other names: other masks, so this is another run
        run()
