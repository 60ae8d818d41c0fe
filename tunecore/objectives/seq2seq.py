"""What objectives of encoder-decoder models share.

Shape letter: M tokens of the decoder of one example.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from transformers import PreTrainedModel

from tunecore.errors import ConfigError
from tunecore.types import Example, Family, IntArray, Targets

VIEW = "seq2seq"


def check_model(name: str, model: PreTrainedModel, family: Family, start: Literal["pad", "eos"]) -> None:
    """Check that a model has two stacks and that its decoder starts with the token the objective starts it with.

    Raises:
        ConfigError: it has one stack, or another token starts its decoder.
    """
    if not getattr(family, "encoder_decoder", False):
        raise ConfigError(
            f"{name} needs an encoder-decoder model; {family.model_type} has one stack",
            hint="Use a family such as t5 or bart, or another objective.",
        )
    config = model.config
    first, wanted = getattr(config, "decoder_start_token_id", None), getattr(config, f"{start}_token_id", None)
    if first != wanted:
        raise ConfigError(
            f"{name} starts the decoder with the {start} token ({wanted}), but this {family.model_type} is made to "
            f"start with {first} (decoder_start_token_id)",
            hint="span_corruption is the objective of t5, denoising that of bart.",
        )


def with_decoder(example: Example, name: str, input_ids: IntArray, labels: IntArray, start_id: int) -> Example:
    """The example with ``input_ids`` for the encoder and every one of ``labels`` int64 [M] as a target of ``name``.

    The decoder reads the labels one place later, after ``start_id``. Without labels it reads that token alone. The
    columns are dropped: they were those of the tokens before.

    Raises:
        ConfigError: another objective has already made a decoder's row.
    """
    if example.decoder_input_ids is not None:
        raise ConfigError(
            f"{name} and another objective both make the decoder's row; a run takes one of them",
            hint="Leave one out of objectives.",
        )
    shifted = np.concatenate([np.asarray([start_id], dtype=np.int64), labels[:-1]])
    targets = {name: Targets(np.arange(len(labels), dtype=np.int64), labels)} if len(labels) else {}
    return replace(
        example, input_ids=input_ids, token_type_ids=None, columns={}, decoder_input_ids=shifted,
        targets={**example.targets, **targets},
    )
