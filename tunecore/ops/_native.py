"""The compiled core ``tunecore._C``: found, checked and loaded once; absent is a fallback, broken is an error."""

from __future__ import annotations

import importlib.util
import os
import warnings
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

# torch first: its OpenMP runtime must be the one in the process, and _C resolves libgomp to what is loaded.
import torch
import torch.utils.dlpack
from torch import Tensor

from tunecore.errors import NativeError

MODULE = "tunecore._C"
SWITCH = "TUNECORE_NO_NATIVE"
_PRESENT = importlib.util.find_spec(MODULE) is not None and os.environ.get(SWITCH) != "1"
CAPABILITIES = ("default", "avx2", "avx512", "avx512_bf16", "amx_bf16")
"""Instruction sets there are kernels for, each including those before it."""
"""A plain constant, so that a graph compiler can look at it."""


@dataclass(frozen=True, slots=True)
class NativeInfo:
    """What is known of the compiled core. ``reason`` says why it is not available, "" where it is."""

    available: bool
    path: str | None = None
    variants: tuple[str, ...] = ()
    """Instruction sets compiled in, of ``CAPABILITIES``."""
    capability: str | None = None
    """The instruction set in use (environment variable TUNECORE_CPU_CAPABILITY overrides)."""
    compiler: str | None = None
    openmp: int | None = None
    version: str | None = None
    reason: str = ""


def _open() -> tuple[ModuleType | None, str]:
    """The module and "", or None and why it is not there; NativeError where it is there and does not load."""
    if os.environ.get(SWITCH) == "1":
        return None, f"{SWITCH}=1 is set"
    spec = importlib.util.find_spec(MODULE)
    if spec is None:
        return None, "this installation has no tunecore._C (it was built without a C++ compiler)"
    rebuild = "Rebuild it with `TUNECORE_NATIVE=1 pip install -v .`, or set TUNECORE_NO_NATIVE=1 to do without."
    try:
        module = importlib.import_module(MODULE)
    except ImportError as error:
        raise NativeError(f"the compiled core {spec.origin} does not load: {error}", hint=rebuild) from error
    module.capability()  # reads TUNECORE_CPU_CAPABILITY now, so that a wrong value is an error here
    return module, ""


@lru_cache(maxsize=1)
def load() -> ModuleType | None:
    """The compiled core, or None with one visible warning where it is absent.

    Raises:
        NativeError: it is present but broken, or TUNECORE_CPU_CAPABILITY names what this machine has not.
    """
    module, reason = _open()
    if module is None:
        warnings.warn(
            f"tunecore runs without its compiled core: {reason}. The ops fall back to PyTorch and are several times "
            "slower; `python -m tunecore doctor` says what to do.",
            RuntimeWarning,
            stacklevel=2,
        )
    return module


def info() -> NativeInfo:
    """What is known of the compiled core; never warns, raises as ``load`` does."""
    module, reason = _open()
    if module is None:
        return NativeInfo(False, reason=reason)
    build: dict[str, Any] = module.build_info()
    return NativeInfo(
        True,
        path=module.__file__,
        variants=tuple(build["variants"]),
        capability=module.capability(),
        compiler=build["compiler"],
        openmp=build["openmp"],
        version=build["version"],
    )


def core() -> ModuleType:
    """The compiled core, where the caller knows that it is there (:func:`serves`)."""
    module = load()
    assert module is not None
    return module


def serves(x: Tensor) -> bool:
    """Whether the elementwise kernels take tensors like ``x``: float32 or bfloat16 on the CPU, and a core is there."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16):
        return False
    if not _PRESENT and not torch.compiler.is_compiling():
        load()  # warns
    return _PRESENT


def multiplies_bf16(x: Tensor) -> bool:
    """Whether products of ``x`` run on our GEMM of bfloat16: on a CPU with its arithmetic. No, where it is traced."""
    if x.dtype != torch.bfloat16 or torch.compiler.is_compiling() or not serves(x):
        return False
    module = load()
    return module is not None and module.capability() in ("avx512_bf16", "amx_bf16")


def rows(x: Tensor) -> Tensor:
    """A contiguous tensor [..., E] as [T, E]."""
    return x.view(x.shape[:-1].numel(), x.shape[-1])


def refuse_double_backward(op: str, why: str = "") -> None:
    """Raise NativeError inside a backward pass that is to be differentiated itself."""
    if torch.is_grad_enabled():
        raise NativeError(
            f"{op} has no second derivative{why and f': {why}'}",
            hint="Without create_graph=True the backward works; tunecore.ops.reference has a differentiable form.",
        )


def threads() -> int:
    """How many threads a kernel may use: torch's own setting at this moment."""
    return torch.get_num_threads()


def dl(x: Tensor | None) -> Any:
    """The DLPack capsule of a tensor (None for None), to be lent to one call of the core.

    A tensor that requires grad is refused, hence the detached one; detaching all would cost more than the capsule.
    """
    if x is None:
        return None
    return torch.utils.dlpack.to_dlpack(x.detach() if x.requires_grad else x)  # type: ignore[attr-defined]


def tune_allocator() -> bool:
    """Keep freed memory in the process instead of giving it back and faulting it in again each step.

    Returns whether it was done (on glibc, with native code); a workspace of the size of [V, E] costs 28 ms in page
    faults when fresh, 3 ms when reused.
    """
    module = load()
    return bool(module.tune_allocator()) if module is not None else False
