"""The contract of fine-tuning strategies: which parameters learn, how fast, and when.

The names can be had from ``tunecore.types`` too. No torch is needed at run time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunecore.types import Family, Progress


@dataclass(frozen=True, slots=True)
class ParamPlan:
    """How one parameter is trained. ``weight_decay`` None leaves the run's rule (none on norms and biases)."""

    trainable: bool = True
    lr_scale: float = 1.0
    weight_decay: float | None = None


@runtime_checkable
class Strategy(Protocol):
    """A way of fine-tuning: which parameters learn, how fast, and when. Strategies compose in a list.

    Optional members:

    - ``conflicts: tuple[str, ...]``, names of strategies that it cannot share a run with.
    - ``bind(make)``, called once before ``prepare`` where it makes others by name: ``make(item) -> Strategy`` reads a
      name or {name: options} and raises ConfigError.
    - ``observe(metrics, progress)``, called after each step with the step's metrics (``loss``, ``loss/<name>``,
      ``accuracy/<name>``, ``grad_norm``, ``skipped`` ...; of a step that is left out some are NaN) and after each
      evaluation with its results as ``eval/<name>``. All ranks see the same numbers, and no times are among them.
      What it remembers must be in ``state_dict``. Plans and the rate are asked for anew afterwards.
    - ``multiplier(progress) -> float``, a factor of the learning rate of the coming step, beside the schedule's; those
      of several strategies multiply.
    - ``export(model, tensors) -> tensors``, where ``prepare`` changed the model's parameters: the tensors of the model
      as ``prepare`` found it (adapters merged), from all those of the model as it is, by name; both fp32. A tensor
      whose name stays must stay as it is. Called for each checkpoint; it must change neither model nor tensors.
    - ``restore(model) -> model``, then called at the end of a run: gives the model its former parameters back, whose
      values are then set to what ``export`` returned.
    """

    name: str

    def prepare(self, model: PreTrainedModel, family: Family) -> PreTrainedModel:
        """Called once before the optimizer is made and before a checkpoint is resumed; may wrap or change the model.
        Torch's generator is seeded from the run's seed for as long as it lasts.
        """
        ...

    def plan(self, plans: Mapping[str, ParamPlan], progress: Progress) -> Mapping[str, ParamPlan]:
        """Return changed plans by parameter name; called before the first step and after each."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart, as JSON."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave; called after ``prepare``."""
        ...
