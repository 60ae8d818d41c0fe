"""The optimizer: fp32 masters under bf16 weights, groups made of per-parameter plans, state known by name.

A *master* is the fp32 tensor the optimizer changes. Where a weight is fp32 it is its own master; where it is bf16 the
master is kept beside it, made before the weight was rounded, and copied back after each step. Gradients are fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tunecore.errors import CheckpointError, ConfigError
from tunecore.ops.embedding import sum_rows
from tunecore.training.adamw import KernelAdamW
from tunecore.types import ParamPlan

MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
"""``make(param_groups) -> Optimizer``; every group has ``params``, ``lr`` and ``weight_decay``. An optimizer may have
``scaled_step`` as :class:`tunecore.training.adamw.KernelAdamW` has it."""

_HAS_GRAD_DTYPE = hasattr(torch.Tensor, "grad_dtype")
_WIDE = (torch.float32, torch.float64)


@dataclass(frozen=True)
class AdamWOptions:
    """Options of the ``adamw`` optimizer."""

    beta1: float = 0.9
    """Decay of the mean of gradients."""
    beta2: float = 0.999
    """Decay of the mean of squared gradients."""
    eps: float = 1e-8
    """Added to the root of the second mean."""

    def __post_init__(self) -> None:
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.eps > 0):
            raise ConfigError(
                f"optimizer adamw: beta1 {self.beta1}, beta2 {self.beta2} must be at least 0 and below 1, "
                f"eps {self.eps} greater than 0"
            )


@dataclass(frozen=True)
class SgdOptions:
    """Options of the ``sgd`` optimizer."""

    momentum: float = 0.0
    """Share of the last update that is kept."""
    nesterov: bool = False
    """Look one step of momentum ahead."""

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1 or (self.nesterov and self.momentum == 0):
            raise ConfigError(
                f"optimizer sgd: momentum is {self.momentum}; it must be at least 0 and below 1 (above 0 for nesterov)"
            )


def adamw(options: AdamWOptions) -> MakeOptimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101), fused."""
    betas = (options.beta1, options.beta2)
    return lambda groups: KernelAdamW(groups, betas=betas, eps=options.eps, fused=True)


def sgd(options: SgdOptions) -> MakeOptimizer:
    """Gradient descent with momentum."""
    return lambda groups: torch.optim.SGD(groups, momentum=options.momentum, nesterov=options.nesterov, fused=True)


OPTIMIZERS: dict[str, tuple[Callable[[Any], MakeOptimizer], type]] = {
    "adamw": (adamw, AdamWOptions),
    "sgd": (sgd, SgdOptions),
}
"""Name -> (factory, Options), as ``register(name, factory, Options)`` takes them."""


class OptimizerState(NamedTuple):
    """What the optimizer remembers: tensors as "<state>/<parameter>" and the JSON values among it likewise."""

    tensors: dict[str, Tensor]
    values: dict[str, float | int | bool | str]
    kind: str = ""
    """Class of the torch optimizer it is of; "" is not known."""


