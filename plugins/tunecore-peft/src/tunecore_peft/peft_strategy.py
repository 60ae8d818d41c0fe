"""Any adapter of the library peft by its type: ia3, loha, lokr, oft, boft, hra, fourierft, ln_tuning and others.

The adapters and the heads learn; the model below stays as it is, without gradients or optimizer state. A checkpoint has
both the plain model with the adapters merged into it, which transformers loads, and the adapters to go on from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from tunecore.errors import ConfigError
from tunecore.types import ParamPlan, Progress
from tunecore_peft.adapters import inject, make_config, merged, take_out

NAME = "peft"


@dataclass(frozen=True, kw_only=True)
class AdapterOptions:
    """What every kind of adapter has."""

    target_modules: tuple[str, ...] | None = None
    """Modules below the heads that get an adapter: the ends of their names (query), globs of whole names
    (*.layer.1?.*.query), or all-linear; None is the library's choice for the model's type."""
    train: tuple[str, ...] = ()
    """Further parameters that learn, by name with the wildcards * ? [abc]; heads always do."""

    def __post_init__(self) -> None:
        for name in ("target_modules", "train"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, (getattr(self, name),))
        if self.target_modules is not None and not self.target_modules:
            raise ConfigError("target_modules is empty; leave it out for the library's choice")


@dataclass(frozen=True, kw_only=True)
class PeftOptions(AdapterOptions):
    """Options of peft."""

    type: str = "ia3"
    """Kind of adapter, by peft's name."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Fields of that kind's config: {r: 8} of loha, for one."""


class Adapters:
    """What ``lora`` and ``peft`` share."""

    name: str = ""
    conflicts = ("full", "head_only", "lora", "peft")

    def __init__(self, options: AdapterOptions, kind: str, config: Mapping[str, Any]) -> None:
        self.options = options
        self._kind, self._config = kind, config
        make_config(self.name, kind, config)  # so that a wrong option is said before any file is read
        self._adapters: frozenset[str] = frozenset()
        self._heads: tuple[str, ...] = ()
        self._below: frozenset[str] = frozenset()
        self._frozen: frozenset[str] | None = None

    def prepare(self, model: Any, family: Any) -> Any:
        """Put the adapters in.

        Raises:
            ConfigError: a target is not there, or cannot have one.
        """
        self._heads = family.layers(model).heads
        targets = self.options.target_modules
        config = make_config(self.name, self._kind, self._config)
        self._adapters = frozenset(inject(self.name, model, config, targets, self._heads))
        self._below = frozenset(name for name, _ in model.named_parameters() if not name.startswith(self._heads))
        self._frozen = None
        return model

    def plan(self, plans: Mapping[str, ParamPlan], progress: Progress) -> Mapping[str, ParamPlan]:
        """Freeze what is neither adapter nor head.

        Raises:
            ConfigError: a pattern of ``train`` matches no parameter.
        """
        if self._frozen is None:
            self._frozen = self._below - self._adapters - self._trained(list(plans))
        return {name: replace(plan, trainable=False) for name, plan in plans.items() if name in self._frozen}

    def _trained(self, names: Sequence[str]) -> set[str]:
        trained: set[str] = set()
        for pattern in self.options.train:
            found = {name for name in names if fnmatchcase(name, pattern)}
            if not found:
                raise ConfigError(f"{self.name}.train: the pattern {pattern!r} matches no parameter")
            trained |= found
        return trained

    def export(self, model: Any, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        """The plain model's tensors, the adapters merged into them."""
        return merged(model, tensors)

    def restore(self, model: Any) -> Any:
        """The plain model."""
        take_out(model)
        return model

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore: the adapters are parameters of the model."""


class Peft(Adapters):
    """The strategy ``peft``."""

    name = NAME

    def __init__(self, options: PeftOptions) -> None:
        super().__init__(options, options.type, options.config)
