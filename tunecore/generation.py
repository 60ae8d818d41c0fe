"""How text is written: greedily, by beam search, or by drawing. The names are those of transformers' ``generate``.

The options of heads that generate build on :class:`GenerationOptions`, and ``Engine.generate`` takes the same names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from tunecore.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Options of generation."""

    owner: ClassVar[str] = "generation"

    max_new_tokens: int | None = None
    """Longest answer in tokens, without those of the prompt; None is max_length (half of it in models of one stack)."""
    min_new_tokens: int = 0
    """The end token is not written before so many tokens."""
    num_beams: int = 1
    """Beams of the search; 1 takes the likeliest token each time."""
    length_penalty: float = 1.0
    """With beams: scores are divided by length to this power; above 1 favours long answers."""
    early_stopping: bool = False
    """With beams: stop as soon as there are ``num_beams`` whole answers."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens that stand there already less likely."""
    no_repeat_ngram_size: int = 0
    """No run of so many tokens is written twice; 0 allows any."""
    do_sample: bool | None = None
    """Draw tokens instead of taking the likeliest; None does so where temperature, top_k or top_p says so."""
    temperature: float = 1.0
    """Drawing: below 1 is sharper, above flatter; 0 takes the likeliest token."""
    top_k: int = 0
    """Drawing: from so many of the likeliest tokens only; 0 from all."""
    top_p: float = 1.0
    """Drawing: from the likeliest tokens that have this probability together (nucleus sampling)."""
    seed: int = 0
    """Drawing: fixes the draws; those of a row do not depend on the rows around it."""

    def __post_init__(self) -> None:
        low = {"min_new_tokens": 0, "num_beams": 1, "no_repeat_ngram_size": 0, "temperature": 0, "top_k": 0}
        if self.max_new_tokens is not None:
            low["max_new_tokens"] = 1
        for name, least in low.items():
            value = getattr(self, name)
            if not least <= value < math.inf:
                raise ConfigError(f"{self.owner}.{name} is {value}; it must be at least {least}")
        if not 0 < self.repetition_penalty < math.inf:
            raise ConfigError(f"{self.owner}.repetition_penalty is {self.repetition_penalty}; it must be above 0")
        if not math.isfinite(self.length_penalty):
            raise ConfigError(f"{self.owner}.length_penalty is {self.length_penalty}; it must be a finite number")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"{self.owner}.top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.samples and self.num_beams > 1:
            raise ConfigError(
                f"{self.owner}: beams and drawing are both asked for",
                hint="Keep num_beams: 1 to draw, or leave do_sample, temperature, top_k and top_p out.",
            )

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn."""
        asked = self.temperature != 1.0 or self.top_k > 0 or self.top_p < 1.0
        return self.temperature > 0 and (asked if self.do_sample is None else self.do_sample)

    def for_transformers(self) -> dict[str, Any]:
        """Arguments of transformers' ``generate``; drawing is ours (:mod:`tunecore.training.generation`)."""
        found: dict[str, Any] = {"do_sample": False, "num_beams": self.num_beams}
        if self.num_beams > 1:
            found |= {"length_penalty": self.length_penalty, "early_stopping": self.early_stopping}
        if self.min_new_tokens:
            found["min_new_tokens"] = self.min_new_tokens
        if self.repetition_penalty != 1.0:
            found["repetition_penalty"] = self.repetition_penalty
        if self.no_repeat_ngram_size:
            found["no_repeat_ngram_size"] = self.no_repeat_ngram_size
        return found


def split_options(
    given: Mapping[str, Any], base: GenerationOptions | None = None
) -> tuple[GenerationOptions, dict[str, Any]]:
    """Part keyword arguments into options, laid over ``base``, and what else transformers' ``generate`` may know.

    Raises:
        ConfigError: an option is out of range.
    """
    known = {field.name for field in fields(GenerationOptions)}
    ours = {name: value for name, value in given.items() if name in known}
    others = {name: value for name, value in given.items() if name not in known}
    return replace(base or GenerationOptions(), **ours), others
