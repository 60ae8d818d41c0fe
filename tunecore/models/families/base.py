"""What the families of transformers' models share; each family is a file beside this one.

No ``...For...`` forward sees a packed batch (they take row 0 of ``h[:, 0]`` and build caches): objectives and heads
gather their rows from the backbone's hidden states and hand them to the methods here, which call the class's own
submodules, so the parameters are those transformers saves and loads.

Shape letters: B sequences, N rows with a target, E hidden width, V vocabulary, C classes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal

import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunecore.errors import ConfigError
from tunecore.types import Layers


class TransformersFamily:
    """What the families here share; a plugin's family may build on it.

    ``classes`` maps the name of a transformers class to the tasks it has a place for, ``backbone_class`` names the
    class without any. ``embedding_parts`` and ``top_parts`` are names within the backbone: what lies below the first
    block, and what belongs to the last block; ``blocks_path`` is the list of blocks. ``classifier_reads_first``
    where the classifier of sequences is a module that takes the first token of [B, L, E] by itself.
    """

    model_type: str = ""
    sequence_row: Literal["first", "last"] = "first"
    causal: bool = False
    encoder_decoder: bool = False
    token_types: int = 0
    padded: bool = False

    backbone_class: ClassVar[str] = ""
    classes: ClassVar[Mapping[str, frozenset[str]]] = {}
    blocks_path: ClassVar[str] = "encoder.layer"
    embedding_parts: ClassVar[tuple[str, ...]] = ("embeddings",)
    top_parts: ClassVar[tuple[str, ...]] = ()
    classifier_reads_first: ClassVar[bool] = False

    @property
    def default_objective(self) -> str:
        """What pretraining takes where no objective is named."""
        return "causal_lm" if self.causal else "masked_lm"

    def backbone(self, model: PreTrainedModel) -> nn.Module:
        """The submodule that maps packed ids to hidden states; ``model`` itself where it has no head."""
        found: nn.Module = model.base_model
        return found

    def position_offset(self, model: PreTrainedModel) -> int:
        """0: positions count from the start of the table."""
        return 0

    def max_length(self, model: PreTrainedModel) -> int:
        """Rows of the position table that a sequence can use."""
        return int(model.config.max_position_embeddings) - self.position_offset(model)

    def pooled(self, model: PreTrainedModel, rows_BE: Tensor) -> Tensor:
        """The backbone's pooler on rows [B, E] -> [B, E]; the rows themselves where it has none."""
        pooler = getattr(self.backbone(model), "pooler", None)
        return rows_BE if pooler is None else pooler(rows_BE.unsqueeze(1))

    def sequence_pooling(self, model: PreTrainedModel) -> Literal["first", "last", "mean"]:
        """What stands for a sequence: its first or last row, as ``sequence_row`` says."""
        return self.sequence_row

    def token_head(self, model: PreTrainedModel, rows_NE: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The prediction head up to its last product: rows [N, E] -> (hidden [N, E'], weight [V, E'], bias [V]).

        Raises:
            ConfigError: the class of ``model`` has no prediction head.
        """
        raise _no_head(model, "prediction head over the vocabulary")

    def sequence_head(self, model: PreTrainedModel, rows_BE: Tensor) -> Tensor:
        """The classification head over rows [B, E] -> logits [B, C].

        Raises:
            ConfigError: the class of ``model`` has no sequence classification head.
        """
        if not is_class(model, "ForSequenceClassification"):
            raise _no_head(model, "sequence classification head")
        if self.classifier_reads_first:
            logits_BC: Tensor = model.classifier(rows_BE.unsqueeze(1))
            return logits_BC
        return self.classified(model, rows_BE)

    def classified(self, model: PreTrainedModel, rows_BE: Tensor) -> Tensor:
        """Pooler, dropout and the linear layer of a class with ``classifier``: rows [B, E] -> logits [B, C]."""
        logits_BC: Tensor = model.classifier(model.dropout(self.pooled(model, rows_BE)))
        return logits_BC

    def token_classifier(self, model: PreTrainedModel, rows_NE: Tensor) -> Tensor | None:
        """Dropout and the class's linear layer over rows [N, E] -> logits [N, C]; None where the class has none."""
        if not is_class(model, "ForTokenClassification"):
            return None
        layer = getattr(model, "classifier", None) or model.score
        logits_NC: Tensor = layer(model.dropout(rows_NE))
        return logits_NC

    def span_head(self, model: PreTrainedModel, rows_NE: Tensor) -> Tensor | None:
        """Logits of a span's start and end at rows [N, E] -> [N, 2]; None where the class has no such head."""
        return model.qa_outputs(rows_NE) if is_class(model, "ForQuestionAnswering") else None

    def choice_head(self, model: PreTrainedModel, rows_BE: Tensor) -> Tensor | None:
        """How well each choice fits: rows [B, E] -> logits [B, 1], pooler included; None for a class without it."""
        return self.classified(model, rows_BE) if is_class(model, "ForMultipleChoice") else None

    def sequence_relationship(self, model: PreTrainedModel, rows_BE: Tensor) -> Tensor | None:
        """The next-sentence head over rows [B, E] -> logits [B, 2]; None where the class has none."""
        return None

    def sentence_order(self, model: PreTrainedModel, rows_BE: Tensor) -> Tensor | None:
        """The sentence-order head over rows [B, E] -> logits [B, 2]; None where the class has none."""
        return None

    def layers(self, model: PreTrainedModel) -> Layers:
        """Prefixes of embeddings, blocks and heads; together they cover every parameter once."""
        backbone = self.backbone(model)
        base = "" if backbone is model else f"{model.base_model_prefix}."
        names = [name for name, _ in backbone.get_submodule(self.blocks_path).named_children()]
        blocks: list[tuple[str, ...]] = [(f"{base}{self.blocks_path}.{name}.",) for name in names]
        top = tuple(f"{base}{part}." for part in self.top_parts)
        blocks[-1:] = [last + top for last in blocks[-1:]]
        present = {name for name, _ in backbone.named_modules()}
        embeddings = tuple(f"{base}{part}." for part in self.embedding_parts if part in present)
        inner = {part.split(".")[0] for part in (*self.embedding_parts, *self.top_parts, self.blocks_path)}
        heads = [f"{base}{name}." for name, _ in backbone.named_children() if name not in inner]
        if backbone is not model:
            heads += [f"{name}." for name, child in model.named_children() if child is not backbone]
        named = [name for name, _ in model.named_parameters()]
        heads = [prefix for prefix in heads if any(name.startswith(prefix) for name in named)]
        return Layers(embeddings, tuple(blocks), tuple(heads))

    def auto_class(self, tasks: frozenset[str]) -> type[PreTrainedModel]:
        """The class with a place for most of ``tasks`` (of equals, the one with the fewest places left empty)."""
        best = max(self.classes, key=lambda name: (len(self.classes[name] & tasks), -len(self.classes[name] - tasks)))
        name = best if self.classes[best] & tasks else self.backbone_class
        found: type[PreTrainedModel] = getattr(transformers, name)
        return found

    def config_fields(
        self, *, layers: int, width: int, heads: int, vocab_size: int, max_length: int, tokenizer: Any | None
    ) -> dict[str, Any]:
        """Fields of the config of a new model; feed-forward layers are four times the width."""
        fields = {
            "num_hidden_layers": layers,
            "hidden_size": width,
            "num_attention_heads": heads,
            "intermediate_size": 4 * width,
            "vocab_size": vocab_size,
            "max_position_embeddings": max_length,
            **special_ids(tokenizer, "pad"),
        }
        return fields | ({"type_vocab_size": self.token_types} if self.token_types else {})


HEAD_CLASSES: Mapping[str, str] = {
    "ForSequenceClassification": "sequence_classification",
    "ForTokenClassification": "token_classification",
    "ForQuestionAnswering": "extractive_qa",
    "ForMultipleChoice": "multiple_choice",
}
"""Ending of a class of transformers -> the head it has a place for."""


def head_classes(prefix: str, without: Collection[str] = ()) -> dict[str, frozenset[str]]:
    """Entries of ``classes`` for the heads whose class is called ``prefix`` and the usual ending."""
    return {f"{prefix}{ending}": frozenset({head}) for ending, head in HEAD_CLASSES.items() if head not in without}


def special_ids(tokenizer: Any | None, *names: str) -> dict[str, int]:
    """``{"pad_token_id": ...}`` and the like for the special tokens the tokenizer has; [CLS] and [SEP] stand in for
    beginning and end where it has no others.
    """
    stand_in = {"bos": "cls", "eos": "sep"}
    found = {}
    for name in names:
        value = getattr(tokenizer, f"{name}_token_id", None)
        if value is None and name in stand_in:
            value = getattr(tokenizer, f"{stand_in[name]}_token_id", None)
        if value is not None:
            found[f"{name}_token_id"] = int(value)
    return found


def is_class(model: PreTrainedModel, ending: str) -> bool:
    """Whether the class of ``model`` has such an ending (``ForSequenceClassification``)."""
    return type(model).__name__.endswith(ending)


def _no_head(model: PreTrainedModel, what: str) -> ConfigError:
    return ConfigError(
        f"{type(model).__name__} has no {what}",
        hint="Build or load the model with the class that family.auto_class(tasks) names for the task.",
    )
