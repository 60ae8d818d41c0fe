"""A small tokenizer and corpus for the tests of this folder."""

import json

import pytest

from tunecore.data.corpus import build_corpus
from tunecore.data.tokenizer import train_tokenizer

WORDS = (
    "red", "green", "blue", "heavy", "tiny", "lamp", "river", "stone", "walks", "sings", "under", "over", "the", "a",
    "quietly", "unbelievable",
)


def sentence(i):
    words = [WORDS[(i * 7 + k * k + 3 * k) % len(WORDS)] for k in range(3 + i % 9)]
    return " ".join(words).capitalize() + "."


def document(i, sentences=12):
    return " ".join(sentence(i * 31 + k) for k in range(sentences))


DOCUMENTS = [document(i, 4 + i % 17) for i in range(40)]


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(DOCUMENTS, vocab_size=320)


@pytest.fixture(scope="session")
def causal_tokenizer():
    return train_tokenizer(DOCUMENTS, vocab_size=400, family="gpt2")


@pytest.fixture(scope="session")
def write_documents():
    def write(path, texts):
        path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def corpus(tokenizer, write_documents, tmp_path_factory):
    """Forty documents with both boundary columns."""
    folder = tmp_path_factory.mktemp("corpus")
    path = write_documents(folder / "text.jsonl", DOCUMENTS)
    return build_corpus([path], tokenizer, cache_dir=folder, columns=("word_starts", "sentence_starts"))
