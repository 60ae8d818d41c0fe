"""Minimal pairs: does the model find the grammatical sentence of two that differ in little more likely?

The test of what a language model knows without any training for it (BLiMP, Warstadt et al. 2020, arXiv:1912.00582).
A sentence's score is its log-probability by a causal model, its pseudo-log-likelihood by a masked one
(:mod:`tunecore.heads.sentence_scores`). The head may be trained too: by the logistic loss of the difference.

Shape letters: B sequences in the batch, N tokens that are asked for, R rows (pairs) in the batch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunecore.data.sources import missing_reason
from tunecore.data.tokenizer import roles
from tunecore.errors import ConfigError, DataError
from tunecore.heads.minimal_pair_metrics import MinimalPairMetrics
from tunecore.heads.sentence_scores import Asked, Encoded, causal_questions, masked_questions, token_log_probs
from tunecore.types import Example, Family, Forward, LossSum, Prediction, Record, Stream, Targets

NAME = "minimal_pairs"
TOKENS = (f"{NAME}/good tokens", f"{NAME}/bad tokens")
"""Targets that are no loss of their own: the tokens asked for of the good and of the bad sentence."""
DEFAULT_GROUP = "UID"
Scoring = Literal["auto", "causal", "original", "within_word_l2r"]


@dataclass(frozen=True, kw_only=True)
class MinimalPairsOptions:
    """Options of minimal_pairs."""

    good: str = "sentence_good"
    """Column with the acceptable sentence."""
    bad: str = "sentence_bad"
    """Column with the other one."""
    group: str | None = None
    """Column by which the report is parted (the phenomenon); None is UID where rows have it, as BLiMP's do."""
    max_per_group: int | None = None
    """Take only the first so many rows of each group; None takes all."""
    scoring: Scoring = "auto"
    """How a sentence is scored. causal: each token by those before it; original: each token masked in turn;
    within_word_l2r: as original, with the later pieces of its word masked too. auto is causal for models that read
    from left to right, else original."""

    def __post_init__(self) -> None:
        if self.scoring not in ("auto", "causal", "original", "within_word_l2r"):
            raise ConfigError(
                f"{NAME}.scoring is {self.scoring!r}; it must be auto, causal, original or within_word_l2r"
            )
        if self.max_per_group is not None and self.max_per_group < 1:
            raise ConfigError(f"{NAME}.max_per_group is {self.max_per_group}; it must be at least 1")
        if self.good == self.bad:
            raise ConfigError(f"{NAME}.good and {NAME}.bad both name the column {self.good!r}")


