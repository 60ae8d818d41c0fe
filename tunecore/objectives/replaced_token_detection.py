"""Replaced token detection: a small generator fills in masked tokens, and the model tells which are not original.

ELECTRA (Clark et al. 2020, arXiv:2003.10555). The generator is trained by masked language modelling, not against the
discriminator: no gradient passes through its samples. Both share their embeddings (words, positions, segments and
their norm). As in the paper's code, 85 % of the chosen tokens are masked and the rest kept, a sample that happens to
be the original counts as original, and the discriminator answers at every token, special ones included.

What a sample is made with is drawn with the row and travels in the batch, so samples are those of (seed, epoch, row)
and of the weights, however a step is split.

Shape letters: T tokens in the batch, N masked tokens, E hidden width, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunecore.errors import ConfigError
from tunecore.objectives import masked_lm
from tunecore.objectives.masked_lm import MaskedLM, MaskedLMOptions
from tunecore.ops import masked_lm_loss
from tunecore.types import CorpusView, Example, Family, Forward, LossSum, Progress, Stream, Targets

NAME = "replaced_token_detection"
GENERATOR = "generator_masked_lm"
MASK_PROBABILITY = 0.85
_DRAW_BITS = 53
_ROWS_AT_ONCE = 128


@dataclass(frozen=True, kw_only=True)
class ReplacedTokenDetectionOptions:
    """Options of replaced_token_detection."""

    mask_rate: float = 0.15
    """Share of the ordinary tokens that the generator fills in."""
    generator_size: float = 0.25
    """Width, heads and feed-forward width of the generator, as a share of the model's; depth is the same. The paper has
    1/4 for its small and large models and 1/3 for base."""
    discriminator_weight: float = 50.0
    """Weight of the discriminator's loss beside the generator's."""

    def __post_init__(self) -> None:
        if not 0 < self.mask_rate <= 1:
            raise ConfigError(f"{NAME}.mask_rate is {self.mask_rate}; it must be above 0 and at most 1")
        if not 0 < self.generator_size <= 1:
            raise ConfigError(f"{NAME}.generator_size is {self.generator_size}; it must be above 0 and at most 1")
        if not self.discriminator_weight > 0:
            raise ConfigError(f"{NAME}.discriminator_weight is {self.discriminator_weight}; it must be above 0")


class ReplacedTokenDetection:
    """The objective ``replaced_token_detection``: losses ``generator_masked_lm`` and, of the discriminator, its own."""

    name = NAME
    unit: Literal["document", "sentence", "pair", "text_pair"] = "document"
    columns: tuple[str, ...] = ()
    view = NAME
    losses: tuple[str, ...] = (GENERATOR, NAME)

    def __init__(self, options: ReplacedTokenDetectionOptions) -> None:
        self.options = options
        self.loss_weights = {NAME: options.discriminator_weight}
        self._masking = MaskedLM(
            MaskedLMOptions(mask_rate=options.mask_rate, mask_probability=MASK_PROBABILITY, random_probability=0.0)
        )

    def build(self, model: PreTrainedModel, family: Family) -> nn.Module | None:
        """The generator: the family's class with a vocabulary head, narrower, its embeddings the model's own.

        Raises:
            ConfigError: the class of ``model`` has no head that tells replaced tokens, as ELECTRA's has.
        """
        if not hasattr(model, "discriminator_predictions"):
            raise ConfigError(
                f"{NAME} needs a model with a discriminator head; {type(model).__name__} has none",
                hint="Set model.family: electra.",
            )
        generator = family.auto_class(frozenset({masked_lm.NAME}))(_narrowed(model.config, self.options.generator_size))
        own, shared = (family.backbone(one).get_submodule("embeddings") for one in (generator, model))
        for name, parameter in shared.named_parameters():
            path, _, leaf = name.rpartition(".")
            setattr(own.get_submodule(path), leaf, parameter)
        generator.get_output_embeddings().weight = model.get_input_embeddings().weight
        return generator

    def models(self, module: nn.Module) -> dict[str, tuple[nn.Module, dict[str, float]]]:
        """{"generator": (the generator, what it goes on with)}, to be saved as a model of its own."""
        return {"generator": (module, {masked_lm.NAME: 1.0})}

    def assemble(self, corpus: CorpusView, row_id: int, stream: Stream) -> Example:
        """The row's chunk between its special tokens."""
        return corpus.add_special(corpus[row_id])

    def corrupt(self, example: Example, corpus: CorpusView, stream: Stream, progress: Progress) -> Example:
        """Mask tokens for the generator, whose labels are [N, 2]: the token, and a draw of 53 bits for its sample.

        The discriminator's targets are all tokens, their labels the original ids.

        Raises:
            ConfigError: the tokenizer has no mask token.
        """
        made = self._masking.corrupt(replace(example, targets={}), corpus, stream, progress)
        everywhere = Targets(np.arange(len(example), dtype=np.int64), example.input_ids.astype(np.int64))
        targets = {**example.targets, NAME: everywhere}
        chosen = made.targets.get(masked_lm.NAME)
        if chosen is not None:
            draws = (stream.child("sample").uniform(len(chosen)) * 2.0**_DRAW_BITS).astype(np.int64)
            targets[GENERATOR] = Targets(chosen.index, np.stack([chosen.labels, draws], axis=1))
        return replace(example, input_ids=made.input_ids, targets=targets)

    def loss(self, forward: Forward, module: nn.Module | None, stream: Stream | None) -> Mapping[str, LossSum]:
        """The generator's cross-entropy at masked tokens, and the binary one at all tokens of its filled-in text."""
        assert isinstance(module, PreTrainedModel)
        batch, ids_1T = forward.batch, forward.batch.input_ids
        masked = batch.targets.get(GENERATOR)
        if masked is None:
            generated = LossSum(module.get_input_embeddings().weight[:0].float().sum(), 0)
        else:
            rows_NE = forward.encode(model=module).index_select(0, masked.index)
            hidden_NE, weight_VE, bias_V = forward.family.token_head(module, rows_NE)
            tokens_N, draws_N = masked.labels.unbind(1)
            generated = masked_lm_loss(hidden_NE, weight_VE, bias_V, tokens_N.contiguous(), ignore_index=None)
            samples_N = sample_tokens(hidden_NE, weight_VE, bias_V, draws_N)
            ids_1T = ids_1T.index_copy(1, masked.index, samples_N[None])
        asked = batch.targets[NAME]
        rows_TE = forward.encode(input_ids=ids_1T).index_select(0, asked.index)
        logits_T = forward.model.get_submodule("discriminator_predictions")(rows_TE).float()
        replaced_T = ids_1T[0, asked.index] != asked.labels
        total = F.binary_cross_entropy_with_logits(logits_T, replaced_T.float(), reduction="sum")
        correct = ((logits_T.detach() > 0) == replaced_T).sum()
        return {GENERATOR: generated, NAME: LossSum(total, int(asked.labels.shape[0]), correct)}


