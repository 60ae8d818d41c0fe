"""The engine as a user calls it: from a family or a checkpoint to a trained, evaluated, saved model.

engine = Engine.from_scratch("bert", size="mini", text="corpus/*.txt", vocab_size=8192)
engine.pretrain("corpus/*.txt", objectives={"masked_lm": 1.0, "next_sentence": 1.0}, steps=2000,
output_dir="runs/pre")
engine = Engine.from_pretrained("runs/pre", head="sequence_classification")
engine.finetune("train.csv", eval="dev.csv", epochs=3, learning_rate=3e-5, output_dir="runs/ft")
engine.evaluate("dev.csv"), engine.predict(["a fine film"]), engine.save("my-model")
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunecore.config import ModelConfig, RunConfig
from tunecore.config_io import load_config
from tunecore.config_options import with_options
from tunecore.config_search import SearchConfig
from tunecore.embedding import embed
from tunecore.errors import ConfigError
from tunecore.inputs import train_tokenizer_on
from tunecore.locks import check_free
from tunecore.plugins import Plugins, load_plugins
from tunecore.registry import name_and_options
from tunecore.road import RoadResult, run_road
from tunecore.run_folder import resolve_model
from tunecore.runner import fit
from tunecore.search.result import SearchResult
from tunecore.search.search import run_search
from tunecore.session import Session, open_session
from tunecore.spool import Data, as_paths, class_names, is_paths, temporary_paths
from tunecore.training.result import TrainResult
from tunecore.types import Prediction


class Engine:
    """Pretrains, fine-tunes, evaluates, predicts and saves one model.

    Args:
        config: defaults of every run this engine makes; see :class:`tunecore.RunConfig`.
        tokenizer: a tokenizer already in memory; None loads or trains the one the config names.
        plugins: plugins already loaded; None loads the built-in and the installed ones.
    """

    def __init__(
        self,
        config: RunConfig | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        plugins: Plugins | None = None,
    ) -> None:
        self.config = config or RunConfig()
        self.plugins = plugins or load_plugins(self.config.plugins)
        self._tokenizer = tokenizer
        self._session: Session | None = None

    @classmethod
    def from_config(cls, config: RunConfig | str | os.PathLike[str] | Mapping[str, Any]) -> Engine:
        """An engine for what a run file (or a mapping of its shape) describes; :meth:`run` runs or resumes it.

        Raises:
            ConfigError: the file is missing, or something in it is wrong.
        """
        return cls(config if isinstance(config, RunConfig) else load_config(config))

    @classmethod
    def from_scratch(
        cls,
        family: str,
        *,
        size: str = "mini",
        text: Data | None = None,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        **options: Any,
    ) -> Engine:
        """A model with random weights.

        Args:
            family: bert, roberta, distilbert, electra, gpt2, t5, bart, or one a plugin registers.
            size: tiny, mini, small, medium, base or large.
            text: text to train a tokenizer on now (paths, globs, or an iterable of texts); without it and without
                ``tokenizer`` the first run trains one on its own data.
            tokenizer: a tokenizer, or the path of one.
            options: any option of :class:`tunecore.RunConfig`, such as ``vocab_size``, ``max_length``, ``seed``.

        Raises:
            ConfigError: an unknown family, size or option.
        """
        loaded = tokenizer if isinstance(tokenizer, PreTrainedTokenizerBase) else None
        config = with_options(RunConfig(), {"model": {"family": family, "size": size}, **options})
        if isinstance(tokenizer, str):
            config = with_options(config, {"tokenizer": {"path": tokenizer}})
        engine = cls(config, tokenizer=loaded)
        engine.plugins.registry.entry("family", family)
        if text is not None and tokenizer is None:
            engine._tokenizer = train_tokenizer_on(text, config, engine.plugins.registry)
        return engine

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        head: str | Mapping[str, Any] | None = None,
        labels: Sequence[str] | None = None,
        **options: Any,
    ) -> Engine:
        """A model from a folder of transformers, or from a run's output_dir (its best, else final, else newest step).

        Args:
            path: the folder. Models are never downloaded, and no code in the folder is run.
            head: head to fine-tune, a name or {name: options}; a saved head is found by itself.
            labels: the head's labels in order; None takes them from the training data.
            options: any option of :class:`tunecore.RunConfig`.

        Raises:
            CheckpointError: no model is there.
            ConfigError: an unknown head or option.
        """
        resolve_model(path)
        if labels is not None:
            if head is None:
                raise ConfigError("labels are given without a head", hint='Add head="sequence_classification".')
            name, given = (head, {}) if isinstance(head, str) else next(iter(head.items()))
            head = {name: {**given, "labels": list(labels)}}
        settings = {"model": {"checkpoint": os.fspath(path)}, **({"head": head} if head is not None else {}), **options}
        return cls(with_options(RunConfig(), settings))

    def pretrain(
        self,
        train: Data | None = None,
        *,
        objectives: Mapping[str, Any] | Sequence[str] | None = None,
        eval: Data | None = None,
        test: Data | None = None,
        output_dir: str | os.PathLike[str] = "runs/pretrain",
        **options: Any,
    ) -> TrainResult:
        """Train on text with self-supervised objectives; the same call again resumes an unfinished run.

        Args:
            train: paths, globs, or an iterable of texts; None takes the config's.
            objectives: name -> weight or options; None is masked_lm, causal_lm for a decoder, span_corruption for T5,
                denoising for BART.
            eval: held-out text; None holds out ``eval_fraction`` of the documents.
            test: text the chosen model is measured on at the end; see ``TrainResult.metrics``, names with ``test/``.
            output_dir: the run's folder.
            options: any option of :class:`tunecore.RunConfig` (steps, batch_size, learning_rate ...).
        """
        if objectives is not None and not isinstance(objectives, Mapping):
            objectives = dict.fromkeys(objectives, 1.0)
        if objectives is None:
            objectives = self.config.objectives or {self._default_objective(): 1.0}
        chosen = {"objectives": objectives, "head": None, "output_dir": os.fspath(output_dir)}
        return self._fit(self._prepared({"train": train, "eval": eval, "test": test}, {**chosen, **options}))

    def finetune(
        self,
        train: Data | None = None,
        *,
        eval: Data | None = None,
        test: Data | None = None,
        head: str | Mapping[str, Any] | None = None,
        strategies: Sequence[str | Mapping[str, Any]] = (),
        output_dir: str | os.PathLike[str] = "runs/finetune",
        **options: Any,
    ) -> TrainResult:
        """Train a head on labelled rows; the same call again resumes an unfinished run.

        Args:
            train: csv, tsv, jsonl or parquet files, or an iterable of dicts; None takes the config's.
            eval: held-out rows; None holds out ``eval_fraction`` of the rows.
            test: rows the chosen model is measured on at the end; see ``TrainResult.metrics``, names with ``test/``.
            head: a name or {name: options}; None takes the engine's, or sequence_classification.
            strategies: names or {name: options}; none trains everything.
            output_dir: the run's folder.
            options: any option of :class:`tunecore.RunConfig` (epochs, learning_rate, patience ...).
        """
        head = head or self.config.head or "sequence_classification"
        chosen = {"objectives": {}, "head": head, "strategies": tuple(strategies), "output_dir": os.fspath(output_dir)}
        return self._fit(self._prepared({"train": train, "eval": eval, "test": test}, {**chosen, **options}))

    def search(
        self,
        train: Data | None = None,
        *,
        space: Mapping[str, Any] | None = None,
        eval: Data | None = None,
        test: Data | None = None,
        output_dir: str | os.PathLike[str] = "runs/search",
        **options: Any,
    ) -> SearchResult:
        """Search for the best options of a run: many runs, of which the best one's model becomes this engine's.

        The same call again resumes an unfinished search, and in another process at the same time it shares the trials.

        Args:
            train: as for :meth:`finetune`, or :meth:`pretrain` where the engine has objectives.
            space: dotted option -> a list of values, or a range {"low": ..., "high": ..., "log": True}; None takes the
                config's.
            eval: held-out rows the trials are compared on; None holds out ``eval_fraction`` of the rows.
            test: rows the final model is measured on.
            output_dir: the search's folder, with each trial in a folder of its own.
            options: any option of :class:`tunecore.RunConfig`; ``search={"trials": 30, "pruner": "median"}``.

        Raises:
            ConfigError: optuna is not installed (``pip install 'tunecore[search]'``), or an option is wrong.
        """
        chosen: dict[str, Any] = {"output_dir": os.fspath(output_dir), **options}
        if options.get("head") or not (options.get("objectives") or self.config.objectives):
            chosen |= {"objectives": {}, "head": options.get("head") or self.config.head or "sequence_classification"}
        elif options.get("objectives"):
            chosen["head"] = None
        if space is not None:
            chosen["search"] = {**chosen.get("search", {}), "space": space}
        return self._search(self._prepared({"train": train, "eval": eval, "test": test}, chosen))

    def run(self) -> TrainResult | SearchResult | RoadResult:
        """Run, or resume, what the config describes: one run, a search, or the stages of a road."""
        if self.config.stages:
            road = run_road(self.config, self.plugins, self._tokenizer)
            if not road.interrupted:
                self._start_next_from(self.config, road.head)
            return road
        if not self.config.objectives and self.config.head is None:
            raise ConfigError(
                "the config has neither objectives nor a head, so there is nothing to train",
                hint="Set objectives: {masked_lm: 1.0} to pretrain, or head: sequence_classification to fine-tune.",
            )
        return self._search(self.config) if self.config.search.space else self._fit(self.config)

    def evaluate(self, data: Data, **options: Any) -> dict[str, Any]:
        """Loss and metrics on labelled rows (with a head), or losses on text (after pretraining).

        Raises:
            DataError: a row lacks a column or has a label the model does not know.
        """
        with temporary_paths(data, "evaluate") as paths:
            return self.session.evaluate(paths, with_options(self.config, options))

    def predict(self, rows: Iterable[Any] | str, **generation: Any) -> list[Prediction]:
        """Predictions for texts (str), pairs (tuple of two str) or rows (dict), in their order.

        ``generation`` are options of a head that writes, instead of its own: ``num_beams=5``.
        """
        return self.session.predict([rows] if isinstance(rows, str) else list(rows), **generation)

    def embed(
        self, texts: Iterable[str] | str, *, pooling: str | None = None, normalize: bool | None = None
    ) -> NDArray[np.float32]:
        """One vector a text, in their order, also by a model that was trained for something else.

        Args:
            texts: texts, or a single one.
            pooling: mean, first, last or pooler; None is what the model was trained or saved with, else mean.
            normalize: give vectors of length 1, whose product is the cosine; None is as above, else True.

        Returns: float32 [n, E].
        """
        return embed(self.session, [texts] if isinstance(texts, str) else list(texts), pooling, normalize)

    def generate(
        self, prompts: Sequence[str] | str, *, on_text: Callable[[int, str], None] | None = None, **generation: Any
    ) -> list[str]:
        """Continue prompts with a causal model, or answer them with an encoder-decoder.

        Args:
            prompts: texts, as the model reads them; :meth:`predict` adds a head's template or prefix.
            on_text: called with the place of a prompt and each piece of its text as it is written; prompts are then
                answered one by one.
            generation: max_new_tokens, num_beams, length_penalty, temperature, top_k, top_p, seed and the others of
                :class:`tunecore.generation.GenerationOptions`; what it does not know goes to transformers'
                ``generate``.

        Raises:
            ConfigError: the model cannot generate, or an option is out of range.
            DataError: a prompt and its answer are longer than the model's positions.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        return self.session.generate(texts, on_text=on_text, **generation)

    def save(self, folder: str | os.PathLike[str], part: str | None = None) -> Path:
        """Save model and tokenizer so that plain transformers loads them.

        Args:
            folder: made where it is missing.
            part: a further model that an objective trained, to save instead: "generator" of
                replaced_token_detection.

        Raises:
            ConfigError: there is no such part.
        """
        return self.session.save(Path(folder), part)

    @property
    def session(self) -> Session:
        """The model with its tokenizer and head, loaded from the checkpoint when first needed.

        Raises:
            ConfigError: there is no trained model yet.
        """
        if self._session is None:
            if self.config.model.checkpoint is None:
                raise ConfigError("this engine has no trained model yet; call pretrain or finetune first")
            self._session = open_session(self.config, self.plugins)
        return self._session

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model."""
        return self.session.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer."""
        return self._tokenizer if self._tokenizer is not None else self.session.tokenizer

    def _default_objective(self) -> str:
        if self.config.model.family is not None:
            family = self.plugins.registry.create("family", self.config.model.family)
        else:
            family = self.session.family
        return getattr(family, "default_objective", "causal_lm" if family.causal else "masked_lm")

    def _prepared(self, data: Mapping[str, Data | None], options: Mapping[str, Any]) -> RunConfig:
        """The config of a run with its options, and with data in memory written to its folder."""
        options = self._with_class_names(data.get("train"), options)
        config = with_options(self.config, options)
        spool = Path(config.output_dir) / "data"
        if any(given is not None and not is_paths(given) for given in data.values()):
            check_free(Path(config.output_dir))
        paths = {name: as_paths(given, spool, name) for name, given in data.items() if given is not None}
        return with_options(config, {"data": paths})

    def _fit(self, config: RunConfig) -> TrainResult:
        result, self._session = fit(config, self.plugins, self._tokenizer)
        self._start_next_from(config, config.head)
        self._tokenizer = self._session.tokenizer
        return result

    def _search(self, config: RunConfig) -> SearchResult:
        result = run_search(config, self.plugins, self._tokenizer)
        if not result.interrupted:
            self._session = None
            self._start_next_from(config, config.head)
        return result

    def _start_next_from(self, config: RunConfig, head: str | Mapping[str, Any] | None) -> None:
        """What is trained, evaluated or saved next starts from the model in ``output_dir``."""
        model = ModelConfig(checkpoint=config.output_dir)
        self.config = dataclasses.replace(config, model=model, head=head, stages=(), search=SearchConfig())

    def _with_class_names(self, data: Data | None, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """``options`` with the label names that a ``datasets`` object gives its label column, in its order."""
        if data is None or not options.get("head"):
            return options
        name, given = name_and_options(options["head"], "head")
        fields = dataclasses.fields(self.plugins.registry.entry("head", name).options)
        known = {field.name: field.default for field in fields}
        if not {"label", "labels"} <= known.keys() or given.get("labels"):
            return options
        names = class_names(data, str(given.get("label", known["label"])))
        return options if names is None else {**options, "head": {name: {**given, "labels": names}}}
