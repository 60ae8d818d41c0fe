"""A tiny world for tests: documents, labelled rows, tokenizer, corpus and models, all made from sentences in this file.

:mod:`tunecore.testing` hands them to plugin authors; nothing is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from tunecore.data.corpus import build_corpus
from tunecore.data.corpus_rows import Unit
from tunecore.data.phrase_columns import phrase_options, with_phrases
from tunecore.data.tokenizer import train_tokenizer
from tunecore.models.families.builtin import FAMILIES
from tunecore.models.loading import build_model
from tunecore.types import CorpusView, Objective, Record

MAX_LENGTH = 32
VOCABULARY = 400
_SUBJECTS = ("The river", "A small boat", "My neighbour", "The old teacher", "Every morning train", "Her brother")
_VERBS = ("carries", "remembers", "follows", "forgets", "watches", "praises")
_OBJECTS = ("the quiet town", "a long letter", "seven grey stones", "the harbour lights", "an open window")


def tiny_documents() -> list[str]:
    """Twelve documents of five to eight English sentences."""
    sentences = [f"{s} {v} {o}." for s in _SUBJECTS for v in _VERBS for o in _OBJECTS]
    return [" ".join(sentences[start : start + 5 + start % 4]) for start in range(0, 180, 15)]


def tiny_records(labels: Sequence[Any] = ("no", "yes")) -> list[Record]:
    """Eight rows with the columns of every head: text, text_pair, label; tokens, tags; question, context, answers,
    choices; target, prompt and completion; sentence_good, sentence_bad, UID.
    """
    texts = tiny_documents()
    sentences = [text.partition(".")[0] for text in texts]
    fields: list[dict[str, Any]] = [
        {
            "text": texts[i][: 20 + 10 * i], "text_pair": texts[-1 - i][:40], "label": labels[i % len(labels)],
            "target": texts[-1 - i][:30], "prompt": texts[i][:20], "completion": texts[-1 - i][:30],
            "sentence_good": sentences[i], "sentence_bad": " ".join(reversed(sentences[i].split())),
            "UID": f"order_{i % 2}",
        }
        for i in range(8)
    ]  # fmt: skip
    for i, row in enumerate(fields):
        row |= _tagged(texts[i][: 40 + 20 * i]) | _asked(texts[i], i)
    return [Record(row, "tiny.jsonl", number) for number, row in enumerate(fields, start=1)]


def _tagged(text: str) -> dict[str, Any]:
    """Words, those of objects being tagged as such."""
    words = text.split()
    starts = {phrase.split()[0] for phrase in _OBJECTS}
    firsts = [word in starts for word in words]
    tags = [
        "B-thing" if first else "I-thing" if before else "O"
        for first, before in zip(firsts, [False, *firsts], strict=False)
    ]
    return {"tokens": words, "tags": tags}


def _asked(text: str, number: int) -> dict[str, Any]:
    """A question about a text of many windows; every fourth has no answer."""
    answer = next(phrase for phrase in _OBJECTS[number % len(_OBJECTS) :] + _OBJECTS if phrase in text)
    place = {"text": [answer], "answer_start": [text.index(answer)]}
    return {
        "question": f"What is it that {_SUBJECTS[number % len(_SUBJECTS)]} has?", "context": text,
        "answers": {"text": [], "answer_start": []} if number % 4 == 3 else place,
        "choices": ["yes", "no", "perhaps"][: 2 + number % 2],
    }  # fmt: skip


def make_tokenizer(family: str = "bert") -> Any:
    """A tokenizer of a family, of at most 400 entries, trained on the tiny documents."""
    return train_tokenizer(tiny_documents(), vocab_size=VOCABULARY, family=family, max_length=MAX_LENGTH)


def make_corpus(
    tokenizer: Any, folder: Path, *, unit: Unit, columns: Sequence[str] = (), objectives: Sequence[Objective] = ()
) -> CorpusView:
    """The tiny documents tokenised under ``folder``, in rows of a unit with the boundary columns asked for, and the
    phrase columns that ``objectives`` ask for.
    """
    path = folder / "tiny.jsonl"
    texts = tiny_documents()
    # Pairs of texts where they are asked for: each document with half of itself.
    fields = [{"text": t, "text_pair": t[len(t) // 2 :]} if "second_starts" in columns else {"text": t} for t in texts]
    path.write_text("".join(json.dumps(row) + "\n" for row in fields), encoding="utf-8")
    corpus = build_corpus([path], tokenizer, cache_dir=folder, columns=columns)
    for options in phrase_options(objectives):
        corpus = with_phrases(corpus, tokenizer, options)
    return corpus.rows(unit, MAX_LENGTH)


def make_model(
    tasks: Sequence[str], tokenizer: Any, family: str = "bert", config: Mapping[str, Any] | None = None
) -> PreTrainedModel:
    """A random model of two layers, 32 wide, of the class with a place for most of ``tasks``, in evaluation mode.

    Args:
        tasks: names of objectives, or of one head.
        tokenizer: gives vocabulary and special tokens.
        family: model_type of a built-in family.
        config: further entries of the transformers config (``id2label``).
    """
    built_in = FAMILIES[family]
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    model_class = built_in.auto_class(frozenset(tasks))
    mapped = getattr(model_class.config_class, "attribute_map", {})
    widths = {mapped.get(name, name): value for name, value in zip(names, (32, 2, 2), strict=True)}
    model = build_model(
        built_in, frozenset(tasks), size="tiny", vocab_size=len(tokenizer), max_length=MAX_LENGTH, overrides=widths,
        tokenizer=tokenizer, seed=0, extra_config=config,
    )  # fmt: skip
    return model.eval()
