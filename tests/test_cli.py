"""The command line: what it prints, what it starts, and the code it leaves with."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import tunecore
from tunecore import cli, terminal
from tunecore.config import PluginsConfig, RunConfig
from tunecore.config_io import load_config
from tunecore.errors import DataError
from tunecore.plugins import load_plugins
from tunecore.types import Prediction

RESULT = SimpleNamespace(
    steps=7, metrics={}, best_metric=0.9, best_path=Path("runs/x/step-5"), interrupted=False, seconds=61.2, exit_code=0
)


class FakeEngine:
    """Records what the command line asks of the engine."""

    calls: list[Any] = []
    result = RESULT
    error: BaseException | None = None

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.plugins = SimpleNamespace(registry=None)
        self.model = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder="t5" in str(config.model.checkpoint)))

    @classmethod
    def from_config(cls, config: RunConfig) -> FakeEngine:
        cls.calls.append(config)
        return cls(config)

    def _record(self, *call: Any) -> None:
        if self.error is not None:
            raise self.error
        self.calls.append(call)

    def run(self) -> Any:
        self._record("run")
        return self.result

    def evaluate(self, data: list[str]) -> dict[str, Any]:
        self._record("evaluate", data)
        return {"loss": 0.51234, "rows": 8, "confusion_matrix": [[1, 2], [3, 4]]}

    def predict(self, rows: list[Any]) -> list[Prediction]:
        self._record("predict", rows)
        return [Prediction("pos", 0.75, {"pos": 0.75, "neg": 0.25}, i) for i, _ in enumerate(rows)]

    def generate(self, prompts: list[str], **options: Any) -> list[str]:
        self._record("generate", prompts, options)
        return [" and so on"] * len(prompts)


@pytest.fixture
def tune(fresh_environment, monkeypatch, tmp_path, capsys):
    """``tune(words, stdin=...)`` runs the command in an empty folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for console in (terminal.out, terminal.err):  # whichever test imported them first, in a narrower terminal
        monkeypatch.setattr(console, "_width", 200)
    monkeypatch.setitem(vars(tunecore), "Engine", FakeEngine)  # without loading the real one to put it back
    monkeypatch.setattr(FakeEngine, "calls", [])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main() sets it; put it back

    def tune(*words: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as left:
            cli.main(words)
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return tune


COMMANDS = [
    "pretrain", "finetune", "search", "run", "evaluate", "predict", "generate", "report", "init", "schema", "demo",
    "doctor", "plugins",
]  # fmt: skip


def test_the_help_names_every_command(tune):
    code, out, _ = tune("--help")
    assert code == 0 and all(f" {command} " in out for command in COMMANDS) and "--debug" in out


@pytest.mark.parametrize("command", [*COMMANDS, "plugins list", "plugins check"])
def test_every_command_explains_itself(tune, command):
    code, out, _ = tune(*command.split(), "--help")
    assert code == 0 and f"Usage: tunecore {command}" in out


def test_the_version(tune):
    assert tune("--version")[:2] == (0, f"tunecore {tunecore.__version__}\n")


@pytest.mark.parametrize("kind", ["pretrain", "finetune", "search", "run"])
def test_init_writes_a_file_that_starts(tune, kind):
    code, out, _ = tune("init", "new/run.yaml", "--kind", kind)
    assert code == 0 and f"tunecore {kind} new/run.yaml" in out
    text = Path("new/run.yaml").read_text()
    assert text.startswith("# A run of tunecore.") and "# Peak learning rate" in text
    code, out, _ = tune(kind, "new/run.yaml", "--set", "training.seed=5", "-s", "output_dir=there")
    assert code == 0
    assert out.splitlines() == [
        "finished at step 7 after 0:01:01; the run is in there", "best checkpoint: runs/x/step-5 (0.9000)",
    ]  # fmt: skip
    config, run = FakeEngine.calls
    assert run == ("run",) and config.training.seed == 5 and config.output_dir == "there"
    assert config == load_config("new/run.yaml", ["training.seed=5", "output_dir=there"])


def test_init_overwrites_only_when_told(tune):
    Path("run.yaml").write_text("mine")
    code, _, err = tune("init")
    assert code == 2 and "run.yaml is already there" in err and "--force" in err
    assert Path("run.yaml").read_text() == "mine"
    assert tune("init", "--force")[0] == 0
    assert yaml.safe_load(Path("run.yaml").read_text())["objectives"] == {"masked_lm": 1.0, "next_sentence": 1.0}


def test_run_takes_a_file_of_any_kind(tune):
    for kind in ("pretrain", "finetune", "search"):
        tune("init", "--kind", kind, "--force")
        assert tune("run", "run.yaml")[0] == 0
        assert FakeEngine.calls[-2:] == [load_config("run.yaml"), ("run",)]


def test_stages_and_trials_are_told(tune, monkeypatch):
    tune("init", "--kind", "run")
    stages = [
        SimpleNamespace(name="adapt", skipped=True, result=RESULT),
        SimpleNamespace(name="last", skipped=False, result=SimpleNamespace(**{**vars(RESULT), "best_metric": None})),
    ]
    best = SimpleNamespace(number=3, params={"training.epochs": 2})
    more = {"stages": stages, "best": best, "trials": (1, 2), "metrics": {"test/f1": 0.5, "test/labels": ["a"]}}
    monkeypatch.setattr(FakeEngine, "result", SimpleNamespace(**{**vars(RESULT), **more}))
    assert tune("run", "run.yaml")[1].splitlines() == [
        "stage adapt: was done (0.9000)", "stage last: done", "best of 2 trials: 3 (training.epochs=2)",
        "finished at step 7 after 0:01:01; the run is in runs/road", "best checkpoint: runs/x/step-5 (0.9000)",
        "test/f1 0.5000",
    ]  # fmt: skip


FILES_OF_OTHERS = [
    (command, other)
    for command in ("pretrain", "finetune", "search")
    for other in ("pretrain", "finetune", "search", "run")
    if command != other
]


@pytest.mark.parametrize(("command", "other"), FILES_OF_OTHERS)
def test_a_file_of_the_other_kind_is_named(tune, command, other):
    tune("init", "--kind", other)
    code, _, err = tune(command, "run.yaml")
    assert code == 2 and f"It is a file for `tunecore {other}`." in err
    assert FakeEngine.calls == []


def test_a_mistake_is_one_line_without_a_traceback(tune):
    Path("run.yaml").write_text("objectives: {masked_lm: 1}\ntraining: {lerning_rate: 1}\n")
    code, out, err = tune("pretrain", "run.yaml")
    assert code == 2 and out == ""
    assert err == "error: run.yaml: training.lerning_rate is not an option; did you mean learning_rate?\n"
    code, _, err = tune("pretrain", "run.yaml", "--set", "training.steps")
    assert code == 2 and "Traceback" not in err


def test_brackets_in_a_message_are_printed_as_they_are(tune, monkeypatch):
    monkeypatch.setattr(FakeEngine, "error", DataError("label [red] unseen, known: [/]"))
    assert tune("evaluate", "m", "d.csv") == (2, "", "error: label [red] unseen, known: [/]\n")


@pytest.mark.parametrize("place", [0, 2, 4])
def test_debug_anywhere_shows_the_traceback(tune, monkeypatch, place):
    words = ["pretrain", "none.yaml", "--set", "training.steps=3"]
    words.insert(place, "--debug")
    monkeypatch.delenv(cli.DEBUG_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    try:
        with pytest.raises(tunecore.TunecoreError, match="no such file"):
            cli.main(words)
    finally:
        os.environ.pop(cli.DEBUG_VARIABLE, None)


def test_debug_behind_two_dashes_is_a_text(tune):
    assert tune("predict", "m", "--", "--debug")[0] == 0
    assert FakeEngine.calls[1] == ("predict", ["--debug"])


@pytest.mark.parametrize("code", [130, 143])
def test_an_interrupted_run_says_how_to_go_on_and_leaves_with_the_signal(tune, monkeypatch, code):
    tune("init")
    stopped = SimpleNamespace(**{**vars(RESULT), "interrupted": True, "exit_code": code, "best_path": None})
    monkeypatch.setattr(FakeEngine, "result", stopped)
    left, out, _ = tune("pretrain", "run.yaml")
    assert left == code
    assert out == "stopped at step 7 after 0:01:01; the run is in runs/pretrain\nthe same command resumes it\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_before_the_training_has_its_code_and_no_traceback(tune, monkeypatch, number, code):
    tune("init")
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(FakeEngine, "run", lambda self: os.kill(os.getpid(), number))
    ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    left, _, told = tune("pretrain", "run.yaml")
    signal.signal(signal.SIGINT, ctrl_c)
    assert (left, told) == (code, "interrupted; the same command goes on from what is saved\n")
    assert signal.getsignal(signal.SIGTERM) is before


def test_only_the_first_rank_speaks(tune, monkeypatch):
    tune("init")
    monkeypatch.setenv("RANK", "1")
    assert tune("pretrain", "run.yaml")[:2] == (0, "")


def test_ctrl_c_outside_a_run_is_130(tune, monkeypatch):
    monkeypatch.setattr(FakeEngine, "error", KeyboardInterrupt())
    assert tune("evaluate", "m", "d.csv") == (130, "", "interrupted\n")


def test_a_file_that_may_not_be_written_is_a_mistake_not_a_crash(tune):
    Path("file").write_text("")
    code, _, err = tune("init", "file/run.yaml")
    assert code == 2 and err.startswith("error: ") and "file" in err


def test_evaluate_prints_scalars_or_everything(tune):
    code, out, _ = tune("evaluate", "runs/ft", "a.csv", "b.csv", "--set", "training.max_tokens=64")
    assert (code, out) == (0, "loss  0.5123\nrows  8\n")
    assert FakeEngine.calls[0] == load_config({"model": {"checkpoint": "runs/ft"}, "training": {"max_tokens": 64}})
    assert FakeEngine.calls[1] == ("evaluate", ["a.csv", "b.csv"])
    assert json.loads(tune("evaluate", "m", "a.csv", "--json")[1])["confusion_matrix"] == [[1, 2], [3, 4]]


def test_predict_takes_texts_or_lines(tune):
    assert tune("predict", "m", "a fine\tfilm", "b")[:2] == (0, "pos\t0.7500\ta fine film\npos\t0.7500\tb\n")
    code, out, _ = tune("predict", "m", "--json", stdin="one\n\ntwo\n")
    assert code == 0
    assert [json.loads(line)["input"] for line in out.splitlines()] == ["one", "two"]
    assert json.loads(out.splitlines()[0])["scores"] == {"pos": 0.75, "neg": 0.25}
    assert FakeEngine.calls[-1] == ("predict", ["one", "two"])


def test_predict_prints_tags_of_words_and_what_else_a_head_says(tune, monkeypatch):
    entities = [{"type": "per", "text": "Ada"}]
    said = Prediction(["B-per", "O"], details={"entities": entities})
    monkeypatch.setattr(FakeEngine, "predict", lambda self, rows: [said])
    assert tune("predict", "m", "Ada lives")[1] == "B-per O\t\tAda lives\n"
    found = json.loads(tune("predict", "m", "--json", "Ada lives")[1])
    assert found["label"] == ["B-per", "O"] and found["entities"] == entities and found["score"] is None


def test_predict_reads_rows_of_a_file(tune, monkeypatch):
    registry = load_plugins(PluginsConfig(load=False)).registry
    engine = FakeEngine.from_config

    def with_registry(config):
        made = engine(config)
        made.plugins.registry = registry
        return made

    monkeypatch.setattr(FakeEngine, "from_config", with_registry)
    Path("rows.csv").write_text("text,text_pair\nhello,there\n")
    assert tune("predict", "m", "--file", "rows.csv")[:2] == (0, "pos\t0.7500\thello | there\n")
    assert FakeEngine.calls[-1] == ("predict", [{"text": "hello", "text_pair": "there"}])
    Path("rows.other").write_text("Ada\n")
    options = ("--set", "data.sources={conll: {suffixes: [.other]}}")
    assert tune("predict", "m", "--file", "rows.other", *options)[0] == 0
    assert FakeEngine.calls[-1] == ("predict", [{"tokens": ["Ada"]}])
    Path("empty.csv").write_text("text\n")
    code, _, err = tune("predict", "m", "--file", "empty.csv")
    assert code == 2 and "empty.csv" in err


def test_predict_without_anything_to_predict_says_so(tune):
    code, _, err = tune("predict", "m")
    assert code == 2 and "no text is given" in err
    code, _, err = tune("predict", "m", "a", "--file", "b.csv")
    assert code == 2 and "both given" in err


DRAWING = {"do_sample": None, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 0}


def test_generate_passes_its_options(tune):
    assert tune("generate", "m", "Once", "--max-new-tokens", "9")[:2] == (0, "Once and so on\n")
    assert FakeEngine.calls[-1][:2] == ("generate", ["Once"])
    plain = {**DRAWING, "max_new_tokens": 9, "num_beams": 1, "length_penalty": 1.0, "repetition_penalty": 1.0}
    assert FakeEngine.calls[-1][2] == plain
    _, out, _ = tune("generate", "m", "--sample", "--temperature", "0.7", "--json", stdin="Once\n")
    assert json.loads(out) == {"prompt": "Once", "text": " and so on"}
    assert FakeEngine.calls[-1][2] == {**plain, "max_new_tokens": 50, "do_sample": True, "temperature": 0.7}
    tune("generate", "m", "x", "--top-k", "5", "--top-p", "0.9", "--seed", "3", "--num-beams", "2")
    given = {"top_k": 5, "top_p": 0.9, "seed": 3, "num_beams": 2}
    assert FakeEngine.calls[-1][2] == {**plain, "max_new_tokens": 50, **given}
    assert tune("generate", "m", "x", "--max-new-tokens", "0")[0] == 2


def test_the_answer_of_an_encoder_decoder_does_not_repeat_the_question(tune):
    assert tune("generate", "some-t5", "Once")[1] == " and so on\n"


def test_on_a_terminal_text_appears_as_it_is_written(tune, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def write(self: FakeEngine, prompts: list[str], *, on_text: Any, **options: Any) -> list[str]:
        for place in range(len(prompts)):
            for piece in (" and", " so on"):
                on_text(place, piece)
        return []

    monkeypatch.setattr(FakeEngine, "generate", write)
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    tune("generate", "m", "Once", "Twice")
    assert screen.getvalue() == "Once and so on\nTwice and so on\n"


def test_the_schema_is_json_with_the_builtin_options(tune):
    code, out, _ = tune("schema")
    assert code == 0 and "mask_rate" in json.loads(out)["$defs"]["objective.masked_lm"]["properties"]
    code, said, _ = tune("schema", "-o", "run.schema.json")
    assert Path("run.schema.json").read_text() == out
    assert "yaml-language-server: $schema=run.schema.json" in said


@pytest.fixture
def two_plugins(tmp_path_factory, monkeypatch):
    """One good and one broken plugin, installed."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / "cli_good.py").write_text(
        "import tunecore\n@tunecore.hookimpl\ndef tunecore_register_strategies(register):\n"
        "    register('calm', lambda options: None)\n"
    )
    (folder / "cli_bad.py").write_text("import no_such_module_xyz\n")
    for name in ("good", "bad"):
        info = folder / f"cli_{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: cli-{name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[tunecore.plugins]\n{name} = cli_{name}\n")
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.mark.usefixtures("two_plugins")
def test_plugins_list_shows_all_and_why_one_would_not_load(tune, monkeypatch):
    monkeypatch.setenv("TUNECORE_DISABLE_PLUGINS", "cli-bad")
    code, out, _ = tune("plugins", "list")
    rows = {line.split()[0]: line for line in out.splitlines()[1:]}
    assert code == 0 and {"builtin", "good", "bad"} <= rows.keys()
    assert "cli-good 1.0" in rows["good"] and rows["good"].rstrip().endswith("yes")
    assert "no: blocked by TUNECORE_DISABLE_PLUGINS" in rows["bad"]
    listed = json.loads(tune("plugins", "list", "--json")[1])
    good = {"name": "good", "distribution": "cli-good", "version": "1.0", "value": "cli_good"}
    assert {**good, "loads": True, "reason": ""} in listed
    monkeypatch.setenv("TUNECORE_DISABLE_PLUGINS", "cli-bat")
    assert "warning: TUNECORE_DISABLE_PLUGINS names 'cli-bat'" in tune("plugins", "list")[2]


@pytest.mark.usefixtures("two_plugins")
def test_plugins_check_tells_good_from_broken(tune):
    code, out, _ = tune("plugins", "check")
    assert code == 1
    assert "ok     plugin 'good' (cli-good 1.0)\n         strategy calm\n" in out
    assert "broken plugin 'bad' (cli-bad 1.0)\n" in out and "No module named 'no_such_module_xyz'" in out
    assert tune("plugins", "check", "cli-good")[0] == 0
    code, _, err = tune("plugins", "check", "absent")
    assert code == 2 and "no plugin 'absent' is installed" in err


@pytest.mark.usefixtures("two_plugins")
def test_plugins_check_tries_components_when_asked(tune):
    code, out, _ = tune("plugins", "check", "good", "--contract")
    assert code == 1 and "broken plugin 'good' (cli-good 1.0)\n         strategy calm\n" in out
    assert "strategy calm: AssertionError: " in out, "its factory makes None, which is no Strategy"


def test_the_command_starts_without_torch_and_lists_without_importing(two_plugins):
    code = (
        "import sys; from tunecore.cli import main\n"
        "try: main(['plugins', 'list'])\n"
        "finally: sys.exit(3 if {'torch', 'transformers', 'cli_good', 'cli_bad'} & sys.modules.keys() else 0)\n"
    )
    path = os.pathsep.join([str(two_plugins), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cli-good" in done.stdout


def test_python_dash_m_is_the_command():
    root = Path(tunecore.__file__).parents[1]
    words = [sys.executable, "-m", "tunecore", "pretrain", "no-such-run.yaml"]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no-such-run.yaml: there is no such file")
