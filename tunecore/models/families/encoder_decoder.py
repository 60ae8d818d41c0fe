"""What the families of two stacks share."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import nn
from transformers import PreTrainedModel

from tunecore.models.encoder_decoder import EncoderDecoder
from tunecore.models.families.base import TransformersFamily
from tunecore.types import Layers

STACKS = ("encoder", "decoder")


class EncoderDecoderFamily(TransformersFamily):
    """An encoder, and a decoder that reads it; ``blocks_path`` and the parts are names within each stack.

    Hidden states, and with them the row of a sequence, are the decoder's.
    """

    encoder_decoder = True
    sequence_row: Literal["first", "last"] = "last"
    base_path: ClassVar[str] = ""
    """Where the stacks lie in a class with a head; "" is the model itself."""

    def stacks(self, model: PreTrainedModel) -> nn.Module:
        """The module whose children are ``shared``, ``encoder`` and ``decoder``."""
        inner = getattr(model, self.base_path, None) if self.base_path else None
        return model if inner is None else inner

    def backbone(self, model: PreTrainedModel) -> nn.Module:
        """Encoder and decoder, without the head."""
        stacks = self.stacks(model)
        return EncoderDecoder(stacks.get_submodule("encoder"), stacks.get_submodule("decoder"))

    def layers(self, model: PreTrainedModel) -> Layers:
        """The blocks are the encoder's and then the decoder's, so every stack's embeddings lie below all blocks."""
        stacks = self.stacks(model)
        base = "" if stacks is model else f"{self.base_path}."
        blocks: list[tuple[str, ...]] = []
        for stack in STACKS:
            path = f"{base}{stack}.{self.blocks_path}"
            found = [(f"{path}.{name}.",) for name, _ in model.get_submodule(path).named_children()]
            top = tuple(f"{base}{stack}.{part}." for part in self.top_parts)
            blocks += [*found[:-1], *(last + top for last in found[-1:])]
        parts = ("shared", *(f"{stack}.{part}" for stack in STACKS for part in self.embedding_parts))
        heads = [name for name, _ in model.named_children() if base or name not in ("shared", *STACKS)]
        return Layers(
            _with_parameters(model, [f"{base}{part}." for part in parts]),
            tuple(blocks),
            _with_parameters(model, [f"{name}." for name in heads if f"{name}." != base]),
        )


def _with_parameters(model: PreTrainedModel, prefixes: list[str]) -> tuple[str, ...]:
    """Those of the prefixes under which there are parameters (a tied matrix is named once)."""
    named = [name for name, _ in model.named_parameters()]
    return tuple(prefix for prefix in prefixes if any(name.startswith(prefix) for name in named))
