"""What a trial tries: optuna's samplers, with draws that are a function of (seed, trial, parameter) alone.

A sampler of optuna goes on with one generator from trial to trial, so what it draws depends on how often the process
was started anew. Here each draw has a generator of its own, and what is tried depends on the finished trials and the
seed, not on the processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tunecore.config_search import Choices, Parameter, SearchConfig
from tunecore.data.streams import derive_key

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial


def suggest(trial: Any, name: str, parameter: Parameter) -> None:
    """Draw a parameter of a trial of optuna, unless the trial has it already."""
    if isinstance(parameter, Choices):
        trial.suggest_categorical(name, parameter.labels)
    elif parameter.is_whole:
        low, step = int(parameter.low), 1 if parameter.step is None else int(parameter.step)
        high = low + (int(parameter.high) - low) // step * step
        trial.suggest_int(name, low, high, step=step, log=parameter.log)
    else:
        trial.suggest_float(name, parameter.low, parameter.high, step=parameter.step, log=parameter.log)


def grid_point(parameters: Mapping[str, Parameter], number: int) -> dict[str, Any]:
    """The labels of the ``number``-th combination; the last parameter turns fastest."""
    point: dict[str, Any] = {}
    for name, parameter in reversed(list(parameters.items())):
        assert isinstance(parameter, Choices), "a grid has lists only (config_search)"
        number, place = divmod(number, len(parameter.labels))
        point[name] = parameter.labels[place]
    return {name: point[name] for name in parameters}


def make_sampler(optuna: Any, search: SearchConfig, seed: int) -> BaseSampler:
    """The sampler a search asks for."""
    make = optuna.samplers.RandomSampler if search.sampler == "random" else optuna.samplers.TPESampler
    parameters = search.parameters

    class Sampler(optuna.samplers.BaseSampler):
        """Hands each draw to a fresh sampler of optuna, seeded for it."""

        def _fresh(self, trial: FrozenTrial, purpose: str) -> BaseSampler:
            word = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")
            made: BaseSampler = make(seed=derive_key(seed, trial.number, word) % 2**32)
            return made

        def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
            return {} if search.sampler == "grid" else self._fresh(trial, "").infer_relative_search_space(study, trial)

        def sample_relative(
            self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
        ) -> dict[str, Any]:
            return self._fresh(trial, "together").sample_relative(study, trial, search_space) if search_space else {}

        def sample_independent(
            self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
        ) -> Any:
            if search.sampler == "grid":
                return grid_point(parameters, trial.number)[param_name]
            fresh = self._fresh(trial, f"parameter {param_name}")
            return fresh.sample_independent(study, trial, param_name, param_distribution)

    return Sampler()
