"""From files to tokenizer, corpus and rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from tunecore.config import RunConfig
from tunecore.data.clean import Cleaner, CleaningOptions
from tunecore.data.corpus import Corpus, build_corpus
from tunecore.data.lengths import LengthWarmup
from tunecore.data.lexicon import read_lexicon
from tunecore.data.phrase_columns import phrase_options, with_phrases
from tunecore.data.rows import PretrainRows, RowSource, TaskRows, most_structured_unit, row_length
from tunecore.data.segmenters import make_segmenter
from tunecore.data.sources import (
    OnBadRow,
    ReadSummary,
    by_suffix,
    documents,
    expand_paths,
    read_records,
    text_pairs,
    usable_records,
)
from tunecore.data.streams import PhiloxStream
from tunecore.data.tokenizer import train_tokenizer
from tunecore.errors import ConfigError, DataError
from tunecore.registry import Registry, name_and_options
from tunecore.spool import Data, temporary_paths
from tunecore.types import Head, Objective, Record, Source


class RunData(NamedTuple):
    """The rows of a run."""

    train: RowSource
    eval: RowSource | None
    """None where nothing is held out."""
    summary: dict[str, Any]
    """JSON for reports; ``digest`` is what a resumed run compares."""
    test: RowSource | None = None
    """What the chosen model is measured on at the end; None where there is nothing to test on."""


def sources_of(registry: Registry, config: RunConfig) -> dict[str, Source]:
    """Suffix -> reader, the registered ones with the options of ``data.sources``.

    Raises:
        ConfigError: there is no such reader, or an option of one is unknown or out of range.
    """
    options = config.data.sources
    for name in options:
        registry.entry("source", name)
    # Those with options come last: a suffix they are given is theirs.
    names = sorted(registry.names("source"), key=lambda name: name in options)
    return by_suffix(registry.create("source", name, options.get(name)) for name in names)


def train_tokenizer_on(data: Data, config: RunConfig, registry: Registry) -> PreTrainedTokenizerBase:
    """Train the tokenizer ``config`` describes on cleaned text.

    Raises:
        ConfigError: the family is not known (a tokenizer is trained for a new model).
        DataError: there is no text.
    """
    if config.model.family is None:
        raise ConfigError("a tokenizer is trained for a new model only; set model.family, or tokenizer.path")
    sources, options = sources_of(registry, config), config.tokenizer
    with temporary_paths(data, "text") as paths:
        records = read_records(expand_paths(paths, tuple(sources)), sources, on_bad_row=config.data.on_bad_row)
        cleaner = Cleaner(CleaningOptions.of(config.data))
        texts = _tokenizer_texts(records, config)
        cleaned = (clean for text in texts if (clean := cleaner.clean(text)) is not None)
        return train_tokenizer(
            cleaned, vocab_size=options.vocab_size, kind=options.kind, family=config.model.family,
            lowercase=options.lowercase, strip_accents=options.strip_accents, max_length=config.data.length,
            progress=config.tracking.progress,
        )  # fmt: skip


def _tokenizer_texts(records: Iterable[Record], config: RunConfig) -> Iterator[str]:
    """What a tokenizer is trained on: the text column, or both of a pair where that is named or all there is."""
    options, rows = config.data, iter(records)
    first = next(rows, None)
    if first is None:
        return
    records = chain([first], rows)
    no_text = options.text is None and "text" not in first.fields and len(first.fields) == 2
    if options.text_pair is None and not no_text:
        yield from (text for text, _ in documents(records, options.text, on_bad_row=options.on_bad_row))
    else:
        for pair in text_pairs(records, options.text, options.text_pair, on_bad_row=options.on_bad_row):
            yield from pair


def text_corpus(
    paths: Sequence[str], tokenizer: Any, objectives: Sequence[Objective], config: RunConfig, registry: Registry
) -> Corpus:
    """Tokenise text files, with the boundary and phrase columns the objectives ask for; cached."""
    cleaning, lexicon = CleaningOptions.of(config.data), config.data.lexicon
    words = [] if lexicon is None else read_lexicon(lexicon, "data.lexicon", cleaning)
    corpus = build_corpus(
        paths, tokenizer, cache_dir=config.data.cache_dir or Path(config.output_dir) / "cache",
        columns={column for objective in objectives for column in objective.columns},
        cleaning=cleaning, text_column=config.data.text, pair_column=config.data.text_pair,
        sources=sources_of(registry, config), on_bad_row=config.data.on_bad_row, progress=config.tracking.progress,
        segmenter=make_segmenter(config.data.segmenter, words),
    )  # fmt: skip
    for options in phrase_options(objectives):
        corpus = with_phrases(corpus, tokenizer, options, cleaning=cleaning, progress=config.tracking.progress)
    return corpus


def pretrain_rows(corpus: Corpus, objectives: Sequence[Objective], config: RunConfig, *, evaluation: bool) -> RowSource:
    """Cut a corpus into the rows the objectives share, so long that the examples of each fit."""
    length, start = config.data.length, config.data.max_length_start
    view = corpus.rows(most_structured_unit(objectives), length, row_length(objectives, length))
    lengths = None if start is None else LengthWarmup(start, length, config.data.max_length_warmup)
    return PretrainRows(view, objectives, config.training.seed, evaluation=evaluation, lengths=lengths)


def pretrain_data(config: RunConfig, tokenizer: Any, objectives: Sequence[Objective], registry: Registry) -> RunData:
    """Training and held-out rows of a pretraining run.

    Raises:
        ConfigError: no training data is named.
        DataError: there is no text, or too little to hold any out.
    """
    if not config.data.train:
        raise ConfigError("no training data is named", hint="Set data.train to files, globs or folders.")
    corpus = text_corpus(config.data.train, tokenizer, objectives, config, registry)
    held_out: Corpus | None = None
    if config.data.eval:
        held_out = text_corpus(config.data.eval, tokenizer, objectives, config, registry)
    elif config.data.eval_fraction > 0:
        corpus, held_out = corpus.split(config.data.eval_fraction, split_seed(config))
    parts = {"train": corpus, **({} if held_out is None else {"eval": held_out})}
    summary = {name: part.summary for name, part in parts.items()}
    digest = _digest([part.digest for part in parts.values()])
    return RunData(
        train=pretrain_rows(corpus, objectives, config, evaluation=False),
        eval=None if held_out is None else pretrain_rows(held_out, objectives, config, evaluation=True),
        summary={**summary, "digest": digest},
    )


def split_seed(config: RunConfig) -> int:
    """What fixes the documents or rows that are held out."""
    return config.training.seed if config.data.split_seed is None else config.data.split_seed


def head_records(
    paths: Sequence[str], head: Head, config: RunConfig, registry: Registry, *, labelled: bool = True
) -> tuple[list[Record], ReadSummary]:
    """Rows of labelled files whose text can be used; the others are counted in the summary.

    Raises:
        DataError: a file cannot be read, lacks a column, or has no usable row.
    """
    sources, summary = sources_of(registry, config), ReadSummary()
    records = read_records(
        expand_paths(paths, tuple(sources)), sources, summary=summary, on_bad_row=config.data.on_bad_row
    )
    options = getattr(head, "options", None)
    texts = [column for name in ("text", "text_pair") if (column := getattr(options, name, None))]
    if hasattr(head, "reject"):
        records = _accepted(records, head, summary, config.data.on_bad_row, labelled)
    elif texts:
        label = getattr(options, "label", None)
        others = [] if not label or not labelled else [label] if isinstance(label, str) else list(label)
        records = usable_records(records, texts, others, summary=summary, on_bad_row=config.data.on_bad_row)
    kept = list(getattr(head, "select", iter)(records))
    if not kept:
        raise DataError(f"{', '.join(paths)}: no row can be used: {summary.describe()}")
    summary.warn()
    return kept, summary


def _accepted(
    records: Iterable[Record], head: Any, summary: ReadSummary, on_bad_row: OnBadRow, labelled: bool
) -> Iterator[Record]:
    """The records that a head with ``reject`` can use; the others are counted."""
    for record in records:
        reason = head.reject(record, labelled=labelled)
        if reason is None:
            yield record
        else:
            summary.skip(record, reason, on_bad_row)


def evaluation_rows(
    paths: Sequence[str],
    config: RunConfig,
    registry: Registry,
    tokenizer: Any,
    head: Head | None,
    objectives: Sequence[Objective],
) -> RowSource:
    """Rows to measure a model on: of its head, else of its objectives.

    Raises:
        DataError: a file cannot be read, lacks a column, or has no usable row.
    """
    if head is not None:
        records, _ = head_records(paths, head, config, registry)
        return TaskRows(records, head, tokenizer, config.data.length, keep_records=True)
    corpus = text_corpus(paths, tokenizer, objectives, config, registry)
    return pretrain_rows(corpus, objectives, config, evaluation=True)


def task_records(
    config: RunConfig, head: Head, registry: Registry
) -> tuple[list[Record], list[Record], dict[str, Any]]:
    """(training rows, held-out rows, summary) of a fine-tuning run; what is held out is a function of the seed.

    Raises:
        ConfigError: no training data is named.
        DataError: a file cannot be read, lacks a column, or has no usable row.
    """
    if not config.data.train:
        raise ConfigError("no training data is named", hint="Set data.train to csv, tsv, jsonl or parquet files.")
    train, read = head_records(config.data.train, head, config, registry)
    summary: dict[str, Any] = {"train": read.as_dict()}
    held_out: list[Record] = []
    if config.data.eval:
        held_out, read = head_records(config.data.eval, head, config, registry)
        summary["eval"] = read.as_dict()
    elif (count := round(len(train) * config.data.eval_fraction)) > 0:
        order = PhiloxStream(split_seed(config), purpose="held-out rows").permutation(len(train))
        chosen = np.zeros(len(train), dtype=bool)
        chosen[order[:count]] = True
        held_out = [record for record, out in zip(train, chosen, strict=True) if out]
        train = [record for record, out in zip(train, chosen, strict=True) if not out]
        summary["held_out_rows"] = count
    summary["digest"] = _digest(
        json.dumps(record.fields, sort_keys=True, default=str) for record in (*train, *held_out)
    )
    return train, held_out, summary


def look_at_data(config: RunConfig, registry: Registry) -> dict[str, Any] | None:
    """Find what is wrong with a run's files before anything is trained, as far as that is cheap.

    Labelled files are read whole, the test's too, and their summary is returned; of text it is seen that it is there.

    Raises:
        ConfigError: no training data is named.
        DataError: a file is not there, cannot be read, lacks a column, or has a label that cannot be.
    """
    named = [path for paths in (config.data.train, config.data.eval, config.data.test) for path in paths]
    if named:
        expand_paths(named, tuple(sources_of(registry, config)))
    if config.head is None:
        return None
    head = registry.create("head", *name_and_options(config.head, "head"))
    train, _, summary = task_records(config, head, registry)
    head.load(head.prepare(train))
    if config.data.test:
        head_records(config.data.test, head, config, registry)
    return summary


def _digest(parts: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()
