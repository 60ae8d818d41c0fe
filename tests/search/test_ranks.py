"""Two processes started by torchrun share every step of a stage and of a trial; one of them asks and tells."""

import json
import os
import subprocess
import sys

import small_world as small


def test_a_road_with_a_search_on_two_ranks(world):
    folder = world()
    stages = [dict(stage) for stage in small.ROAD["stages"][1:]]
    stages[-1]["search"] = {"space": small.SPACE, "trials": 2, "pruner": "median"}
    config = json.dumps({**small.ROAD, "stages": stages})
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, *launcher, small.__file__, str(folder), config], env=environment, capture_output=True,
        text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    trials = json.loads((folder / "road/classify/trials.json").read_text())["trials"]
    assert [t["state"] for t in trials] == ["complete"] * 2
    for number in range(2):
        rows = [json.loads(line) for line in (folder / f"road/classify/trial-{number}/metrics.jsonl").open()]
        assert [row["step"] for row in rows if "eval/accuracy" in row] == [3, 6], "each trial was trained once"
    result = json.loads((folder / "result").read_text())
    assert not result["interrupted"] and 0 <= result["metrics"]["test/accuracy"] <= 1
    tests = [json.loads(line) for line in (folder / "road/classify/metrics.jsonl").open()]
    assert len(tests) == 1
