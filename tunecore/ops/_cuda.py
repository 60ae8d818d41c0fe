"""The CUDA kernels, ``libtunecore_cuda.so``: found and held against this package once, called through its C entries.

Absent, of another version, or refused by the driver, it is a fallback to PyTorch with one visible warning. Nothing is
opened before torch sees a CUDA device. Structures mirror ``csrc/<op>/<op>_cuda.h``; the library gives their sizes.
"""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from collections.abc import Iterable
from ctypes import Structure, c_bool, c_char_p, c_float, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunecore.errors import NativeError
from tunecore.ops._attention_layout import Attention

LIBRARY = Path(__file__).parents[1] / "libtunecore_cuda.so"
SWITCH = "TUNECORE_NO_CUDA"
VERSION: str = sys.modules["tunecore"].__version__  # the package above loads the ops: an import would be a cycle
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""What the elementwise kernels take, and their number in the library."""
_DEVICES = ("cuda",)
_ready = False
"""Whether the library is loaded: a plain constant, so that a graph compiler can look at it."""
_library: ctypes.CDLL | None = None
_tried = False


class MaskedLmLoss(Structure):
    """MaskedLmLossParams, then what a GPU needs beside."""

    _fields_ = [
        ("logits", c_void_p), ("row_stride", c_int64), ("vocab", c_int64), ("bias", c_void_p), ("targets", c_void_p),
        ("loss", c_void_p), ("correct", c_void_p), ("label_smoothing", c_float), ("z_loss", c_float),
        ("gradient", c_bool), ("rows", c_int64), ("ignore_index", c_int64), ("device", c_int32), ("dtype", c_int32),
    ]  # fmt: skip


class ResidualNorm(Structure):
    """ResidualNormParams, then what a GPU needs beside."""

    _fields_ = [
        ("x", c_void_p), ("residual", c_void_p), ("input_bias", c_void_p), ("z", c_void_p), ("weight", c_void_p),
        ("bias", c_void_p), ("y", c_void_p), ("stats", c_void_p), ("dy", c_void_p), ("dz", c_void_p), ("dx", c_void_p),
        ("width", c_int64), ("eps", c_float), ("plain", c_bool), ("centred", c_bool), ("rng_key", c_uint64),
        ("site", c_uint32), ("drop_below", c_uint32), ("rng_key_at", c_void_p), ("rows", c_int64), ("sums", c_void_p),
        ("parts", c_void_p), ("device", c_int32), ("dtype", c_int32),
    ]  # fmt: skip


class BiasGelu(Structure):
    """BiasGeluParams, then what a GPU needs beside."""

    _fields_ = [
        ("x", c_void_p), ("bias", c_void_p), ("dout", c_void_p), ("out", c_void_p), ("width", c_int64),
        ("tanh", c_bool), ("rows", c_int64), ("dbias", c_void_p), ("parts", c_void_p), ("device", c_int32),
        ("dtype", c_int32),
    ]  # fmt: skip


class Dropout(Structure):
    """DropoutParams, then what a GPU needs beside."""

    _fields_ = [
        ("x", c_void_p), ("out", c_void_p), ("count", c_int64), ("rng_key", c_uint64), ("site", c_uint32),
        ("drop_below", c_uint32), ("rng_key_at", c_void_p), ("device", c_int32), ("dtype", c_int32),
    ]  # fmt: skip


class Embedding(Structure):
    """The gradient of a table from tokens sorted by id."""

    _fields_ = [
        ("dout", c_void_p), ("ids", c_void_p), ("order", c_void_p), ("dtable", c_void_p), ("parts", c_void_p),
        ("tokens", c_int64), ("width", c_int64), ("rows", c_int64), ("padding", c_int64), ("device", c_int32),
        ("dtype", c_int32),
    ]  # fmt: skip


class AdamWTensor(Structure):
    """One tensor of a step."""

    _fields_ = [
        ("weight", c_void_p), ("gradient", c_void_p), ("mean", c_void_p), ("square", c_void_p), ("rounded", c_void_p),
        ("count", c_int64), ("keep", c_float), ("step_size", c_float), ("root", c_float),
    ]  # fmt: skip


class AdamW(Structure):
    """The list of tensors and what they share."""

    _fields_ = [
        ("tensors", c_void_p), ("count", c_int64), ("beta2", c_float), ("rest1", c_float), ("rest2", c_float),
        ("eps", c_float), ("scale", c_float), ("device", c_int32),
    ]  # fmt: skip


LAYOUTS: dict[str, type[Structure]] = {
    "MaskedLmLossCuda": MaskedLmLoss,
    "ResidualNormCuda": ResidualNorm,
    "BiasGeluCuda": BiasGelu,
    "DropoutCuda": Dropout,
    "EmbeddingCuda": Embedding,
    "AdamWTensor": AdamWTensor,
    "AdamWCuda": AdamW,
    "AttentionCuda": Attention,
}
ENTRIES = (
    "masked_lm_loss", "residual_norm_forward", "residual_norm_backward", "bias_gelu_forward", "bias_gelu_backward",
    "dropout", "embedding_backward", "adamw", "attention_forward", "attention_backward",
)  # fmt: skip
PARTS = ("residual_norm_parts", "bias_gelu_parts", "embedding_parts")
"""How many partial sums an op wants room for, from its number of rows."""


@dataclass(frozen=True, slots=True)
class CudaInfo:
    """What is known of the CUDA library. ``reason`` says why it is not used, "" where it can be."""

    reason: str = ""
    version: str | None = None
    archs: tuple[int, ...] = ()
    """Compute capabilities with machine code, 10 * major + minor; later devices take the last one's PTX."""
    toolkit: int | None = None
    """CUDA of the compiler, 1000 * major + 10 * minor."""


