"""What objectives over two segments share: cutting a chunk at a sentence, and a head of two classes over the pair.

Shape letters: B sequences in the batch, E hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunecore.errors import ConfigError
from tunecore.objectives.vocabulary import refuse_causal
from tunecore.types import Chunk, CorpusView, Example, Family, Forward, IntArray, LossSum, Progress, Stream

PAIR_OBJECTIVES = ("next_sentence", "sentence_order")
FamilyHead = Callable[[PreTrainedModel, Tensor], Tensor | None]
"""A family's method: sequence rows [B, E] -> logits [B, 2], or None where the class has no such head."""


def part(chunk: Chunk, start: int, stop: int) -> Chunk:
    """Tokens start, ..., stop - 1 of a chunk."""
    columns = {name: column[start:stop] for name, column in chunk.columns.items()}
    return Chunk(chunk.row_id, chunk.document, chunk.start + start, chunk.ids[start:stop], columns)


def boundaries(chunk: Chunk) -> IntArray:
    """Positions after the first at which a sentence starts."""
    inner = np.flatnonzero(chunk.columns["sentence_starts"][1:]) + 1
    return inner.astype(np.int64)


def cut_at_sentence(chunk: Chunk, stream: Stream) -> int:
    """A random sentence boundary, or the middle of a chunk of one sentence (which must have two tokens)."""
    inner = boundaries(chunk)
    if len(inner) == 0:
        return len(chunk.ids) // 2
    return int(inner[stream.integers(0, len(inner), 1)[0]])


def check_assembled_here(name: str, example: Example) -> None:
    """Raise ConfigError where another objective of pairs laid the example out: its labels are not those of ``name``."""
    for other in PAIR_OBJECTIVES:
        if other != name and other in example.targets:
            raise ConfigError(
                f"objectives {other} and {name} each lay out pairs of their own, so one run cannot train both",
                hint="Keep one of them.",
            )


def pair_head(model: PreTrainedModel, head: FamilyHead) -> nn.Linear | None:
    """A linear layer [E] -> [2] for the pooled row, or None where the transformers class has the head."""
    width = int(model.config.hidden_size)
    with torch.no_grad():
        if head(model, torch.zeros(1, width, dtype=model.dtype, device=model.device)) is not None:
            return None
    layer = nn.Linear(width, 2)
    nn.init.normal_(layer.weight, std=float(getattr(model.config, "initializer_range", 0.02)))
    nn.init.zeros_(layer.bias)
    return layer


def pair_loss(forward: Forward, module: nn.Module | None, name: str, head: Callable[[Family], FamilyHead]) -> LossSum:
    """Cross-entropy of the two classes in fp32, summed over the sequences that carry a label ``name``.

    Args:
        forward: the forward of the batch.
        module: what :func:`pair_head` returned.
        name: the loss.
        head: picks the family's method.
    """
    targets = forward.batch.targets.get(name)
    rows_BE = forward.sequence_rows()
    if targets is None:
        return LossSum(rows_BE[:0].float().sum(), 0)
    rows_BE = rows_BE.index_select(0, targets.index)
    if module is not None:
        logits_B2 = module(forward.family.pooled(forward.model, rows_BE))
    else:
        own = head(forward.family)(forward.model, rows_BE)
        assert own is not None, "build() returned None only where the class has the head"
        logits_B2 = own
    logits_B2 = logits_B2.float()
    total = F.cross_entropy(logits_B2, targets.labels, reduction="sum")
    correct = (logits_B2.detach().argmax(-1) == targets.labels).sum()
    return LossSum(total, int(targets.labels.shape[0]), correct)


class PairObjective:
    """An objective of two classes over a pair of segments; what is left to a subclass is how the pair is made."""

    name: str
    losses: tuple[str, ...]
    unit: Literal["document", "sentence", "pair"] = "pair"
    columns: tuple[str, ...] = ("sentence_starts",)
    view = "encoder"
    reads = ("sequence_rows",)

    def family_head(self, family: Family) -> FamilyHead:
        """The family's method that has this head."""
        raise TypeError(f"{type(self).__name__} names no head")

    def build(self, model: PreTrainedModel, family: Family) -> nn.Module | None:
        """A linear layer [E] -> [2] on the pooled row, or None where the transformers class has this head.

        Raises:
            ConfigError: the family reads from left to right only.
        """
        refuse_causal(self.name, family)
        return pair_head(model, self.family_head(family))

    def corrupt(self, example: Example, corpus: CorpusView, stream: Stream, progress: Progress) -> Example:
        """The example as it is: its target came with ``assemble``.

        Raises:
            ConfigError: another objective laid the pair out.
        """
        check_assembled_here(self.name, example)
        return example

    def loss(self, forward: Forward, module: nn.Module | None, stream: Stream | None) -> Mapping[str, LossSum]:
        """Cross-entropy of the two classes in fp32, summed over the sequences that carry a label."""
        return {self.name: pair_loss(forward, module, self.name, self.family_head)}
