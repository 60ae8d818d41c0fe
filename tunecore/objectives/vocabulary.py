"""What objectives over the vocabulary share: the loss at rows with a target, and draws of ordinary ids.

Shape letters: T tokens in the batch, N rows with a target, E hidden width, V vocabulary.
"""

from __future__ import annotations

import math

import numpy as np

from tunecore.errors import ConfigError
from tunecore.ops import masked_lm_loss
from tunecore.types import CorpusView, Family, Forward, IntArray, LossSum, Stream


def vocabulary_loss(forward: Forward, name: str, *, label_smoothing: float, z_loss: float) -> LossSum:
    """Cross-entropy over the vocabulary at the rows of ``batch.targets[name]``, summed.

    Only these N of the T rows [T, E] meet the prediction head and the vocabulary. A batch without targets of that
    name gives a sum of 0 over 0 targets.
    """
    targets = forward.batch.targets.get(name)
    hidden_TE = forward.hidden()
    if targets is None:
        return LossSum(hidden_TE[:0].float().sum(), 0)
    rows_NE = hidden_TE.index_select(0, targets.index)
    hidden_NE, weight_VE, bias_V = forward.family.token_head(forward.model, rows_NE)
    return masked_lm_loss(
        hidden_NE, weight_VE, bias_V, targets.labels,
        ignore_index=None, label_smoothing=label_smoothing, z_loss=z_loss,
    )


def check_loss_options(owner: str, label_smoothing: float, z_loss: float) -> None:
    """Raise ConfigError where an option of the vocabulary loss is out of range."""
    if not 0 <= label_smoothing < 1:
        raise ConfigError(f"{owner}.label_smoothing is {label_smoothing}; it must be at least 0 and below 1")
    if not 0 <= z_loss < math.inf:
        raise ConfigError(f"{owner}.z_loss is {z_loss}; it must not be negative")


def refuse_causal(owner: str, family: Family) -> None:
    """Raise ConfigError where the family reads from left to right only."""
    if family.causal:
        raise ConfigError(
            f"{owner} needs a model that reads both ways; {family.model_type} is causal",
            hint="Use the objective causal_lm, or a family such as bert or roberta.",
        )


def special_ids(corpus: CorpusView) -> IntArray:
    """The ids of the corpus's special tokens, sorted, int64."""
    ids = (corpus.cls_id, corpus.sep_id, corpus.mask_id, corpus.pad_id, corpus.bos_id, corpus.eos_id)
    return np.asarray(sorted({i for i in ids if i is not None}), dtype=np.int64)


def random_ids(corpus: CorpusView, stream: Stream, n: int) -> IntArray:
    """Draw ``n`` ids uniformly from the vocabulary without its special tokens: int64 [n]."""
    special = special_ids(corpus)
    draws = stream.integers(0, corpus.vocab_size - len(special), n)
    # The r-th ordinary id is r plus the special ids at or below it; special[k] - k ordinary ids lie below special[k].
    return draws + np.searchsorted(special - np.arange(len(special)), draws, side="right")
