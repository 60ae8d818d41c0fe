import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from tunecore.errors import DataError
from tunecore.tracking.charts import Series, heat_table, line_chart, running_mean, share_bar, thin, tick_text, ticks
from tunecore.tracking.report import Extra, class_report, nested, write_report

VOID = {"meta", "br", "link", "img"}
NASTY = "<script>alert('x')</script>&\""


class Checker(HTMLParser):
    """Every element closed in order; what would reach out of the file is collected."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.outside, self.tags, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag in ("script", "link", "img", "iframe") or any(name in ("src", "href") for name, _ in attrs):
            self.outside.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text.append(data)


def parsed(html):
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    assert checker.outside == []
    return checker


def write_run(folder, rows):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = f"output_dir: {json.dumps(NASTY)}\nhead: sequence_classification\ntraining:\n  steps: 200\n"
    (folder / "run.yaml").write_text(settings)
    summary = {"train": {"rows": 12345, "dropped": {NASTY: 2}}, "files": [{"name": NASTY, "rows": 3}], "share": 0.25}
    (folder / "data_summary.json").write_text(json.dumps(summary))
    (folder / "step-200").mkdir(exist_ok=True)
    (folder / "step-200" / "manifest.json").write_text(json.dumps({"info": {"machine": {"cpu": "Zen", "threads": 2}}}))
    return folder


def finetuning_rows():
    rows = []
    for step in range(1, 201):
        rows.append({
            "step": step, "epoch": step / 100, "time": 1000.0 + step, "loss": 2 / step, "loss/classification": 2 / step,
            "learning_rate": 1e-4 * (1 - step / 200), "tokens_per_second": 1000 + step, "grad_norm": 1.0,
            "time/data": 0.1, "time/forward/backward": 0.8, "time/optimizer": 0.1,
        })  # fmt: skip
        if step % 100 == 0:
            matrix = [[8, 1, 1], [2, 7, 1], [0, 0, step // 100]]
            rows.append({"step": step, "eval/loss": 1.0, "eval/accuracy": 0.75, "eval/f1_macro": 0.7,
                         "eval/confusion_matrix": matrix, "eval/labels": ["os", NASTY, "json"]})  # fmt: skip
    rows[50]["loss"] = "nan"
    return rows


def test_the_report_of_a_finetuning_run_is_whole_and_escapes_everything(tmp_path):
    folder = write_run(tmp_path / "a & b", finetuning_rows())
    extra = Extra(f"Compare {NASTY}", f"note {NASTY}", ("weights", "accuracy"), [(NASTY, "0.5")])
    path = write_report(folder, extra=[extra])
    assert path == folder / "report.html"
    html = path.read_text()
    assert "<script" not in html
    checker = parsed(html)
    text = " ".join(checker.text)
    for piece in (
        "a & b: fine-tuning for sequence_classification", "Loss", "Learning rate", "Useful tokens per second",
        "Share of time by phase", "12,345", "Zen", "200", "mean of classes", NASTY,
        "loss: not finite in 1 of 200 rows, first at step 51",
        "forward/backward", "Accuracy and other scores",
    ):  # fmt: skip
        assert piece in text, piece
    assert checker.tags.count("svg") >= 6
    assert not list(folder.glob(".report*")), "the temporary file is gone"
    assert not re.search(r"https?://", html.replace("http://www.w3.org/2000/svg", ""))
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html


def test_the_report_of_pretraining_draws_each_objective(tmp_path):
    rows = [
        {"step": s, "loss": 5.0, "loss/masked_lm": 4.0, "loss/next_sentence": 1.0, "accuracy/masked_lm": 0.1,
         "accuracy/next_sentence": 0.5, "eval/loss/masked_lm": 4.1, "eval/accuracy/masked_lm": 0.2, "eval/loss": 5.1}
        for s in (10, 20)
    ]  # fmt: skip
    folder = write_run(tmp_path / "pre", rows)
    (folder / "run.yaml").write_text("objectives: {masked_lm: 1.0, next_sentence: 1.0}\n")
    text = " ".join(parsed(write_report(folder).read_text()).text)
    assert "pre: pretraining with masked_lm, next_sentence" in text
    for title in ("Loss of masked_lm", "Loss of next_sentence", "Accuracy of masked_lm", "Accuracy of next_sentence"):
        assert title in text
    assert "Predictions by class" not in text


def test_the_confusion_matrix_is_that_of_the_best_checkpoint(tmp_path):
    folder = write_run(tmp_path / "run", finetuning_rows())
    assert "Evaluation at step 200" in write_report(folder).read_text()
    (folder / "best").write_text("step-100\n")
    html = write_report(folder).read_text()
    assert "Evaluation at step 100" in html
    assert "Best checkpoint: step-100" in html


def test_classes_without_a_confusion_matrix_have_their_scores(tmp_path):
    scores = {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": 1200}
    rows = [{"step": s, "eval/f1": 0.3, "eval/report": {NASTY: {**scores, "recall": s / 100}}} for s in (5, 10)]
    folder = write_run(tmp_path / "run", rows)
    (folder / "best").write_text("step-5\n")
    text = " ".join(parsed(write_report(folder).read_text()).text)
    assert f"{NASTY} 0.500 0.050 0.333 1,200" in re.sub(r"\s+", " ", text)
    assert "By class, step 5" in text


def test_many_labels_give_the_commonest_confusions(tmp_path):
    n = 70
    matrix = [[1.0 if i == j else 0.0 for j in range(n)] for i in range(n)]
    matrix[3][9] = 17.0
    row = {"step": 5, "eval/accuracy": 0.5, "eval/confusion_matrix": matrix, "eval/labels": [f"c{i}" for i in range(n)]}
    text = " ".join(parsed(write_report(write_run(tmp_path / "run", [row])).read_text()).text)
    assert "Most common confusions" in text
    assert "c3 c9 17" in re.sub(r"\s+", " ", text)


def test_a_run_without_metrics_still_has_a_report(tmp_path):
    folder = write_run(tmp_path / "run", [])
    text = " ".join(parsed(write_report(folder, title="My run").read_text()).text)
    assert "No metrics were logged" in text
    assert "My run" in text


def test_the_report_can_lie_elsewhere(tmp_path):
    folder = write_run(tmp_path / "run", [])
    assert write_report(folder, path=tmp_path / "all.html") == tmp_path / "all.html"
    assert not (folder / "report.html").exists()


def test_the_curves_of_earlier_runs_are_drawn_too(tmp_path):
    before = write_run(tmp_path / "before", [{"step": s, "loss": 1.0, "loss/masked_lm": 1.0} for s in (1, 2)])
    text = " ".join(parsed(write_report(write_run(tmp_path / "run", []), earlier=[before]).read_text()).text)
    assert "Curves of before" in text


def test_metrics_alone_are_enough(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.5}\n')
    text = " ".join(parsed(write_report(tmp_path).read_text()).text)
    assert "1.5" in text


def test_environment_json_is_read_where_no_manifest_is(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.5}\n')
    (tmp_path / "environment.json").write_text('{"torch": "2.99"}')
    assert "2.99" in write_report(tmp_path).read_text()


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(DataError, match=r"neither metrics\.jsonl nor run\.yaml"):
        write_report(tmp_path)


def test_class_report_agrees_with_its_definition():
    rows = list(class_report([[3, 1], [2, 4]], ["a", "b"]))
    assert rows[0] == ["a", "0.600", "0.750", "0.667", "4"]
    assert rows[1] == ["b", "0.800", "0.667", "0.727", "6"]
    assert rows[2] == ["mean of classes that occur", "0.700", "0.708", "0.697", "10"]
    never = list(class_report([[2, 0], [1, 0]], ["a", "b"]))
    assert never[1] == ["b", "0.000", "0.000", "0.000", "1"]
    absent = list(class_report([[2, 0], [0, 0]], ["a", "b"]))
    assert absent[2] == ["mean of classes that occur", "1.000", "1.000", "1.000", "2"]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.1234, 0.1237), (-3, 4e6), (5, 5), (0, 0), (1e-9, 3e-9), (2, 97)])
def test_ticks_are_few_round_and_cover(low, high):
    found = ticks(low, high)
    assert found[0] <= low and found[-1] >= high
    assert 2 <= len(found) <= 7
    steps = [b - a for a, b in pairwise(found)]
    assert max(steps) == pytest.approx(min(steps))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (1000, "1,000"), (2.5e-4, "2.5e-4"), (1e6, "1e6"), (-0.5, "-0.5"), (12.5, "12.5")],
)
def test_tick_text(value, text):
    assert tick_text(value) == text


def test_thinning_keeps_ends_and_extremes():
    points = [(float(i), math.sin(i / 50)) for i in range(10_000)]
    points[5001] = (5001.0, 99.0)
    kept = thin(points, 400)
    assert len(kept) <= 400
    assert kept[0] == points[0] and kept[-1] == points[-1]
    assert (5001.0, 99.0) in kept
    assert kept == sorted(kept)


def test_running_mean():
    assert running_mean([(0, 2.0), (1, 4.0), (2, 6.0)], 2) == [(0, 2.0), (1, 3.0), (2, 5.0)]


def test_a_line_breaks_where_a_value_is_not_finite():
    svg = line_chart("t", [Series("loss", [(0, 1.0), (1, 2.0), (2, math.nan), (3, 2.0), (4, 1.0)])])
    assert svg.count('<path class="line') == 2
    assert "not finite in 1 of 5 rows, first at step 2" in svg
    assert line_chart("t", [Series("loss", [(0, math.nan)])]) == ""
    assert line_chart("t", []) == ""


def test_points_lie_inside_the_picture():
    svg = line_chart("t", [Series("a", [(10, -5.0), (20, 1e6)], dots=True)])
    for x, y in re.findall(r'cx="([\d.-]+)" cy="([\d.-]+)"', svg):
        assert 52 <= float(x) <= 408 and 10 <= float(y) <= 202


def test_heat_table_shades_by_share_of_the_row():
    html = heat_table([[9, 1], [0, 0]], ["a", "b"], caption="c")
    assert "--v:0.900" in html and "--v:0.100" in html
    assert "a taken for b: 1 (10%)" in html


def test_share_bar_leaves_out_what_took_no_time():
    bar = share_bar("t", [("data", 0.25), ("save", 0.0), ("forward", 0.75)])
    assert "75.0%" in bar and "save" not in bar
    assert share_bar("t", []) == ""


def test_nested_shows_depth_numbers_and_absence():
    html = nested({"a": {"b": 1234567, "c": None, "d": True}, "e": ["x", 2], "f": []})
    for piece in ("1,234,567", "yes", "x, 2", "<td>-</td>"):
        assert piece in html
    assert nested({}) == ""
