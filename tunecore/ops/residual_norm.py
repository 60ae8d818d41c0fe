"""LayerNorm(residual + dropout(x + input_bias)), the end of a transformer's sublayer, in one pass; also plain norms.

Shape letters: T rows (all axes but the last), E hidden width.

float32 and bfloat16 on the CPU, and float16 too on a GPU, run on compiled kernels, everything else on the reference.
Kept for the backward pass are the normalised sum, its mean and deviation; dropout's mask is drawn again. The sums for
weight and biases are float32 (torch's bfloat16 backward on the CPU is 2 to 4 % off there).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tunecore.errors import ConfigError, NativeError
from tunecore.ops import _cuda, _native
from tunecore.ops._kernel_op import kernel_op
from tunecore.ops.dropout import device_words, kernel_words
from tunecore.ops.reference import dropout_threshold, residual_norm_reference

_SUMS = 3  # rows of the backward kernel's sums: of weight, bias, input_bias


class NormDropout(NamedTuple):
    """The dropout before the sum: probability, key (int64 scalar) and site, as the op dropout has them."""

    p: float
    key: Tensor
    site: int


def residual_norm(
    x_TE: Tensor,
    weight_E: Tensor,
    bias_E: Tensor | None = None,
    *,
    eps: float,
    residual_TE: Tensor | None = None,
    input_bias_E: Tensor | None = None,
    dropout: NormDropout | None = None,
    centred: bool = True,
) -> Tensor:
    """Norm of ``residual + dropout(x + input_bias)``, times ``weight`` plus ``bias``.

    Args:
        x_TE: [..., E], any floating dtype; so are all other tensors.
        weight_E: [E].
        bias_E: [E] or None.
        eps: added to the variance.
        residual_TE: of the shape of ``x``, or None.
        input_bias_E: [E], the bias of the linear layer that made ``x``, or None.
        dropout: drawn as the op dropout draws; None for none.
        centred: LayerNorm (Ba et al. 2016, arXiv 1607.06450); else RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467).

    Returns: a new tensor of the shape and dtype of ``x``. Gradients of weight and biases are float32 until autograd
    rounds them to the parameter's ``grad_dtype``.

    Raises:
        NativeError: a shape or dtype does not fit that of ``x``.
        ConfigError: dropout's probability is not in [0, 1).
    """
    for name, tensor, shape in (
        ("weight_E", weight_E, x_TE.shape[-1:]),
        ("bias_E", bias_E, x_TE.shape[-1:]),
        ("residual_TE", residual_TE, x_TE.shape),
        ("input_bias_E", input_bias_E, x_TE.shape[-1:]),
    ):
        if tensor is not None and (tensor.dtype != x_TE.dtype or tensor.shape != shape):
            raise NativeError(
                f"residual_norm: argument '{name}': wanted {x_TE.dtype} {list(shape)}, "
                f"got {tensor.dtype} {list(tensor.shape)}"
            )
    if dropout is not None and not (dropout.p >= 0.0 and dropout_threshold(dropout.p) < 65536):
        raise ConfigError(f"residual_norm: dropout p={dropout.p} is not in [0, 1)")
    p, key, site = dropout if dropout is not None else (0.0, None, 0)
    served = _native.serves(x_TE) or _cuda.serves_norm(x_TE)
    if not served or (dropout_threshold(p) and x_TE.shape[-1] % 8):
        return residual_norm_reference(
            x_TE, weight_E, bias_E, eps=eps, residual_TE=residual_TE, input_bias_E=input_bias_E, dropout=dropout,
            centred=centred,
        )  # fmt: skip
    return _forward_op(x_TE, weight_E, bias_E, residual_TE, input_bias_E, eps, p, key, site, centred)[0]


def _draw(p: float, key: Tensor | None, site: int) -> tuple[int, int, int]:
    """Dropout as the kernel takes it; a threshold of 0 is none."""
    return (0, 0, 0) if key is None else kernel_words(p, key, site)


def _is_plain(residual_TE: Tensor | None, input_bias_E: Tensor | None, p: float) -> bool:
    """Whether nothing is added or dropped, so that ``x`` itself is normalised."""
    return residual_TE is None and input_bias_E is None and dropout_threshold(p) == 0


@kernel_op("tunecore::residual_norm")
def _forward_op(
    x_TE: Tensor, weight_E: Tensor, bias_E: Tensor | None, residual_TE: Tensor | None, input_bias_E: Tensor | None,
    eps: float, p: float, key: Tensor | None, site: int, centred: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The result, the sum that was normalised ([0] where it is ``x`` itself), and its statistics float32 [T, 2]."""
    plain = _is_plain(residual_TE, input_bias_E, p)
    x = _native.rows(x_TE.contiguous())
    out_TE = torch.empty_like(x_TE, memory_format=torch.contiguous_format)
    z = x_TE.new_empty(0) if plain else torch.empty_like(x)
    stats = x_TE.new_empty((x.shape[0], 2), dtype=torch.float32)
    residual = None if residual_TE is None else _native.rows(residual_TE.contiguous())
    input_bias, bias = (None if t is None else t.contiguous() for t in (input_bias_E, bias_E))
    tensors = (
        None if plain else x, residual, input_bias, x if plain else z, weight_E.contiguous(), bias, _native.rows(out_TE)
    )  # fmt: skip
    if _cuda.serves(x):
        _cuda.residual_norm_forward(*tensors, stats, eps, centred, *device_words(p, key, site))
    else:
        options = (eps, centred, *_draw(p, key, site), _native.threads())
        _native.core().residual_norm_forward(*map(_native.dl, (*tensors, stats)), *options)
    return out_TE, z.view(x_TE.shape) if not plain else z, stats


