"""Fine-tune everything above the embeddings: they were learned from far more text than a task has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tunecore.types import ParamPlan, Progress


@dataclass(frozen=True)
class FreezeEmbeddingsOptions:
    """Options of freeze_embeddings."""

    until: float = 1.0
    """Share of the run after which the embeddings learn too; 1 keeps them frozen."""


class FreezeEmbeddings:
    """The strategy ``freeze_embeddings``."""

    name = "freeze_embeddings"

    def __init__(self, options: FreezeEmbeddingsOptions) -> None:
        self.options = options
        self.prefixes: tuple[str, ...] = ()

    def prepare(self, model: Any, family: Any) -> Any:
        self.prefixes = family.layers(model).embeddings
        return model

    def plan(self, plans: Mapping[str, ParamPlan], progress: Progress) -> Mapping[str, ParamPlan]:
        if self.options.until < 1 and progress.step >= self.options.until * progress.total_steps:
            return {}
        return {n: replace(p, trainable=False) for n, p in plans.items() if n.startswith(self.prefixes)}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore: what is frozen follows from the progress of the run."""
