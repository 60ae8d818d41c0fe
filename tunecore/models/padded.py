"""A packed batch through the backbone of a model: as it is, or in and out of padded rows.

The padded way is for families whose attention is their own (DeBERTa). Everything around the backbone stays packed:
data, objectives, heads and losses do not notice.
Shape letters: T tokens in the batch, B sequences without the filler, L tokens of the longest, E hidden width.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunecore.errors import ConfigError
from tunecore.types import Family, PackedBatch, PackedLayout

logger = logging.getLogger("tunecore")


def backbone_hidden(
    family: Family, model: PreTrainedModel, inputs_1T: Mapping[str, Tensor], batch: PackedBatch
) -> Tensor:
    """Hidden states [T, E] of the backbone of ``model``, padded inside where the family says so.

    ``inputs_1T`` are its arguments, int64 [1, T] each; ``batch`` says where the sequences lie.
    """
    backbone = family.backbone(model)
    if getattr(family, "padded", False):
        return padded_hidden(backbone, inputs_1T, batch.layout, batch.num_sequences, model.config.pad_token_id or 0)
    hidden_TE: Tensor = backbone(**inputs_1T, packed=batch.layout, use_cache=False).last_hidden_state[0]
    return hidden_TE


def padded_hidden(
    backbone: nn.Module, inputs_1T: Mapping[str, Tensor], layout: PackedLayout, num_sequences: int, pad_id: int
) -> Tensor:
    """Hidden states of a packed batch by a backbone that knows padded rows only.

    Args:
        backbone: called with the inputs as [B, L] and ``attention_mask`` int64 [B, L].
        inputs_1T: ``input_ids`` and whatever else goes with each token, int64 [1, T].
        layout: where the sequences lie.
        num_sequences: B; a filler after them is left out.
        pad_id: token that fills the rows up.

    Returns: [T, E]; rows of the filler are 0.

    Raises:
        ConfigError: the layout asks for masks that ``attention_mask`` cannot say.
    """
    for field in ("prefix_lens", "decoder_cu_seqlens"):
        if getattr(layout, field, None) is not None:
            raise ConfigError(
                f"{type(backbone).__name__} takes padded rows, which cannot say {field}",
                hint="Take a family whose batches are packed.",
            )
    _say_once(type(backbone).__name__)
    total = inputs_1T["input_ids"].shape[1]
    ends = layout.cu_seqlens[: num_sequences + 1].long()
    lengths_B = ends.diff()
    within_L = torch.arange(int(lengths_B.max()), device=ends.device)
    real_BL = within_L < lengths_B[:, None]
    # Padding repeats a token of the batch, so that positions and segments stay in their tables.
    source_BL = torch.where(real_BL, ends[:-1, None] + within_L, ends[:-1, None])
    inputs_BL = {name: tensor[0][source_BL] for name, tensor in inputs_1T.items()}
    inputs_BL["input_ids"] = inputs_BL["input_ids"].masked_fill(~real_BL, pad_id)
    hidden_BLE = backbone(**inputs_BL, attention_mask=real_BL.long()).last_hidden_state
    hidden_NE = hidden_BLE[real_BL]
    return nn.functional.pad(hidden_NE, (0, 0, 0, total - hidden_NE.shape[0]))


@functools.cache
def _say_once(name: str) -> None:
    logger.warning(
        "%s has an attention of its own that knows no packed rows: its batches are padded inside the model, "
        "which costs time wherever lengths differ",
        name,
    )
