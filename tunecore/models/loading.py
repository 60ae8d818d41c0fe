"""Models in and out: built new from a family and a size, loaded from a folder, saved in transformers' layout.

What may be believed of a folder is in :mod:`tunecore.models.folder`.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from tunecore.errors import CheckpointError, ConfigError, unknown_name
from tunecore.models.encoder_decoder import prepare
from tunecore.models.folder import (
    BAD_VALUES,
    CONFIG_FILE,
    as_float32,
    body_prefixes,
    check_config,
    check_tensors,
    field_names,
    loaded_config,
    make_config,
    read_config,
    read_tensors,
    saved_class,
)
from tunecore.models.fused import number_shared_layers
from tunecore.models.packed import assign_sites, expect_no_mask
from tunecore.types import Family

logger = logging.getLogger("tunecore")


class Shape(NamedTuple):
    """Layers, width and heads of a model."""

    layers: int
    width: int
    heads: int


SIZES: dict[str, Shape] = {
    "tiny": Shape(2, 128, 2),
    "mini": Shape(4, 256, 4),
    "small": Shape(4, 512, 8),
    "medium": Shape(8, 512, 8),
    "base": Shape(12, 768, 12),
    "large": Shape(24, 1024, 16),
}
"""Named sizes: BERT's own (Turc et al. 2019, arXiv:1908.08962; Devlin et al. 2018, arXiv:1810.04805)."""

def build_model(
    family: Family,
    tasks: frozenset[str],
    *,
    size: str,
    vocab_size: int,
    max_length: int,
    overrides: Mapping[str, Any] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    seed: int = 0,
    extra_config: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """Make a model with new weights, fp32, its attention "tunecore".

    Args:
        family: which kind of model.
        tasks: names of objectives, or of one head: they choose the class.
        size: a name of :data:`SIZES`.
        vocab_size: rows of the embedding.
        max_length: tokens the longest sequence may have.
        overrides: fields of the transformers config, by its own names.
        tokenizer: gives the ids of special tokens.
        seed: fixes the weights, whatever the state of torch's generators, which are left as they were.
        extra_config: more entries of the config (labels, what tunecore keeps there); these need not be fields of it.

    Raises:
        ConfigError: unknown size, unknown field, or fields that make no model.
    """
    if size not in SIZES:
        raise ConfigError(unknown_name("model.size", size, SIZES))
    cls = family.auto_class(tasks)
    overrides = dict(overrides or {})
    fields = family.config_fields(
        **SIZES[size]._asdict(), vocab_size=vocab_size, max_length=max_length, tokenizer=tokenizer
    )
    known = field_names(cls.config_class) | set(fields)
    for name in overrides:
        if name not in known:
            raise ConfigError(f"model.overrides: {unknown_name(f'field of {cls.config_class.__name__}', name, known)}")
    config = make_config(cls.config_class, {**fields, **overrides, **(extra_config or {})}, "model.overrides")
    check_config(family, config, "model.overrides")
    try:
        with seeded(seed):
            model = cls(config)
    except BAD_VALUES as error:
        raise ConfigError(f"model.overrides make no {cls.__name__}: {error}") from error
    return _finish(model)


def known_model_type(path: str | Path, families: Iterable[str]) -> str:
    """The model_type of a folder's config.json, which must be that of a registered family.

    Raises:
        CheckpointError: the folder has no config.json.
        ConfigError: no family is registered for it.
    """
    folder = Path(path)
    model_type = str(read_config(folder).get("model_type"))
    if model_type not in families:
        raise ConfigError(
            f"{folder / CONFIG_FILE}: {unknown_name('model_type', model_type, families)}",
            hint="A plugin can register a family for it (tunecore_register_families).",
        )
    return model_type


def load_model(
    path: str | Path,
    tasks: frozenset[str],
    families: Mapping[str, Family],
    *,
    extra_config: Mapping[str, Any] | None = None,
    family_override: Family | None = None,
    seed: int = 0,
    complete: bool = False,
) -> PreTrainedModel:
    """Load a model from a folder in transformers' layout, as fp32, its attention "tunecore".

    What the folder has no weights for in the class that ``tasks`` choose (a new head) is made by ``seed`` and named in
    one line of the "tunecore" log. A head of another number of labels counts as missing.

    Args:
        path: folder with config.json and safetensors weights.
        tasks: names of objectives, or of one head; none takes the class the folder was saved from.
        families: families by model_type.
        extra_config: entries that override those of config.json.
        family_override: the family to take whatever the model_type.
        seed: fixes newly made weights.
        complete: refuse a folder that has no weights for all of the class.

    Raises:
        CheckpointError: the folder holds no complete model.
        ConfigError: its model_type is not known, or its config.json cannot be used.
    """
    folder = Path(path)
    raw = read_config(folder)
    family = families[known_model_type(folder, families)] if family_override is None else family_override
    cls = family.auto_class(tasks) if tasks else saved_class(family, raw)
    config = loaded_config(cls, raw, extra_config or {}, folder)
    check_config(family, config, str(folder / CONFIG_FILE))
    tensors = read_tensors(folder)
    check_tensors(cls, family, config, tensors, folder)
    with seeded(seed), _quiet():
        try:
            model, report = cls.from_pretrained(
                None, config=config, state_dict=tensors, output_loading_info=True, dtype=torch.float32
            )
        except BAD_VALUES as error:
            raise CheckpointError(f"{folder}: the weights do not fit {cls.__name__}: {error}") from error
    _report_missing(model, family, report, folder)
    if complete and report["missing_keys"]:
        raise _incomplete(model, raw, sorted(report["missing_keys"]), folder)
    if model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = _generation_config(folder)
    return _finish(model)


def _generation_config(folder: Path) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library raises its own kinds for a wrong type or value
        raise CheckpointError(f"{folder / 'generation_config.json'} cannot be used: {error}") from error


def save_model(
    model: PreTrainedModel,
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
    *,
    complete: bool = False,
) -> None:
    """Write config.json, model.safetensors and the tokenizer's files, to be read by plain transformers.

    Args:
        model: of any dtype; weights are written as fp32, a tied one once.
        folder: made where it is missing.
        tokenizer: saved beside the model.
        state_dict: tensors by parameter name to write instead of the model's own (fp32 masters).
        complete: ``state_dict`` is all there is to write, under the names of the plain class, whatever the model
            holds at present (adapters in place, say).

    Raises:
        CheckpointError: ``state_dict`` names a tensor the model does not have.
    """
    folder = Path(folder)
    tensors: dict[str, Tensor] = dict(state_dict or {}) if complete else dict(model.state_dict())
    if state_dict is not None and not complete:
        strange = sorted(set(state_dict) - set(tensors))
        if strange:
            raise CheckpointError(f"{folder}: {type(model).__name__} has no tensor {strange[0]!r} to save")
        tensors.update(state_dict)
    for name, source in getattr(model, "all_tied_weights_keys", {}).items():
        if source in tensors:
            tensors.pop(name, None)
    tensors = {name: as_float32(tensor.detach()).cpu().contiguous() for name, tensor in tensors.items()}
    live = model.config
    kept = live.dtype, live.architectures
    with _quiet():
        model.save_pretrained(folder, state_dict=tensors, max_shard_size="1000GB")
    live.dtype, live.architectures = kept
    config = copy.deepcopy(live)
    config.architectures = [type(model).__name__]
    config.dtype = "float32"
    if hasattr(config, "use_cache"):
        config.use_cache = True
    if tokenizer is not None and config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    config.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that every id of the tokenizer has a row in the embedding.

    Raises:
        ConfigError: an id is too large; names the token.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1], default=("", -1))
    if largest >= rows:
        raise ConfigError(
            f"the tokenizer has ids up to {largest} ({token!r}), but the model's embedding has {rows} rows",
            hint="Use the tokenizer the model was trained with, or build a model with a larger vocab_size.",
        )


