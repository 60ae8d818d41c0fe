"""What objectives over the vocabulary share: draws of ordinary ids, and the loss at rows with a target, which is
that of ``tunecore.ops.vocabulary``.
"""

from __future__ import annotations

import numpy as np

from tunecore.errors import ConfigError
from tunecore.ops.vocabulary import check_loss_options as check_loss_options
from tunecore.ops.vocabulary import vocabulary_loss as vocabulary_loss
from tunecore.types import CorpusView, Family, IntArray, Stream


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
