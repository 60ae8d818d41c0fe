"""Cross-entropy of a vocabulary head, made chunk by chunk so that the logits of all rows never exist at once.

Shape letters: N rows with a target (M after ignored rows are dropped), C rows of one chunk, E hidden width,
V vocabulary.

The large products go into reused buffers; between them a kernel turns a chunk of logits into its gradient in
one pass (in-place gradient of a fused linear + cross-entropy, made in the forward pass: Hsu et al. 2024,
arXiv 2410.10989). Memory beyond inputs, outputs and gradients is one chunk, flat in N.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from tunecore.errors import ConfigError, DataError, NativeError
from tunecore.ops import _cuda, _native
from tunecore.ops._kernel_op import kernel_op
from tunecore.ops.linear import matmul_into
from tunecore.types import LossSum

CHUNK_ROWS = 512
"""Most rows of logits that exist at once, as float32; so many bytes hold more rows of a narrower type."""
_VOCAB_BLOCK = 4096  # rows of a low-precision weight gradient that pass through the small buffer at a time
_NATIVE_DTYPES = (torch.float32, torch.bfloat16)
_workspaces = threading.local()


def masked_lm_loss(
    hidden_NE: Tensor,
    weight_VE: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    *,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> LossSum:
    """Sum of the cross-entropies of ``hidden @ weight.T + bias`` against ``targets``; gradients by autograd.

    Per row: ``lse - (1 - s) * logit[target] - s * mean(logits) + z_loss * lse**2``, s the label smoothing
    (Szegedy et al. 2016, arXiv 1512.00567), lse the log of the softmax's denominator (z-loss: Chowdhery et al. 2022,
    arXiv 2204.02311). Ignored rows meet no product. All rows ignored, or none given: loss 0 and zero gradients.

    Args:
        hidden_NE: [N, E] float32, bfloat16, float16 or float64.
        weight_VE: [V, E] of the same dtype.
        bias_V: [V] of the same dtype, or None.
        targets_N: int64 [N], each ``ignore_index`` or in [0, V).
        ignore_index: target that marks a row without one. None: every row has a target; then the count is N without
            a look at the data, which ``torch.compile(fullgraph=True)`` needs.
        label_smoothing: in [0, 1].
        z_loss: weight of the squared log-denominator, from 0.

    Returns:
        LossSum: ``total`` float32 scalar (float64 for float64), ``num_targets``, and ``num_correct``, int64 scalar:
        rows whose target is the first of the largest logits.

    Raises:
        DataError: a target outside the vocabulary, with its row and value.
        ConfigError: ``label_smoothing`` or ``z_loss`` out of range.
        NativeError: shapes, dtypes or devices that do not fit.
    """
    if not 0.0 <= label_smoothing <= 1.0:
        raise ConfigError(f"label_smoothing={label_smoothing} is not in [0, 1]")
    if not z_loss >= 0.0:
        raise ConfigError(f"z_loss={z_loss} is negative")
    hidden_NE, weight_VE, bias_V = _autocast(hidden_NE, weight_VE, bias_V)
    _check(hidden_NE, weight_VE, bias_V, targets_N)
    wanted = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in (hidden_NE, weight_VE, bias_V)]
    total, num_targets, num_correct, _, _, _ = _forward_op(
        hidden_NE, weight_VE, bias_V, targets_N, ignore_index, label_smoothing, z_loss, *wanted
    )
    count = targets_N.shape[0] if ignore_index is None else int(num_targets)
    return LossSum(total, count, num_correct)


def _autocast(hidden_NE: Tensor, weight_VE: Tensor, bias_V: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The arguments as ``torch.autocast`` gives them to a linear layer."""
    device = hidden_NE.device.type
    if not torch.is_autocast_enabled(device):
        return hidden_NE, weight_VE, bias_V
    dtype = torch.get_autocast_dtype(device)
    return hidden_NE.to(dtype), weight_VE.to(dtype), None if bias_V is None else bias_V.to(dtype)


