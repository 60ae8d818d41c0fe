"""What a run is made of: frozen dataclasses, a docstring under each field.

The same fields are the keys of ``run.yaml``, the targets of ``--set a.b=c`` and the properties of the JSON Schema.
Checks that need no other part live in ``__post_init__``; reading, types and unknown keys are in ``config_io``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tunecore.config_search import SearchConfig
from tunecore.errors import ConfigError

Options = Mapping[str, Any]
"""Options of one component by name; checked against the ``Options`` dataclass it was registered with."""

SegmenterName = Literal["characters", "lexicon", "jieba", "tokenizer"]


_MOST_THREADS = 4096
"""More than any machine has; OpenMP ends the process where it cannot start them."""


def _positive(owner: str, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not value > 0:
            raise ConfigError(f"{owner}.{name} is {value}; it must be greater than 0")


def _fraction(owner: str, **values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ConfigError(f"{owner}.{name} is {value}; it must be at least 0 and below 1")


def _warmup(owner: str, name: str, full: int, start: int | None, steps: int, least: int = 1) -> None:
    if steps < 0:
        raise ConfigError(f"{owner}.{name}_warmup is {steps}; it must not be negative")
    if (start is None) != (steps == 0):
        raise ConfigError(f"{owner}.{name}_start and {owner}.{name}_warmup go together; one of them is missing")
    if start is not None and not least <= start <= full:
        raise ConfigError(f"{owner}.{name}_start is {start}; it must be {least} to {owner}.{name}, {full}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Which model, from scratch or from a checkpoint."""

    family: str | None = None
    """transformers model_type to build from scratch: bert, roberta, albert, modernbert, gpt2, llama and others."""
    size: str = "mini"
    """tiny (2x128), mini (4x256), small (4x512), medium (8x512), base (12x768), large (24x1024)."""
    checkpoint: str | None = None
    """Folder (of transformers, or a run of tunecore) to start from instead of ``family``."""
    overrides: Options = field(default_factory=dict)
    """Fields of the transformers config to set: {hidden_dropout_prob: 0.0}."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    def __post_init__(self) -> None:
        if self.family is not None and self.checkpoint is not None:
            raise ConfigError("model.family and model.checkpoint are both set; keep one of them")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    """The tokenizer: trained on the run's text, or loaded."""

    path: str | None = None
    """Folder, tokenizer.json, vocab.txt or T5 .model to load; None trains one (or takes the checkpoint's)."""
    kind: Literal["wordpiece", "bpe", "unigram"] | None = None
    """What to train; None is wordpiece for encoders, byte-level bpe for decoders."""
    vocab_size: int = 8192
    """Entries of a trained vocabulary."""
    lowercase: bool = True
    """Lowercase and strip accents (wordpiece)."""
    strip_accents: bool | None = None
    """Strip accents (wordpiece); None is where ``lowercase`` is set, unless the text is in a script whose letters would
    be lost with their marks (kana, Hangul, Devanagari, Thai ...)."""

    def __post_init__(self) -> None:
        if self.vocab_size < 300:
            raise ConfigError(f"tokenizer.vocab_size is {self.vocab_size}; it must be at least 300")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where text or labelled rows come from, and what is done to them."""

    train: tuple[str, ...] = ()
    """Files, globs or folders."""
    eval: tuple[str, ...] = ()
    """Held-out files; empty takes ``eval_fraction`` of the training documents or rows."""
    eval_fraction: float = 0.01
    """Share of documents (pretraining) or rows (fine-tuning) held out when ``eval`` is empty."""
    split_seed: int | None = None
    """Fixes which documents or rows those are; None is ``training.seed``."""
    test: tuple[str, ...] = ()
    """Files that the chosen model is measured on once, at the end; they choose nothing."""
    text: str | None = None
    """Text column of csv, tsv, jsonl and parquet files in pretraining; None takes "text", or the only column."""
    text_pair: str | None = None
    """Column of the second text, for objectives over pairs; None takes "text_pair", or the second of two columns."""
    max_length: int | None = None
    """Longest sequence in tokens, special tokens included; None is 128, or what a checkpoint was trained with."""
    max_length_start: int | None = None
    """Longest sequence at the start of pretraining, which grows evenly to ``max_length``: what lies beyond it of a row
    is left out in that step. None starts with ``max_length``."""
    max_length_warmup: int = 0
    """Steps of that warm-up."""
    normalization: Literal["none", "nfc", "nfkc"] = "nfc"
    """Unicode normal form."""
    segmenter: SegmenterName = "characters"
    """Where words begin in text without spaces, for whole-word masking: each character, the longest entry of
    ``lexicon``, jieba (Chinese, an extra), or the tokenizer's own splitting."""
    lexicon: str | None = None
    """File of words, one a line, for the segmenters lexicon and jieba."""
    deduplicate: bool = False
    """Drop documents whose cleaned text was seen before (exact)."""
    min_chars: int = 1
    """Drop documents shorter than this after cleaning."""
    max_chars: int | None = None
    """Drop documents longer than this after cleaning."""
    on_bad_row: Literal["skip", "raise"] = "skip"
    """What a row that cannot be used does: counted and named, or fatal."""
    sources: Mapping[str, Options] = field(default_factory=dict)
    """Options of readers by name: {csv: {columns: [first, second, score]}} for tables without a header."""
    cache_dir: str | None = None
    """Where tokenised corpora are kept; None is the output folder's ``cache``."""
    num_workers: int = 0
    """Processes that prepare batches; no number of them changes a byte."""
    worker_timeout: float = 300.0
    """Seconds to wait for a batch of such a process before it counts as hung, which ends the run."""

    def __post_init__(self) -> None:
        _positive("data", max_length=self.max_length, max_chars=self.max_chars, worker_timeout=self.worker_timeout)
        _fraction("data", eval_fraction=self.eval_fraction)
        if self.length < 4:
            raise ConfigError(f"data.max_length is {self.max_length}; it must be at least 4")
        _warmup("data", "max_length", self.length, self.max_length_start, self.max_length_warmup, least=4)
        if self.num_workers < 0 or self.min_chars < 0:
            raise ConfigError("data.num_workers and data.min_chars must not be negative")
        if self.segmenter == "lexicon" and self.lexicon is None:
            raise ConfigError("data.segmenter is lexicon, and data.lexicon names no file")
        if self.lexicon is not None and self.segmenter not in ("lexicon", "jieba"):
            raise ConfigError(
                f"data.lexicon is set, but the segmenter {self.segmenter} reads no lexicon",
                hint="Set data.segmenter: lexicon (or jieba).",
            )

    @property
    def length(self) -> int:
        """``max_length``, or its default."""
        return 128 if self.max_length is None else self.max_length


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """The optimizer step: how many, how large, how fast."""

    steps: int | None = None
    """Optimizer steps; None takes ``epochs``."""
    epochs: float | None = None
    """Passes over the data; None with no ``steps`` is 3."""
    batch_size: int = 32
    """Rows per optimizer step, over all ranks."""
    batch_size_start: int | None = None
    """Rows per step at the start, doubled in even stages until ``batch_size`` is reached; None starts with that."""
    batch_size_warmup: int = 0
    """Steps of that warm-up."""
    max_tokens: int = 4096
    """Most tokens in one micro-batch; splitting is a matter of memory and never changes the gradient."""
    accumulation: int = 1
    """Split a step's rows into at least this many micro-batches."""
    views: Literal["alternate", "every_step"] = "alternate"
    """What a step does with objectives that cannot share a forward: alternate trains one view a step, in proportion to
    the objectives' weights; every_step trains all of them, each with a forward of its own."""
    learning_rate: float | None = None
    """Peak learning rate; None is 5e-5 from a checkpoint, and from scratch 1e-3 below width 512, 5e-4 below 768,
    else 1e-4."""
    schedule: str | Options = "linear"
    """Registered schedule (linear, cosine, constant), or {name: options}."""
    warmup: float = 0.06
    """Warm-up steps: a share of all steps below 1, a number of steps from 1 on."""
    optimizer: str | Options = "adamw"
    """Registered optimizer, or {name: options}."""
    weight_decay: float = 0.01
    """Decoupled weight decay; none on norms and biases."""
    max_grad_norm: float = 1.0
    """Clip the global gradient norm to this; 0 does not clip."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto is bf16 weights with fp32 masters where the hardware has bf16 arithmetic, else fp32."""
    seed: int = 0
    """Fixes initial weights, data order, masks and dropout."""
    on_nonfinite: Literal["raise", "skip", "rollback"] = "raise"
    """What a NaN or Inf in loss or gradients does: stop, leave the step out (named in the log), or go back to the
    newest checkpoint and go on with the rows after the step."""
    threads: int | None = None
    """CPU threads of a rank; None is cores / local ranks."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def __post_init__(self) -> None:
        _positive(
            "training", steps=self.steps, epochs=self.epochs, batch_size=self.batch_size, max_tokens=self.max_tokens,
            accumulation=self.accumulation, learning_rate=self.learning_rate, threads=self.threads,
        )
        _warmup("training", "batch_size", self.batch_size, self.batch_size_start, self.batch_size_warmup)
        if self.warmup < 0 or self.weight_decay < 0 or self.max_grad_norm < 0:
            raise ConfigError("training.warmup, weight_decay and max_grad_norm must not be negative")
        if self.steps is not None and self.epochs is not None:
            raise ConfigError("training.steps and training.epochs are both set; keep one of them")
        if not -(2**63) <= self.seed < 2**63:
            raise ConfigError(f"training.seed is {self.seed}; it must be a number of 64 bits")
        if self.threads is not None and self.threads > _MOST_THREADS:
            raise ConfigError(f"training.threads is {self.threads}; it must be at most {_MOST_THREADS}")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """When to evaluate, and how the best checkpoint is chosen."""

    every: int | None = None
    """Steps between evaluations; None is once an epoch (fine-tuning) or ten times a run (pretraining)."""
    max_rows: int | None = 2000
    """Most held-out rows in evaluations during pretraining; fine-tuning takes all."""
    metric: str | None = None
    """Metric to choose by; a leading "-" means lower is better; None is the head's own, or -loss."""
    patience: int | None = None
    """Stop after this many evaluations without a better metric; None never stops early."""

    def __post_init__(self) -> None:
        _positive("evaluation", every=self.every, max_rows=self.max_rows, patience=self.patience)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """When to save, and what to keep."""

    every: int | None = None
    """Steps between checkpoints; None is at each evaluation and at the end."""
    keep: int = 2
    """Newest checkpoints kept beside the best one."""

    def __post_init__(self) -> None:
        _positive("checkpoint", every=self.every, keep=self.keep)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """What is written and shown while training."""

    every: int = 10
    """Steps between logged rows."""
    trackers: tuple[str, ...] = ()
    """Trackers beside metrics.jsonl; "tensorboard" joins by itself where it is installed."""
    progress: bool = True
    """Show progress on the terminal."""
    report: bool = True
    """Write report.html at the end."""

    def __post_init__(self) -> None:
        _positive("tracking", every=self.every)


