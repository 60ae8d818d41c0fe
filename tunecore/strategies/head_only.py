"""Head-only fine-tuning: the model is a fixed reader, and only what sits on top of it learns.

What learns: the parameters under ``family.layers(model).heads`` (pooler, classifier, prediction head) and those of
objectives' and heads' own modules. All others are frozen: no gradient, no decay, no optimizer state, and no backward
pass below the head. Embeddings that a prediction head shares stay frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from tunecore.errors import ConfigError
from tunecore.registry import NoOptions
from tunecore.types import Family, ParamPlan, Progress

NAME = "head_only"


class HeadOnly:
    """The strategy ``head_only``: freezes everything below the heads, for the whole run."""

    name = NAME

    def __init__(self, options: NoOptions) -> None:
        self.options = options
        self._below: frozenset[str] = frozenset()

    def prepare(self, model: PreTrainedModel, family: Family) -> PreTrainedModel:
        """Note which parameters lie below the heads; the model stays as it is."""
        heads = family.layers(model).heads
        self._below = frozenset(name for name, _ in model.named_parameters() if not name.startswith(heads))
        return model

    def plan(self, plans: Mapping[str, ParamPlan], progress: Progress) -> Mapping[str, ParamPlan]:
        """Freeze what lies below the heads.

        Raises:
            ConfigError: nothing would be left to learn.
        """
        if plans and self._below.issuperset(plans):
            raise ConfigError(
                f"strategy {NAME} leaves nothing to train: this model has no head",
                hint="Fine-tune with a head, or use the strategy full.",
            )
        return {name: replace(plan, trainable=False) for name, plan in plans.items() if name in self._below}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore: what is frozen follows from the model."""
