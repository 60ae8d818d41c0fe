import io
import json

import pytest
from rich.console import Console

from tunecore import demo_data
from tunecore.demo import QUICK, Arm, DemoResult, _comparison, _fresh, run_demo
from tunecore.demo_data import DemoData, collect, find_docstrings
from tunecore.errors import DataError


@pytest.fixture(scope="module")
def stdlib_data():
    return collect()


def texts(rows):
    return {row["text"] for row in rows}


def write_package(root, name, files=6, per_file=25, shared=""):
    (root / name).mkdir(parents=True)
    for f in range(files):
        text = "Text number {} of module {} in {}, long enough."
        body = "".join(f'def f{i}():\n    """{text.format(i, f, name)}"""\n' for i in range(per_file))
        (root / name / f"m{f}.py").write_text(f'"""Module {f} of {name}: what it is for."""\n{body}{shared}')


def test_classes_are_found_at_run_time(stdlib_data):
    labels = stdlib_data.labels
    assert {"asyncio", "email", "unittest"} <= set(labels)
    assert not {"distutils", "lib2to3", "test", "idle_test", "site-packages"} & set(labels)
    assert 5 <= len(labels) <= 30


def test_nothing_leaks_between_the_parts(stdlib_data):
    d = stdlib_data
    train, dev, test = texts(d.train), texts(d.dev), texts(d.test)
    assert len(train) == len(d.train) and len(test) == len(d.test)
    assert not train & test and not train & dev and not dev & test
    # A document is a file's docstrings as paragraphs, and a docstring may itself have paragraphs.
    documents = [*d.documents, *d.held_out_documents]
    assert len(documents) == len(set(documents))
    paragraphs = "\0".join(f"\n\n{document}\n\n" for document in documents)
    assert not [text for text in dev | test if f"\n\n{text}\n\n" in paragraphs]
    assert all(f"\n\n{text}\n\n" in paragraphs for text in train)


def test_there_is_text_enough_and_at_most_300_labelled_rows(stdlib_data):
    d = stdlib_data
    assert 1_000_000 < sum(map(len, d.documents)) < 5_000_000
    assert 200 <= len(d.train) <= 300
    for rows in (d.train, d.dev, d.test):
        assert {row["label"] for row in rows} == set(d.labels)
    counts = [sum(row["label"] == label for row in d.train) for label in d.labels]
    assert max(counts) - min(counts) <= 5
    assert 1 / len(d.labels) <= d.chance < 0.3


def test_collecting_is_deterministic(tmp_path):
    write_package(tmp_path, "alpha")
    write_package(tmp_path, "beta")
    assert collect(tmp_path) == collect(tmp_path)
    assert collect(tmp_path).train != collect(tmp_path, seed=1).train


def test_files_are_split_whole(tmp_path):
    write_package(tmp_path, "alpha")
    write_package(tmp_path, "beta", per_file=40)
    data = collect(tmp_path)
    of_file = {d.text: d.file for d in find_docstrings(tmp_path)}
    files = [{of_file[text] for text in texts(rows)} for rows in (data.train, data.dev, data.test)]
    assert all(files)
    assert not files[0] & files[1] and not files[0] & files[2] and not files[1] & files[2]


def test_small_packages_tests_and_dropped_ones_are_no_classes(tmp_path):
    for name in ("alpha", "beta", "distutils", "lib2to3", "test"):
        write_package(tmp_path, name)
    write_package(tmp_path, "few_files", files=4, per_file=60)
    write_package(tmp_path, "few_texts", files=6, per_file=3)
    write_package(tmp_path / "alpha", "tests")
    data = collect(tmp_path)
    assert data.labels == ["alpha", "beta"]
    assert not any("distutils" in text or "in tests" in text for text in data.documents)
    assert any("few_files" in text for text in data.documents), "still text to pretrain on"


def test_a_text_of_two_packages_is_not_asked_about(tmp_path):
    both = 'def g():\n    """A text that two packages share word for word."""\n'
    write_package(tmp_path, "alpha", shared=both)
    write_package(tmp_path, "beta", shared=both)
    data = collect(tmp_path, train_rows=1000, test_rows=1000, dev_rows=1000)
    shared = "A text that two packages share word for word."
    assert not any(shared in texts(rows) for rows in (data.train, data.dev, data.test))
    held = [document for document in [*data.documents, *data.held_out_documents] if shared in document]
    assert len(held) == 1, "pretrained on, once"


def test_sources_without_docstrings_say_what_to_do(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    with pytest.raises(DataError, match="use a full Python"):
        collect(tmp_path)


def test_nothing_is_imported(tmp_path):
    write_package(tmp_path, "alpha")
    (tmp_path / "alpha" / "boom.py").write_text('"""Text."""\nraise SystemExit("imported")\n')
    assert any(d.text == "Text." for d in find_docstrings(tmp_path))


def test_the_spread_is_of_the_sample_and_gains_are_paired():
    arm = Arm("pretrained", [{"accuracy": 0.5}, {"accuracy": 0.6}, {"accuracy": 0.7}])
    assert arm.mean_and_spread("accuracy") == pytest.approx((0.6, 0.1))
    assert arm.text("accuracy") == "0.600 ± 0.100"
    assert Arm("one", [{"accuracy": 0.5}]).mean_and_spread("accuracy") == (0.5, 0.0)
    result = DemoResult(None, arm, Arm("scratch", [{"accuracy": 0.4}, {"accuracy": 0.6}, {"accuracy": 0.3}]), 0.1, 1.0)
    assert result.gains == pytest.approx([0.1, 0.0, 0.4])


def test_a_loss_through_pretraining_is_said_as_plainly_as_a_gain():
    worse = [{"accuracy": 0.3, "f1_macro": 0.2}]
    better = [{"accuracy": 0.4, "f1_macro": 0.3}]
    result = DemoResult(None, Arm("pretrained", worse), Arm("scratch", better), 0.1, 1.0)
    data = DemoData([], [], ["a"], [], [], [{"text": "t", "label": "a"}])
    assert "changed accuracy by -0.100" in _comparison(result, QUICK, data).note


def test_the_demo_never_writes_over_what_is_there(tmp_path):
    first, second = _fresh(tmp_path / "demo"), _fresh(tmp_path / "demo")
    assert (first.name, second.name) == ("demo", "demo-2")


def test_the_whole_demo_runs(tmp_path, monkeypatch):
    write_package(tmp_path / "lib", "alpha")
    write_package(tmp_path / "lib", "beta")
    monkeypatch.setattr(demo_data.sysconfig, "get_path", lambda name: str(tmp_path / "lib"))
    stream = io.StringIO()
    result = run_demo(tmp_path / "demo", quick=True, console=Console(file=stream, width=200))
    printed = stream.getvalue()
    for piece in ("1  Text", "2  Tokenizer", "3  Fine-tuning", "What pretraining gained", "4  Predictions", "Took"):
        assert piece in printed
    assert len(result.pretrained.metrics) == len(result.scratch.metrics) == 1
    html = result.report.read_text()
    for piece in ("What pretraining gained", "commonest label", "Predictions by class", "masked_lm"):
        assert piece in html, piece
    config = json.loads((tmp_path / "demo" / "model" / "config.json").read_text())
    assert sorted(config["label2id"]) == ["alpha", "beta"]
    assert config["architectures"] == ["BertForSequenceClassification"]
