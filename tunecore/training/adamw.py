"""torch's AdamW, with its step on our kernel where that serves: clip, update and rounding in one pass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tunecore.ops import _cuda, _native
from tunecore.ops.adamw import AdamWTensor, adamw_step


class KernelAdamW(torch.optim.AdamW):
    """``torch.optim.AdamW``: its state, its groups, its :meth:`step`; and :meth:`scaled_step`, the same in one pass."""

    @torch.no_grad()
    def scaled_step(self, scale: float, weights: Mapping[Tensor, Tensor]) -> bool:
        """One step on gradients times ``scale``, the new masters also rounded into their weights.

        Args:
            scale: of every gradient (clipping).
            weights: master -> the bfloat16 weight that follows it; masters that are weights themselves are left out.

        Returns: whether it was done. If not, nothing was changed: a tensor is on another device or of another dtype,
        or there are no kernels for it.
        """
        moved = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        if not all(self._served(p, weights.get(p)) for params in moved for p in params):
            return False
        for group, params in zip(self.param_groups, moved, strict=True):
            if params:
                self._step_group(group, params, scale, weights)
        return True

    def _served(self, master: Tensor, weight: Tensor | None) -> bool:
        served = _native.serves(master) or _cuda.serves(master)
        if not served or master.dtype != torch.float32 or not master.is_contiguous():
            return False
        assert master.grad is not None
        if master.grad.dtype != torch.float32 or not (master.grad.layout == torch.strided or _is_of_rows(master.grad)):
            return False
        return weight is None or (weight.dtype == torch.bfloat16 and weight.is_contiguous())

    def _step_group(
        self, group: dict[str, Any], params: list[Tensor], scale: float, weights: Mapping[Tensor, Tensor]
    ) -> None:
        (beta1, beta2), rate, decay, eps = (group[name] for name in ("betas", "lr", "weight_decay", "eps"))
        states = [self._state_of(p) for p in params]
        torch._foreach_add_([state["step"] for state in states], 1)
        tensors = []
        for p, state in zip(params, states, strict=True):
            t = float(state["step"])
            assert p.grad is not None
            gradient, rows = _parts(p.grad)
            one = AdamWTensor(
                p, gradient, state["exp_avg"], state["exp_avg_sq"], weights.get(p),
                keep=1 - rate * decay, step_size=rate / (1 - beta1**t), root=1 / math.sqrt(1 - beta2**t),
                rows=rows,
            )  # fmt: skip
            tensors.append(one)
        adamw_step(tensors, beta1=beta1, beta2=beta2, eps=eps, scale=scale)

    def _state_of(self, p: Tensor) -> dict[str, Tensor]:
        """The state of a parameter, made as torch makes it before the first step."""
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(p, memory_format=torch.contiguous_format)
            state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.contiguous_format)
        return state


def _parts(gradient: Tensor) -> tuple[Tensor, Tensor | None]:
    """A gradient as :class:`AdamWTensor` takes it: its elements, and the rows they are of."""
    if not gradient.is_sparse:
        return gradient.contiguous(), None
    return gradient.values(), gradient.indices()[0]


def _is_of_rows(gradient: Tensor) -> bool:
    """Whether it is what the kernel of the CPU takes: a row of a matrix each, each once."""
    return gradient.is_sparse and gradient.is_coalesced() and gradient.sparse_dim() == 1 and gradient.ndim == 2
