"""The peer: a plain transformers training step, padded to the longest sequence of the batch, at its usual best.

fp32 or bf16 autocast, eager or sdpa attention, compiled or not, fused AdamW, the same clipping; what the usual trainer
does each step without the trainer's own bookkeeping.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunecore.types import PackedBatch


def padded(batches: Sequence[PackedBatch], pad_id: int) -> dict[str, Tensor]:
    """The same sequences, masks included, as one padded batch with labels (-100 where there is no target).

    The targets of causal_lm become the inputs themselves, which transformers moves by one.
    """
    rows, labels = [], []
    for batch in batches:
        cu = batch.layout.cu_seqlens.tolist()
        flat = torch.full_like(batch.input_ids[0], -100)
        if "causal_lm" in batch.targets:
            flat = batch.input_ids[0]
        else:
            target = batch.targets["masked_lm"]
            flat[target.index] = target.labels
        for b in range(batch.num_sequences):
            rows.append(batch.input_ids[0, cu[b] : cu[b + 1]])
            labels.append(flat[cu[b] : cu[b + 1]])
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([torch.ones_like(r) for r in rows], batch_first=True)
    return {
        "input_ids": pad(rows, batch_first=True, padding_value=pad_id),
        "attention_mask": mask,
        "labels": pad(labels, batch_first=True, padding_value=-100),
    }


class PeerStep:
    """One optimizer step of a transformers model on a padded batch.

    ``compiled`` runs the model through torch.compile, for the shape of its first batch if all have ``one_shape``; that
    compilation is part of the first call.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        lr: float,
        *,
        autocast: bool = False,
        compiled: bool = False,
        one_shape: bool = True,
        weight_decay: float = 0.01,
    ) -> None:
        self.model = model.train()
        self.forward = torch.compile(model, dynamic=False if one_shape else None) if compiled else model
        self.autocast, self.device = autocast, model.device
        decay = [p for p in model.parameters() if p.ndim >= 2]
        rest = [p for p in model.parameters() if p.ndim < 2]
        groups = [{"params": decay, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)

    def __call__(self, batch: dict[str, Tensor]) -> float:
        """Train on one batch, which lies where the model does; returns its loss."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            loss = self.forward(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())
