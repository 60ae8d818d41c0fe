"""Token classification: a tag for every word of a text (entities, parts of speech).

The model is a plain ``...ForTokenClassification`` of transformers; a word is read from its first piece (Devlin et al.
2018, section 5.3). A text longer than the model takes is cut between words into windows that overlap, and each word
is learned and read in the window where it has most context.

Shape letters: T tokens in the batch, L tokens of one example, N rows with a target, E hidden width, W words, C tags.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunecore.errors import ConfigError, DataError
from tunecore.heads.entity_metrics import EntityMetrics
from tunecore.heads.tags import Grammar, complete_labels, continuation, is_chunk_scheme, single_spans, spans_of
from tunecore.heads.token_layer import own_layer
from tunecore.heads.word_rows import WordRow, read_words, rejected, tags_of
from tunecore.heads.word_windows import WordLayout, WordWindows, at_words
from tunecore.types import Example, Family, Forward, LossSum, Prediction, Record, Stream, Targets

NAME = "token_classification"
Scores = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class TokenClassificationOptions:
    """Options of token_classification."""

    tokens: str = "tokens"
    """Column with the words: a list, or a text that is split at blanks."""
    tags: str = "tags"
    """Column with the tag of each word: a list of names or whole numbers, or a text that is split at blanks."""
    text: str = "text"
    """Column with running text, for rows to predict that have no column of words; it is parted into words at blanks
    and punctuation."""
    labels: tuple[str, ...] | None = None
    """Tags in order. Whole numbers in the data then count into this list (0 is the first). None takes the tags of the
    training rows: O first, then by type, B- before I-."""
    label_pieces: Literal["first", "all"] = "first"
    """Which pieces of a word learn its tag; of all, the further ones of a word with B- learn I-."""
    stride: int = 32
    """Most pieces that the windows of a long text share; never more than half a window."""
    well_formed: bool = False
    """Predict the likeliest sequence of tags in which every I- continues a span of its type (IOB2, BIOES); otherwise
    each word has its likeliest tag."""
    label_smoothing: float = 0.0
    """Probability mass spread evenly over the tags."""

    def __post_init__(self) -> None:
        if self.label_pieces not in ("first", "all"):
            raise ConfigError(f"{NAME}.label_pieces is {self.label_pieces!r}; it must be first or all")
        if self.stride < 0:
            raise ConfigError(f"{NAME}.stride is {self.stride}; it must not be negative")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"{NAME}.label_smoothing is {self.label_smoothing}; it must be at least 0 and below 1")
        labels = self.labels or ()
        if self.labels is not None and (len(labels) < 2 or len(set(labels)) < len(labels)):
            raise ConfigError(f"{NAME}.labels names {', '.join(labels)}; there must be two at least, and none twice")


class TokenClassification:
    """The head ``token_classification``; its one loss has the same name."""

    name = NAME
    losses: tuple[str, ...] = (NAME,)

    def __init__(self, options: TokenClassificationOptions) -> None:
        self.options = options
        self.row_columns = (options.text,)
        self.labels: tuple[str, ...] = ()
        self._number: dict[str, int] = {}
        self._files: set[str] = set()
        self._windows: WordWindows | None = None
        self._max_length = 0
        if options.labels is not None:
            self._take(tuple(str(label) for label in options.labels))

    def _take(self, labels: tuple[str, ...]) -> None:
        self.labels = labels
        self._number = {label: i for i, label in enumerate(labels)}
        if not any(label.removeprefix("-").isdecimal() for label in labels):
            self._number.update({str(i): i for i in range(len(labels))})
        self._grammar = Grammar(labels)

    @property
    def default_metric(self) -> str:
        """F1 of spans; accuracy where tags mark none."""
        return "f1" if is_chunk_scheme(self.labels) else "accuracy"

    def reject(self, record: Record, *, labelled: bool) -> str | None:
        """Why a row cannot be used; None where it can.

        Raises:
            DataError: no row of its file so far has the columns.
        """
        options = self.options
        return rejected(record, options.tokens, options.tags if labelled else None, options.text, self._files)

    def prepare(self, records: Sequence[Record]) -> Mapping[str, Any]:
        """Find the tags of the training rows: {"labels": [tags in order]}.

        Raises:
            DataError: a row has no words or tags, a tag is not among the option ``labels``, or all tags are the same.
        """
        if not records:
            raise DataError("there are no training rows")
        found: dict[str, Record] = {}
        for record in records:
            reason = self.reject(record, labelled=True)
            if reason is not None:
                raise DataError(f"{record.file}:{record.row}: {reason}")
            for tag in tags_of(record, self.options.tags):
                found.setdefault(tag, record)
        if self.options.labels is not None:
            for tag, record in found.items():
                self._class(tag, record)
        elif len(found) < 2:
            raise DataError(
                f"every word of the training rows has the tag {next(iter(found))!r} (column {self.options.tags!r} of "
                f"{records[0].file}); there is nothing to tell apart",
                hint="Give rows with other tags, or name another column by the option tags.",
            )
        else:
            self._take(complete_labels(found))
        return {"labels": list(self.labels)}

    def load(self, facts: Mapping[str, Any]) -> None:
        """Take the tags of a saved model.

        Raises:
            ConfigError: the option ``labels`` says otherwise in number.
        """
        labels = tuple(str(label) for label in facts["labels"])
        given = self.options.labels
        if given is not None and len(given) != len(labels):
            raise ConfigError(
                f"option labels of {NAME} has {len(given)} names, but the model has {len(labels)} classes: "
                f"{', '.join(labels)}"
            )
        self._take(labels if given is None else tuple(str(label) for label in given))

    def examples(
        self, record: Record, row_id: int, tokenizer: Any, max_length: int, *, labelled: bool
    ) -> list[Example]:
        """One example a window of at most ``max_length`` tokens; each word has its target in one of them.

        Raises:
            DataError: words or tags are missing or differ in number, or a tag is unknown (file, row, known tags).
        """
        reason = self.reject(record, labelled=labelled) if labelled else None
        if reason is not None:
            raise DataError(f"{record.file}:{record.row}: {reason}")
        if self._windows is None or self._windows.tokenizer is not tokenizer:
            self._windows = WordWindows(tokenizer, self.options.stride)
        self._max_length = max_length
        layout = self._layout(self._words(record))
        tags = [self._class(tag, record) for tag in tags_of(record, self.options.tags)] if labelled else []
        return [
            self._windows.encoder.example(
                row_id, layout.ids(number), targets={NAME: self._targets(layout, number, tags)} if labelled else None
            )
            for number in range(len(layout.windows))
        ]

    def _words(self, record: Record) -> WordRow:
        return read_words(record, self.options.tokens, self.options.text)

    def _layout(self, row: WordRow) -> WordLayout:
        assert self._windows is not None, "examples are made before outputs are read"
        return self._windows.layout(row.words, self._max_length)

    def _targets(self, layout: WordLayout, number: int, tags: Sequence[int]) -> Targets:
        index: list[int] = []
        labels: list[int] = []
        for word, place, num_pieces in layout.read_from(number):
            index.append(place)
            labels.append(tags[word])
            if self.options.label_pieces == "all" and num_pieces > 1:
                further = self._number[continuation(self.labels[tags[word]], self.labels)]
                index += range(place + 1, place + num_pieces)
                labels += [further] * (num_pieces - 1)
        return Targets(np.asarray(index, np.int64), np.asarray(labels, np.int64))

    def build(self, model: PreTrainedModel, family: Family) -> nn.Module | None:
        """Return None where the transformers class has the layer, else one of our own.

        Raises:
            ConfigError: the model has another number of classes than there are tags.
        """
        module = own_layer(model, getattr(family, "token_classifier", None), len(self.labels))
        if module is None and len(self.labels) != int(model.config.num_labels):
            raise ConfigError(
                f"the model has {model.config.num_labels} classes, but there are {len(self.labels)} tags: "
                f"{', '.join(self.labels)}"
            )
        return module

    def loss(self, forward: Forward, module: nn.Module | None, stream: Stream | None) -> Mapping[str, LossSum]:
        """Cross-entropy in fp32, summed over the pieces that carry a tag."""
        targets = forward.batch.targets.get(NAME)
        hidden_TE = forward.hidden()
        if targets is None:
            return {NAME: LossSum(hidden_TE[:0].float().sum(), 0)}
        logits_NC = _logits(forward, module, hidden_TE.index_select(0, targets.index))
        smoothing = self.options.label_smoothing
        total = F.cross_entropy(logits_NC, targets.labels, reduction="sum", label_smoothing=smoothing)
        correct = (logits_NC.detach().argmax(-1) == targets.labels).sum()
        return {NAME: LossSum(total, int(targets.labels.shape[0]), correct)}

    def predict(self, forward: Forward, module: nn.Module | None) -> list[Tensor]:
        """Logits at every token, fp32, of each sequence: [L, C]."""
        batch = forward.batch
        lengths = batch.layout.cu_seqlens[: batch.num_sequences + 1].diff().tolist()
        logits_TC = _logits(forward, module, forward.hidden()[: sum(lengths)])
        return list(logits_TC.cpu().split(lengths))

    def decode(self, raw: Sequence[Any], record: Record | None, row_id: int) -> Prediction:
        """The tags of the words, and in ``details`` the words with their places and the spans that the tags mark.

        ``details``: ``words``, ``offsets`` (first character and one past the last of each), ``scores`` (probability of
        each word's tag) and ``entities`` (type, text, start, end, words, score: the mean of its words'). Places are
        those in the text given, or in the words joined by blanks.
        """
        assert record is not None
        row = self._words(record)
        probabilities_WC = self._probabilities(raw, row)
        classes = self._best(probabilities_WC)
        tags = [self.labels[number] for number in classes]
        scores = [float(row_C[number]) for row_C, number in zip(probabilities_WC, classes, strict=True)]
        entities = []
        for kind, first, stop in self._spans(tags):
            start, end = row.offsets[first][0], row.offsets[stop - 1][1]
            score = sum(scores[first:stop]) / (stop - first)
            entities.append({
                "type": kind, "text": row.text[start:end], "start": start, "end": end, "words": [first, stop],
                "score": score,
            })  # fmt: skip
        offsets = [list(place) for place in row.offsets]
        details = {"words": list(row.words), "offsets": offsets, "scores": scores, "entities": entities}
        return Prediction(label=tags, row_id=row_id, details=details)

    def metrics(self) -> EntityMetrics:
        return EntityMetrics(self._read, self._spans)

    def _read(self, raw: Sequence[Any], record: Record) -> tuple[list[str], list[str]]:
        true = [self.labels[self._class(tag, record)] for tag in tags_of(record, self.options.tags)]
        classes = self._best(self._probabilities(raw, self._words(record)))
        return true, [self.labels[number] for number in classes]

    def _spans(self, tags: Sequence[str]) -> Iterator[Any]:
        return spans_of(tags) if is_chunk_scheme(self.labels) else single_spans(tags)

    def _probabilities(self, raw: Sequence[Any], row: WordRow) -> Scores:
        """Probabilities of the tags at each word's first piece: float64 [W, C]."""
        outputs = [torch.as_tensor(logits_LC).double().softmax(-1).numpy() for logits_LC in raw]
        return at_words(outputs, self._layout(row))

    def _best(self, probabilities_WC: Scores) -> list[int]:
        if not self.options.well_formed:
            return [int(number) for number in probabilities_WC.argmax(-1)]
        with np.errstate(divide="ignore"):
            return self._grammar.best_path(np.log(probabilities_WC))

    def _class(self, tag: str, record: Record) -> int:
        try:
            return self._number[tag]
        except KeyError:
            raise DataError(
                f"{record.file}:{record.row}: unknown tag {tag!r} (column {self.options.tags!r}); "
                f"known: {', '.join(self.labels)}"
            ) from None


def _logits(forward: Forward, module: nn.Module | None, rows_NE: Tensor) -> Tensor:
    if module is not None:
        logits_NC: Tensor = module(rows_NE)
    else:
        family: Any = forward.family
        logits_NC = family.token_classifier(forward.model, rows_NE)
    return logits_NC.float()
