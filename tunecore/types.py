"""The shared vocabulary: what travels between data, models, objectives, heads and training.

Shape letters: T tokens in the batch, B sequences in the batch, L tokens of one example, N rows with a target,
E hidden width, V vocabulary, C classes.
Examples and batches themselves stand in ``tunecore.batch``, what they are made from in ``tunecore.reading``, strategies
in ``tunecore.strategy``; their names can be had from here too. No torch is needed at run time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

from tunecore.batch import BatchTargets as BatchTargets
from tunecore.batch import Example as Example
from tunecore.batch import IntArray as IntArray
from tunecore.batch import Level as Level
from tunecore.batch import PackedBatch as PackedBatch
from tunecore.batch import PackedLayout as PackedLayout
from tunecore.batch import RowSubset as RowSubset
from tunecore.batch import Targets as Targets
from tunecore.reading import Chunk as Chunk
from tunecore.reading import CorpusView as CorpusView
from tunecore.reading import Generated as Generated
from tunecore.reading import Record as Record
from tunecore.reading import Stream as Stream
from tunecore.strategy import ParamPlan as ParamPlan
from tunecore.strategy import Strategy as Strategy

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


class LossSum(NamedTuple):
    """A loss as a sum over targets, with its count: the trainer divides once, over accumulation and ranks."""

    total: Tensor
    """Scalar, summed over targets; differentiable."""
    num_targets: int
    """How many targets were summed; must equal what the batch announced."""
    num_correct: Tensor | None = None
    """Scalar count of targets whose most likely class is the label, where that has a meaning."""


class Forward(Protocol):
    """One forward of a batch, shared by all objectives of its view."""

    batch: PackedBatch
    model: PreTrainedModel
    family: Family

    def hidden(self) -> Tensor:
        """Hidden states of the backbone [T, E], the decoder's where there are two stacks; computed once."""
        ...

    def encode(self, *, model: PreTrainedModel | None = None, input_ids: Tensor | None = None) -> Tensor:
        """One forward more: another model of the family, or other ids [1, T] in the same layout -> [T, E]."""
        ...

    def sequence_rows(self) -> Tensor:
        """The row each sequence is read from (first or last token by family): [num_sequences, E]."""
        ...


