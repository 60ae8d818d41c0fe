"""What is believed of a model folder: sizes in its config.json, tensors in its safetensors files, and nothing else.

No code, no pickle, and no other file or repository a folder names is read, and no attention or kernel implementation
it asks for is taken. Everything is checked before memory for the model is.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from tunecore.errors import CheckpointError, ConfigError
from tunecore.models.packed import ATTENTION
from tunecore.types import Family

CONFIG_FILE = "config.json"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"

BAD_VALUES = (ValueError, RuntimeError, TypeError, ArithmeticError, LookupError, AttributeError)
"""What the constructors of transformers and torch raise for values of a config that make no model."""

_IGNORED = frozenset(
    {
        *("auto_map", "attn_implementation", "experts_implementation", "kernel_config", "fusion_config"),
        *("output_attentions", "output_hidden_states", "return_dict", "use_return_dict", "use_cache"),
        *("dtype", "torch_dtype", "torchscript", "gradient_checkpointing", "distributed_config", "per_layer_config"),
        *("transformers_weights", "transformers_version", "name_or_path"),
    }
)
"""Keys of a loaded config.json that say how to run a model rather than what it is; they get no vote."""


def read_config(folder: Path) -> dict[str, Any]:
    """The raw config.json of a model folder.

    Raises:
        CheckpointError: no folder, no such file, or no JSON object in it.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such folder", hint="Name a local folder with a saved model.")
    path = folder / CONFIG_FILE
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(f"{folder} holds an adapter, not a whole model", hint="Merge it into its model first.")
    if not path.is_file():
        raise CheckpointError(f"{folder} is no model: {CONFIG_FILE} is missing")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} holds {type(raw).__name__}, not an object")
    return raw


def field_names(config_class: type[PreTrainedConfig]) -> set[str]:
    """Names of the fields of a config class, those it renames and those any class takes included."""
    names = {field.name for field in dataclasses.fields(config_class)}
    return names | set(config_class.attribute_map) | {"num_labels", "tie_word_embeddings"}


def make_config(config_class: type[PreTrainedConfig], values: Mapping[str, Any], where: str) -> PreTrainedConfig:
    """A config of ``values``, its attention "tunecore".

    Raises:
        ConfigError: a value has the wrong type, or values do not go together; ``where`` says whose they are.
    """
    try:
        return config_class(**{**values, "attn_implementation": ATTENTION})
    except Exception as error:  # the library raises its own kinds for a wrong type or value of a field
        raise ConfigError(f"{where}: no {config_class.__name__} can be made: {error}") from error


def loaded_config(
    cls: type[PreTrainedModel], raw: Mapping[str, Any], extra: Mapping[str, Any], folder: Path
) -> PreTrainedConfig:
    """The config of a folder's raw config.json, with ``extra`` laid over it.

    Raises:
        ConfigError: it makes no config, or one of quantized weights.
    """
    fields = field_names(cls.config_class)
    if raw.get("quantization_config") is not None:
        raise ConfigError(
            f"{folder / CONFIG_FILE}: quantized weights cannot be trained", hint="Load the model they were made from."
        )
    # A key that is neither a field nor new to the class would replace one of its methods or class settings.
    kept = {
        key: value
        for key, value in raw.items()
        if key not in _IGNORED and key[:1] != "_" and (key in fields or not hasattr(cls.config_class, key))
    }
    if "id2label" in extra or "num_labels" in extra:
        for key in ("id2label", "label2id", "num_labels", "problem_type"):
            kept.pop(key, None)
    return make_config(cls.config_class, {**kept, **extra}, str(folder / CONFIG_FILE))


