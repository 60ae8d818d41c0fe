"""The log-probability of a sentence: how its tokens are laid out to be asked for, and how the answers are computed.

A causal model: the sum of log p(token | those before it). A masked model: the pseudo-log-likelihood, the sum of
log p(token | all others) with one token masked at a time (Salazar et al. 2020, arXiv:1910.14659), or with the later
pieces of its word masked too (Kauf & Ivanova 2023, arXiv:2305.10588), which keeps a rare word of several pieces from
looking likely because each piece gives the others away.

Shape letters: L tokens of one example, N tokens that are asked for, E hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tunecore.data.tokenizer import roles
from tunecore.types import Forward, IntArray, Targets

CHUNK_ROWS = 512
"""Most rows of logits [N, V] that exist at once."""


class Asked(NamedTuple):
    """One sequence, and the tokens of the sentence that are asked for in it."""

    ids: IntArray
    types: IntArray | None
    tokens: Targets
    """The rows to read, and the token whose log-probability is wanted at each."""


class Encoded(NamedTuple):
    """A sentence as its tokenizer lays it out, never cut; all [L]."""

    ids: IntArray
    types: IntArray | None
    special: NDArray[np.bool_]
    words: IntArray
    """Number of each token's word, -1 for special tokens."""

    @classmethod
    def of(cls, sentence: str, tokenizer: Any) -> Encoded:
        encoding = tokenizer(sentence, return_special_tokens_mask=True)
        types = encoding.get("token_type_ids")
        return cls(
            np.asarray(encoding["input_ids"], dtype=np.int64),
            None if types is None else np.asarray(types, dtype=np.int64),
            np.asarray(encoding["special_tokens_mask"], dtype=bool),
            np.asarray([-1 if word is None else word for word in encoding.word_ids()], dtype=np.int64),
        )


def causal_questions(encoded: Encoded, tokenizer: Any) -> list[Asked]:
    """One sequence that ends before the sentence's last token, each token asked for at the one before it.

    It starts with what the tokenizer puts first, else with its beginning-of-text token; without either the first
    token of the sentence is only read. A sentence with nothing to ask for gives no sequence.
    """
    ids, types, special = encoded.ids, encoded.types, encoded.special
    bos = roles(tokenizer).bos_id
    if bos is not None and len(ids) and not special[0]:
        ids, special = np.append(bos, ids), np.append(True, special)
        types = None if types is None else np.append(types[:1], types)
    asked = np.flatnonzero(~special[1:])
    if not len(asked):
        return []
    last = int(asked[-1]) + 1
    tokens = Targets(asked.astype(np.int64), ids[asked + 1])
    return [Asked(ids[:last], None if types is None else types[:last], tokens)]


def masked_questions(encoded: Encoded, tokenizer: Any, within_word: bool) -> list[Asked]:
    """A copy of the sentence for each of its tokens, with that one masked and asked for.

    Args:
        encoded: the sentence.
        tokenizer: has the mask token.
        within_word: mask the later tokens of the same word as well (within-word left-to-right).
    """
    made = []
    for place in np.flatnonzero(~encoded.special):
        ids = encoded.ids.copy()
        ids[place] = tokenizer.mask_token_id
        if within_word:
            ids[place:][encoded.words[place:] == encoded.words[place]] = tokenizer.mask_token_id
        made.append(Asked(ids, encoded.types, Targets(_one(int(place)), _one(int(encoded.ids[place])))))
    return made


@lru_cache(maxsize=1 << 16)
def _one(value: int) -> IntArray:
    """An array of one number, shared: a test of 67,000 pairs has more than a million of them."""
    array = np.array([value], dtype=np.int64)
    array.flags.writeable = False
    return array


def token_log_probs(forward: Forward, index_N: Tensor, labels_N: Tensor) -> Tensor:
    """The log-probabilities of labels at rows of the hidden states: float32 [N]; differentiable.

    Only these rows meet the vocabulary, ``CHUNK_ROWS`` at a time; their logits are made again in the backward pass
    rather than kept.
    """
    rows_NE = forward.hidden().index_select(0, index_N)
    hidden_NE, weight_VE, bias_V = forward.family.token_head(forward.model, rows_NE)
    chunks = []
    for part in _slices(len(labels_N)):
        inputs = (hidden_NE[part], weight_VE, bias_V, labels_N[part])
        if torch.is_grad_enabled():
            chunks.append(checkpoint(_log_probs, *inputs, use_reentrant=False, preserve_rng_state=False))
        else:
            chunks.append(_log_probs(*inputs))
    return torch.cat(chunks) if chunks else hidden_NE.new_zeros(0, dtype=torch.float32)


def _slices(count: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK_ROWS) for start in range(0, count, CHUNK_ROWS))


def _log_probs(hidden_NE: Tensor, weight_VE: Tensor, bias_V: Tensor | None, labels_N: Tensor) -> Tensor:
    logits_NV = torch.nn.functional.linear(hidden_NE, weight_VE, bias_V).float()
    return logits_NV.gather(1, labels_N[:, None])[:, 0] - logits_NV.logsumexp(1)
