"""Chosen layers or parameters stay as they are, for the whole run.

Frozen lower blocks keep most of the quality for a part of the cost (Lee et al. 2019, "What Would Elsa Do? Freezing
Layers During Transformer Fine-Tuning", arXiv:1911.03090). With ``parameters: ["*"]`` and ``keep: ["*bias"]`` only
biases learn: BitFit (Ben Zaken et al. 2022, arXiv:2106.10199).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from transformers import PreTrainedModel

from tunecore.errors import ConfigError
from tunecore.strategies.depth import EMBEDDINGS, Depths
from tunecore.types import Family, ParamPlan, Progress

NAME = "freeze_layers"


@dataclass(frozen=True, kw_only=True)
class FreezeLayersOptions:
    """Options of freeze_layers."""

    layers: tuple[int | str, ...] | None = None
    """What stays as it is: "embeddings", "head", a block's number from the input up from 0 (-1 is the top one), or a
    range of them, both ends included: "0-5", "6-" (to the top). None is the embeddings, unless ``parameters`` says
    something."""
    parameters: tuple[str, ...] = ()
    """And parameters by name, with the wildcards * ? [abc]: "*.LayerNorm.*"."""
    keep: tuple[str, ...] = ()
    """Parameters that learn all the same, by name with the same wildcards."""

    def __post_init__(self) -> None:
        for name in ("layers", "parameters", "keep"):
            if isinstance(getattr(self, name), str | int):
                object.__setattr__(self, name, (getattr(self, name),))
        if self.layers is None:
            object.__setattr__(self, "layers", () if self.parameters else ("embeddings",))
        if not self.layers and not self.parameters:
            raise ConfigError(f"{NAME} names neither layers nor parameters, so nothing would be frozen")


class FreezeLayers:
    """The strategy ``freeze_layers``."""

    name = NAME
    conflicts = ("full",)

    def __init__(self, options: FreezeLayersOptions) -> None:
        self.options = options
        self._depths: Depths | None = None
        self._frozen_depths: frozenset[int] = frozenset()
        self._frozen: frozenset[str] | None = None

    def prepare(self, model: PreTrainedModel, family: Family) -> PreTrainedModel:
        """Look the layers up; the model stays as it is.

        Raises:
            ConfigError: a layer that is not there.
        """
        self._depths = depths = Depths(family.layers(model))
        named = self.options.layers or ()
        self._frozen_depths = frozenset(depth for item in named for depth in _depths_of(item, depths))
        self._frozen = None
        return model

    def plan(self, plans: Mapping[str, ParamPlan], progress: Progress) -> Mapping[str, ParamPlan]:
        """Freeze what the options name.

        Raises:
            ConfigError: a pattern matches no parameter, or nothing would be left to learn.
        """
        if self._frozen is None:
            self._frozen = self._chosen(list(plans))
        return {name: replace(plans[name], trainable=False) for name in self._frozen}

    def _chosen(self, names: list[str]) -> frozenset[str]:
        assert self._depths is not None
        options = self.options
        matched = {pattern: _matching(pattern, names) for pattern in (*options.parameters, *options.keep)}
        for pattern, found in matched.items():
            if not found:
                raise ConfigError(
                    f"strategy {NAME}: the pattern {pattern!r} matches no parameter",
                    hint=f"Patterns are whole names, such as {names[0]!r}, with the wildcards * ? [abc].",
                )
        frozen = {name for name in names if self._depths.of(name) in self._frozen_depths}
        frozen = frozen.union(*(matched[pattern] for pattern in options.parameters))
        frozen = frozen.difference(*(matched[pattern] for pattern in options.keep))
        if len(frozen) == len(names):
            raise ConfigError(f"strategy {NAME} leaves nothing to train", hint="Freeze less, or name some to keep.")
        return frozenset(frozen)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore: what is frozen follows from the options."""


def _matching(pattern: str, names: list[str]) -> set[str]:
    return {name for name in names if fnmatchcase(name, pattern)}


def _depths_of(item: int | str, depths: Depths) -> list[int]:
    """The depths that one item of ``layers`` names."""
    if item in ("embeddings", "head"):
        return [EMBEDDINGS if item == "embeddings" else depths.head]
    blocks = depths.num_blocks
    if isinstance(item, str):
        first, dash, last = item.partition("-")
        if not first.isdecimal() or not (last.isdecimal() or not last):
            raise ConfigError(f'{NAME}.layers has {item!r}; it takes "embeddings", "head", numbers and ranges "0-5"')
        end = int(first) if not dash else int(last) if last else blocks - 1
        numbers = range(int(first), end + 1)
        inside = bool(numbers) and end < blocks
    else:
        numbers, inside = range(item % blocks, item % blocks + 1), -blocks <= item < blocks
    if not inside:
        raise ConfigError(f"{NAME}.layers names {item!r}; this model has {blocks} blocks, 0 to {blocks - 1}")
    return [number + 1 for number in numbers]