class Progress(NamedTuple):
    """How far a run is; what schedules and strategies depend on."""

    step: int
    total_steps: int
    epoch: float
    total_epochs: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a head says of one row."""

    label: Any
    """The decoded answer: a label name, a value, a text."""
    score: float | None = None
    """Probability of ``label`` where that has a meaning."""
    scores: Mapping[str, float] | None = None
    """Probability, or score, of every label."""
    row_id: int = -1
    details: Mapping[str, Any] | None = None
    """What else the head says of the row (spans with their places, further answers); JSON-serialisable."""


class Layers(NamedTuple):
    """Parameter-name prefixes from the input up: what strategies count.

    Each ends with a dot (``bert.encoder.layer.1.``), so ``name.startswith(prefix)`` is exact. Names are those of
    ``model.named_parameters()``: a tied output matrix is one with the embeddings.
    """

    embeddings: tuple[str, ...]
    blocks: tuple[tuple[str, ...], ...]
    heads: tuple[str, ...]


@runtime_checkable
class Family(Protocol):
    """What differs per transformers ``model_type``. One object a family; no state.

    Optional: ``padded = True`` for a model whose attention knows no packed rows (its batches are padded inside the
    model); ``sequence_pooling(model)``, "first", "last" or "mean", where ``sequence_row`` is not all there is;
    ``encoder_decoder: bool``, True where the model has two stacks and takes batches of the view "seq2seq";
    ``token_classifier``, ``span_head``, ``choice_head``, each ``(model, rows) -> logits | None`` (see
    :class:`tunecore.models.families.base.TransformersFamily`), None where a head must make the layer itself;
    ``default_objective: str``, what pretraining takes where no objective is named.
    """

    model_type: str
    sequence_row: Literal["first", "last"]
    """Which token a sequence-level head reads."""
    causal: bool
    token_types: int
    """How many segment ids the model knows (0: none)."""

    def backbone(self, model: PreTrainedModel) -> nn.Module:
        """The submodule that maps packed ids to hidden states, without pooler or head."""
        ...

    def position_offset(self, model: PreTrainedModel) -> int:
        """The position id of a sequence's first token (RoBERTa: pad_id + 1)."""
        ...

    def max_length(self, model: PreTrainedModel) -> int:
        """Longest sequence the position table serves."""
        ...

    def pooled(self, model: PreTrainedModel, rows_BE: Tensor) -> Tensor:
        """The family's pooled representation of sequence rows [B, E] -> [B, E] (identity where it has none)."""
        ...

    def token_head(self, model: PreTrainedModel, rows_NE: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The prediction head up to its last product: rows [N, E] -> (hidden [N, E'], weight [V, E'], bias [V])."""
        ...

    def sequence_head(self, model: PreTrainedModel, rows_BE: Tensor) -> Tensor:
        """The ``...ForSequenceClassification`` head, its pooler and dropout included: rows [B, E] -> logits [B, C].

        ``model`` is of the class ``auto_class({"sequence_classification"})`` gives, else ConfigError.
        """
        ...

    def sequence_relationship(self, model: PreTrainedModel, rows_BE: Tensor) -> Tensor | None:
        """The next-sentence head of a class that has one: rows [B, E] -> logits [B, 2] (column 0: "is next"), pooler
        included; None where the class has none.
        """
        ...

    def sentence_order(self, model: PreTrainedModel, rows_BE: Tensor) -> Tensor | None:
        """The sentence-order head, as ``sequence_relationship`` (column 0: "in order")."""
        ...

    def layers(self, model: PreTrainedModel) -> Layers:
        """Parameter-name prefixes of embeddings, blocks and heads."""
        ...

    def config_fields(
        self, *, layers: int, width: int, heads: int, vocab_size: int, max_length: int, tokenizer: Any | None
    ) -> dict[str, Any]:
        """Fields of the transformers config of a new model: its shape, room for ``max_length`` tokens, special ids."""
        ...

    def auto_class(self, tasks: frozenset[str]) -> type[PreTrainedModel]:
        """The transformers class to build and save for a set of tasks: names of objectives, or of one head.

        Of the family's classes, the one with a place for most of the tasks ({masked_lm, next_sentence} ->
        BertForPreTraining, RobertaForMaskedLM); the backbone class where none has any. What has no place there
        builds its own module.
        """
        ...


@runtime_checkable
class Objective(Protocol):
    """A self-supervised task: corruption and loss together.

    ``Options`` (a frozen dataclass) is given at registration; the factory is called as ``factory(options)``.
    Optional: ``uses: tuple[str, ...]``, names of tasks whose place in a transformers class it shares (an objective
    with ``uses = ("masked_lm",)`` gets a model with the vocabulary head); ``reads: tuple[str, ...]``, all that its loss
    reads of ``forward.hidden()``: "targets" (rows with a token-level target), "sequence_rows". Where every task of a
    view says so, the last layer runs at those rows only, and the others are zero. Heads may say it too.
    ``row_length(max_length) -> int``, the tokens of a row, special ones included, whose corrupted example fits
    ``max_length`` (span corruption shortens rows); ``loss_weights``: loss -> factor beside the objective's weight;
    ``group_size``: how many rows of a step form one group; ``models(module)``: name -> (own model to save, objectives
    it goes on with); ``extra_targets: tuple[str, ...]``, names of targets that are no losses, only read by one.
    """

    name: str
    unit: Literal["document", "sentence", "pair", "text_pair"]
    """What a row of the corpus is. Of the objectives of one view, the most structured unit is taken."""
    columns: tuple[str, ...]
    """Boundary columns the corpus must carry: word_starts, sentence_starts, second_starts."""
    view: str
    """Objectives of one view share one forward."""
    losses: tuple[str, ...]
    """Names of the losses it returns."""

    def build(self, model: PreTrainedModel, family: Family) -> nn.Module | None:
        """Own parameters, or None where the model has all that is needed."""
        ...

    def assemble(self, corpus: CorpusView, row_id: int, stream: Stream) -> Example | Sequence[Example]:
        """The uncorrupted example of a row, or several; own targets that come with it (next sentence) included."""
        ...

    def corrupt(self, example: Example, corpus: CorpusView, stream: Stream, progress: Progress) -> Example:
        """Return the example with its inputs changed and this objective's named targets added."""
        ...

    def loss(self, forward: Forward, module: nn.Module | None, stream: Stream | None) -> Mapping[str, LossSum]:
        """The named losses of this forward."""
        ...


class Metrics(Protocol):
    """Streaming metrics, mergeable over ranks."""

    def update(self, raw: Any, batch: PackedBatch) -> None:
        ...

    def merge(self, others: Sequence[Any]) -> None:
        """Add the ``state()`` of other ranks."""
        ...

    def state(self) -> Any:
        """JSON-serialisable state."""
        ...

    def compute(self) -> dict[str, Any]:
        """Scalars, and under "confusion_matrix" / "report" what a report can draw."""
        ...