@torch.no_grad()
def sample_tokens(hidden_NE: Tensor, weight_VE: Tensor, bias_V: Tensor | None, draws_N: Tensor) -> Tensor:
    """One token a row from softmax(hidden weight^T + bias), by inversion of its distribution function.

    Args:
        hidden_NE: rows of the prediction head's last layer.
        weight_VE: output matrix.
        bias_V: output bias, or None.
        draws_N: int64, uniform in [0, 2**53): row n gets the first token at which the sum of probabilities exceeds
            draw / 2**53.

    Returns: int64 [N].
    """
    found = []
    for rows, draws in zip(hidden_NE.split(_ROWS_AT_ONCE), draws_N.split(_ROWS_AT_ONCE), strict=True):
        logits = F.linear(rows, weight_VE, bias_V).float()
        cumulative = logits.sub_(logits.amax(-1, keepdim=True)).exp_().cumsum(-1, dtype=torch.float64)
        wanted = draws.double()[:, None] * 2.0**-_DRAW_BITS * cumulative[:, -1:]
        found.append(torch.searchsorted(cumulative, wanted, right=True).squeeze(1))
    # Rounding may lift the largest draws to the whole sum.
    return torch.cat(found).clamp_(max=weight_VE.shape[0] - 1)


def _narrowed(config: Any, share: float) -> Any:
    """The config of a generator: fewer heads of the same width, a narrower feed-forward layer, the same depth."""
    narrow = copy.deepcopy(config)
    head = config.hidden_size // config.num_attention_heads
    narrow.num_attention_heads = max(1, round(config.num_attention_heads * share))
    narrow.hidden_size = head * narrow.num_attention_heads
    narrow.intermediate_size = max(1, round(config.intermediate_size * share))
    return narrow
