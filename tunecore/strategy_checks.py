"""What conformance checks of a strategy: plans, state, what it makes of a run's numbers, the model it saves."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from tunecore.models.families.builtin import FAMILIES
from tunecore.models.loading import seeded
from tunecore.tiny import make_model, make_tokenizer
from tunecore.training.plans import combine_plans, combined_multiplier, exported, observe, restored
from tunecore.types import ParamPlan, Progress

START, MIDDLE = Progress(0, 10, 0.0, 1.0), Progress(5, 10, 0.5, 1.0)
STEPS = 40


class StrategyChecks:
    """The checks of one strategy.

    Args:
        require: raises AssertionError with the message where the condition is false.
        require_json: raises it where a value is not JSON.
        make: makes another strategy like it.
    """

    def __init__(
        self, require: Callable[[bool, str], None], require_json: Callable[[Any, str], None], make: Callable[[], Any]
    ) -> None:
        self.require, self.require_json, self.make = require, require_json, make
        self.tokenizer, self.family = make_tokenizer(), FAMILIES["bert"]

    def run(self, strategy: Any) -> None:
        """All checks."""
        model, base = self._prepared(strategy)
        self._saved_model(strategy, model)
        self._plans(strategy, model, base)
        if hasattr(strategy, "observe") or hasattr(strategy, "multiplier"):
            self._feedback(strategy, base)

    def _prepared(self, one: Any) -> tuple[Any, dict[str, ParamPlan]]:
        with seeded(0):
            model = one.prepare(make_model(["sequence_classification"], self.tokenizer), self.family)
        self.require(isinstance(model, nn.Module), "prepare() must return the model")
        names = [name for name, _ in model.named_parameters()]
        return model, dict.fromkeys([*names, "tasks.other.weight"], ParamPlan())

    def _resumed(self, state: Any) -> tuple[Any, Any]:
        other = self.make()
        model, _ = self._prepared(other)
        other.load_state_dict(json.loads(json.dumps(state)))
        return other, model

    def _plans(self, strategy: Any, model: Any, base: Mapping[str, ParamPlan]) -> None:
        plans = [combine_plans(base, [strategy], at) for at in (START, START, MIDDLE)]
        self.require(plans[0] == plans[1], "plan() gives other plans when it is asked again at the same step")
        self.require(any(plan.trainable for plan in plans[0].values()), "nothing learns at the first step")
        state = strategy.state_dict()
        self.require_json(state, "state_dict()")
        resumed, other = self._resumed(state)
        again = combine_plans(base, [resumed], MIDDLE)
        self.require(again == plans[2], "after load_state_dict(state) it makes other plans")
        same = all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
        self.require(same, "prepare() gives other weights for the same seed; draw from torch's generator only")

    def _feedback(self, one: Any, base: Mapping[str, ParamPlan]) -> None:
        """What it makes of a run's numbers depends on these and on its state alone."""
        other, _ = self._resumed(one.state_dict())
        for half in (range(1, STEPS // 2 + 1), range(STEPS // 2 + 1, STEPS + 1)):
            for step in half:
                at = Progress(step, STEPS, step / STEPS, 1.0)
                for metrics in _measured(step):
                    for listener in (one, other):
                        observe([listener], metrics, at)
            state = one.state_dict()
            self.require_json(state, "state_dict()")
            self.require(state == other.state_dict(), "two of it that saw the same numbers have different states")
            other, _ = self._resumed(state)  # and goes on from a checkpoint
            said = [(combined_multiplier([s], at), combine_plans(base, [s], at)) for s in (one, other)]
            self.require(said[0] == said[1], "after load_state_dict(state) it makes other plans, or another rate")

    def _saved_model(self, strategy: Any, model: Any) -> None:
        """What is saved has the parameters of the plain model, and so has the model in the end."""
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        tensors = exported([strategy], model, model.state_dict())
        after = model.state_dict()
        kept = before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
        self.require(kept, "export() changed the model")
        plain = make_model(["sequence_classification"], self.tokenizer).state_dict()
        found = {name: tensor.shape for name, tensor in tensors.items()}
        wanted = {name: tensor.shape for name, tensor in plain.items()}
        self.require(found == wanted, "export() must give the tensors of the model as prepare() found it")
        for name in before.keys() & tensors.keys():
            self.require(torch.equal(before[name], tensors[name]), f"export() changed {name!r}, whose name stays")
        again = restored([strategy], copy.deepcopy(model))
        self.require(again.state_dict().keys() == wanted.keys(), "restore() must undo what prepare() changed")


def _measured(step: int) -> list[dict[str, float]]:
    """Metrics of a step whose loss falls, jumps once and falls on, and of an evaluation after every tenth."""
    loss = 3.0 if step == 25 else 1.0 / step
    measured = [{"loss": loss, "loss/x": loss, "accuracy/x": 0.5, "grad_norm": loss}]
    return [*measured, {"eval/loss": loss, "eval/accuracy": 0.5}] if step % 10 == 0 else measured