class MasterOptimizer:
    """An optimizer over named parameters that follows :class:`tunecore.types.ParamPlan`.

    Args:
        parameters: name -> parameter, each once, as :meth:`TrainUnit.parameters_by_name` gives them. Their data is
            cast to ``dtype`` in place, float64 (tests) and integers left alone; buffers are never touched.
        make: makes the torch optimizer of the masters from parameter groups.
        learning_rate: the peak rate.
        weight_decay: of parameters of two or more axes whose plan says nothing; norms and biases have none.
        dtype: of the weights in forward and backward: float32 or bfloat16.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        make: MakeOptimizer,
        *,
        learning_rate: float,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.parameters = dict(parameters)
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self._make = make
        self.base_plans = {name: ParamPlan(trainable=p.requires_grad) for name, p in self.parameters.items()}
        """What strategies start from; what was frozen when the optimizer was made (by a wrapper) stays so."""
        self.masters = {name: _split_master(p, dtype) for name, p in self.parameters.items()}
        """Name -> fp32 master; the parameter itself where that is fp32."""
        self._hooks: list[Any] = []  # keeps the handles of fallback hooks alive
        for name, parameter in self.parameters.items():
            self._widen_gradient(parameter, self.masters[name])
        self.plans: dict[str, ParamPlan] = {}
        self._base: torch.optim.Optimizer | None = None
        self._scale = 1.0  # of all gradients in the coming step
        self.apply(self.base_plans)

    # --- plans ---------------------------------------------------------------------------------------------

    def apply(self, plans: Mapping[str, ParamPlan]) -> bool:
        """Follow new plans; names left out keep the base plan. Returns whether anything changed.

        State of parameters that go on learning is kept; that of parameters now frozen is dropped.

        Raises:
            ConfigError: a plan for an unknown parameter, or no parameter is left to train.
        """
        unknown = sorted(set(plans) - set(self.parameters))
        if unknown:
            raise ConfigError(f"a plan names {unknown[0]!r}, which is no parameter of the model or its tasks")
        wanted = {name: plans.get(name, base) for name, base in self.base_plans.items()}
        if wanted == self.plans:
            return False
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, plan in wanted.items():
            parameter = self.parameters[name]
            parameter.requires_grad_(plan.trainable)
            if plan.trainable:
                groups.setdefault((plan.lr_scale, self._decay(name, plan)), []).append(self.masters[name])
            else:
                parameter.grad = None
        if not groups:
            raise ConfigError("the strategies leave no parameter to train")
        fresh = self._make(
            [
                {"params": params, "lr": self.learning_rate * scale, "lr_scale": scale, "weight_decay": decay}
                for (scale, decay), params in groups.items()
            ]
        )
        if self._base is not None:
            learning = {id(p) for params in groups.values() for p in params}
            fresh.state.update({p: s for p, s in self._base.state.items() if id(p) in learning})
        self._base, self.plans = fresh, wanted
        return True

    def _decay(self, name: str, plan: ParamPlan) -> float:
        if plan.weight_decay is not None:
            return plan.weight_decay
        return self.weight_decay if self.parameters[name].ndim >= 2 else 0.0

    @property
    def trainable(self) -> list[str]:
        """Names of the parameters that learn, in the model's order."""
        return [name for name, plan in self.plans.items() if plan.trainable]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Groups of the torch optimizer over the masters."""
        assert self._base is not None
        return self._base.param_groups

    # --- gradients -----------------------------------------------------------------------------------------

    def _widen_gradient(self, parameter: nn.Parameter, master: nn.Parameter) -> None:
        if master is parameter:
            return
        if _HAS_GRAD_DTYPE:
            parameter.grad_dtype = torch.float32
            return

        def move(weight: Tensor) -> None:
            grad = weight.grad
            if grad is not None:
                grad = grad.to_dense() if grad.is_sparse else grad
                master.grad = grad.float() if master.grad is None else master.grad.add_(grad)
                weight.grad = None

        learns = parameter.requires_grad
        parameter.requires_grad_(True)  # torch takes the hook of a parameter that is not frozen only
        self._hooks.append(parameter.register_post_accumulate_grad_hook(move))
        parameter.requires_grad_(learns)

    def gradients(self) -> dict[str, Tensor | None]:
        """Name -> fp32 gradient of each trainable parameter, None where no loss reached it; change them in place."""
        gradients = self._gathered()
        self._make_dense(gradients)
        return {name: gradients.get(name) for name in self.trainable}

    def _gathered(self) -> dict[str, Tensor]:
        """The gradients that there are, at the masters. One of a table that was only looked up may be sparse."""
        found = {}
        for name in self.trainable:
            parameter, master = self.parameters[name], self.masters[name]
            if parameter is not master and parameter.grad is not None:
                master.grad, parameter.grad = parameter.grad, None
            if master.grad is not None and master.grad.is_sparse:
                master.grad = sum_rows(master.grad)
            if master.grad is not None:
                found[name] = master.grad
        return found

    def _make_dense(self, gradients: dict[str, Tensor]) -> None:
        for name, gradient in gradients.items():
            if gradient.is_sparse:
                gradients[name] = self.masters[name].grad = gradient.to_dense()

    def set_gradient(self, name: str, gradient: Tensor) -> None:
        """Give a parameter a gradient that only other ranks have."""
        self.masters[name].grad = gradient

    def zero_grad(self) -> None:
        """Forget all gradients, and how the coming step was to clip them."""
        self._scale = 1.0
        for name, parameter in self.parameters.items():
            parameter.grad = None
            self.masters[name].grad = None

    def grad_norm(self) -> float:
        """Euclidean norm of all gradients together; NaN or inf where one of them is not finite."""
        grads = [g.values() if g.is_sparse else g for g in self._gathered().values()]
        if not grads:
            return 0.0
        return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)).double()))

    def clip(self, norm: float, max_norm: float) -> None:
        """Scale the gradients, whose norm is ``norm``, down to ``max_norm`` in the coming step; 0 does not clip."""
        scale = max_norm / (norm + 1e-6)
        self._scale = scale if max_norm > 0 and scale < 1 else 1.0

    # --- the step ------------------------------------------------------------------------------------------

    def step(self, multiplier: float) -> None:
        """One step at ``learning_rate * multiplier * lr_scale``; then weights follow masters, gradients go.

        A parameter without a gradient is left as it is: no decay, no momentum.
        """
        assert self._base is not None
        for group in self._base.param_groups:
            group["lr"] = self.learning_rate * multiplier * group["lr_scale"]
        gradients = self._gathered()
        if not self._step_in_one_pass(gradients):
            self._make_dense(gradients)
            if self._scale != 1.0:
                torch._foreach_mul_(list(gradients.values()), self._scale)
            self._base.step()
            self._round(list(gradients))
        self.zero_grad()

    def _step_in_one_pass(self, names: Iterable[str]) -> bool:
        """Clip, step and round at once, where the optimizer can; else change nothing and return False."""
        scaled_step = getattr(self._base, "scaled_step", None)
        if scaled_step is None:
            return False
        rounded = [name for name in names if self.parameters[name] is not self.masters[name]]
        return bool(scaled_step(self._scale, {self.masters[name]: self.parameters[name] for name in rounded}))

    @torch.no_grad()
    def _round(self, names: Sequence[str]) -> None:
        """Copy masters back into the weights that are not their own masters."""
        rounded = [name for name in names if self.parameters[name] is not self.masters[name]]
        if rounded:
            torch._foreach_copy_([self.parameters[n].data for n in rounded], [self.masters[n].data for n in rounded])

    # --- state ---------------------------------------------------------------------------------------------

    def full_state(self, module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
        """The state dict of ``module`` with fp32 masters for its parameters, tied names included."""
        masters = {id(p): self.masters[name] for name, p in self.parameters.items()}
        kept = module.state_dict(prefix=prefix, keep_vars=True)
        return {name: masters.get(id(value), value).detach() for name, value in kept.items()}

    @torch.no_grad()
    def load_full_state(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Set masters, weights and buffers of ``module`` from :meth:`full_state` tensors (names may be fewer)."""
        for name, value in self.full_state(module).items():
            if name in tensors:
                value.copy_(tensors[name])
        self._round(list(self.parameters))

    def state_dict(self) -> OptimizerState:
        """State by parameter name: "exp_avg/<parameter>", "step/<parameter>" ..."""
        assert self._base is not None
        tensors: dict[str, Tensor] = {}
        values: dict[str, float | int | bool | str] = {}
        for name in self.trainable:
            for key, value in self._base.state.get(self.masters[name], {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{key}/{name}"] = value.detach()
                elif value is not None:
                    values[f"{key}/{name}"] = value
        return OptimizerState(tensors, values, type(self._base).__name__)

    def check_state(self, state: OptimizerState) -> dict[str, dict[str, Any]]:
        """Sort a state by parameter and hold it against this optimizer; changes nothing.

        Raises:
            CheckpointError: it is of another optimizer, has an unknown or frozen parameter, a part of a parameter's
                state is missing, or a shape differs; the name is said.
        """
        kind = type(self._base).__name__
        if state.kind not in ("", kind):
            raise CheckpointError(f"the optimizer state is of another optimizer: {state.kind}, not {kind}")
        sorted_: dict[str, dict[str, Any]] = {}
        for full, value in (*state.tensors.items(), *state.values.items()):
            key, _, name = full.partition("/")
            if name not in self.plans:
                raise CheckpointError(f"the optimizer state has {full!r}, but no parameter is called {name!r}")
            if not self.plans[name].trainable:
                raise CheckpointError(f"the optimizer state has {full!r}, but that parameter is frozen at this step")
            shape = self.masters[name].shape
            # A factored state has fewer axes than its parameter; one with as many must have its shape.
            if isinstance(value, Tensor) and value.ndim == len(shape) > 0 and value.shape != shape:
                raise CheckpointError(
                    f"the optimizer state {full!r} has shape {tuple(value.shape)}, its parameter {tuple(shape)}"
                )
            sorted_.setdefault(name, {})[key] = value
        keys = {key for entry in sorted_.values() for key in entry}
        for name, entry in sorted_.items():
            if keys - entry.keys():
                raise CheckpointError(f"the optimizer state lacks {f'{min(keys - entry.keys())}/{name}'!r}")
        return sorted_

    def load_state_dict(self, state: OptimizerState) -> None:
        """Take a state by name.

        Raises:
            CheckpointError: as :meth:`check_state`; nothing was changed.
        """
        by_name = self.check_state(state)
        assert self._base is not None
        group = self._base.param_groups[0]
        counts_on_device = bool(group.get("fused") or group.get("capturable"))
        self._base.state.clear()
        for name, entry in by_name.items():
            master = self.masters[name]
            self._base.state[master] = {
                # torch keeps step counters on the CPU unless the optimizer is fused or capturable.
                key: value.to(master.device if counts_on_device or key != "step" else "cpu", copy=True)
                if isinstance(value, Tensor)
                else value
                for key, value in entry.items()
            }


def _split_master(parameter: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
    """Cast a parameter's data to ``dtype`` in place and return its fp32 master."""
    if not parameter.is_floating_point() or parameter.dtype == torch.float64:
        return parameter
    if dtype in _WIDE:
        parameter.data = parameter.data.to(dtype)
        return parameter
    master = nn.Parameter(parameter.detach().to(torch.float32, copy=True))
    parameter.data = parameter.data.to(dtype)
    return master