class RowMetrics(Protocol):
    """Metrics of a head whose answer to a row takes all of the row's sequences, or words of its own: as ``Metrics``,
    but fed with whole rows.
    """

    def update_row(self, raw: Sequence[Any], record: Record, row_id: int) -> None:
        """Count one row: the raw outputs of its sequences in the order of ``examples``, and the row itself."""
        ...

    def merge(self, others: Sequence[Any]) -> None:
        ...

    def state(self) -> Any:
        ...

    def compute(self) -> dict[str, Any]:
        ...


@runtime_checkable
class Head(Protocol):
    """A supervised task, from a data row to a decoded prediction.

    ``Options`` is given at registration; the factory is called as ``factory(options)``.
    Optional: ``reads``, ``uses``, ``group_size``, ``extra_targets`` as in :class:`Objective`; ``view``, "seq2seq" for
    two stacks; ``row_columns: tuple[str, ...]``, the columns that stand for the values of a row to predict that is no
    dict (a str, a tuple), where they are not the options ``text`` and ``text_pair``; ``reject(record, *, labelled) ->
    str | None``, why a row cannot be used (it is counted and named, or fatal where ``data.on_bad_row`` says so), where
    the texts of those options being there is not all that matters; ``select(records)``, those of the usable rows to
    take; ``needs_facts = False`` where a model can be used that no run has ``prepare``d; ``config_fields() ->
    Mapping``, entries of the model's config (``num_labels``, ``problem_type``), where the labels among the facts are
    not all there is; ``training_examples(examples, stream) -> list[Example]``, those of a row's examples that one epoch
    trains on, at least one; ``files(model, max_length) -> Mapping``, path -> JSON to lie beside the saved model;
    ``language_model = True`` where exp(loss) is a perplexity to report; ``row_notes() -> str | None``, what it has to
    say of the rows it has made examples of since it was last asked (how many texts were cut), for the log.

    A head with ``generate = True`` answers by text: evaluation and prediction let the model write for each row, in
    batches, and its raw output is one :class:`tunecore.reading.Generated`, for ``decode`` and :class:`RowMetrics`;
    ``predict`` is not called. It also has ``prompt(record, tokenizer, max_length) -> IntArray``, the ids int64 [L] that
    the model reads first (the encoder's row, or the beginning of the decoder's); ``generation``, its
    :class:`tunecore.generation.GenerationOptions`; ``generate_rows: int | None``, for how many rows, evenly spread, an
    evaluation in training generates (None: all; 0: no evaluation does). ``bidirectional_prompt = True`` lets the
    tokens of a prompt see each other.
    """

    name: str
    losses: tuple[str, ...]
    default_metric: str
    """The metric best checkpoints are chosen by; a leading "-" means lower is better."""

    def prepare(self, records: Sequence[Record]) -> Mapping[str, Any]:
        """Look at the training rows once (labels, ranges) and return JSON-serialisable facts that are kept
        in the model's config (``label2id``, ``num_labels`` ...). Raises DataError naming file and row.
        """
        ...

    def load(self, facts: Mapping[str, Any]) -> None:
        """Take the facts of ``prepare`` (of this run, or of a saved model)."""
        ...

    def examples(
        self, record: Record, row_id: int, tokenizer: Any, max_length: int, *, labelled: bool
    ) -> list[Example]:
        """The examples of one row; each keeps ``row_id``."""
        ...

    def build(self, model: PreTrainedModel, family: Family) -> nn.Module | None:
        """Own parameters, or None where the transformers class has the layer."""
        ...

    def loss(self, forward: Forward, module: nn.Module | None, stream: Stream | None) -> Mapping[str, LossSum]:
        ...

    def predict(self, forward: Forward, module: nn.Module | None) -> Any:
        """Raw outputs of one batch, one for each sequence: a tensor whose first axis they are, or a list."""
        ...

    def decode(self, raw: Sequence[Any], record: Record | None, row_id: int) -> Prediction:
        """Turn the raw outputs of one row, in the order of its ``examples``, into its prediction."""
        ...

    def metrics(self) -> Metrics | RowMetrics:
        ...


class Source(Protocol):
    """A reader of one kind of file."""

    suffixes: tuple[str, ...]

    def read(self, path: str) -> Iterator[Record]:
        """Yield the rows of one file; raises DataError naming file and row."""
        ...


class Tracker(Protocol):
    """Where metrics go."""

    def start(self, run: Any) -> None:
        ...

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        ...

    def end(self, run: Any, error: BaseException | None) -> None:
        ...
