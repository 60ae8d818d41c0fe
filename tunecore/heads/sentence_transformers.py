"""The files by which sentence-transformers knows how a model makes vectors: read, and written beside the model.

``modules.json`` lists what a text goes through (the model, pooling, normalisation), ``1_Pooling/config.json`` says how
tokens become one vector, ``sentence_bert_config.json`` how long a text may be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

_MODULES, _LENGTH = "modules.json", "sentence_bert_config.json"
_PACKAGE = "sentence_transformers.models"
_MODES = {"mean": "pooling_mode_mean_tokens", "first": "pooling_mode_cls_token", "last": "pooling_mode_lasttoken"}
"""Our name of a pooling -> its key."""
_NAMES = {"mean": "mean", "cls": "first", "lasttoken": "last"}
"""The one word that newer versions write -> our name."""


class SentenceModel(NamedTuple):
    """How a folder's model makes vectors."""

    pooling: str
    normalize: bool
    max_length: int | None
    """Longest text in tokens, where the folder says."""


def read_sentence_model(folder: Path) -> SentenceModel | None:
    """How the model of a folder makes vectors; None where it does not say, or not in a way that is ours."""
    modules = _read(folder / _MODULES)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        return None
    kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]) or modules[0].get("path"):
        return None
    options = _read(folder / Path(str(modules[1].get("path", ""))).name / "config.json")
    if not isinstance(options, dict):
        return None
    modes = {ours for ours, key in _MODES.items() if options.get(key) is True}
    others = {key for key, value in options.items() if key.startswith("pooling_mode_") and value is True}
    if isinstance(options.get("pooling_mode"), str):
        modes, others = {_NAMES.get(options["pooling_mode"], "")} - {""}, set()
    if len(modes) != 1 or others - set(_MODES.values()):
        return None
    length = _read(folder / _LENGTH)
    longest = length.get("max_seq_length") if isinstance(length, dict) else None
    return SentenceModel(modes.pop(), "Normalize" in kinds, longest if isinstance(longest, int) else None)


def sentence_model_files(model: SentenceModel, width: int) -> Mapping[str, Any]:
    """Path inside the folder -> JSON; none for a pooling that sentence-transformers does not know.

    Args:
        model: how vectors are made.
        width: of the vectors.
    """
    if model.pooling not in _MODES:
        return {}
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")] + [("2_Normalize", "Normalize")] * model.normalize
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"{_PACKAGE}.{kind}"} for i, (path, kind) in enumerate(kinds)
    ]
    modes = {key: ours == model.pooling for ours, key in _MODES.items()}
    return {
        _MODULES: modules,
        "1_Pooling/config.json": {"word_embedding_dimension": width, **modes},
        _LENGTH: {"max_seq_length": model.max_length, "do_lower_case": False},
    }


def _read(path: Path) -> Any:
    """The JSON of a file; None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
