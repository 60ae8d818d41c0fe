"""Custom ops whose plain calls go around torch's dispatcher.

An op of ``torch.library`` is seen by all that looks at operators: ``torch.compile``, fake tensors, dispatch modes and
the profiler. For that a call passes through Python three times, which takes 50 us, and 200 to 300 us after a matrix
product has emptied the caches, forward and backward alike. Most calls of a training are watched by nobody: they reach
the same function by an ``autograd.Function``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

_MODES: Callable[[], int] | None = getattr(torch._C, "_len_torch_dispatch_stack", None)
_TRANSFORMS: Callable[[], bool] | None = getattr(torch._C, "_are_functorch_transforms_active", None)
_PROFILED: Callable[[], bool] | None = getattr(torch.autograd, "_profiler_enabled", None)
"""Of torch's own, undocumented: where one is gone, every call goes through the dispatcher."""


class KernelOp:
    """A custom op of torch, made by :func:`kernel_op`; called as its function is, positionally."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self._function = function
        self._custom = torch.library.custom_op(name, mutates_args=())(function)
        namespace, short = name.split("::")
        self._dispatched = getattr(getattr(torch.ops, namespace), short).default
        self._name = short
        self._node: Any = None

    def register_fake(self, fake: Callable[..., Any]) -> Callable[..., Any]:
        """As that of ``torch.library.custom_op``."""
        self._custom.register_fake(fake)
        return fake

    def register_autograd(
        self, backward: Callable[..., Any], *, setup_context: Callable[..., None]
    ) -> None:
        """As that of ``torch.library.custom_op``."""
        self._custom.register_autograd(backward, setup_context=setup_context)
        function = self._function

        def forward(ctx: Any, *args: Any) -> Any:
            output = function(*args)
            setup_context(ctx, args, output)
            return output

        members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        self._node = type(self._name, (torch.autograd.Function,), members)

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling() or _is_watched() or not all(map(_is_plain, args)):
            return self._dispatched(*args)
        if self._node is None or not torch.is_grad_enabled():
            return self._function(*args)
        return self._node.apply(*args)


def kernel_op(name: str) -> Callable[[Callable[..., Any]], KernelOp]:
    """Make a function of tensors and plain numbers, none of which it changes or returns, the op ``name``."""
    return lambda function: KernelOp(name, function)


def _is_watched() -> bool:
    """Whether a dispatch mode, a transform of functorch or the profiler is to see operators."""
    if _MODES is None or _TRANSFORMS is None or _PROFILED is None:
        return True
    return bool(_MODES() or _TRANSFORMS() or _PROFILED())


def _is_plain(x: Any) -> bool:
    """Whether an argument is a tensor with memory and of no subclass, or none at all."""
    return not isinstance(x, Tensor) or (type(x) in (Tensor, Parameter) and not x.is_meta)
