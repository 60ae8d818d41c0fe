"""The hooks of the example plugin; the entry point in ``pyproject.toml`` names this module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tunecore import hookimpl
from tunecore_example.freeze_embeddings import FreezeEmbeddings, FreezeEmbeddingsOptions
from tunecore_example.shuffled_tokens import ShuffledTokens, ShuffledTokensOptions
from tunecore_example.text_regression import TextRegression, TextRegressionOptions
from tunecore_example.token_counter import TokenCounter

tunecore_api = ">=1,<2"


@hookimpl
def tunecore_register_objectives(register: Callable[..., None]) -> None:
    register("shuffled_tokens", ShuffledTokens, ShuffledTokensOptions)


@hookimpl
def tunecore_register_heads(register: Callable[..., None]) -> None:
    register("text_regression", TextRegression, TextRegressionOptions)


@hookimpl
def tunecore_register_strategies(register: Callable[..., None]) -> None:
    register("freeze_embeddings", FreezeEmbeddings, FreezeEmbeddingsOptions)


@hookimpl
def tunecore_run_start(run: Any) -> None:
    run.track("tunecore-example", TokenCounter())


@hookimpl
def tunecore_batch_ready(run: Any, batch: Any) -> None:
    run.tracked["tunecore-example"].add(batch)


@hookimpl
def tunecore_step_end(run: Any) -> None:
    run.tracked["tunecore-example"].step_end(run.step, run.total_steps)
