"""LoRA: a product of two thin matrices is learnt beside each chosen weight, which itself stays as it is.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685); with ``use_dora`` also the
weights' magnitudes (Liu et al. 2024, arXiv:2402.09353), with ``use_rslora`` scaled by the root of the rank
(Kalajdzievski 2023, arXiv:2312.03732).
"""

from __future__ import annotations

from dataclasses import dataclass

from tunecore.errors import ConfigError
from tunecore_peft.peft_strategy import AdapterOptions, Adapters

NAME = "lora"


@dataclass(frozen=True, kw_only=True)
class LoraOptions(AdapterOptions):
    """Options of lora."""

    r: int = 8
    """Rank of the product."""
    alpha: float = 16.0
    """The product is scaled by alpha / r."""
    dropout: float = 0.0
    """Dropout of what goes into the product."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) instead."""
    use_dora: bool = False
    """Learn the magnitudes of the weights, too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r < 1 or not self.alpha > 0:
            raise ConfigError(f"{NAME}.r is {self.r} and alpha {self.alpha}; both must be greater than 0")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"{NAME}.dropout is {self.dropout}; it must be at least 0 and below 1")


class Lora(Adapters):
    """The strategy ``lora``."""

    name = NAME

    def __init__(self, options: LoraOptions) -> None:
        config = {
            "r": options.r, "lora_alpha": options.alpha, "lora_dropout": options.dropout,
            "use_rslora": options.use_rslora, "use_dora": options.use_dora,
        }  # fmt: skip
        super().__init__(options, NAME, config)