def open_library(path: Path) -> tuple[ctypes.CDLL | None, CudaInfo]:
    """The library with its entries declared, or None, and what is known of it. Needs no driver and no device."""
    if os.environ.get(SWITCH) == "1":
        return None, CudaInfo(f"{SWITCH}=1 is set")
    if not path.exists():
        return None, CudaInfo(f"this installation has no {path.name} (built by `make build-cuda`)")
    try:
        library = ctypes.CDLL(str(path))
        for name in ("version", "archs", "check", *ENTRIES):
            getattr(library, f"tunecore_cuda_{name}").restype = c_char_p
        for name in ("layout", "attention_bias_parts", *PARTS):
            getattr(library, f"tunecore_cuda_{name}").restype = c_int64
        for name in PARTS:
            getattr(library, f"tunecore_cuda_{name}").argtypes = [c_int64]
        for name in ENTRIES:
            getattr(library, f"tunecore_cuda_{name}").argtypes = [c_void_p, c_void_p]
    except (OSError, AttributeError) as error:
        return None, CudaInfo(f"{path.name} does not load: {error}")
    archs = tuple(int(arch) for arch in library.tunecore_cuda_archs().decode().split())
    version, toolkit = library.tunecore_cuda_version().decode(), int(library.tunecore_cuda_toolkit())
    reason = ""
    if version != VERSION:
        reason = f"{path.name} was built from tunecore {version}, this is {VERSION}; run `make build-cuda` again"
    for name, layout in LAYOUTS.items():
        if library.tunecore_cuda_layout(name.encode()) != ctypes.sizeof(layout):
            reason = reason or f"{path.name} has another layout of {name}; run `make build-cuda` again"
    return (None if reason else library), CudaInfo(reason, version, archs, toolkit)


def _unfit(library: ctypes.CDLL, info: CudaInfo) -> str:
    """Why the devices of this machine cannot run the library, "" where all can."""
    for device in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(device)
        lowest = min(info.archs)
        if 10 * major + minor < lowest:
            return f"{torch.cuda.get_device_name(device)} is sm_{major}{minor}, the library begins at sm_{lowest}"
        refused = library.tunecore_cuda_check(device)
        if refused is not None:
            return f"device {device} refuses it: {refused.decode()}"
    return ""


def info() -> CudaInfo:
    """What is known of the library, the devices of this machine included; never warns."""
    library, found = open_library(LIBRARY)
    if library is None:
        return found
    if not torch.cuda.is_available():
        return CudaInfo("torch sees no CUDA device", found.version, found.archs, found.toolkit)
    return CudaInfo(_unfit(library, found), found.version, found.archs, found.toolkit)


