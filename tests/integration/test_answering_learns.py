"""Answers in real text, minutes on one core: the MiniLM checkpoint, trained on COVID-QA, asked XQuAD's questions."""

from __future__ import annotations

import pytest
from shared_words import BETWEEN_SENTENCES, likeliest

from tunecore import Engine
from tunecore.data.sources import read_records
from tunecore.heads.answer_metrics import Answered, AnswerMetrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

STEPS = 160
LONGEST = 80
"""Characters of the answers that are trained on: XQuAD's are short, half of COVID-QA's are sentences."""


def likeliest_sentence(rows):
    """Scores of a baseline: the sentence of the context that shares most words with the question."""
    metrics = AnswerMetrics(lambda raw, record: raw)
    for row in rows:
        sentences = BETWEEN_SENTENCES.split(row["context"])
        best = sentences[likeliest(row["question"], sentences)]
        metrics.add(Answered(best, [answer["text"] for answer in row["answers"]]))
    return metrics.compute()


def test_covid_qa_to_xquad(shared_data, minilm, tmp_path):
    train, test = (
        [dict(record.fields) for record in read_records([str(shared_data / "qa" / name)])]
        for name in ("200423_covidQA.json", "xquad.en.json")
    )
    train = [row for row in train if len(row["answers"][0]["text"].strip()) <= LONGEST]
    test = test[::3]
    # Of a context of fifty windows those with the answer are trained on: the minutes are for these.
    head = {"extractive_qa": {"max_null_windows": 0, "stride": 32, "max_answer_length": 20}}
    engine = Engine.from_pretrained(minilm, head=head, max_length=128)
    engine.finetune(
        train, output_dir=tmp_path, steps=STEPS, batch_size=8, learning_rate=3e-4, eval_fraction=0.005,
        evaluation={"every": STEPS}, progress=False, report=False, threads=1, seed=1,
    )  # fmt: skip
    found, baseline = engine.evaluate(test), likeliest_sentence(test)
    print(f"exact match {found['exact_match']:.4f}, F1 {found['f1']:.4f}; a whole sentence: F1 {baseline['f1']:.4f}")
    assert found["f1"] > baseline["f1"] and found["exact_match"] > baseline["exact_match"] + 0.05
    question = ("Who came by boat?", "In the morning the old teacher came by boat; Mary Shelley walked.")
    (said,) = engine.predict([question])
    assert said.label and said.label in question[1]
