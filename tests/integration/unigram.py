"""The baseline a language model must beat: every token predicted by its share of the training text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def unigram_loss(train_ids: NDArray[np.integer], heldout_target_ids: NDArray[np.integer], vocab_size: int) -> float:
    """Cross-entropy in nats of the targets under add-one smoothed frequencies of the training tokens."""
    counts = np.bincount(np.asarray(train_ids, dtype=np.int64), minlength=vocab_size) + 1.0
    return float(-np.log(counts / counts.sum())[np.asarray(heldout_target_ids, dtype=np.int64)].mean())