class MinimalPairs:
    """The head ``minimal_pairs``; its one loss has the same name. It uses the model's own prediction head."""

    name = NAME
    losses: tuple[str, ...] = (NAME,)
    extra_targets = TOKENS
    uses = ("masked_lm", "causal_lm")
    reads = ("targets",)
    needs_facts = False
    default_metric = "accuracy"

    def __init__(self, options: MinimalPairsOptions) -> None:
        self.options = options
        self._is_causal: bool | None = None if options.scoring == "auto" else options.scoring == "causal"
        self._known: WeakKeyDictionary[Forward, Tensor] = WeakKeyDictionary()

    @property
    def row_columns(self) -> tuple[str, str]:
        """What the two values of a row to predict are."""
        return self.options.good, self.options.bad

    def reject(self, record: Record, *, labelled: bool) -> str | None:
        """A column is missing or holds no text."""
        for column in self.row_columns:
            if (reason := missing_reason(record.fields.get(column))) is not None:
                return f"{column}: {reason}"
        return None

    def select(self, records: Iterable[Record]) -> Iterator[Record]:
        """The first ``max_per_group`` rows of each group."""
        most, seen = self.options.max_per_group, Counter[str | None]()
        for record in records:
            group = self._group(record)
            seen[group] += 1
            if most is None or seen[group] <= most:
                yield record

    def prepare(self, records: Sequence[Record]) -> Mapping[str, Any]:
        """Nothing is learnt of the rows: {}.

        Raises:
            DataError: a sentence or the group's column is missing (file and row).
        """
        if not records:
            raise DataError("there are no training rows")
        for record in records:
            self._sentences(record)
            self._group(record)
        return {}

    def load(self, facts: Mapping[str, Any]) -> None:
        """There is nothing to take."""

    def examples(
        self, record: Record, row_id: int, tokenizer: Any, max_length: int, *, labelled: bool
    ) -> list[Example]:
        """A causal model: one example for each sentence. A masked one: one for each token of each sentence.

        Raises:
            DataError: a sentence is missing, has no token to score, or is longer than ``max_length`` tokens: cut, it
                would be another sentence.
            ConfigError: masked scoring, and the tokenizer has no mask token.
        """
        made: list[Example] = []
        for sentence, tokens in zip(self._sentences(record), TOKENS, strict=True):
            asked = self._questions(sentence, tokenizer)
            where = f"{record.file}:{record.row}: the sentence {sentence!r}"
            if not asked:
                raise DataError(f"{where} has no token that can be scored")
            if len(asked[0].ids) > max_length:
                raise DataError(
                    f"{where} has {len(asked[0].ids)} tokens; the most is {max_length}",
                    hint="Raise data.max_length where the model allows it, or leave the row out.",
                )
            for question in asked:
                targets = {tokens: question.tokens}
                if labelled and not made:
                    targets[NAME] = Targets.of_sequence(0)  # one a pair: its first sequence announces it
                made.append(
                    Example(
                        row_id=row_id, input_ids=question.ids, token_type_ids=question.types, targets=targets,
                        group=row_id,
                    )
                )
        return made

    def _questions(self, sentence: str, tokenizer: Any) -> list[Asked]:
        has_mask = roles(tokenizer).mask_id is not None
        if self._is_causal is None:
            self._is_causal = not has_mask
        encoded = Encoded.of(sentence, tokenizer)
        if self._is_causal:
            return causal_questions(encoded, tokenizer)
        if not has_mask:
            raise ConfigError(f"{NAME} masks tokens in turn, but the tokenizer has no mask token")
        return masked_questions(encoded, tokenizer, self.options.scoring == "within_word_l2r")

    def build(self, model: PreTrainedModel, family: Family) -> nn.Module | None:
        """Return None: the transformers class has the prediction head.

        Raises:
            ConfigError: the model reads the other way than sentences are scored.
        """
        if self._is_causal is None:
            self._is_causal = family.causal
        if self._is_causal != family.causal:
            reads, right = ("from left to right", "causal") if family.causal else ("both ways", "original")
            raise ConfigError(
                f"{NAME} scores sentences {'from left to right' if self._is_causal else 'by masking tokens in turn'}, "
                f"but {family.model_type} reads {reads}",
                hint=f"Set the option scoring to {right}, or to auto.",
            )
        return None

    def loss(self, forward: Forward, module: nn.Module | None, stream: Stream | None) -> Mapping[str, LossSum]:
        """-log sigmoid(score of good - score of bad), summed over pairs; right where good has the higher score."""
        targets = forward.batch.targets.get(NAME)
        if targets is None:
            return {NAME: LossSum(forward.hidden()[:0].float().sum(), 0)}
        scores_B2 = self._scores(forward)
        numbers = {row: number for number, row in enumerate(dict.fromkeys(forward.batch.row_ids))}
        row_B = torch.tensor([numbers[row] for row in forward.batch.row_ids], device=scores_B2.device)
        scores_R2 = scores_B2.new_zeros(len(numbers), 2).index_add(0, row_B, scores_B2)
        good, bad = scores_R2.index_select(0, row_B.index_select(0, targets.index)).unbind(1)
        return {NAME: LossSum(F.softplus(bad - good).sum(), len(targets.labels), (good.detach() > bad.detach()).sum())}

    def predict(self, forward: Forward, module: nn.Module | None) -> Tensor:
        """What each sequence adds to the scores (good, bad) of its row: float32 [B, 2]."""
        return self._scores(forward)

    def _scores(self, forward: Forward) -> Tensor:
        """Sums of log-probabilities by sequence and sentence [B, 2]; computed once a forward, as hidden() is."""
        known = self._known.get(forward)
        if known is not None:
            return known
        batch = forward.batch
        starts = batch.layout.cu_seqlens.long()
        asked = [(side, batch.targets[name]) for side, name in enumerate(TOKENS) if name in batch.targets]
        index_N = torch.cat([starts.new_zeros(0), *(targets.index for _, targets in asked)])
        labels_N = torch.cat([starts.new_zeros(0), *(targets.labels for _, targets in asked)])
        side_N = torch.cat([starts.new_zeros(0), *(torch.full_like(targets.index, side) for side, targets in asked)])
        place_N = 2 * (torch.searchsorted(starts, index_N, right=True) - 1) + side_N
        log_probs_N = token_log_probs(forward, index_N, labels_N)
        flat = log_probs_N.new_zeros(2 * batch.num_sequences).index_add(0, place_N, log_probs_N)
        scores_B2 = self._known[forward] = flat.view(-1, 2)
        return scores_B2

    def decode(self, raw: Sequence[Any], record: Record | None, row_id: int) -> Prediction:
        """The column of the likelier sentence, the probability that it is that one of the two, and both scores."""
        good, bad = torch.stack([torch.as_tensor(part) for part in raw]).double().sum(0).tolist()
        label = self.options.good if good > bad else self.options.bad
        probability = 1 / (1 + math.exp(-min(abs(good - bad), 700.0)))
        scores = {self.options.good: good, self.options.bad: bad}
        return Prediction(label=label, score=probability, scores=scores, row_id=row_id)

    def metrics(self) -> MinimalPairMetrics:
        return MinimalPairMetrics(self._group)

    def _sentences(self, record: Record) -> tuple[str, str]:
        if (reason := self.reject(record, labelled=False)) is not None:
            raise DataError(
                f"{record.file}:{record.row}: {reason}; columns found: "
                f"{', '.join(map(str, record.fields)) or '(none)'}",
                hint=f"Name the columns of the two sentences by the options good and bad of the head {NAME}.",
            )
        good, bad = (record.fields[column] for column in self.row_columns)
        return good, bad

    def _group(self, record: Record) -> str | None:
        column = self.options.group
        if column is None:
            value = record.fields.get(DEFAULT_GROUP)
            return None if value is None else str(value)
        if column not in record.fields:
            raise DataError(
                f"{record.file}:{record.row}: there is no column {column!r} to part the report by; "
                f"columns found: {', '.join(map(str, record.fields))}",
                hint=f"Name the right one by the option group of the head {NAME}.",
            )
        return str(record.fields[column])
