"""Vectors of texts from any model of one stack, whatever it was trained for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunecore.data.surrogates import LONE_SURROGATE, has_lone_surrogate
from tunecore.errors import DataError
from tunecore.heads.sentence_embedding import SentenceEmbedding, SentenceEmbeddingOptions
from tunecore.session import Session
from tunecore.training.unit import ForwardPass, check_stacks
from tunecore.types import PackedBatch, Record


def embed(
    session: Session, texts: Sequence[str], pooling: Any = None, normalize: bool | None = None
) -> NDArray[np.float32]:
    """One vector a text, in their order: float32 [n, E].

    Args:
        session: a model ready to work.
        texts: any number of them.
        pooling: mean, first, last or pooler; None is that of the session's own embedding head, else mean.
        normalize: give vectors of length 1; None is as the head says, else True.

    Raises:
        ConfigError: an unknown pooling, or a model of two stacks.
        DataError: an item is no text.
    """
    options = SentenceEmbeddingOptions()
    if isinstance(session.head, SentenceEmbedding):
        own = session.head.options
        options = replace(options, pooling=own.pooling, normalize=own.normalize)
    if pooling is not None:
        options = replace(options, pooling=pooling)
    if normalize is not None:
        options = replace(options, normalize=normalize)
    head = SentenceEmbedding(options)
    check_stacks(head.name, head, session.family)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"text {index} to embed is {text!r} ({type(text).__name__}), not a str")
        if has_lone_surrogate(text):
            raise DataError(f"text {index} to embed is {text!r}: {LONE_SURROGATE}")
    records = [Record({options.text: text}, "<embed>", index) for index, text in enumerate(texts)]
    vectors = np.zeros((len(records), int(session.model.config.hidden_size)), np.float32)

    def predict(batch: PackedBatch) -> Any:
        return head.predict(ForwardPass(session.model, session.family, batch), None)

    if records:
        for row_id, (vector,) in session.outputs(records, head, predict).items():
            vectors[row_id] = vector.cpu().numpy()
    return vectors
