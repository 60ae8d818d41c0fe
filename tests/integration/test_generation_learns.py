"""Slow: on real data small models learn to write what is asked for, within minutes and far from well."""

from __future__ import annotations

import gzip
import json
from itertools import islice

import pytest

from tunecore import Engine
from tunecore.heads.text_metrics import bleu, chrf, rouge

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
SETTINGS = {
    "precision": "fp32", "threads": 1, "progress": False, "report": False, "schedule": "linear", "warmup": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def captions(shared_data):
    """(English, German) captions of training and validation."""

    def read(name, count):
        sides = []
        for side in ("en", "de"):
            with gzip.open(shared_data / f"multi30k/{name}.{side}.gz", "rt", encoding="utf-8") as file:
                sides.append([line.strip() for line in islice(file, count)])
        return list(zip(*sides, strict=True))

    return read("train", 12_000), read("val", 150)


def evaluations(folder, name):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[f"eval/{name}"] for row in rows if f"eval/{name}" in row]


def test_t5_learns_to_translate_captions(captions, tmp_path):
    train, held_out = captions
    texts = [text for pair in train for text in pair]
    engine = Engine.from_scratch("t5", size="tiny", text=texts, vocab_size=1500, max_length=64)
    head = {"seq2seq": {"source": "en", "target": "de", "max_new_tokens": 40, "generate_rows": None}}
    data, dev = ([{"en": en, "de": de} for en, de in part] for part in (train, held_out))
    engine.finetune(
        data, eval=dev, head=head, steps=500, batch_size=48, learning_rate=5e-3, evaluation={"every": 250},
        output_dir=tmp_path, **SETTINGS,
    )  # fmt: skip
    figures, wanted = evaluations(tmp_path, "bleu"), [[de] for _, de in held_out]
    copied = [en for en, _ in held_out]
    floor, written = bleu(copied, wanted, "13a", False), [p.label for p in engine.predict(copied)]
    print(f"\nMulti30k: BLEU {figures}, copied source {floor:.2f}, chrF {chrf(written, wanted):.1f}; {written[:3]}")
    assert figures[-1] == pytest.approx(bleu(written, wanted, "13a", False))
    perplexities = evaluations(tmp_path, "perplexity/seq2seq")
    assert perplexities[-1] < perplexities[0]
    assert figures[-1] > floor + 0.5
    assert len(set(written)) > len(written) // 4, "it writes the same whatever it reads"


def test_gpt2_answers_prompts_better_than_without_them(captions, tmp_path):
    """A completion is likelier after its own prompt than after another's."""
    train, held_out = captions
    texts = [text for pair in train for text in pair]
    engine = Engine.from_scratch("gpt2", size="tiny", text=texts, vocab_size=1500, max_length=96)
    options = {"template": "{en}\nGerman: ", "completion": "de", "metrics": ["chrf"], "generate_rows": 50}
    data, dev = ([{"en": en, "de": de} for en, de in part] for part in (train, held_out))
    result = engine.finetune(
        data, eval=dev, head={"causal_generation": options}, steps=300, batch_size=48, learning_rate=2e-3,
        evaluation={"every": 150}, output_dir=tmp_path, **SETTINGS,
    )  # fmt: skip
    strange = [{"en": dev[i - 1]["en"], "de": row["de"]} for i, row in enumerate(dev)]
    own, other = (engine.evaluate(rows)["perplexity/causal_generation"] for rows in (dev, strange))
    samples = result.metrics["eval/samples"][:2]
    print(f"\nGPT-2: perplexity {own:.1f} after the caption, {other:.1f} after another's; {samples}")
    perplexities = evaluations(tmp_path, "perplexity/causal_generation")
    assert perplexities[-1] < perplexities[0]
    assert own < other
    assert result.metrics["eval/chrf"] > 10


def test_t5_summarises_and_the_lead_is_measured_alike(shared_data, tmp_path):
    folder = shared_data / "scitldr"
    rows = [json.loads(line) for line in (folder / "dev.jsonl").read_text(encoding="utf-8").splitlines()][:60]
    abstracts = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [" ".join(row["source"]) for row in abstracts] + [row["target"][0] for row in abstracts]
    engine = Engine.from_scratch("t5", size="tiny", text=texts, vocab_size=2000, max_length=192)
    options = {
        "source": "source", "target": "target", "metrics": ["rouge"], "max_target_length": 48,
        "no_repeat_ngram_size": 3,
    }  # fmt: skip
    engine.finetune(
        str(folder / "train.jsonl"), eval=rows, head={"seq2seq": options}, steps=200, batch_size=16, learning_rate=3e-3,
        evaluation={"every": 100}, output_dir=tmp_path, **SETTINGS,
    )  # fmt: skip
    figures = evaluations(tmp_path, "rouge1")
    wanted = [row["target"] for row in rows]
    lead = rouge([row["source"][0] for row in rows], wanted)
    written = [p.label for p in engine.predict(rows)]
    print(f"\nSciTLDR: ROUGE-1 {figures}, first sentence {lead}; {written[:2]}")
    assert 15 < lead["rouge1"] < 45
    assert rouge(written, wanted)["rouge1"] == pytest.approx(max(figures))
    assert max(figures) > 8
