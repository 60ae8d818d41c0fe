"""Times a fine-tuning run from its start to its last optimizer step, ours and that of transformers' Trainer alike."""

from __future__ import annotations

import time

from transformers import TrainerCallback

import tunecore


class Stopwatch:
    """A plugin of ours."""

    def __init__(self):
        self.start = self.last = 0.0

    @tunecore.hookimpl
    def tunecore_run_start(self, run):
        self.start = time.perf_counter()

    @tunecore.hookimpl
    def tunecore_step_end(self, run, metrics):
        self.last = time.perf_counter()


class TrainerStopwatch(TrainerCallback):
    """A callback of the Trainer."""

    def on_train_begin(self, *args, **kwargs):
        self.start = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        self.last = time.perf_counter()
