"""Sentence embedding: a vector for a text, such that texts of like meaning lie near one another.

One encoder reads both texts of a row, each by itself (Sentence-BERT, Reimers and Gurevych 2019, arXiv:1908.10084). It
learns from pairs with a score (``cosent``, Su 2022; ``cosine``), or from pairs that belong together, with or without a
text that does not (``info_nce``, van den Oord et al. 2018, arXiv:1807.03748; the other texts of the group are what a
text is told from). Groups are fixed by the step's rows, so the gradient does not depend on how a step is split. The
head has no parameters: what is saved is the bare encoder, and sentence-transformers reads the folder too.

Shape letters: B sequences (texts) in the batch, N rows with a target, E hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunecore.errors import ConfigError, DataError
from tunecore.heads.columns import column, example_of, number, text, text_missing
from tunecore.heads.embedding_metrics import RetrievalMetrics, SimilarityMetrics
from tunecore.heads.ranges import check_in_range, check_range
from tunecore.heads.sentence_transformers import SentenceModel, sentence_model_files
from tunecore.ops.sequence_vectors import info_nce, sequence_means
from tunecore.types import Example, Family, Forward, LossSum, PackedBatch, Prediction, Record, Stream, Targets

NAME = "sentence_embedding"
Pooling = Literal["mean", "first", "last", "pooler"]
POOLINGS: tuple[Pooling, ...] = ("mean", "first", "last", "pooler")
LOSSES = ("cosent", "cosine", "info_nce")


@dataclass(frozen=True, kw_only=True)
class SentenceEmbeddingOptions:
    """Options of sentence_embedding."""

    text: str = "text"
    """Column with the text."""
    text_pair: str = "text_pair"
    """Column with the other text of the row."""
    negative: str | tuple[str, ...] | None = None
    """Column, or columns, with a text that does not belong to it, for info_nce."""
    label: str = "label"
    """Column with the score of the pair, for cosent and cosine."""
    loss: Literal["cosent", "cosine", "info_nce"] = "cosent"
    """cosent asks that pairs of higher score lie nearer, over all pairs of a group; cosine takes the squared difference
    of cosine and score; info_nce has no scores and tells the other text of a row from all those of its group."""
    min: float | None = None
    """Least score, for cosine: the cosine 0 stands for it, and 1 for ``max``. None takes scores as cosines, -1 to 1."""
    max: float | None = None
    """Greatest score."""
    temperature: float = 0.05
    """Cosines are divided by it, in cosent and info_nce."""
    group_size: int = 32
    """Rows compared with each other, in cosent and info_nce; training.batch_size must be a multiple of it."""
    pooling: Literal["mean", "first", "last", "pooler"] = "mean"
    """The vector of a text: the mean over its tokens, its first or last token, or the model's own pooler."""
    normalize: bool = True
    """Give vectors of length 1, whose product is the cosine."""

    def __post_init__(self) -> None:
        for name, value, known in (("loss", self.loss, LOSSES), ("pooling", self.pooling, POOLINGS)):
            if value not in known:
                raise ConfigError(f"{NAME}.{name} is {value!r}; it must be one of {', '.join(known)}")
        if not self.temperature > 0:
            raise ConfigError(f"{NAME}.temperature is {self.temperature}; it must be greater than 0")
        if self.group_size < 2:
            raise ConfigError(f"{NAME}.group_size is {self.group_size}; it must be at least 2")
        if self.negative is not None and self.loss != "info_nce":
            raise ConfigError(f"{NAME}.negative is set, which the loss {self.loss} does not read")
        check_range(self.min, self.max, NAME)
        if self.min is not None and self.loss != "cosine":
            raise ConfigError(f"{NAME}.min and {NAME}.max are set, which the loss {self.loss} does not read")


