"""A model ready to work: with its tokenizer, its tasks (objectives or one head) and what they need to know.

Made anew for a run (:func:`make_session`) or from a folder (:func:`open_session`); the same object evaluates, predicts,
generates and saves. What a model was trained for is kept in its ``config.json`` under "tunecore", so a saved head is
found again by itself.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunecore.checkpoint import write_model_folder
from tunecore.config import RunConfig
from tunecore.config_io import check_options
from tunecore.data.loader import eval_batches
from tunecore.data.rows import RowSource, TaskRows
from tunecore.data.streams import derive_key
from tunecore.data.surrogates import LONE_SURROGATE, has_lone_surrogate
from tunecore.data.tokenizer import load_tokenizer
from tunecore.errors import CheckpointError, ConfigError, DataError, unknown_name
from tunecore.generation import split_options
from tunecore.inputs import evaluation_rows
from tunecore.models.loading import build_model, check_vocabulary, known_model_type, load_model, save_model, seeded
from tunecore.plugins import Plugins
from tunecore.registry import name_and_options
from tunecore.run_folder import resolve_model, verify_model
from tunecore.saved_tasks import (
    CONFIG_KEY,
    config_entry,
    facts_of_transformers,
    read_saved,
    with_known_length,
    with_saved_tasks,
)
from tunecore.tracking.progress import counted
from tunecore.training.distributed import Ranks
from tunecore.training.evaluate import evaluate, evaluation_mode
from tunecore.training.generation import Answers, Writer, generates, prompts_of
from tunecore.training.unit import Task, TrainUnit, check_stacks
from tunecore.training.weights import load_task_modules, save_task_modules
from tunecore.training.whole_rows import WholeRows, metrics_over
from tunecore.types import Family, Head, Metrics, Objective, PackedBatch, Prediction, Record

logger = logging.getLogger("tunecore")


@dataclass
class Session:
    """A model, its tokenizer and its tasks."""

    model: PreTrainedModel
    family: Family
    tokenizer: PreTrainedTokenizerBase
    unit: TrainUnit
    head: Head | None
    max_length: int
    plugins: Plugins

    def evaluate(self, paths: Sequence[str], config: RunConfig) -> dict[str, Any]:
        """Losses, and the head's metrics, over files.

        Raises:
            DataError: a row lacks a column or has a label the model does not know.
        """
        config = replace(config, data=replace(config.data, max_length=self.max_length))
        rows = evaluation_rows(paths, config, self.plugins.registry, self.tokenizer, self.head, self.objectives)
        batches = eval_batches(rows, **self.packing(config.training.max_tokens))
        answers = self.answers_to(rows, config, all_rows=True)
        return evaluate(self.unit, batches, self.metrics_over(rows), answers=answers)

    def metrics_over(self, rows: RowSource) -> Metrics | None:
        """The head's metrics for an evaluation of ``rows``; None without a head, or where they are of its answers."""
        if self.head is None or generates(self.head) or not isinstance(rows, TaskRows):
            return None
        return metrics_over(self.head, rows)

    def answers_to(
        self, rows: RowSource, config: RunConfig, *, ranks: Ranks | None = None, all_rows: bool = False
    ) -> Answers | None:
        """What a head that generates writes in an evaluation of ``rows``; None for other heads.

        Args:
            rows: they keep their records.
            config: says whether progress is shown.
            ranks: who shares the rows.
            all_rows: answer all, whatever the head's ``generate_rows``.
        """
        head: Any = self.head
        most = getattr(head, "generate_rows", None)
        if not generates(head) or most == 0 or not isinstance(rows, TaskRows):
            return None
        watch = partial(counted, what="generating") if config.tracking.progress else None
        most = None if all_rows else most
        return Answers(self._writer(), head, rows, self.max_length, max_rows=most, ranks=ranks, watch=watch)

    def _writer(self, generation: Mapping[str, Any] | None = None) -> Writer:
        """What writes as the head says, or as ``generation`` says otherwise."""
        head: Any = self.head
        options, extra = split_options(generation or {}, getattr(head, "generation", None))
        return Writer(
            self.model, self.family, self.tokenizer, self.max_length, options, extra=extra,
            bidirectional_prompt=bool(getattr(head, "bidirectional_prompt", False)),
        )

    def predict(self, rows: Sequence[Any], **generation: Any) -> list[Prediction]:
        """Predictions for texts, pairs or dicts, in their order.

        Args:
            rows: what to predict.
            generation: options of :class:`tunecore.generation.GenerationOptions` instead of the head's own.

        Raises:
            ConfigError: the model has no head, or options of generation are given and the head does not generate.
        """
        if self.head is None:
            raise ConfigError("this model has no head to predict with; fine-tune one first")
        head = self.head
        records = [_record(row, index, head) for index, row in enumerate(rows)]
        if generates(head):
            return self._written(records, generation)
        if generation:
            raise ConfigError(f"{head.name} does not generate, so it has no option {next(iter(generation))!r}")
        outputs = self.outputs(records, head, self.unit.predict)
        return [head.decode(outputs[index], record, index) for index, record in enumerate(records)]

    def outputs(
        self, records: Sequence[Record], head: Head, predict: Callable[[PackedBatch], Any]
    ) -> dict[int, list[Any]]:
        """Row id -> what ``predict`` says of each of its sequences; of rows without labels, in evaluation mode."""
        rows = TaskRows(records, head, self.tokenizer, self.max_length, labelled=False)
        whole, found = WholeRows(rows), dict[int, list[Any]]()
        with evaluation_mode(self.unit), torch.no_grad():
            for batch in eval_batches(rows, **self.packing(4096)):
                found.update(whole.add(predict(batch), batch))
        return found

    def _written(self, records: Sequence[Record], generation: Mapping[str, Any]) -> list[Prediction]:
        """What a head that generates answers to each row."""
        head: Any = self.head
        prompts, notes = prompts_of(head, records, self.tokenizer, self.max_length)
        if notes is not None:
            logger.warning("%s: %s", head.name, notes)
        with evaluation_mode(self.unit):
            written = dict(pair for batch in self._writer(generation).write(prompts) for pair in batch)
        return [head.decode([written[i]], record, i) for i, record in enumerate(records)]

    def generate(
        self, prompts: Sequence[str], *, on_text: Callable[[int, str], None] | None = None, **generation: Any
    ) -> list[str]:
        """Continue prompts, or with two stacks answer them. The prompt of a decoder is not repeated.

        Args:
            prompts: texts, as the model reads them: a head's template or prefix is not added.
            on_text: called with the place of a prompt and each piece of its text as it is written; prompts are then
                answered one by one.
            generation: options of :class:`tunecore.generation.GenerationOptions`; others go to transformers'
                ``generate``. ``max_new_tokens`` is 50 unless it is given.

        Raises:
            ConfigError: the model cannot generate, or an option is out of range.
            DataError: a prompt and its answer are longer than the model's positions.
        """
        options, extra = split_options({"max_new_tokens": 50, **generation})
        for place, text in enumerate(prompts):
            if has_lone_surrogate(text):
                raise DataError(f"prompt {place} is {text!r}: {LONE_SURROGATE}")
        copies = int(extra.pop("num_return_sequences", 1))
        if copies > 1 and not options.samples:
            raise ConfigError("num_return_sequences is for texts that are drawn", hint="Add do_sample=True.")
        writer = Writer(self.model, self.family, self.tokenizer, self.max_length, options, extra=extra)
        ids = [np.asarray(self.tokenizer(text)["input_ids"], dtype=np.int64) for text in prompts for _ in range(copies)]
        with evaluation_mode(self.unit):
            written = dict(pair for batch in writer.write(ids, on_text=on_text) for pair in batch)
        return [written[place].text for place in range(len(ids))]

    def save(self, folder: Path, part: str | None = None) -> Path:
        """Save model and tokenizer in transformers' layout; parameters that have no place there lie beside them.

        Args:
            folder: made where it is missing.
            part: the name of a further model that an objective trained (a "generator"), to save instead.

        Raises:
            CheckpointError: the disk is full or refuses a write. What was there before is still there.
            ConfigError: no objective has a model of that name.
        """
        if part is None:
            write_model_folder(folder, self._write_with_tasks)
            return folder
        models: dict[str, tuple[PreTrainedModel, Mapping[str, float]]] = {}
        for task in self.unit.tasks:
            if task.module is not None and hasattr(task.component, "models"):
                models.update(task.component.models(task.module))
        if part not in models:
            raise ConfigError(unknown_name("part to save", part, models))
        model, objectives = models[part]
        setattr(model.config, CONFIG_KEY, {"objectives": dict(objectives), "max_length": self.max_length})
        write_model_folder(folder, partial(save_model, model, tokenizer=self.tokenizer))
        return folder

    def _write_with_tasks(self, folder: Path) -> None:
        self.write(folder)
        save_task_modules(self.unit, folder)

    def write(self, folder: Path, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Write the model (all of it as ``tensors`` where they are given), the tokenizer, and what the head puts beside
        them.
        """
        save_model(self.model, folder, self.tokenizer, tensors, complete=tensors is not None)
        made = getattr(self.head, "files", None)
        for name, content in ({} if made is None else made(self.model, self.max_length)).items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @property
    def objectives(self) -> list[Objective]:
        """The objectives this model is trained with, in order."""
        return [part for task in self.unit.tasks if isinstance(part := task.component, Objective)]

    def packing(self, max_tokens: int) -> dict[str, Any]:
        """What the packer must know of this model."""
        pad = self.tokenizer.pad_token_id
        return {
            "max_tokens": max_tokens,
            "position_offset": self.family.position_offset(self.model),
            "pad_id": 0 if pad is None else pad,
        }


def make_session(
    config: RunConfig, plugins: Plugins, tokenizer: PreTrainedTokenizerBase, head: Head | None,
    facts: Mapping[str, Any], *, complete: bool = False,
) -> Session:
    """Build or load the model that ``config`` asks for, with its tasks.

    Args:
        config: names the model, and the objectives or head.
        plugins: where components are found.
        tokenizer: fixes vocabulary and special tokens of a new model.
        head: the head, already told its ``facts``; None makes the config's objectives.
        facts: what the head knows of its data.
        complete: refuse a checkpoint that lacks weights of the class.

    Raises:
        ConfigError: family, size or an option is unknown, or vocabulary and lengths do not fit the model.
        CheckpointError: the checkpoint is no model.
    """
    registry = plugins.registry
    components = _components(config, plugins, head)
    tasks = frozenset(task for name, part, _ in components for task in (name, *getattr(part, "uses", ())))
    extra = config_entry(config, head, facts)
    if config.model.checkpoint is not None:
        families = {name: registry.create("family", name) for name in registry.names("family")}
        folder = resolve_model(config.model.checkpoint)
        model = load_model(folder, tasks, families, seed=config.training.seed, extra_config=extra, complete=complete)
        family = families[model.config.model_type]
    else:
        if config.model.family is None:
            raise ConfigError(
                "neither model.family nor model.checkpoint is set", hint="Set model.family: bert, for one."
            )
        family = registry.create("family", config.model.family)
        model = build_model(
            family, tasks, size=config.model.size, vocab_size=len(tokenizer), max_length=config.data.length,
            overrides=config.model.overrides, tokenizer=tokenizer, seed=config.training.seed, extra_config=extra,
        )  # fmt: skip
    for name, part, _ in components:
        check_stacks(name, part, family)
    check_vocabulary(model, tokenizer)
    if config.data.length > family.max_length(model):
        raise ConfigError(
            f"data.max_length is {config.data.length}, but the model's positions end at {family.max_length(model)}",
            hint="Lower data.max_length.",
        )
    tasks_of_unit = []
    for number, (name, part, weight) in enumerate(components):
        with seeded(derive_key(config.training.seed, number)):  # a task's own weights are those of the seed, too
            tasks_of_unit.append(Task(name, part, part.build(model, family), weight))
    unit = TrainUnit(model, family, tasks_of_unit)
    if config.model.checkpoint is not None:
        load_task_modules(unit, folder)
    return Session(model, family, tokenizer, unit, head, config.data.length, plugins)


def open_session(config: RunConfig, plugins: Plugins) -> Session:
    """Load a trained model with the tasks it was trained for (or the head the config names).

    Raises:
        CheckpointError: no model is there, or one without the layers that a head uses as they are.
        ConfigError: the head's labels are not known.
    """
    assert config.model.checkpoint is not None
    folder = resolve_model(config.model.checkpoint)
    verify_model(folder)
    known_model_type(folder, plugins.registry.names("family"))
    saved, entry = read_saved(folder)
    config = with_known_length(with_saved_tasks(config, entry, saved, folder))
    tokenizer = load_tokenizer(config.tokenizer.path or str(folder))
    head: Head | None = None
    facts: Mapping[str, Any] = {}
    if config.head is not None:
        name, options = name_and_options(config.head, "head")
        kept = entry.get("head", {})
        if kept.get("name") == name:  # what is not said anew is as it was trained
            options = {**kept.get("options", {}), **options}
            config = replace(config, head={name: options})
        check_options(plugins.registry.entry("head", name), options)
        head = plugins.registry.create("head", name, options)
        known = kept.get("facts") if kept.get("name") == name else facts_of_transformers(saved, name)
        if options.get("labels"):
            known = {"labels": list(options["labels"])}
        if known is None and not getattr(head, "needs_facts", True):
            known = {}
        if known is None:
            raise ConfigError(
                f"the labels of head {name!r} are not known yet", hint="Call finetune, or pass labels=[...]."
            )
        facts = known
        try:
            head.load(facts)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{folder}: what its config.json says of the head {name!r} cannot be used: {error!r}"
            ) from error
    # Such a head is used as it comes, and its layers are a pretraining task's: new ones would measure nothing.
    complete = not getattr(head, "needs_facts", True) and bool(getattr(head, "uses", ()))
    return make_session(config, plugins, tokenizer, head, facts, complete=complete)


def _components(config: RunConfig, plugins: Plugins, head: Head | None) -> list[tuple[str, Any, float]]:
    if head is not None:
        return [(head.name, head, 1.0)]
    return [(part.name, part, weight) for part, weight in _weighted(config, plugins)]


def objectives_of(config: RunConfig, plugins: Plugins) -> list[Objective]:
    """The objectives ``config`` names, made from their options."""
    return [part for part, _ in _weighted(config, plugins)]


def _weighted(config: RunConfig, plugins: Plugins) -> list[tuple[Objective, float]]:
    parts = []
    for name, value in config.objectives.items():
        options = dict(value) if isinstance(value, Mapping) else {"weight": value}
        weight = float(options.pop("weight", 1.0))
        parts.append((plugins.registry.create("objective", name, options), weight))
    return parts


def _record(row: Any, index: int, head: Head) -> Record:
    if has_lone_surrogate(row):
        raise DataError(f"row {index} to predict is {row!r}: {LONE_SURROGATE}")
    if isinstance(row, Mapping):
        return Record(row, "<predict>", index)
    text, pair = row if isinstance(row, tuple | list) and len(row) == 2 else (row, None)
    if not isinstance(text, str):
        raise DataError(f"row {index} to predict is {row!r}; give a str, a (str, str) or a dict")
    options = getattr(head, "options", None)
    usual = getattr(options, "text", "text"), getattr(options, "text_pair", None) or "text_pair"
    columns = getattr(head, "row_columns", usual)
    values = (text,) if pair is None else (text, pair)
    if len(values) > len(columns):
        raise DataError(
            f"row {index} to predict is {row!r}; {head.name} reads one text a row",
            hint="Give a str, or a dict by column.",
        )
    return Record(dict(zip(columns, values, strict=False)), "<predict>", index)
