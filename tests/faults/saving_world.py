"""A real run of a tiny model that saves every two steps, and a program that stands before one of its saves and lets it
meet faults: it forks a child for each case, which goes on from there, and another that runs the same command again.

As a program, under ``failing_libc``: ``python saving_world.py FOLDER LIBRARY``; it tells the calls of a whole run, then
cases come and results go, all as JSON, one a line. The run's own code is what trains, saves and resumes.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "search"))

import small_world as small
import torch

import tunecore.runner
from tunecore import Engine, hookimpl
from tunecore.checkpoint import newest_good
from tunecore.config import PluginsConfig
from tunecore.config_io import load_config
from tunecore.errors import TunecoreError
from tunecore.plugins import load_plugins

RUN, PRISTINE, METRICS = "run", "pristine", "metrics.jsonl"
SAVES, STEPS = (2, 4, 6, 8), 8
STANDS_AT = 6
CONFIG: dict[str, Any] = {
    **small.COMMON,
    "output_dir": RUN,
    # RoBERTa has no layer for next_sentence, so that objectives.safetensors is there.
    "model": {**small.MODEL, "family": "roberta"},
    "objectives": {"masked_lm": 1.0, "next_sentence": 1.0},
    "strategies": [],
    "data": {"train": ["corpus.jsonl"], "max_length": 24},
    "training": {"steps": STEPS, "batch_size": 4, "learning_rate": 1e-2, "threads": 1},
    "evaluation": {"every": 2, "max_rows": 4},
}  # fmt: skip
CHECKED = ("final", f"step-{STEPS}", "step-6", "best", "result.json")
"""What a run comes to, byte for byte."""


def train(config: dict[str, Any] = CONFIG, *plugins: Any) -> Any:
    """Run, or resume, the world's run, in the folder this process is in."""
    return Engine(load_config(config), plugins=load_plugins(PluginsConfig(load=False), extra=plugins)).run()


def outcome_of(run: Callable[[], Any]) -> dict[str, Any]:
    """How a run ends: the kind of its error, whether it is one of tunecore's own, and the warnings."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            run()
            ended: dict[str, Any] = {"error": None, "typed": True, "message": ""}
        except BaseException as error:
            typed = isinstance(error, TunecoreError)
            message = str(error) if typed else traceback.format_exc()
            ended = {"error": type(error).__name__, "typed": typed, "message": message}
    return {**ended, "warnings": [str(w.message) for w in told if w.category is UserWarning]}


def state_of(run: Path) -> dict[str, bytes]:
    """The bytes of what the run came to."""
    found = {}
    for name in CHECKED:
        path = run / name
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            found[file.relative_to(run).as_posix()] = file.read_bytes()
    return found


def leftovers(run: Path) -> list[str]:
    """Unfinished files and folders."""
    return [p.relative_to(run).as_posix() for p in run.rglob(".*") if p.name.startswith((".tmp-", ".old-"))]


class Stand:
    """A plugin that, at one step, serves cases instead of going on; the child of a case goes on from there."""

    def __init__(self, library: ctypes.CDLL, folder: Path) -> None:
        self.library, self.folder = library, folder
        self.whole: dict[str, bytes] = {}
        self.serves = False

    @hookimpl
    def tunecore_step_end(self, run: Any) -> None:
        if run.step == STANDS_AT and self.serves:
            shutil.copytree(RUN, PRISTINE)
            os.link(Path(RUN, METRICS), METRICS)
            for line in sys.stdin:
                case = json.loads(line)
                result = self.serve(case)
                if not self.serves:
                    return
                print(json.dumps(result), flush=True)
            os._exit(0)

    def begin(self, at: int, action: int = 0, code: int = 0, lasting: bool = False, under: str = RUN) -> None:
        self.library.failing_begin(str(self.folder / under).encode(), at, action, code, int(lasting))

    def serve(self, case: dict[str, Any]) -> dict[str, Any]:
        """One case: the save with its fault, a look at the folder, and the same command again."""
        self.put_back()
        child = os.fork()
        if child == 0:
            self.serves = False
            self.begin(case["at"], case["action"], case["code"], case["lasting"])
            return {}
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        first = self._told()
        found, skipped = newest_good(Path(RUN))
        return {
            "exit": killed, "first": first, "newest": found and found.name, "skipped": [why for _, why in skipped],
            "again": self.again(), "other": self.other_bytes(), "leftovers": leftovers(Path(RUN)),
        }  # fmt: skip

    def put_back(self) -> None:
        """The folder as it was; of the metrics the very file, which the run has open."""
        shutil.rmtree(RUN)
        shutil.copytree(PRISTINE, RUN)
        Path(METRICS).write_bytes(Path(RUN, METRICS).read_bytes())
        Path(RUN, METRICS).unlink()
        os.link(METRICS, Path(RUN, METRICS))

    def again(self) -> dict[str, Any] | None:
        """The same command in a process of its own, on a disk that is well."""
        child = os.fork()
        if child == 0:
            self.serves = False
            self.begin(-1)
            self.tell(outcome_of(lambda: train(CONFIG, self)))
        os.waitpid(child, 0)
        return self._told()

    def other_bytes(self) -> list[str]:
        """Files that are not those of the whole run."""
        found = state_of(Path(RUN))
        return sorted(name for name in found.keys() | self.whole.keys() if found.get(name) != self.whole.get(name))

    def tell(self, outcome: dict[str, Any]) -> None:
        """End this child with its outcome."""
        outcome["calls"] = self.library.failing_count()
        outcome["log"] = self.library.failing_log().decode().splitlines()
        self.begin(-1)
        (self.folder / "told").write_text(json.dumps(outcome))
        os._exit(0)

    def _told(self) -> dict[str, Any] | None:
        path = self.folder / "told"
        if not path.exists():
            return None
        text = path.read_text()
        path.unlink()
        return json.loads(text)


def main(folder: Path, library: ctypes.CDLL) -> None:
    """Make the whole run, then stand in another and serve."""
    library.failing_log.restype = ctypes.c_char_p
    library.failing_count.restype = ctypes.c_long
    library.failing_begin.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_int]
    # Its writer is a thread, which a forked child would lack.
    tunecore.runner.tensorboard_installed = lambda: False
    os.chdir(folder)
    torch.set_num_threads(1)
    stand = Stand(library, folder)
    stand.begin(-1, under="")
    train(CONFIG, stand)
    print(json.dumps({"log": library.failing_log().decode().splitlines()}), flush=True)
    stand.whole, stand.serves = state_of(Path(RUN)), True
    shutil.rmtree(RUN)
    stand.begin(-1)
    stand.tell(outcome_of(lambda: train(CONFIG, stand)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), ctypes.CDLL(sys.argv[2]))
