"""Which number format weights have while training: bf16 where the hardware computes in it, else fp32."""

from __future__ import annotations

import functools
import re
import warnings
from pathlib import Path

import torch

from tunecore.errors import ConfigError

_CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Names under which Linux lists bf16 arithmetic: x86 AVX-512 and AMX, and Arm."""


@functools.cache
def cpu_computes_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU has bf16 arithmetic; without it bf16 products are several times slower than fp32."""
    if not cpuinfo.exists():
        return False
    listed = re.findall(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
    return any(_CPU_FLAGS & set(line.split()) for line in listed)


def computes_bf16(device: torch.device) -> bool:
    """Whether ``device`` has bf16 arithmetic of its own (emulation does not count)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return cpu_computes_bf16()


def weight_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Map ``training.precision`` to the dtype of the weights on ``device``.

    Raises:
        ConfigError: the precision is not one of auto, fp32, bf16.
    """
    if precision == "fp32":
        return torch.float32
    if precision == "auto":
        return torch.bfloat16 if computes_bf16(device) else torch.float32
    if precision == "bf16":
        if not computes_bf16(device):
            warnings.warn(
                f"training.precision is bf16, but {device.type} has no bf16 arithmetic: expect it to be several times "
                "slower than fp32 (precision: auto chooses by the hardware)",
                stacklevel=2,
            )
        return torch.bfloat16
    raise ConfigError(f"training.precision is {precision!r}; it must be auto, fp32 or bf16")
