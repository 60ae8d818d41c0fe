import ast
import subprocess
import sys
from pathlib import Path

from tunecore.config import PluginsConfig
from tunecore.config_io import check_components, load_config, load_stages
from tunecore.plugins import load_plugins
from tunecore.search.space import check_space

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"
CLASSIFIER = EXAMPLES / "sentence_classifier.py"


def test_the_sentence_classifier_is_at_most_twenty_lines():
    source = CLASSIFIER.read_text(encoding="utf-8")
    module = ast.parse(source)
    first = module.body[1].lineno  # after the docstring
    lines = [line for line in source.splitlines()[first - 1 :] if line.strip() and not line.strip().startswith("#")]
    assert 10 <= len(lines) <= 20


def test_the_sentence_classifier_runs_and_prints_each_epoch(tmp_path):
    run = subprocess.run(
        [sys.executable, str(CLASSIFIER)], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert run.returncode == 0, run.stderr
    evaluations = [line for line in run.stderr.splitlines() if "evaluation: " in line]
    assert len(evaluations) == 3
    assert all(" loss " in line for line in evaluations)
    assert [line.split()[0] for line in run.stdout.splitlines()[-2:]] == ["pos", "neg"]
    assert (tmp_path / "runs" / "sentences" / "report.html").exists()


def test_the_run_file_of_a_whole_road_can_be_run():
    config = load_config(EXAMPLES / "road.yaml")
    registry = load_plugins(PluginsConfig(load=False)).registry
    stages = load_stages(config)
    for stage in stages:
        check_components(stage.config, registry)
    assert [stage.name for stage in stages] == ["domain", "task", "classify"]
    check_space(stages[-1].config, registry)
