"""Contrastive learning of sentence vectors: tell a text's counterpart from those of other texts.

SimCSE (Gao, Yao and Chen 2021, arXiv:2104.08821). Without labels, the counterpart of a text is the text itself under
another dropout mask; with ``pairs`` it is the second text of the row (an entailed sentence, a translation). The loss
is InfoNCE: cross-entropy over the cosine similarities, divided by a temperature, of one text with the counterparts of
all rows of its group. Groups are fixed by the step's rows, so the gradient does not depend on how a step is split.

Shape letters: B sequences in the batch, N rows (pairs of sequences) in the batch, E hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunecore.data.text_pairs import SECOND_STARTS, split_texts
from tunecore.errors import ConfigError
from tunecore.ops.sequence_vectors import info_nce, sequence_means
from tunecore.types import CorpusView, Example, Family, Forward, LossSum, Progress, Stream, Targets

NAME = "contrastive"


@dataclass(frozen=True, kw_only=True)
class ContrastiveOptions:
    """Options of contrastive."""

    pairs: bool = False
    """Rows are pairs of texts that belong together; False pairs each text with itself under another dropout mask."""
    group_size: int = 32
    """Rows told from each other; training.batch_size must be a multiple of it. SimCSE without labels has 64."""
    temperature: float = 0.05
    """Cosine similarities are divided by it."""
    pooling: Literal["token", "mean"] = "token"
    """The vector of a text: token is the one the family's sequence heads read (the first; the last of a causal model)
    through a dense layer and tanh, as in the paper; mean is the mean over all tokens."""

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ConfigError(f"{NAME}.group_size is {self.group_size}; it must be at least 2")
        if not self.temperature > 0:
            raise ConfigError(f"{NAME}.temperature is {self.temperature}; it must be greater than 0")
        if self.pooling not in ("token", "mean"):
            raise ConfigError(f"{NAME}.pooling is {self.pooling!r}; it must be token or mean")


class Contrastive:
    """The objective ``contrastive``; its one loss has the same name. A hit is a counterpart nearer than all others."""

    name = NAME
    view = NAME
    losses: tuple[str, ...] = (NAME,)

    def __init__(self, options: ContrastiveOptions) -> None:
        self.options = options
        self.group_size = options.group_size
        self.reads: tuple[str, ...] = ("sequence_rows",) if options.pooling == "token" else ()
        self.unit: Literal["document", "sentence", "pair", "text_pair"] = "text_pair" if options.pairs else "sentence"
        self.columns: tuple[str, ...] = (SECOND_STARTS,) if options.pairs else ("sentence_starts",)

    def build(self, model: PreTrainedModel, family: Family) -> nn.Module | None:
        """The dense layer [E] -> [E] of ``pooling: token``; None for the mean.

        Raises:
            ConfigError: a text is to be paired with itself, and the model has no dropout.
        """
        drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
        if not self.options.pairs and not drops:
            raise ConfigError(
                f"{NAME} pairs a text with itself under another dropout mask, and the model has no dropout",
                hint=f"Leave the model's dropout on, or set {NAME}.pairs and give pairs of texts.",
            )
        if self.options.pooling == "mean":
            return None
        width = int(model.config.hidden_size)
        layer = nn.Linear(width, width)
        nn.init.normal_(layer.weight, std=float(getattr(model.config, "initializer_range", 0.02)))
        nn.init.zeros_(layer.bias)
        return layer

    def assemble(self, corpus: CorpusView, row_id: int, stream: Stream) -> list[Example]:
        """The text and its counterpart. The latter's row id is len(corpus) higher: dropout counts rows by their id.

        The text carries the target, its label the counterpart's row id.
        """
        chunk = corpus[row_id]
        first, second = split_texts(chunk) if self.options.pairs else (chunk, chunk)
        counterpart = row_id + len(corpus)
        text = corpus.add_special(first)
        return [
            replace(text, targets={**text.targets, NAME: Targets.of_sequence(counterpart)}),
            replace(corpus.add_special(second), row_id=counterpart),
        ]

    def corrupt(self, example: Example, corpus: CorpusView, stream: Stream, progress: Progress) -> Example:
        """The example as it is: its target came with ``assemble``."""
        return example

    def loss(self, forward: Forward, module: nn.Module | None, stream: Stream | None) -> Mapping[str, LossSum]:
        """InfoNCE in fp32, summed over the texts that carry a target."""
        batch = forward.batch
        targets = batch.targets.get(NAME)
        if targets is None:
            return {NAME: LossSum(forward.hidden()[:0].float().sum(), 0)}
        vectors_BE = self._vectors(forward, module)
        place = {row: number for number, row in enumerate(batch.row_ids)}
        device = vectors_BE.device
        others_N = torch.tensor([place[row] for row in targets.labels.tolist()], device=device)
        group_B = torch.tensor(batch.groups, device=device)
        told = info_nce(
            vectors_BE[targets.index], vectors_BE[others_N], torch.arange(len(others_N), device=device),
            group_B[targets.index], group_B[others_N], self.options.temperature,
        )  # fmt: skip
        return {NAME: LossSum(told.total, len(others_N), told.num_correct)}

    def _vectors(self, forward: Forward, module: nn.Module | None) -> Tensor:
        """One vector a sequence: [B, E]."""
        if module is not None:
            return torch.tanh(module(forward.sequence_rows()))
        batch = forward.batch
        return sequence_means(forward.hidden(), batch.layout.cu_seqlens[: batch.num_sequences + 1].long())
