"""The baseline every language model has to beat: predict each token by how frequent it is."""

from __future__ import annotations

import numpy as np


def unigram_loss(train_ids, heldout_target_ids, vocab_size: int) -> float:
    """Cross-entropy in nats a target of add-one smoothed frequencies, int64 ids in [0, vocab_size) in both arrays."""
    counts = np.bincount(np.asarray(train_ids, dtype=np.int64), minlength=vocab_size) + 1.0
    return float(-np.log(counts / counts.sum())[np.asarray(heldout_target_ids, dtype=np.int64)].mean())
