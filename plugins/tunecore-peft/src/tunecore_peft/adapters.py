"""Adapters of the library peft in a model: injected in place, merged on paper for a checkpoint, taken out again.

``peft.inject_adapter_in_model`` wraps the chosen modules of a transformers model and leaves it the class it was, so
everything else (packed batches, heads, other strategies) goes on by the names it knows.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunecore.errors import ConfigError, unknown_name

ALL_LINEAR = "all-linear"
"""Every linear layer of the blocks."""
_REFUSED = {
    "ADALORA": "it allots ranks between steps, from gradients that are gone by then",
    "XLORA": "it mixes adapters that are already trained",
    "POLY": "it needs the number of each row's task",
    "OSF": "it changes gradients on the way",
    "TRAINABLE_TOKENS": "the tokens it adds are not the tokenizer's",
    **dict.fromkeys(("FROD", "PVERA", "TINYLORA", "UNILORA", "VBLORA", "VERA"), "its adapters share weights"),
}
"""Kinds that would be trained wrongly, and why."""
_RESERVED = {
    "target_modules": "the option target_modules of the strategy names them",
    "modules_to_save": "heads learn by themselves; the option train names further parameters",
    "inference_mode": "adapters are there to be trained",
    "peft_type": "the option type says it",
    "task_type": "the head decides it",
}


def known_kinds() -> list[str]:
    """The kinds of adapters that can be asked for, in lower case."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return sorted(str(kind.value).lower() for kind in PEFT_TYPE_TO_CONFIG_MAPPING)


def make_config(owner: str, kind: str, options: Mapping[str, Any]) -> Any:
    """A config of the library.

    Raises:
        ConfigError: peft is not installed, the kind or an option is unknown, or the kind cannot be trained here.
    """
    try:
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    except ImportError as error:
        raise ConfigError(f"strategy {owner} needs the library peft: {error}", hint="pip install peft") from error
    by_name = {str(key.value).upper(): config for key, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    name = kind.upper()
    if name not in by_name:
        raise ConfigError(unknown_name(f"{owner}.type", kind, known_kinds()))
    if name in _REFUSED:
        raise ConfigError(f"{owner}.type {kind!r} cannot be trained here: {_REFUSED[name]}", hint="lora can.")
    for key in options:
        if key in _RESERVED:
            raise ConfigError(f"{owner}.config: {key!r} has no place there: {_RESERVED[key]}")
    try:
        return by_name[name](**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{owner}: {by_name[name].__name__} takes no such options: {error}") from error


def inject(
    owner: str, model: PreTrainedModel, config: Any, targets: Sequence[str] | None, heads: tuple[str, ...]
) -> set[str]:
    """Put adapters into ``model``; returns the names of the parameters that are theirs.

    Parameters that were there before stay trainable or frozen as they were.

    Args:
        owner: the strategy, for messages.
        model: the transformers model.
        config: of :func:`make_config`.
        targets: modules by the end of their names or by globs of whole names, or "all-linear"; None is peft's own
            choice for the model's type.
        heads: prefixes of what learns as a whole, and so gets no adapter.

    Raises:
        ConfigError: a target matches nothing, the library has no such adapter for it, or the target is tied.
    """
    import peft

    before = {id(p): p.requires_grad for p in model.parameters()}
    if targets is not None:
        config.target_modules = _resolved(owner, model, targets, heads)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # it is then set right
            peft.inject_adapter_in_model(config, model)
    except (ValueError, TypeError, NotImplementedError, AssertionError, RuntimeError) as error:
        hint = f"Name them with {owner}.target_modules." if "target_modules" in str(error) else None
        raise ConfigError(f"strategy {owner}: {error}", hint=hint) from error
    for parameter in model.parameters():
        if id(parameter) in before:
            parameter.requires_grad_(before[id(parameter)])
    counts = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    found = list(adapted(model))
    for name, layer in found:
        if not hasattr(layer, "merge"):
            raise ConfigError(f"strategy {owner}: adapters of {type(layer).__name__} cannot be merged, so not saved")
        if any(counts[id(p)] > 1 for p in layer.get_base_layer().parameters()):
            raise ConfigError(
                f"strategy {owner}: {name!r} shares its weights with another part of the model, which the adapter "
                "would not reach",
                hint=f"Leave it out of {owner}.target_modules.",
            )
    if not found:
        raise ConfigError(f"strategy {owner}: the adapters stand nowhere in {type(model).__name__}")
    return {name for name, p in model.named_parameters() if id(p) not in before}


def _resolved(owner: str, model: PreTrainedModel, targets: Sequence[str], heads: tuple[str, ...]) -> list[str]:
    """Whole names of the modules that targets name; peft itself would read a single text as a regular expression."""
    output = model.get_output_embeddings()
    modules = {
        name: module
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
        and not f"{name}.".startswith(heads or ("\0",))
        and module is not output
    }
    names = list(modules)
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear | Conv1D)]
    chosen: dict[str, None] = {}
    for target in targets:
        found = [n for n in names if n == target or n.endswith(f".{target}") or fnmatchcase(n, target)]
        found = linear if target == ALL_LINEAR else found
        if not found:
            raise ConfigError(
                f"{owner}.target_modules: {target!r} matches no module of this model",
                hint=f"Modules are called {names[0]!r}, {names[-1]!r} and the like.",
            )
        chosen.update(dict.fromkeys(found))
    return list(chosen)


def adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The outermost adapted modules by name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and not name.startswith(inside or ("\0",)):
            inside = (*inside, f"{name}.")
            yield name, module


@torch.no_grad()
def merged(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the plain model for those of ``model`` with its adapters, which stays as it is.

    Module by module on a float32 copy, so memory for one module more is all that it takes.
    """
    result = dict(tensors)
    for name, layer in adapted(model):
        prefix = f"{name}."
        own = {key.removeprefix(prefix): result.pop(key) for key in tensors if key.startswith(prefix)}
        one = copy.deepcopy(layer).float().eval()
        one.load_state_dict(own)
        one.merge()
        result |= {prefix + key: value for key, value in one.get_base_layer().state_dict().items()}
    return result


def take_out(model: nn.Module) -> None:
    """Put the wrapped modules back in their places, without the adapters."""
    for name, layer in list(adapted(model)):
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
