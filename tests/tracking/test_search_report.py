import json
import math
import re

import pytest
import yaml

from tunecore.errors import DataError
from tunecore.tracking.charts import Point, scatter_chart
from tunecore.tracking.road_report import write_road_report
from tunecore.tracking.search_report import best_of, write_search_report

NASTY = "<script>alert('x')</script>&\""


def trial(number, value, state="complete", reason=None, **params):
    curve = [[3, value if value is not None else 0.1], [6, value if value is not None else 0.2]]
    tried = {"training.learning_rate": 10.0 ** -(number + 2), "strategies": "[]", **params}
    return {"number": number, "params": tried, "state": state, "value": value, "curve": curve, "reason": reason}


def write_search(folder, trials, metric="accuracy"):
    folder.mkdir(exist_ok=True)
    (folder / "trials.json").write_text(json.dumps({"metric": metric, "trials": trials}))
    space = {"training.learning_rate": {"low": 1e-6, "high": 1e-2, "log": True}, "strategies": [[], [NASTY]]}
    (folder / "run.yaml").write_text(yaml.safe_dump({"head": "h", "search": {"space": space}}))
    (folder / "result.json").write_text(json.dumps({"test": {"accuracy": 0.8125, "labels": ["a"]}}))
    return folder


def well_formed(html):
    from html.parser import HTMLParser

    class Checker(HTMLParser):
        open, text = [], []

        def handle_starttag(self, tag, attrs):
            assert tag not in ("script", "link", "img")
            if tag not in ("meta", "br"):
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

        def handle_data(self, data):
            self.text.append(data)

    checker = Checker()
    checker.open, checker.text = [], []
    checker.feed(html)
    assert checker.open == []
    return " ".join(checker.text)


def test_the_report_of_a_search(tmp_path):
    trials = [
        trial(0, 0.5), trial(1, 0.75, strategies=json.dumps([NASTY])), trial(2, 0.25, "pruned"),
        trial(3, None, "failed", NASTY), trial(4, 0.75), trial(5, None, "running"),
    ]  # fmt: skip
    html = write_search_report(write_search(tmp_path / "s", trials)).read_text()
    text = well_formed(html)
    assert "6 trials: 3 complete, 1 pruned, 1 failed, 1 running. The best is trial 1." in text
    assert "Test of the final model" in text and "0.8125" in text
    order = re.findall(r"trial-(\d)", html[html.index("Best first") :])
    assert order[:3] == ["1", "4", "0"], "best first, equals by number"
    assert {"2", "3", "5"} == set(order[3:6]) and "why it failed" in text
    assert html.count("<svg") == 4, "history, curves, and one picture an option"
    assert html.count("trial 1 (complete): 0.75;") == 2 and "trial 3 (failed)" not in html
    assert 'class="dot c1"' in html, "the best stands out"


def test_the_direction_of_the_metric(tmp_path):
    trials = [trial(0, 0.5), trial(1, 0.75)]
    assert best_of(trials, "accuracy")["number"] == 1 and best_of(trials, "-loss")["number"] == 0
    assert best_of([trial(0, None, "failed")], "-loss") is None
    html = write_search_report(write_search(tmp_path / "s", trials, "-loss")).read_text()
    assert "The best is trial 0." in html and "best loss" in html


def test_a_search_that_has_only_begun_has_a_report(tmp_path):
    for trials in ([], [trial(0, None, "running")]):
        assert well_formed(write_search_report(write_search(tmp_path / "s", trials)).read_text())
    with pytest.raises(DataError, match="is not the folder of a search"):
        write_search_report(tmp_path)


def test_points_stand_where_they_belong():
    points = [Point(1e-4, 0.0, "low"), Point(1e-3, 0.5, "middle"), Point(1e-2, 1.0, "high"), Point(1, math.nan, "none")]
    html = scatter_chart("rate", points, log=True)
    at = {label: (float(x), float(y)) for x, y, label in re.findall(r'cx="(.*?)" cy="(.*?)" r="4"><title>(\w+)<', html)}
    assert at.keys() == {"low", "middle", "high"}
    assert at["middle"][0] - at["low"][0] == pytest.approx(at["high"][0] - at["middle"][0], abs=0.2), "powers of ten"
    assert at["low"][1] > at["middle"][1] > at["high"][1]
    ticks = re.findall(r'text-anchor="middle">([^<]+)<', html)
    assert ticks == ["1e-4", "1e-3", "0.01"]
    named = scatter_chart("kind", [Point(0, 1.0, "a"), Point(1, 2.0, "b")], names=["one", NASTY])
    assert "one" in named and "<script>" not in named
    assert scatter_chart("nothing", []) == "" and scatter_chart("nan", [Point(1, math.nan, "x")]) == ""
    assert "<circle" in scatter_chart("one value", [Point(5, 1.0, "a")]) and "<circle" in scatter_chart(
        "one rate", [Point(1e-3, 1.0, "a")], log=True
    )


def test_the_report_of_a_road(tmp_path):
    folder = tmp_path / "road"
    (folder / "adapt").mkdir(parents=True)
    last = {"name": "search", "head": "h", "search": {"space": {"a": [1]}}}
    stages = [{"name": "adapt", "objectives": {"masked_lm": 1.0}}, last]
    (folder / "run.yaml").write_text(yaml.safe_dump({"stages": stages}))
    rows = [{"step": s, "loss": 3.0 / s, "eval/loss": 4.0 / s} for s in (1, 2)]
    (folder / "adapt/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "adapt/result.json").write_text(json.dumps({"steps": 2, "best_metric": 2.0, "best": "step-2"}))
    text = well_formed(write_road_report(folder).read_text())
    assert "1 of 2 stages have ended." in text and "Curves of adapt" in text and "Test of" not in text
    assert "h (search)" in text
    write_search(folder / "search", [trial(0, 0.5)])
    (folder / "search/result.json").write_text(
        json.dumps({"steps": 6, "best_metric": 0.5, "best": None, "trial": 0, "test": {"accuracy": 0.5, "report": {}}})
    )
    text = well_formed(write_road_report(folder).read_text())
    assert "2 of 2 stages have ended." in text and "trial-0" in text and "Test of the final model" in text
    with pytest.raises(DataError, match="is not the folder of a run with stages"):
        write_road_report(tmp_path)
