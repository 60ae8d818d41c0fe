"""Full fine-tuning: every parameter learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from tunecore.registry import NoOptions
from tunecore.types import Family, ParamPlan, Progress

NAME = "full"


class Full:
    """The strategy ``full``: changes no plan, and refuses those that freeze."""

    name = NAME
    conflicts = ("head_only", "gradual_unfreezing", "freeze_layers")

    def __init__(self, options: NoOptions) -> None:
        self.options = options

    def prepare(self, model: PreTrainedModel, family: Family) -> PreTrainedModel:
        return model

    def plan(self, plans: Mapping[str, ParamPlan], progress: Progress) -> Mapping[str, ParamPlan]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""
