"""Layer-wise learning rates: the head learns at the run's rate, each layer below at a fixed share of the one above.

Howard and Ruder 2018 (ULMFiT's discriminative fine-tuning, arXiv:1801.06146), who divide by 2.6 from layer to layer
(a decay of 0.38); Clark et al. 2020 (ELECTRA, arXiv:2003.10555) took 0.8 for base and 0.9 for large models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel

from tunecore.errors import ConfigError
from tunecore.strategies.depth import Depths
from tunecore.types import Family, ParamPlan, Progress

NAME = "layerwise_lr_decay"


@dataclass(frozen=True, kw_only=True)
class LayerwiseLRDecayOptions:
    """Options of layerwise_lr_decay."""

    decay: float = 0.9
    """Rate of a layer relative to the one above it: the top block has ``decay``, the embeddings of a model of L blocks
    ``decay`` to the power of L + 1."""

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise ConfigError(f"{NAME}.decay is {self.decay}; it must be above 0 and at most 1")


class LayerwiseLRDecay:
    """The strategy ``layerwise_lr_decay``."""

    name = NAME

    def __init__(self, options: LayerwiseLRDecayOptions) -> None:
        self.options = options
        self._depths: Depths | None = None

    def prepare(self, model: PreTrainedModel, family: Family) -> PreTrainedModel:
        """Count the layers; the model stays as it is."""
        self._depths = Depths(family.layers(model))
        return model

    def plan(self, plans: Mapping[str, ParamPlan], progress: Progress) -> Mapping[str, ParamPlan]:
        """Scale the rate of everything below the heads by its distance from them."""
        assert self._depths is not None
        scales = [self.options.decay ** (self._depths.head - depth) for depth in range(self._depths.head + 1)]
        return {n: replace(p, lr_scale=p.lr_scale * scales[self._depths.of(n)]) for n, p in plans.items()}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore: the rates follow from the model."""