def load() -> ctypes.CDLL | None:
    """The library, or None; the first call that finds it missing where a CUDA device is warns, once."""
    global _library, _ready, _tried
    if not _tried and torch.cuda.is_available():
        _tried = True
        library, found = open_library(LIBRARY)
        reason = found.reason if library is None else _unfit(library, found)
        if reason:
            warnings.warn(
                f"tunecore runs without its CUDA kernels: {reason}. The ops fall back to PyTorch.",
                RuntimeWarning,
                stacklevel=3,
            )
        else:
            _library, _ready = library, True
    return _library


def serves(x: Tensor) -> bool:
    """Whether the kernels take tensors like ``x``: float32, bfloat16, float16 on a CUDA device, and a library is there.

    While a graph compiler looks on, nothing is loaded: a library that no op used before counts as absent.
    """
    if x.device.type not in _DEVICES or x.dtype not in DTYPES:
        return False
    if not _ready and not torch.compiler.is_compiling():
        load()
    return _ready


def serves_norm(x: Tensor) -> bool:
    """Whether residual_norm's kernel takes rows like those of ``x``."""
    width = x.shape[-1]
    return (width <= 4096 or (width <= 8192 and width % 8 == 0)) and serves(x)


def _at(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _beside(key: Tensor | None, like: Tensor) -> Tensor | None:
    """Dropout's key on the device of a kernel's tensors."""
    return None if key is None else key.to(like.device)


def _call(entry: str, params: Structure, like: Tensor) -> None:
    """Run an entry on the current stream of the tensor's device; NativeError with its words where it fails."""
    params.device = like.device.index or 0
    stream = torch.cuda.current_stream(like.device).cuda_stream if like.device.type == "cuda" else None
    assert _library is not None
    message = getattr(_library, f"tunecore_cuda_{entry}")(ctypes.addressof(params), stream)
    if message is not None:
        raise NativeError(
            f"the CUDA kernel {entry} failed: {message.decode()}",
            hint=f"{SWITCH}=1 in the environment does without these kernels.",
        )


def masked_lm_loss(
    logits_CV: Tensor, bias_V: Tensor | None, targets_C: Tensor, label_smoothing: float, z_loss: float, gradient: bool,
    ignore_index: int = -100,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Losses summed, float64 scalar, and right ones counted, int64 scalar; the logits become the gradient of the sum.

    A row whose target is ``ignore_index`` counts nothing and gets a gradient of 0; no value is looked at on the host,
    so the call fits a CUDA graph. Another target outside the vocabulary makes the loss NaN.
    """
    rows, vocab = logits_CV.shape
    loss_C = torch.empty(rows, dtype=torch.float64, device=logits_CV.device)
    correct_C = torch.empty(rows, dtype=torch.uint8, device=logits_CV.device)
    params = MaskedLmLoss(
        _at(logits_CV), logits_CV.stride(0), vocab, _at(bias_V), _at(targets_C), _at(loss_C), _at(correct_C),
        label_smoothing, z_loss, gradient, rows, ignore_index, 0, DTYPES[logits_CV.dtype],
    )  # fmt: skip
    _call("masked_lm_loss", params, logits_CV)
    return loss_C.sum(), correct_C.sum(dtype=torch.int64)


def residual_norm_forward(
    x: Tensor | None, residual: Tensor | None, input_bias: Tensor | None, z: Tensor, weight: Tensor,
    bias: Tensor | None, y: Tensor, stats: Tensor, eps: float, centred: bool, drop_below: int, key: Tensor | None,
    site: int,
) -> None:  # fmt: skip
    """The arguments of the compiled core's function of that name, all contiguous; [T, E] and [E].

    The key is the int64 scalar itself, here and below: to read it would be to wait for the device.
    """
    key = _beside(key, z)
    params = ResidualNorm(
        x=_at(x), residual=_at(residual), input_bias=_at(input_bias), z=_at(z), weight=_at(weight), bias=_at(bias),
        y=_at(y), stats=_at(stats), width=z.shape[1], eps=eps, plain=x is None, centred=centred, site=site,
        drop_below=drop_below, rng_key_at=_at(key), rows=z.shape[0], dtype=DTYPES[z.dtype],
    )  # fmt: skip
    _call("residual_norm_forward", params, z)


def residual_norm_backward(
    dy: Tensor, z: Tensor, input_bias: Tensor | None, weight: Tensor, stats: Tensor, dz: Tensor, dx: Tensor | None,
    sums: Tensor, centred: bool, drop_below: int, key: Tensor | None, site: int,
) -> None:  # fmt: skip
    """The arguments of the compiled core's function of that name, all contiguous."""
    assert _library is not None
    rows, width = z.shape
    if rows == 0:
        sums.zero_()
        return
    parts = torch.empty(_library.tunecore_cuda_residual_norm_parts(rows) * sums.numel(), device=z.device)
    key = _beside(key, z)
    params = ResidualNorm(
        input_bias=_at(input_bias), z=_at(z), weight=_at(weight), stats=_at(stats), dy=_at(dy), dz=_at(dz), dx=_at(dx),
        width=width, centred=centred, site=site, drop_below=drop_below, rng_key_at=_at(key), rows=rows,
        sums=_at(sums), parts=_at(parts), dtype=DTYPES[z.dtype],
    )  # fmt: skip
    _call("residual_norm_backward", params, z)


def bias_gelu_forward(x: Tensor, bias: Tensor | None, out: Tensor, tanh: bool) -> None:
    """The arguments of the compiled core's function of that name, all contiguous; [T, F] and [F]."""
    params = BiasGelu(
        x=_at(x), bias=_at(bias), out=_at(out), width=x.shape[1], tanh=tanh, rows=x.shape[0], dtype=DTYPES[x.dtype]
    )
    _call("bias_gelu_forward", params, x)


def bias_gelu_backward(
    dout: Tensor, x: Tensor, bias: Tensor | None, dx: Tensor, dbias: Tensor | None, tanh: bool
) -> None:
    """The arguments of the compiled core's function of that name, all contiguous."""
    assert _library is not None
    rows, width = x.shape
    if rows == 0:
        if dbias is not None:
            dbias.zero_()
        return
    parts = None
    if dbias is not None:
        parts = torch.empty(_library.tunecore_cuda_bias_gelu_parts(rows) * width, device=x.device)
    params = BiasGelu(
        x=_at(x), bias=_at(bias), dout=_at(dout), out=_at(dx), width=width, tanh=tanh, rows=rows, dbias=_at(dbias),
        parts=_at(parts), dtype=DTYPES[x.dtype],
    )  # fmt: skip
    _call("bias_gelu_backward", params, x)


def dropout(x: Tensor, out: Tensor, drop_below: int, key: Tensor | None, site: int) -> None:
    """The arguments of the compiled core's function of that name, contiguous and of any shape."""
    key = _beside(key, x)
    params = Dropout(
        x=_at(x), out=_at(out), count=x.numel(), site=site, drop_below=drop_below, rng_key_at=_at(key),
        dtype=DTYPES[x.dtype],
    )  # fmt: skip
    _call("dropout", params, x)


def embedding_backward(dout: Tensor, ids: Tensor, dtable: Tensor, padding: int) -> None:
    """The arguments of the compiled core's function of that name, contiguous; ids outside the table are left out."""
    assert _library is not None
    (tokens, width), rows = dout.shape, dtable.shape[0]
    sorted_ids, order = torch.sort(ids, stable=True)
    parts = torch.empty(_library.tunecore_cuda_embedding_parts(tokens) * width, device=dout.device)
    params = Embedding(
        _at(dout), _at(sorted_ids), _at(order), _at(dtable), _at(parts), tokens, width, rows, padding,
        dtype=DTYPES[dout.dtype],
    )  # fmt: skip
    _call("embedding_backward", params, dout)


def adamw(
    tensors: Iterable[tuple[Any, ...]], beta1: float, beta2: float, eps: float, scale: float, device: Tensor
) -> None:
    """One step over (weight, gradient, mean, square, rounded or None, keep, step_size, root), in place.

    ``device`` is any of the tensors: all are on its device.
    """
    entries = [AdamWTensor(*map(_at, t[:5]), t[0].numel(), *t[5:8]) for t in tensors]
    listed = (AdamWTensor * len(entries))(*entries)
    params = AdamW(ctypes.addressof(listed), len(entries), beta2, 1 - beta1, 1 - beta2, eps, scale)
    _call("adamw", params, device)