def _check(hidden_NE: Tensor, weight_VE: Tensor, bias_V: Tensor | None, targets_N: Tensor) -> None:
    def refuse(wanted: str, name: str, got: Tensor) -> None:
        raise NativeError(
            f"masked_lm_loss: argument '{name}': wanted {wanted}, got {got.dtype} {list(got.shape)} on {got.device}"
        )

    if hidden_NE.dim() != 2 or not hidden_NE.is_floating_point():
        refuse("floating point [N, E]", "hidden", hidden_NE)
    rows, width = hidden_NE.shape
    dtype, device = hidden_NE.dtype, hidden_NE.device
    like = f"{dtype} on {device} as hidden has"
    if weight_VE.dim() != 2 or weight_VE.shape[1] != width or weight_VE.dtype != dtype or weight_VE.device != device:
        refuse(f"[V, {width}] {like}", "weight", weight_VE)
    vocab = weight_VE.shape[0]
    if bias_V is not None and (bias_V.shape != (vocab,) or bias_V.dtype != dtype or bias_V.device != device):
        refuse(f"[{vocab}] {like}", "bias", bias_V)
    if targets_N.shape != (rows,) or targets_N.dtype != torch.int64 or targets_N.device != device:
        refuse(f"torch.int64 [{rows}] on {device}", "targets", targets_N)


def release_workspaces() -> None:
    """Free the buffers this thread keeps between calls."""
    _workspaces.__dict__.clear()


def _workspace(name: str, rows: int, columns: int, like: Tensor) -> Tensor:
    """A [rows, columns] buffer that stays alive between calls and grows when it must; contents are undefined."""
    key = f"{name} {like.dtype} {like.device}"
    flat: Tensor | None = _workspaces.__dict__.get(key)
    if flat is None or flat.numel() < rows * columns:
        with torch.inference_mode(False):
            flat = torch.empty(rows * columns, dtype=like.dtype, device=like.device)
        _workspaces.__dict__[key] = flat
    return flat[: rows * columns].view(rows, columns)


def _accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