def check_config(family: Family, config: PreTrainedConfig, where: str) -> None:
    """Refuse what would silently make another model than the one asked for.

    Raises:
        ConfigError: names the field.
    """
    if getattr(config, "is_decoder", False) and not family.causal:
        raise ConfigError(f"{where}: is_decoder is set, but {family.model_type} is an encoder here")
    if getattr(config, "add_cross_attention", False):
        raise ConfigError(f"{where}: add_cross_attention is set, but {family.model_type} has one stack here")
    heads, kv_heads = (getattr(config, f"num_{kind}_heads", None) for kind in ("attention", "key_value"))
    if heads and kv_heads and heads % kv_heads:
        raise ConfigError(f"{where}: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
    positions = getattr(config, "position_embedding_type", None)
    if positions not in (None, "absolute"):
        raise ConfigError(f"{where}: position_embedding_type {positions!r} is no longer known to transformers")


def saved_class(family: Family, raw: Mapping[str, Any]) -> type[PreTrainedModel]:
    """The class a folder was saved from, where it is one of transformers' of this model_type, else the backbone's."""
    names = raw.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    found = getattr(transformers, name, None) if name.isidentifier() else None
    if not isinstance(found, type) or not issubclass(found, PreTrainedModel):
        return family.auto_class(frozenset())
    config_class = getattr(found, "config_class", None)
    fits = config_class is not None and config_class.model_type == raw.get("model_type")
    return found if fits else family.auto_class(frozenset())


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder's safetensors files, floating ones as fp32, in memory of their own.

    Raises:
        CheckpointError: a file is missing or damaged, or the index names a file elsewhere.
    """
    tensors = {name: value for file in weight_files(folder) for name, value in load_tensors(folder / file).items()}
    # A copy: the files are memory-mapped, and the model must not change with them.
    return {name: as_float32(tensor, copy=True) for name, tensor in tensors.items()}


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of one safetensors file, mapped into memory.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return tensors


def weight_files(folder: Path) -> list[str]:
    """Names of the safetensors files of a model's weights, all of them in its folder.

    Raises:
        CheckpointError: there are none, or the index is damaged or names a file elsewhere.
    """
    if (folder / _WEIGHTS).is_file():
        return [_WEIGHTS]
    if not (folder / _INDEX).is_file():
        pickled = sorted(file.name for file in folder.glob("*.bin"))
        raise CheckpointError(
            f"{folder} is no model: {_WEIGHTS} is missing" + (f" ({pickled[0]} is not read)" if pickled else ""),
            hint="Save the model again with save_pretrained of transformers." if pickled else None,
        )
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        names = set(index["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder / _INDEX} cannot be read: {error!r}") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{folder / _INDEX} names {name!r}, which is no file of this folder")
    return sorted(names)


def as_float32(tensor: Tensor, *, copy: bool = False) -> Tensor:
    """``tensor`` as fp32 where it is of a floating dtype."""
    return tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=copy)


def check_tensors(
    cls: type[PreTrainedModel], family: Family, config: PreTrainedConfig, tensors: dict[str, Tensor], folder: Path
) -> None:
    """Compare shapes on a model without memory; drop head tensors of another shape, so that they count as missing.

    Raises:
        CheckpointError: weights and config.json are of different models.
        ConfigError: config.json makes no model.
    """
    # Layers with tensors of their own: ALBERT's share those of a group.
    depth = getattr(config, "num_hidden_groups", getattr(config, "num_hidden_layers", 0))
    if depth > len(tensors):
        raise CheckpointError(f"{folder}: config.json says {depth} layers, but there are {len(tensors)} tensors in all")
    try:
        with torch.device("meta"):
            skeleton = cls(config)
    except BAD_VALUES as error:
        raise ConfigError(f"{folder / CONFIG_FILE} makes no {cls.__name__}: {error}") from error
    parameters = skeleton.state_dict()
    wanted = {name: tuple(tensor.shape) for name, tensor in parameters.items()}
    body = body_prefixes(family, skeleton)
    stacks = tuple({block[0].rsplit(".", 2)[0] + "." for block in family.layers(skeleton).blocks})
    base = f"{cls.base_model_prefix}."
    for name in sorted(tensors):
        # A folder saved with a head has the prefix, one without has not, whatever the class it is loaded into.
        spellings = (name, base + name, name.removeprefix(base))
        known = next((spelling for spelling in spellings if spelling in wanted), None)
        shape = tuple(tensors[name].shape)
        if known is None and any(s.startswith(stacks) and not s.startswith(body) for s in spellings):
            raise CheckpointError(f"{folder}: {name} is of a layer beyond the {depth} of config.json")
        if known is not None and tensors[name].is_floating_point() != parameters[known].is_floating_point():
            raise CheckpointError(f"{folder}: {name} is of {tensors[name].dtype}, which is no dtype of weights")
        if known is not None and shape != wanted[known]:
            if known.startswith(body):
                raise CheckpointError(f"{folder}: {name} is {shape}, but config.json makes it {wanted[known]}")
            del tensors[name]


def body_prefixes(family: Family, model: PreTrainedModel) -> tuple[str, ...]:
    """Prefixes of all parameters of embeddings and blocks."""
    layers = family.layers(model)
    return (*layers.embeddings, *(prefix for block in layers.blocks for prefix in block))