@dataclass(frozen=True, kw_only=True, slots=True)
class PluginsConfig:
    """Which installed plugins take part."""

    allow: tuple[str, ...] | None = None
    """Only these, by entry-point or distribution name; None allows all."""
    block: tuple[str, ...] = ()
    """Never these."""
    require: tuple[str, ...] = ()
    """These must be installed."""
    load: bool = True
    """False looks for no installed plugin at all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """One run: pretraining where ``objectives`` are given, fine-tuning where ``head`` is; or several in ``stages``."""

    output_dir: str = "runs/run"
    """The run's folder; the same command again resumes what is there."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Which model."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """Which tokenizer."""
    data: DataConfig = field(default_factory=DataConfig)
    """Which data."""
    objectives: Mapping[str, Any] = field(default_factory=dict)
    """Objective -> weight, or options with a ``weight`` among them: {masked_lm: {weight: 1.0, mask_rate: 0.3}}."""
    head: str | Options | None = None
    """Head to fine-tune, or {name: options}."""
    strategies: tuple[str | Options, ...] = ()
    """Fine-tuning strategies, each a name or {name: options}; none is ``full``."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """The optimizer step."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """When to evaluate."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When to save."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """What is written and shown."""
    plugins: PluginsConfig = field(default_factory=PluginsConfig)
    """Which plugins."""
    stages: tuple[Options, ...] = ()
    """Runs one after the other, each from the model of the one before: a ``name`` and any key of a run; what a stage
    does not say it takes from here. The last may have a ``search``."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """A search for the best options."""

    def __post_init__(self) -> None:
        for name, folder in (("output_dir", self.output_dir), ("data.cache_dir", self.data.cache_dir)):
            if folder is not None and (not folder.strip() or "\0" in folder):
                raise ConfigError(f"{name} is {folder!r}, which is no name of a folder")
        if self.objectives and self.head is not None:
            raise ConfigError("objectives and head are both set; pretrain and fine-tune in two runs")
        if self.head is not None and self.data.max_length_start is not None:
            raise ConfigError("data.max_length_start is of pretraining, whose rows can be cut; a head's cannot")
        if self.stages and self.search.space:
            raise ConfigError("stages and search.space are both set; a search is the last stage's own")
        for name, value in self.objectives.items():
            weight = value.get("weight", 1.0) if isinstance(value, Mapping) else value
            if not isinstance(weight, int | float) or not weight > 0:
                raise ConfigError(f"objectives.{name}: the weight is {weight!r}; it must be a number greater than 0")
