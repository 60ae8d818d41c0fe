"""A step hook with a state: counts the useful tokens this process has seen, and says so from time to time."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from tunecore.types import PackedBatch

LOG_EVERY = 100
_log = logging.getLogger("tunecore_example")


class TokenCounter:
    """Lives in ``run.tracked``, so its state is in every checkpoint and a resumed run goes on counting."""

    def __init__(self) -> None:
        self.tokens = 0

    def add(self, batch: PackedBatch) -> None:
        self.tokens += batch.num_tokens

    def step_end(self, step: int, total_steps: int) -> None:
        if step % LOG_EVERY == 0 or step == total_steps:
            _log.info("step %d of %d: %d tokens seen", step, total_steps, self.tokens)

    def state_dict(self) -> dict[str, Any]:
        return {"tokens": self.tokens}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.tokens = int(state["tokens"])
