"""Re-initialised top layers: the layers closest to the pretraining task start anew, as the model's class makes them.

Zhang et al. 2021, "Revisiting Few-sample BERT Fine-tuning" (arXiv:2006.05987): on small data the pooler and the top one
to five blocks, specialised in the pretraining task, are a worse start than random weights.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from tunecore.errors import ConfigError
from tunecore.types import Family, Layers, ParamPlan, Progress

NAME = "reinit_top_layers"


@dataclass(frozen=True, kw_only=True)
class ReinitTopLayersOptions:
    """Options of reinit_top_layers."""

    layers: int = 1
    """How many of the top blocks start anew."""
    pooler: bool = True
    """Also the pooler, where the model has one."""

    def __post_init__(self) -> None:
        if self.layers < 0:
            raise ConfigError(f"{NAME}.layers is {self.layers}; it must not be negative")
        if not self.layers and not self.pooler:
            raise ConfigError(f"{NAME}.layers is 0 and pooler is false, so nothing would start anew")


class ReinitTopLayers:
    """The strategy ``reinit_top_layers``; a run that resumes takes its weights from the checkpoint."""

    name = NAME
    at_start = True
    """Does its work before the first step, so it has no place in a later phase of ``mixed``."""

    def __init__(self, options: ReinitTopLayersOptions) -> None:
        self.options = options

    def prepare(self, model: PreTrainedModel, family: Family) -> PreTrainedModel:
        """Give the layers the weights of a new model of the same class and config, by torch's seeded generator.

        Raises:
            ConfigError: there are fewer blocks, nothing to start anew, or an adapter stands on one of the parameters.
        """
        prefixes = self._prefixes(family.layers(model))
        new = dict(type(model)(copy.deepcopy(model.config)).named_parameters())
        chosen = [(name, p) for name, p in model.named_parameters() if name.startswith(prefixes)]
        for name, _ in chosen:
            if name not in new:
                raise ConfigError(
                    f"strategy {NAME}: another strategy has changed the layers, a new model has no {name!r}",
                    hint=f"Put {NAME} before it in the list.",
                )
        with torch.no_grad():
            for name, parameter in chosen:
                parameter.copy_(new[name])
        return model

    def _prefixes(self, layers: Layers) -> tuple[str, ...]:
        wanted, blocks = self.options.layers, layers.blocks
        if wanted > len(blocks):
            raise ConfigError(f"{NAME}.layers is {wanted}; this model has {len(blocks)} blocks")
        top = [prefix for block in blocks[len(blocks) - wanted :] for prefix in block]
        poolers = [prefix for prefix in layers.heads if prefix.split(".")[-2] == "pooler"]
        if not top and not poolers:
            raise ConfigError(f"{NAME}.layers is 0 and this model has no pooler, so nothing would start anew")
        return (*top, *(poolers if self.options.pooler else ()))

    def plan(self, plans: Mapping[str, ParamPlan], progress: Progress) -> Mapping[str, ParamPlan]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore: the weights are those of the checkpoint."""