@_forward_op.register_fake
def _forward_fake(
    x_TE: Tensor, weight_E: Tensor, bias_E: Tensor | None, residual_TE: Tensor | None, input_bias_E: Tensor | None,
    eps: float, p: float, key: Tensor | None, site: int, centred: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    plain = _is_plain(residual_TE, input_bias_E, p)
    rows = x_TE.shape[:-1].numel()
    stats = x_TE.new_empty((rows, 2), dtype=torch.float32)
    return x_TE.new_empty(x_TE.shape), x_TE.new_empty(0 if plain else x_TE.shape), stats


@kernel_op("tunecore::residual_norm_backward")
def _backward_op(
    dy_TE: Tensor, z_TE: Tensor, weight_E: Tensor, input_bias_E: Tensor | None, stats_T2: Tensor,
    p: float, key: Tensor | None, site: int, centred: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dz, dx ([0] where it is dz), and the sums over rows float32 [3, E] for weight, bias and input_bias."""
    dropped = dropout_threshold(p) > 0
    z = _native.rows(z_TE.contiguous())
    dz_TE = torch.empty_like(z_TE, memory_format=torch.contiguous_format)
    dx_TE = torch.empty_like(dz_TE) if dropped else z.new_empty(0)
    sums = z.new_empty((_SUMS, z.shape[1]), dtype=torch.float32)
    bias = None if input_bias_E is None else input_bias_E.contiguous()
    tensors = (
        _native.rows(dy_TE.contiguous()), z, bias, weight_E.contiguous(), stats_T2, _native.rows(dz_TE),
        _native.rows(dx_TE) if dropped else None, sums,
    )  # fmt: skip
    if _cuda.serves(z):
        _cuda.residual_norm_backward(*tensors, centred, *device_words(p, key, site))
    else:
        options = (centred, *_draw(p, key, site), _native.threads())
        _native.core().residual_norm_backward(*map(_native.dl, tensors), *options)
    return dz_TE, dx_TE, sums


@_backward_op.register_fake
def _backward_fake(
    dy_TE: Tensor, z_TE: Tensor, weight_E: Tensor, input_bias_E: Tensor | None, stats_T2: Tensor,
    p: float, key: Tensor | None, site: int, centred: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dx_TE = z_TE.new_empty(z_TE.shape if dropout_threshold(p) else 0)
    return z_TE.new_empty(z_TE.shape), dx_TE, z_TE.new_empty((_SUMS, z_TE.shape[-1]), dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x_TE, weight_E, bias_E, residual_TE, input_bias_E, _, ctx.p, key, ctx.site, ctx.centred = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    plain = _is_plain(residual_TE, input_bias_E, ctx.p)
    ctx.added = residual_TE is not None, bias_E is not None
    ctx.save_for_backward(x_TE if plain else output[1], weight_E, input_bias_E, output[2], key)


def _backward(ctx: Any, dy_TE: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if dy_TE is None:
        return (None,) * 10
    _native.refuse_double_backward("residual_norm")
    z_TE, weight_E, input_bias_E, stats_T2, key = ctx.saved_tensors
    dz_TE, dx_TE, sums = _backward_op(
        dy_TE, z_TE, weight_E, input_bias_E, stats_T2, ctx.p, key, ctx.site, ctx.centred
    )
    has_residual, has_bias = ctx.added
    return (
        dx_TE if dropout_threshold(ctx.p) else dz_TE,
        sums[0],
        sums[1] if has_bias else None,
        dz_TE if has_residual else None,
        sums[2] if input_bias_E is not None else None,
        *(None,) * 5,
    )


_forward_op.register_autograd(_backward, setup_context=_setup_context)
