"""Two processes started by torchrun, as a user starts them: they train, evaluate, save, resume, and learn what one
process learns from the same rows."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

PROGRAM = """
import sys
from tunecore import Engine

text, tokenizer, output_dir, steps = sys.argv[1:]
dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
engine = Engine.from_scratch("bert", size="tiny", tokenizer=tokenizer, max_length=64, overrides=dropout)
engine.pretrain(
    text, objectives={"masked_lm": 1.0, "next_sentence": 0.5}, steps=int(steps), batch_size=6, seed=3,
    learning_rate=0.05, optimizer="sgd", schedule="constant", warmup=0, max_tokens=256, eval_fraction=0.05,
    evaluation={"every": 2, "max_rows": 20}, checkpoint={"every": 2}, output_dir=output_dir, progress=False,
    precision="fp32", report=False,
    strategies=[{"adaptive_lr": {"window": 1, "patience": 1, "threshold": 1e9, "factor": 0.9}}],  # falls every step
)
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory, text_file, tokenizer_dir):
    folder = tmp_path_factory.mktemp("ranks")
    program = folder / "program.py"
    program.write_text(PROGRAM)

    def start(name, steps, ranks):
        arguments = [str(program), str(text_file), str(tokenizer_dir), str(folder / name), str(steps)]
        if ranks == 1:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", arguments)
                runpy.run_path(str(program))
            return folder / name
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, *launcher, *arguments], env=environment, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return folder / name

    return start


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_two_ranks_train_evaluate_save_and_resume_like_one(start):
    one = start("one", 5, ranks=1)
    start("two", 3, ranks=2)
    two = start("two", 5, ranks=2)
    assert {"step-4", "step-5", "final"} <= {p.name for p in two.iterdir()}
    state = json.loads((two / "step-5" / "state.json").read_text())
    assert state["step"] == 5 and state["machine"]["ranks"] == 2
    ours, theirs = load_file(two / "final" / "model.safetensors"), load_file(one / "final" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-6, msg=name)
    before, after = rows(one), rows(two)
    assert before[-1]["step"] == after[-1]["step"] == 5
    evaluated = {r["step"]: r["eval/loss"] for r in before if "eval/loss" in r}
    again = {r["step"]: r["eval/loss"] for r in after if "eval/loss" in r}
    assert set(evaluated) <= set(again), "the shorter first run also evaluated at its end"
    for step, loss in evaluated.items():
        assert again[step] == pytest.approx(loss, rel=1e-4)
    tokens = [{r["step"]: r["tokens"] for r in part if "tokens" in r}[5] for part in (before, after)]
    assert tokens[0] == tokens[1]
