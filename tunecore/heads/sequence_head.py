"""What heads on a ``...ForSequenceClassification`` share: one or two texts a row, and the class's own classifier.

Its pooler, dropout and classifier run on the rows each sequence is read from, and what is saved loads in transformers
as it is. Losses are means over the columns of a row, so that their mean over rows is what transformers computes.

Shape letters: B sequences in the batch, N of them with a label, L tokens of one example, E hidden width, C columns of
the logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from tunecore.heads.columns import example_of, text
from tunecore.heads.label_names import LabelNames
from tunecore.types import Example, Family, Forward, LossSum, Record, Stream, Targets

CLASSIFICATION = "sequence_classification"


class SequenceHead:
    """A head of one loss over one example a row. A subclass says what a label is, and the loss.

    ``options`` have the columns ``text`` and ``text_pair``.
    """

    name: str
    losses: tuple[str, ...]
    uses: tuple[str, ...] = (CLASSIFICATION,)
    reads: tuple[str, ...] = ("sequence_rows",)
    options: Any

    def target(self, record: Record) -> int | float | Sequence[float]:
        """The label of a row, as ``Targets.of_sequence`` takes it."""
        raise NotImplementedError

    def loss_of(self, logits_NC: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Loss summed over rows, and how many are right where that has a meaning; logits are fp32."""
        raise NotImplementedError

    def texts(self, record: Record) -> tuple[str, str | None]:
        """The texts of a row.

        Raises:
            DataError: one is missing (file, row and the columns found).
        """
        pair = self.options.text_pair
        first = text(record, self.options.text, "text", self.name)
        return first, None if pair is None else text(record, pair, "text_pair", self.name)

    def examples(
        self, record: Record, row_id: int, tokenizer: Any, max_length: int, *, labelled: bool
    ) -> list[Example]:
        """One example of at most ``max_length`` tokens; of a pair the longer text is cut first.

        Raises:
            DataError: a text or label is missing, or the label cannot be used (file and row are named).
        """
        first, second = self.texts(record)
        targets = {self.losses[0]: Targets.of_sequence(self.target(record))} if labelled else {}
        return [example_of(tokenizer, first, second, max_length, row_id=row_id, targets=targets)]

    def build(self, model: PreTrainedModel, family: Family) -> nn.Module | None:
        """Return None: the transformers class has the classifier."""
        return None

    def loss(self, forward: Forward, module: nn.Module | None, stream: Stream | None) -> Mapping[str, LossSum]:
        """The loss in fp32, summed over the sequences that carry a label."""
        targets = forward.batch.targets.get(self.losses[0])
        rows_BE = forward.sequence_rows()
        if targets is None:
            return {self.losses[0]: LossSum(rows_BE[:0].float().sum(), 0)}
        logits_NC = forward.family.sequence_head(forward.model, rows_BE).float().index_select(0, targets.index)
        total, correct = self.loss_of(logits_NC, targets.labels)
        return {self.losses[0]: LossSum(total, int(targets.labels.shape[0]), correct)}

    def predict(self, forward: Forward, module: nn.Module | None) -> Tensor:
        """Logits [B, C], fp32."""
        return forward.family.sequence_head(forward.model, forward.sequence_rows()).float()


class LabelledHead(SequenceHead):
    """A sequence head whose columns are named labels; a subclass makes ``_labels``."""

    _labels: LabelNames

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names in order."""
        return self._labels.names

    def build(self, model: PreTrainedModel, family: Family) -> nn.Module | None:
        """Return None: the transformers class has the classifier.

        Raises:
            ConfigError: the model has another number of classes than there are labels.
        """
        self._labels.check_classes(int(model.config.num_labels))
        return None