@kernel_op("tunecore::masked_lm_loss")
def _forward_op(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ignore_index: int | None,
    label_smoothing: float,
    z_loss: float,
    want_dhidden: bool,
    want_dweight: bool,
    want_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(total, num_targets, num_correct, dhidden, dweight, dbias); a gradient that is not wanted has no elements.

    The gradients of weight and bias are summed and returned in float32 at least: autograd rounds them to the
    parameter's ``grad_dtype`` last. They belong to autograd, whose backward may overwrite them.
    """
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        rows_ME, labels_M, kept = _drop_ignored(hidden, targets, ignore_index, weight.shape[0])
        sums = _Sums(rows_ME, weight, bias, want_dhidden, want_dweight, want_dbias)
        count = rows_ME.shape[0]
        step = _rows_of_chunk(count, hidden.dtype.itemsize)
        for start in range(0, count, step):
            sums.add_chunk(start, min(step, count - start), labels_M, label_smoothing, z_loss)
        dhidden = sums.dhidden
        if kept is not None and want_dhidden:
            dhidden = torch.zeros_like(hidden, memory_format=torch.contiguous_format).index_copy_(0, kept, dhidden)
        return (
            sums.total.to(_accumulator_dtype(hidden.dtype)),
            torch.tensor(count, device=hidden.device),
            sums.correct,
            dhidden,
            sums.dweight,
            sums.dbias,
        )


def _rows_of_chunk(count: int, itemsize: int) -> int:
    """All rows at once where their bytes allow it: the gradient of the weight is passed over once a chunk. Of more
    rows than that, chunks of CHUNK_ROWS are the faster for staying in cache.
    """
    most = CHUNK_ROWS * max(1, torch.float32.itemsize // itemsize)
    pieces = 1 if count <= most else -(-count // CHUNK_ROWS)
    return max(1, -(-count // pieces))


def _drop_ignored(
    hidden_NE: Tensor, targets_N: Tensor, ignore_index: int | None, vocab: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows with a target, their targets (checked against V), and which rows they are (None: all)."""
    kept = None
    if ignore_index is not None:
        mask_N = targets_N != ignore_index
        if not bool(mask_N.all()):
            kept = mask_N.nonzero()[:, 0]
    labels_M = (targets_N if kept is None else targets_N[kept]).contiguous()
    outside = ((labels_M < 0) | (labels_M >= vocab)).nonzero()[:, 0]
    if outside.numel():
        first = int(outside[0])
        row = first if kept is None else int(kept[first])
        raise DataError(
            f"masked_lm_loss: target {int(labels_M[first])} at row {row} is outside the vocabulary of {vocab} "
            f"({outside.numel()} such rows)",
            hint=f"Targets must be in [0, {vocab}) or the ignore_index ({ignore_index}); "
            "does the tokenizer have more tokens than the model?",
        )
    return hidden_NE if kept is None else hidden_NE[kept], labels_M, kept


class _Sums:
    """What is added up over chunks: loss, count of right ones, and the gradients that are wanted."""

    def __init__(
        self, hidden_ME: Tensor, weight_VE: Tensor, bias_V: Tensor | None, dhidden: bool, dweight: bool, dbias: bool
    ) -> None:
        self.hidden_ME, self.weight_VE = hidden_ME, weight_VE
        self.native = None
        wide = _accumulator_dtype(hidden_ME.dtype)
        if hidden_ME.device.type == "cpu" and hidden_ME.dtype in _NATIVE_DTYPES:
            self.native = _native.load()
        self.cuda = _cuda.serves(hidden_ME)
        self.bias_V = None if bias_V is None else bias_V.to(wide).contiguous()
        self.total = torch.zeros((), dtype=torch.float64, device=hidden_ME.device)
        self.correct = torch.zeros((), dtype=torch.int64, device=hidden_ME.device)
        self.want_dhidden, self.want_dweight, self.want_dbias = dhidden, dweight, dbias
        new = hidden_ME.new_empty
        # A gradient of no rows stays zero; else the first chunk writes the weight's and later ones add to it.
        self.fresh = hidden_ME.shape[0] > 0
        vocab, width = weight_VE.shape
        self.dhidden = new(hidden_ME.shape if dhidden else 0)
        shape = (vocab, width) if dweight else (0,)
        self.dweight = new(shape, dtype=wide) if self.fresh else torch.zeros(shape, dtype=wide, device=hidden_ME.device)
        self.dbias = torch.zeros(vocab if dbias else 0, dtype=wide, device=hidden_ME.device)

    def add_chunk(self, start: int, rows: int, labels_M: Tensor, label_smoothing: float, z_loss: float) -> None:
        """Add rows start .. start + rows."""
        hidden_CE = self.hidden_ME[start : start + rows]
        labels_C = labels_M[start : start + rows]
        gradient = self.want_dhidden or self.want_dweight or self.want_dbias
        logits_CV = _workspace("logits", rows, self.weight_VE.shape[0], hidden_CE)
        matmul_into(logits_CV, hidden_CE, self.weight_VE.t())
        if self.cuda:
            options = (label_smoothing, z_loss, gradient)
            loss, correct = _cuda.masked_lm_loss(logits_CV, self.bias_V, labels_C, *options)
        elif self.native is not None:
            loss, correct = self.native.masked_lm_loss(
                _native.dl(logits_CV), _native.dl(self.bias_V), _native.dl(labels_C),
                label_smoothing, z_loss, gradient, _native.threads(),
            )  # fmt: skip
        else:
            loss, correct = _softmax_chunk(logits_CV, self.bias_V, labels_C, label_smoothing, z_loss, gradient)
        self.total += loss
        self.correct += correct
        if self.want_dhidden:
            matmul_into(self.dhidden[start : start + rows], logits_CV, self.weight_VE)
        if self.want_dweight:
            self._add_dweight(logits_CV, hidden_CE)
        if self.want_dbias:
            if self.native is not None:
                self.native.column_sum(_native.dl(logits_CV), _native.dl(self.dbias), _native.threads())
            else:
                self.dbias += logits_CV.sum(0, dtype=self.dbias.dtype)
        self.fresh = False

    def _add_dweight(self, dlogits_CV: Tensor, hidden_CE: Tensor) -> None:
        if self.dweight.dtype == hidden_CE.dtype or _native.multiplies_bf16(hidden_CE):
            matmul_into(self.dweight, dlogits_CV.t(), hidden_CE, add=not self.fresh)
            return
        vocab, width = self.dweight.shape
        for begin in range(0, vocab, _VOCAB_BLOCK):
            end = min(vocab, begin + _VOCAB_BLOCK)
            part = _workspace("dweight", end - begin, width, hidden_CE)
            matmul_into(part, dlogits_CV[:, begin:end].t(), hidden_CE)
            if self.fresh:
                self.dweight[begin:end].copy_(part)
            else:
                self.dweight[begin:end].add_(part)


def _softmax_chunk(
    logits_CV: Tensor, bias_V: Tensor | None, labels_C: Tensor, label_smoothing: float, z_loss: float, gradient: bool
) -> tuple[Tensor, Tensor]:
    """What the native pass does, by torch: for float64, for float16 on the CPU, and where there are no kernels."""
    z_CV = logits_CV.to(_accumulator_dtype(logits_CV.dtype))
    if bias_V is not None:
        z_CV = z_CV + bias_V
    at = labels_C[:, None]
    lse_C1 = torch.logsumexp(z_CV, dim=1, keepdim=True)
    loss_C1 = lse_C1 - (1.0 - label_smoothing) * z_CV.gather(1, at) + z_loss * lse_C1.square()
    if label_smoothing:
        loss_C1 = loss_C1 - label_smoothing * z_CV.mean(dim=1, keepdim=True)
    correct = (z_CV.argmax(dim=1) == labels_C).sum()
    if gradient:
        d_CV = torch.exp(z_CV - lse_C1).mul_(1.0 + 2.0 * z_loss * lse_C1).sub_(label_smoothing / z_CV.shape[1])
        d_CV.scatter_add_(1, at, torch.full_like(lse_C1, label_smoothing - 1.0))
        logits_CV.copy_(d_CV)
    return loss_C1.sum(dtype=torch.float64), correct


@_forward_op.register_fake
def _forward_fake(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, ignore_index: int | None,
    label_smoothing: float, z_loss: float, want_dhidden: bool, want_dweight: bool, want_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    wide = _accumulator_dtype(hidden.dtype)
    return (
        hidden.new_empty((), dtype=wide),
        targets.new_empty(()),
        targets.new_empty(()),
        hidden.new_empty(hidden.shape if want_dhidden else (0,)),
        hidden.new_empty(weight.shape if want_dweight else (0,), dtype=wide),
        hidden.new_empty((weight.shape[0] if want_dbias else 0,), dtype=wide),
    )


@kernel_op("tunecore::masked_lm_loss_backward")
def _backward_op(grad: Tensor, dhidden: Tensor, dweight: Tensor, dbias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The saved gradients of the sum, times the gradient of the sum."""
    return dhidden * grad, dweight * grad, dbias * grad


@_backward_op.register_fake
def _backward_fake(grad: Tensor, dhidden: Tensor, dweight: Tensor, dbias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(dhidden), torch.empty_like(dweight), torch.empty_like(dbias)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.wanted = inputs[7:10]
    ctx.save_for_backward(*output[3:])


def _backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 10
    _native.refuse_double_backward("masked_lm_loss", "its gradients are made in the forward pass")
    saved: tuple[Tensor, ...] = ctx.saved_tensors
    if not _last_use(grad, *saved):
        scaled = _backward_op(grad, *saved)
    elif grad.device.type != "cpu" or grad != 1.0:  # of a plain sum it is 1; on a GPU a look would wait for it
        scaled = tuple(x.mul_(grad) for x in saved)
    else:
        scaled = saved
    dhidden, dweight, dbias = (g if wanted else None for g, wanted in zip(scaled, ctx.wanted, strict=True))
    return dhidden, dweight, dbias, *(None,) * 7


def _last_use(*tensors: Tensor) -> bool:
    """Whether this backward frees what it saved, so that it may scale a [V, E] gradient in place.

    Only plain tensors in an eager backward without ``retain_graph``; tracing sees subclasses. Where torch has not this
    (private) question, a copy is made.
    """
    keeps = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return keeps is not None and not keeps() and all(type(t) is Tensor for t in tensors)


_forward_op.register_autograd(_backward, setup_context=_setup_context)