class SentenceEmbedding:
    """The head ``sentence_embedding``; its one loss has the same name."""

    name = NAME
    losses: tuple[str, ...] = (NAME,)
    needs_facts = False

    def __init__(self, options: SentenceEmbeddingOptions) -> None:
        self.options = options
        self._files: set[str] = set()
        self.is_scored = options.loss != "info_nce"
        self.default_metric = "spearman" if self.is_scored else "mrr"
        self.group_size = 1 if options.loss == "cosine" else options.group_size
        self.reads: tuple[str, ...] = ("sequence_rows",) if options.pooling in ("first", "pooler") else ()
        self._negatives = () if options.negative is None else _listed(options.negative)
        self._low, self._scale = 0.0, 1.0
        if options.min is not None and options.max is not None:
            self._low, self._scale = options.min, options.max - options.min

    def prepare(self, records: Sequence[Record]) -> Mapping[str, Any]:
        """Check the training rows; there is nothing to remember.

        Raises:
            DataError: a text or score is missing, a score is NaN or out of range (file and row are named), or all
                scores are the same.
        """
        if not records:
            raise DataError("there are no training rows")
        for record in records:
            self._texts(record, labelled=True)
        if self.is_scored and len({self.score(record) for record in records}) == 1:
            raise DataError(
                f"every training row has the score {self.score(records[0])} (column {self.options.label!r} of "
                f"{records[0].file}); there is nothing to learn",
                hint="Pairs that belong together and have no scores are for the loss info_nce.",
            )
        return {}

    def load(self, facts: Mapping[str, Any]) -> None:
        """There is nothing to take."""

    def reject(self, record: Record, *, labelled: bool) -> str | None:
        """Why a row cannot be used: a text of it is missing."""
        return text_missing(record, self._columns(record, labelled), NAME, self._files)

    def examples(
        self, record: Record, row_id: int, tokenizer: Any, max_length: int, *, labelled: bool
    ) -> list[Example]:
        """One example a text, all of one group: the text, the other text where there is one, and its negatives.

        The first carries the target: the score, or for info_nce the place of its counterpart.

        Raises:
            DataError: a text or score is missing, or a score is out of range (file and row are named).
        """
        made = [
            example_of(tokenizer, one, None, max_length, row_id=row_id, group=row_id)
            for one in self._texts(record, labelled)
        ]
        if labelled:
            target: int | float = (self.score(record) - self._low) / self._scale if self.is_scored else 1
            made[0] = replace(made[0], targets={NAME: Targets.of_sequence(target)})
        return made

    def build(self, model: PreTrainedModel, family: Family) -> nn.Module | None:
        """Return None: the encoder is all."""
        return None

    def loss(self, forward: Forward, module: nn.Module | None, stream: Stream | None) -> Mapping[str, LossSum]:
        """The loss in fp32, summed over the rows that carry a target.

        ``cosent`` has one value for a group, which counts once for each of its rows.
        """
        batch = forward.batch
        targets = batch.targets.get(NAME)
        if targets is None:
            return {NAME: LossSum(forward.hidden()[:0].float().sum(), 0)}
        vectors_BE = self.vectors(forward)
        device, index = vectors_BE.device, targets.index
        group_B = torch.tensor(batch.groups, device=device)
        place = _places(batch)
        rows = [batch.row_ids[i] for i in index.tolist()]
        others_N = torch.tensor([place[row, 1] for row in rows], device=device)
        correct = None
        if self.options.loss == "info_nce":
            wrong = [place[row, part] for row in rows for part in range(2, 2 + len(self._negatives))]
            others_M = torch.cat([others_N, torch.tensor(wrong, dtype=torch.int64, device=device)])
            told = info_nce(
                vectors_BE[index], vectors_BE[others_M], torch.arange(len(rows), device=device), group_B[index],
                group_B[others_M], self.options.temperature,
            )  # fmt: skip
            total, correct = told
        else:
            cosines_N = F.cosine_similarity(vectors_BE[index], vectors_BE[others_N], dim=-1)
            if self.options.loss == "cosine":
                total = (cosines_N - targets.labels).square().sum()
            else:
                total = cosent(cosines_N / self.options.temperature, targets.labels, group_B[index])
        return {NAME: LossSum(total, len(rows), correct)}

    def predict(self, forward: Forward, module: nn.Module | None) -> Tensor:
        """One vector a text: [B, E], fp32, of length 1 where ``normalize`` is set."""
        vectors_BE = self.vectors(forward)
        return F.normalize(vectors_BE, dim=-1) if self.options.normalize else vectors_BE

    def vectors(self, forward: Forward) -> Tensor:
        """One vector a text, before any normalisation: [B, E], fp32."""
        batch, pooling = forward.batch, self.options.pooling
        if pooling == "pooler":
            return forward.family.pooled(forward.model, forward.sequence_rows()).float()
        ends = batch.layout.cu_seqlens[: batch.num_sequences + 1].long()
        if pooling == "mean":
            return sequence_means(forward.hidden(), ends).float()
        rows_B = ends[:-1] if pooling == "first" else ends[1:] - 1
        return forward.hidden().index_select(0, rows_B).float()

    def files(self, model: PreTrainedModel, max_length: int) -> Mapping[str, Any]:
        """What sentence-transformers must know of the saved model."""
        made = SentenceModel(self.options.pooling, self.options.normalize, max_length)
        return sentence_model_files(made, int(model.config.hidden_size))

    def decode(self, raw: Sequence[Any], record: Record | None, row_id: int) -> Prediction:
        """Of a pair the cosine of its texts (in the unit of the scores, where a range is set); of one text its vector,
        a list of E numbers.
        """
        vectors = [torch.as_tensor(vector) for vector in raw]
        if len(vectors) == 1:
            return Prediction(label=vectors[0].tolist(), row_id=row_id)
        cosine = float(F.cosine_similarity(vectors[0], vectors[1], dim=-1))
        return Prediction(label=cosine * self._scale + self._low, row_id=row_id)

    def metrics(self) -> SimilarityMetrics | RetrievalMetrics:
        return SimilarityMetrics(self.score) if self.is_scored else RetrievalMetrics()

    def score(self, record: Record) -> float:
        """The score of a pair.

        Raises:
            DataError: it is missing, NaN, or out of range.
        """
        name = self.options.label
        value = number(column(record, name, "label", NAME), record, name)
        low, high = self.options.min, self.options.max
        if self.options.loss == "cosine" and low is None:
            low, high = -1.0, 1.0
        check_in_range(value, low, high, record, f"column {name!r}")
        return value

    def _columns(self, record: Record, labelled: bool) -> list[tuple[str, str]]:
        """(option, column) of each text of a row; without a label the first, and the second where it is there."""
        pair = self.options.text_pair
        columns = [("text", self.options.text)]
        if labelled:
            return [*columns, ("text_pair", pair), *(("negative", name) for name in self._negatives)]
        return [*columns, ("text_pair", pair)] if pair in record.fields else columns

    def _texts(self, record: Record, labelled: bool) -> list[str]:
        return [text(record, name, option, NAME) for option, name in self._columns(record, labelled)]


def cosent(scaled_N: Tensor, scores_N: Tensor, group_N: Tensor) -> Tensor:
    """CoSENT (Su 2022): log(1 + sum exp(c_j - c_i)) over the pairs (i, j) of a group with score i above score j.

    Args:
        scaled_N: cosines over the temperature, fp32.
        scores_N: what they should be ordered by.
        group_N: int64.

    Returns: the sum over rows, each with the value of its group.
    """
    total = scaled_N[:0].sum()
    for group in group_N.unique():
        here = group_N == group
        scaled, scores = scaled_N[here], scores_N[here]
        wrong = (scaled[None, :] - scaled[:, None])[scores[:, None] > scores[None, :]]
        total = total + len(scaled) * torch.cat([wrong.new_zeros(1), wrong]).logsumexp(0)
    return total


def _places(batch: PackedBatch) -> dict[tuple[int, int], int]:
    """(row id, part) -> which sequence of the batch."""
    return {both: place for place, both in enumerate(zip(batch.row_ids, batch.parts, strict=True))}


def _listed(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)
