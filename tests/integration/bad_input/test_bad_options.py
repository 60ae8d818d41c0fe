"""Run files that cannot be run: one line of stderr that names the option and the way out, exit code 2, no traceback."""

from __future__ import annotations

import io
import re
import sys
import warnings

import pytest

from tunecore import cli

pytestmark = pytest.mark.timeout(60)

LAUGHS = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
RUN = """
output_dir: {folder}/run
model: {{family: bert, size: tiny}}
tokenizer: {{path: {tokenizer}}}
data: {{train: {text}, max_length: 32, eval_fraction: 0}}
objectives: {{masked_lm: 1.0}}
training: {{steps: 2, batch_size: 4, threads: 1}}
tracking: {{progress: false, report: false}}
"""


@pytest.fixture
def command(tmp_path, capsys, monkeypatch):
    """``command(*words)`` runs the command line in this process: (exit code, stderr)."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    def run(*words):
        with pytest.raises(SystemExit) as left:
            cli.main(words)
        return left.value.code, capsys.readouterr().err

    return run


FILES = {
    "a control character": ("head: a\x07b", r"run.yaml: .*line 1, column 8 the character #x0007 is not allowed"),
    "NUL bytes": ("\0\0\0", r"run.yaml: .*line 1, column 1 the character #x0000 is not allowed"),
    "lists nested too deep": ("head: " + "[" * 2_000, r"run.yaml: .*nested too deep"),
    "maps nested too deep": ("head: " + "{a: " * 2_000, r"run.yaml: .*nested too deep"),
    "a billion laughs": (f"a0: &a0 x\n{LAUGHS}", r"run.yaml: .*aliases"),
    "a billion laughs in an option": (
        f"model: {{overrides: {{{LAUGHS.replace(chr(10), ', ').replace('*a0', 'x')}}}}}",
        r"run.yaml: .*aliases",
    ),
    "an anchor inside itself": ("model: {overrides: &a {b: *a}}", r"run.yaml: .*aliases"),
    "a merge of itself": ("model: &a\n  <<: *a\n", r"run.yaml: .*"),
    "an alias without an anchor": ("head: *gone", r"run.yaml: line 1, column 7 found undefined alias 'gone'"),
    "a python object": ("head: !!python/object/new:os.system [ls]", r"line 1, column 7 could not determine a constr"),
    "a python name": ("head: !!python/name:os.system", r"line 1, column 7 could not determine a constructor"),
    "a python module": ("head: !!python/module:os", r"line 1, column 7 could not determine a constructor"),
    "another tag": ("head: !run {}", r"line 1, column 7 could not determine a constructor"),
    "no int": ("training: {steps: !!int x}", r"run.yaml: line 1, column 19 'x' is no int"),
    "no float": ("training: {learning_rate: !!float x}", r"run.yaml: .*'x'"),
    "no bool": ("model: {gradient_checkpointing: !!bool x}", r"run.yaml: .*'x'"),
    "no date": ("head: 2024-99-99", r"run.yaml: line 1, column 7 '2024-99-99' is no timestamp"),
    "no time": ("head: !!timestamp x", r"run.yaml: .*'x'"),
    "a date": ("head: 2024-01-01", r"run.yaml: head is datetime.date\(2024, 1, 1\); a date cannot be kept"),
    "bytes": ("head: !!binary aGVhZA==", r"run.yaml: head is b'head'; a bytes cannot be kept"),
    "a set": ("data: {train: !!set {a, b}}", r"run.yaml: data.train is .*; a set cannot be kept"),
    "a key that is a list": ("? [a]\n: b", r"run.yaml: line 1, column 3 found unhashable key"),
    "a tab before a key": ("training:\n\tsteps: 1", r"run.yaml: line 2, column 1 found character '\\t'"),
    "two documents": ("a: 1\n---\nb: 2\n", r"run.yaml: line 2, column 1 but found another document"),
    "a number of many digits": (
        "training: {steps: " + "9" * 5000 + "}",
        r"run.yaml: line 1, column 19 '9{40}' is no int",
    ),
    "a lone surrogate": ('head: "\\ud800"', r"run.yaml: head is '\\ud800': a lone surrogate"),
    "a private key": ("_attn_implementation_internal: evil/kernel", r"_attn_implementation_internal is not an option"),
    "a dunder key": ("model: {__class__: x}", r"run.yaml: model.__class__ is not an option"),
    "code in a model": ("model: {trust_remote_code: true}", r"model.trust_remote_code is not an option"),
    "no kind of run": ("output_dir: a", r"the config has neither objectives nor a head.*masked_lm"),
}


def assert_told(answer, message):
    """One line of stderr and exit code 2."""
    code, told = answer
    assert code == 2, told
    assert "Traceback" not in told
    assert re.search(message, told, re.DOTALL), told


@pytest.mark.parametrize("case", FILES)
def test_a_run_file_that_is_wrong_is_told_in_one_line(command, tmp_path, case):
    content, message = FILES[case]
    (tmp_path / "run.yaml").write_bytes(content.encode())
    assert_told(command("run", str(tmp_path / "run.yaml")), message)


OPTIONS = {
    "no model": ("model={}", r"neither model.family nor model.checkpoint is set|a tokenizer is trained"),
    "family and checkpoint": ("model.checkpoint=a", r"model.family and model.checkpoint are both set"),
    "a checkpoint that is not there": ("model={checkpoint: gone}", r"'gone' is not a folder.*config.json"),
    "a tokenizer that is not there": ("tokenizer.path=gone", r"tokenizer 'gone': no such file or folder"),
    "a lexicon that is not there": ("data={train: [{text}], segmenter: lexicon, lexicon: gone}", r"gone"),
    "an output_dir with a NUL": (r'output_dir="a\0b"', r"output_dir is 'a\\x00b', which is no name"),
    "an empty output_dir": ('output_dir=""', r"output_dir is '', which is no name of a folder"),
    "an output_dir that is a file": ("output_dir={text}", r"output_dir .* is a file"),
    "an output_dir below a file": ("output_dir={text}/run", r"topics.txt.*(Not a directory|File exists)"),
    "a cache that is a file": ("data.cache_dir={text}", r"corpus .*: cannot be written"),
    "an unknown device": ("training.device=tpu", r"training.device is 'tpu'"),
    "a GPU that is not there": ("training.device=cuda:99", r"training.device"),
    "threads below one": ("training.threads=0", r"training.threads is 0; it must be greater than 0"),
    "a seed too large": (
        "training.seed=99999999999999999999999",
        r"training.seed is 9+; it must be a number of 64 bits",
    ),
    "more threads than any machine has": (
        "training.threads=1000000",
        r"training.threads is 1000000; it must be at most",
    ),
    "more workers than the machine can have": (
        "data.num_workers=1000000",
        r"data.num_workers is 1000000; this machine",
    ),
    "a rate too large": ("training.learning_rate=1e400", r"learning_rate is inf; it must be a finite number"),
    "a rate that overflows": ("training.learning_rate=1e300", r"after step 1 the weight .* is not saved"),
    "everything held out": ("data.eval_fraction=1.0", r"data.eval_fraction is 1.0; it must be at least 0 and below 1"),
    "a mask rate above one": ("objectives.masked_lm.mask_rate=1.5", r"mask_rate is 1.5"),
    "a width its heads do not divide": ("model.overrides.hidden_size=7", r"hidden size.*7.*attention heads"),
    "a width of zero": ("model.overrides.hidden_size=0", r"model.overrides"),
    "a negative width": ("model.overrides.hidden_size=-128", r"model.overrides"),
    "a width that fits no memory": ("model.overrides.hidden_size=1000000000000", r"model.overrides"),
    "a width that is a text": ("model.overrides.hidden_size=wide", r"model.overrides"),
    "an unknown field": ("model.overrides.hidden_sise=8", r"unknown field of BertConfig 'hidden_sise'.*hidden_size"),
    "an attention of its own": ("model.overrides._attn_implementation=eager", r"unknown field of BertConfig"),
    "kernels from elsewhere": ("model.overrides._attn_implementation_internal=a/b", r"unknown field of BertConfig"),
    "code of its own": ("model.overrides.auto_map={{AutoModel: x.Y}}", r"unknown field of BertConfig 'auto_map'"),
    "an activation nobody knows": ("model.overrides.hidden_act=evil", r"model.overrides"),
    "a length that fits no memory": ("data.max_length=1000000000000", r"model.overrides|data.max_length"),
    "an unknown size": ("model.size=huge", r"unknown model.size 'huge'; known: .*large"),
    "a metric nobody measures": ("evaluation={{metric: f7, every: 1}}", r"evaluation.metric", "data.eval_fraction=0.1"),
    "none kept": ("checkpoint.keep=0", r"checkpoint.keep is 0; it must be greater than 0"),
    "options of no reader": ("data.sources={{doc: {{}}}}", r"unknown source 'doc'; known: .*csv"),
    "a delimiter of two": ("data.sources={{csv: {{delimiter: ab}}}}", r"delimiter is 'ab'; it must be one character"),
    "an unknown encoding": ("data.sources={{conll: {{encoding: martian}}}}", r"conll.encoding 'martian' is unknown"),
    "an encoding that is code": ("data.sources={{conll: {{encoding: rot13}}}}", r"conll.encoding 'rot13' is unknown"),
    "two warm-ups": ("training.batch_size_start=2", r"batch_size_start and .*batch_size_warmup go together"),
    "a tracker nobody has": ("tracking.trackers=[bord]", r"tracking.trackers: unknown tracker 'bord'"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_an_option_that_cannot_be_is_told_in_one_line(command, tmp_path, tokenizer_dir, text_file, case):
    option, message, *more = OPTIONS[case]
    path = tmp_path / "run.yaml"
    path.write_text(RUN.format(folder=tmp_path, tokenizer=tokenizer_dir, text=text_file))
    given = option.replace("{text}", str(text_file)).replace("{{", "{").replace("}}", "}")
    assert_told(command("run", str(path), "--set", given, *(f"--set={one}" for one in more)), message)
