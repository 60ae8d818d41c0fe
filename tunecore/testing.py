"""For plugin authors: a small corpus, tokenizer and model, and a check that a plugin keeps the contract.

In a plugin's own tests::

    import my_plugin
    from tunecore.testing import assert_plugin_conforms

    def test_my_plugin_keeps_the_contract():
        assert_plugin_conforms(my_plugin)

``from tunecore.testing import tiny_corpus, tiny_model, tiny_tokenizer`` in a ``conftest.py`` brings these fixtures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from tunecore.config import PluginsConfig
from tunecore.conformance import check_component
from tunecore.plugins import load_plugins
from tunecore.tiny import make_corpus, make_model, make_tokenizer, tiny_documents, tiny_records
from tunecore.types import CorpusView, Record

__all__ = [
    "assert_plugin_conforms", "make_corpus", "make_model", "make_tokenizer", "tiny_corpus", "tiny_documents",
    "tiny_model", "tiny_records", "tiny_tokenizer",
]  # fmt: skip


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """A BERT tokenizer trained on the tiny documents."""
    return make_tokenizer()


@pytest.fixture
def tiny_model(tiny_tokenizer: Any) -> PreTrainedModel:
    """A random BERT of two layers with heads for masked_lm and next_sentence, in evaluation mode."""
    return make_model(["masked_lm", "next_sentence"], tiny_tokenizer)


@pytest.fixture
def tiny_corpus(tiny_tokenizer: Any, tmp_path: Path) -> CorpusView:
    """The tiny documents tokenised, in rows of whole sentences, with word_starts and sentence_starts."""
    return make_corpus(tiny_tokenizer, tmp_path, unit="pair", columns=("word_starts", "sentence_starts"))


def assert_plugin_conforms(
    plugin: Any,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    records: Mapping[str, Sequence[Record]] | None = None,
) -> None:
    """Load a plugin and check every component it registers against the contract, on a tiny random model.

    Of all: hooks (names and arguments) and options (JSON-able). Of objectives and heads: targets in range, as many
    targets summed as announced, 8 rows in one batch give the gradient of 4 batches of 2, draws depend on the stream
    alone, parameters of their own go through a state dict; of heads also facts, predictions and metrics. Of
    strategies: plans name parameters that exist, something learns, the state goes round, also in the middle of what it
    observes, and the saved model has the plain model's parameters. Other components are made and used once.

    Args:
        plugin: module or object with hooks, as an entry point would name it.
        options: component name -> options other than its defaults.
        records: head name -> rows with the columns it needs; the default is :func:`tunecore.tiny.tiny_records`.

    Raises:
        AssertionError: what is not kept, and by which component.
        PluginError: the plugin does not load.
        TrainingError: a component summed another number of targets than it announced.
    """
    plugins = load_plugins(PluginsConfig(load=False), strict=True, extra=[plugin])
    owner = plugins.loaded[-1].owner
    for entry in plugins.registry:
        if entry.owner == owner:
            given = (options or {}).get(entry.name, {})
            check_component(plugins.registry, entry, given, (records or {}).get(entry.name))
