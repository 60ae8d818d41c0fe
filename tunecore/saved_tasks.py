"""What a model folder says it is for, in its config.json, and what a head or objectives have written there.

A model of tunecore says it under "tunecore"; one of plain transformers by its class and ``problem_type``; one of
sentence-transformers by its own files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunecore.config import RunConfig
from tunecore.errors import CheckpointError
from tunecore.heads.sentence_embedding import NAME as SENTENCE_EMBEDDING
from tunecore.heads.sentence_transformers import read_sentence_model
from tunecore.models.families.base import HEAD_CLASSES
from tunecore.models.folder import CONFIG_FILE, read_config
from tunecore.registry import name_and_options
from tunecore.run_folder import resolve_model
from tunecore.types import Head

CONFIG_KEY = "tunecore"
"""Entry of a saved config.json: {"head": {"name", "options", "facts"}} or {"objectives": {...}}."""

PROBLEM_TYPES = {"multi_label_classification": "multi_label_classification", "regression": "regression"}
"""The config's problem_type of a ``...ForSequenceClassification`` -> its head, where that is another one."""

_KINDS = {
    "architectures": list, "id2label": dict, "problem_type": str, "max_position_embeddings": int, "n_positions": int,
    "pad_token_id": int, CONFIG_KEY: dict,
}  # fmt: skip
"""What is read of a config.json here, each with its kind."""
_ENTRY_KINDS = {"head": dict, "objectives": dict, "max_length": int}
_HEAD_KINDS = {"name": str, "options": dict, "facts": dict}
_SAID = {list: "a list", dict: "{key: value} pairs", str: "a text", int: "a whole number"}


def with_known_length(config: RunConfig) -> RunConfig:
    """``config`` with ``data.max_length`` filled in: as given, as the checkpoint was trained, or as it allows."""
    if config.data.max_length is not None or config.model.checkpoint is None:
        return config
    saved, entry = read_saved(resolve_model(config.model.checkpoint))
    positions = saved.get("max_position_embeddings") or saved.get("n_positions") or config.data.length
    # RoBERTa's table, and that of its multilingual kin, has pad_id + 1 rows that no token uses.
    skips = saved.get("model_type") in ("roberta", "xlm-roberta")
    unused = (saved.get("pad_token_id") or 0) + 1 if skips else 0
    length = entry.get("max_length") or min(config.data.length, positions - unused)
    return replace(config, data=replace(config.data, max_length=int(length)))


def read_saved(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(config.json of a model folder, what tunecore has written in it: {} where another program made it).

    Raises:
        CheckpointError: there is none, or an entry that is read here is not of its kind; it is named.
    """
    saved, where = read_config(folder), f"{folder / CONFIG_FILE}: "
    _check_kinds(saved, _KINDS, where)
    entry = saved.get(CONFIG_KEY) or {}
    _check_kinds(entry, _ENTRY_KINDS, f"{where}{CONFIG_KEY}.")
    if entry.get("head") is not None:
        _check_kinds(entry["head"], _HEAD_KINDS, f"{where}{CONFIG_KEY}.head.", required=True)
    for key in saved.get("id2label") or ():
        if not key.isdecimal():
            raise CheckpointError(f"{where}id2label has the key {key!r}; its keys are numbers")
    return saved, entry


def _check_kinds(values: Mapping[str, Any], kinds: Mapping[str, type], where: str, required: bool = False) -> None:
    for key, kind in kinds.items():
        value = values.get(key)
        right = not required if value is None else isinstance(value, kind) and not isinstance(value, bool)
        if not right:
            raise CheckpointError(f"{where}{key} is {value!r:.80}; it must be {_SAID[kind]}")


def head_of_transformers(saved: Mapping[str, Any]) -> str | None:
    """The head that a plain transformers model has by its class, from its config.json."""
    name = str((saved.get("architectures") or [""])[0])
    head = next((head for ending, head in HEAD_CLASSES.items() if name.endswith(ending)), None)
    if head != "sequence_classification":
        return head
    # As transformers itself chooses the loss where the config does not say.
    usual = "regression" if len(saved.get("id2label") or ()) == 1 else ""
    return PROBLEM_TYPES.get(saved.get("problem_type") or usual, head)


def facts_of_transformers(saved: Mapping[str, Any], head: str) -> dict[str, Any] | None:
    """What ``head`` must know of a plain transformers model, its labels; None where the model is for another task."""
    if head_of_transformers(saved) != head:
        return None
    labels = saved.get("id2label") or {}
    return {"labels": [labels[key] for key in sorted(labels, key=int)] or ["LABEL_0", "LABEL_1"]}


def with_saved_tasks(
    config: RunConfig, entry: Mapping[str, Any], saved: Mapping[str, Any], folder: Path
) -> RunConfig:
    """``config`` with the head or objectives the model in ``folder`` was saved with, where it names none."""
    if config.head is not None:
        return config
    if "head" in entry:
        return replace(config, head={entry["head"]["name"]: entry["head"]["options"]}, objectives={})
    if (head := head_of_transformers(saved)) is not None:
        return replace(config, head=head, objectives={})
    if not config.objectives and not entry and (found := read_sentence_model(folder)) is not None:
        options = {"pooling": found.pooling, "normalize": found.normalize}
        data = replace(config.data, max_length=config.data.max_length or found.max_length)
        return replace(config, head={SENTENCE_EMBEDDING: options}, data=data)
    return replace(config, objectives=config.objectives or entry.get("objectives", {}))


def config_entry(config: RunConfig, head: Head | None, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json must carry so that transformers and tunecore read the model rightly."""
    length = {"max_length": config.data.length}
    if head is None:
        return {CONFIG_KEY: {"objectives": dict(config.objectives), **length}}
    assert config.head is not None
    name, options = name_and_options(config.head, "head")
    kept = {"name": name, "options": dict(options), "facts": dict(facts)}
    return {CONFIG_KEY: {"head": kept, **length}, **config_fields_of(head, facts)}


def config_fields_of(head: Head, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a head that knows its ``facts`` sets in the config of its model."""
    if hasattr(head, "config_fields"):
        return dict(head.config_fields())
    names = dict(enumerate(map(str, facts.get("labels", ()))))
    return {"id2label": names, "label2id": {label: index for index, label in names.items()}} if names else {}