def enable_gradient_checkpointing(model: PreTrainedModel) -> None:
    """Recompute each block in the backward pass: less memory, about a third more time; gradients stay the same.

    Raises:
        ConfigError: the model's class does not support it.
    """
    if not model.supports_gradient_checkpointing:
        raise ConfigError(f"{type(model).__name__} has no gradient checkpointing", hint="Leave the option out.")
    # transformers renamed the method. Not the reentrant kind: it loses the gradients of keyword arguments.
    newer = getattr(model, "activation_checkpointing_enable", None)
    (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from torch's CPU generator seeded by ``seed``; its state returns afterwards."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and load report; ours is one line."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _finish(model: PreTrainedModel) -> PreTrainedModel:
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    number_shared_layers(model)
    assign_sites(model)
    expect_no_mask(model)
    prepare(model)
    return model


def _report_missing(model: PreTrainedModel, family: Family, report: Mapping[str, Any], folder: Path) -> None:
    missing = sorted(report["missing_keys"])
    if report.get("error_msgs"):
        raise CheckpointError(f"{folder}: {'; '.join(report['error_msgs'])}")
    lost = [name for name in missing if name.startswith(body_prefixes(family, model))]
    if lost:
        raise CheckpointError(
            f"{folder}: no complete {model.config.model_type} model: {len(lost)} tensors are missing, {lost[0]} for one"
        )
    if missing:
        logger.warning("%s: not in the checkpoint, newly initialised: %s", folder, ", ".join(missing))


def _incomplete(model: PreTrainedModel, raw: Mapping[str, Any], missing: list[str], folder: Path) -> CheckpointError:
    saved = ", ".join(raw.get("architectures") or ()) or "a class it does not name"
    hint = "Pretrain it with an objective that trains this part, or name a folder that has it."
    if saved == "ElectraForPreTraining":
        hint = 'The discriminator predicts no tokens; save the generator: engine.save(folder, part="generator").'
    return CheckpointError(
        f"{folder}: saved as {saved}; {type(model).__name__} also needs {missing[0]}"
        + (f" and {len(missing) - 1} more tensors" if len(missing) > 1 else ""),
        hint=hint,
    )
