"""Choices and sets of labels in real text, minutes on one core: the MiniLM checkpoint beside what words alone give."""

from __future__ import annotations

from collections import Counter

import pytest
from shared_words import BETWEEN_SENTENCES, likeliest

from tunecore import Engine
from tunecore.data.sources import read_records
from tunecore.heads.tags import spans_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
COMMON = {"eval_fraction": 0, "batch_size": 16, "progress": False, "report": False, "threads": 1, "seed": 0}


def sentence_choices(path):
    """Questions on a passage; its sentences are the choices, and right is the one the answer lies in."""
    rows = []
    for record in read_records([str(path)]):
        context, answer = record.fields["context"], record.fields["answers"][0]
        begins = [0, *(match.end() for match in BETWEEN_SENTENCES.finditer(context))]
        choices = [context[a:b].strip() for a, b in zip(begins, [*begins[1:], len(context)], strict=True)]
        right = sum(begin <= answer["answer_start"] for begin in begins) - 1
        if len(choices) > 1 and answer["text"] in choices[right]:
            row = {"question": record.fields["question"], "choices": choices, "label": right, "passage": context}
            rows.append(row)
    return rows


def test_the_sentence_with_the_answer(minilm, shared_data, tmp_path):
    rows = sentence_choices(shared_data / "qa" / "xquad.en.json")
    passages = list(dict.fromkeys(row["passage"] for row in rows))
    held_out = set(passages[::4])  # all questions on a passage are on one side
    train, test = ([row for row in rows if (row["passage"] in held_out) is side] for side in (False, True))
    engine = Engine.from_pretrained(minilm, head="multiple_choice", max_length=128)
    engine.finetune(train, output_dir=tmp_path, epochs=2, learning_rate=1e-4, **COMMON)
    found = engine.evaluate(test)["accuracy"]
    chance = sum(1 / len(row["choices"]) for row in test) / len(test)
    baseline = sum(likeliest(row["question"], row["choices"]) == row["label"] for row in test) / len(test)
    print(f"{len(train)} + {len(test)} questions: accuracy {found:.4f}, most words {baseline:.4f}, chance {chance:.4f}")
    assert found > baseline + 0.03


def test_kinds_of_names_in_a_message(minilm, shared_data, tmp_path):
    """WNUT-17 as a task of several labels: which kinds of names occur in a message; none in about half of them."""
    train, test = (
        [
            {"text": " ".join(r.fields["tokens"]), "label": sorted({span.type for span in spans_of(r.fields["tags"])})}
            for r in read_records([str(shared_data / "wnut17" / f"{part}.conll")])
        ]
        for part in ("train", "test")
    )
    head = {"multi_label_classification": {"positive_weights": "balanced"}}  # else rare kinds are never given
    engine = Engine.from_pretrained(minilm, head=head, max_length=128)
    engine.finetune(train, output_dir=tmp_path, epochs=4, learning_rate=2e-4, **COMMON)
    found = engine.evaluate(test)
    commonest = Counter(label for row in train for label in row["label"]).most_common(1)[0][0]
    right = sum(commonest in row["label"] for row in test)
    baseline = 2 * right / (len(test) + sum(len(row["label"]) for row in test))
    print({name: value for name, value in found.items() if isinstance(value, float)}, commonest, baseline)
    assert found["f1_micro"] > baseline + 0.1
