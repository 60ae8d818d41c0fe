"""What differs per transformers ``model_type``: where a model keeps its parts, and how its heads read single rows.

No ``...For...`` forward sees a packed batch (they take row 0 of ``h[:, 0]`` and build caches): objectives and heads
gather their rows from the backbone's hidden states and hand them to the methods here, which call the class's own
submodules, so the parameters are those transformers saves and loads.

Shape letters: B sequences, N rows with a target, E hidden width, V vocabulary, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunecore.errors import ConfigError
from tunecore.types import Family, Layers


class TransformersFamily:
    """What the families here share; a plugin's family may build on it.

    ``classes`` maps the name of a transformers class to the tasks it has a place for, ``backbone_class`` names the
    class without any. ``embedding_parts`` and ``top_parts`` are names within the backbone: what lies below the first
    block, and what belongs to the last block; ``blocks_path`` is the list of blocks.
    """

    model_type: str = ""
    sequence_row: Literal["first", "last"] = "first"
    causal: bool = False
    token_types: int = 0

    backbone_class: ClassVar[str] = ""
    classes: ClassVar[Mapping[str, frozenset[str]]] = {}
    blocks_path: ClassVar[str] = "encoder.layer"
    embedding_parts: ClassVar[tuple[str, ...]] = ("embeddings",)
    top_parts: ClassVar[tuple[str, ...]] = ()

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
        raise _no_head(model, "sequence classification head")

    def sequence_relationship(self, model: PreTrainedModel, rows_BE: Tensor) -> Tensor | None:
        """The next-sentence head over rows [B, E] -> logits [B, 2]; None where the class has none."""
        return None

    def layers(self, model: PreTrainedModel) -> Layers:
        """Prefixes of embeddings, blocks and heads; together they cover every parameter once."""
        backbone = self.backbone(model)
        base = "" if backbone is model else f"{model.base_model_prefix}."
        names = [name for name, _ in backbone.get_submodule(self.blocks_path).named_children()]
        blocks: list[tuple[str, ...]] = [(f"{base}{self.blocks_path}.{name}.",) for name in names]
        top = tuple(f"{base}{part}." for part in self.top_parts)
        blocks[-1:] = [last + top for last in blocks[-1:]]
        embeddings = tuple(f"{base}{part}." for part in self.embedding_parts if hasattr(backbone, part))
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


class BertFamily(TransformersFamily):
    """BERT (Devlin et al. 2018, arXiv:1810.04805)."""

    model_type = "bert"
    token_types = 2
    backbone_class = "BertModel"
    classes: ClassVar[Mapping[str, frozenset[str]]] = {
        "BertForMaskedLM": frozenset({"masked_lm"}),
        "BertForPreTraining": frozenset({"masked_lm", "next_sentence"}),
        "BertForNextSentencePrediction": frozenset({"next_sentence"}),
        "BertForSequenceClassification": frozenset({"sequence_classification"}),
    }

    def token_head(self, model: PreTrainedModel, rows_NE: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Dense, activation and norm on the given rows only; the output matrix is tied to the embeddings."""
        predictions = getattr(getattr(model, "cls", None), "predictions", None)
        if predictions is None:
            return super().token_head(model, rows_NE)
        decoder = predictions.decoder
        return predictions.transform(rows_NE), decoder.weight, decoder.bias

    def sequence_head(self, model: PreTrainedModel, rows_BE: Tensor) -> Tensor:
        """Pooler, dropout, classifier."""
        if not _is_class(model, "ForSequenceClassification"):
            return super().sequence_head(model, rows_BE)
        logits: Tensor = model.classifier(model.dropout(self.pooled(model, rows_BE)))
        return logits

    def sequence_relationship(self, model: PreTrainedModel, rows_BE: Tensor) -> Tensor | None:
        """Pooler and ``cls.seq_relationship``; column 0 is "is next"."""
        layer = getattr(getattr(model, "cls", None), "seq_relationship", None)
        return None if layer is None else layer(self.pooled(model, rows_BE))


class RobertaFamily(TransformersFamily):
    """RoBERTa (Liu et al. 2019, arXiv:1907.11692): positions start at pad_id + 1, and there are no segments."""

    model_type = "roberta"
    backbone_class = "RobertaModel"
    classes: ClassVar[Mapping[str, frozenset[str]]] = {
        "RobertaForMaskedLM": frozenset({"masked_lm"}),
        "RobertaForSequenceClassification": frozenset({"sequence_classification"}),
    }

    def position_offset(self, model: PreTrainedModel) -> int:
        """One past the padding row of the position table."""
        table = self.backbone(model).get_submodule("embeddings.position_embeddings")
        if not isinstance(table, nn.Embedding) or table.padding_idx is None:
            raise ConfigError("a RoBERTa model needs pad_token_id in its config: its positions start one past it")
        return table.padding_idx + 1

    def token_head(self, model: PreTrainedModel, rows_NE: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Dense, gelu and norm on the given rows only."""
        head = getattr(model, "lm_head", None)
        if head is None:
            return super().token_head(model, rows_NE)
        hidden_NE = head.layer_norm(nn.functional.gelu(head.dense(rows_NE)))
        return hidden_NE, head.decoder.weight, head.decoder.bias

    def sequence_head(self, model: PreTrainedModel, rows_BE: Tensor) -> Tensor:
        """The class's own head, which reads the first token of [B, 1, E]."""
        if not _is_class(model, "ForSequenceClassification"):
            return super().sequence_head(model, rows_BE)
        logits: Tensor = model.classifier(rows_BE.unsqueeze(1))
        return logits

    def config_fields(
        self, *, layers: int, width: int, heads: int, vocab_size: int, max_length: int, tokenizer: Any | None
    ) -> dict[str, Any]:
        """As BERT's, with room for the pad_id + 1 positions that no token uses, and one segment."""
        fields = super().config_fields(
            layers=layers, width=width, heads=heads, vocab_size=vocab_size, max_length=max_length, tokenizer=tokenizer
        )
        fields |= special_ids(tokenizer, "bos", "eos") | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}
        pad_id = fields.get("pad_token_id", transformers.RobertaConfig.pad_token_id)
        return fields | {"max_position_embeddings": max_length + pad_id + 1}


class DistilBertFamily(TransformersFamily):
    """DistilBERT (Sanh et al. 2019, arXiv:1910.01108): neither segments nor pooler."""

    model_type = "distilbert"
    backbone_class = "DistilBertModel"
    classes: ClassVar[Mapping[str, frozenset[str]]] = {
        "DistilBertForMaskedLM": frozenset({"masked_lm"}),
        "DistilBertForSequenceClassification": frozenset({"sequence_classification"}),
    }
    blocks_path = "transformer.layer"

    def token_head(self, model: PreTrainedModel, rows_NE: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Dense, activation and norm on the given rows only."""
        projector = getattr(model, "vocab_projector", None)
        if projector is None:
            return super().token_head(model, rows_NE)
        hidden_NE = model.vocab_layer_norm(model.activation(model.vocab_transform(rows_NE)))
        return hidden_NE, projector.weight, projector.bias

    def sequence_head(self, model: PreTrainedModel, rows_BE: Tensor) -> Tensor:
        """Dense, relu, dropout, classifier."""
        if not _is_class(model, "ForSequenceClassification"):
            return super().sequence_head(model, rows_BE)
        logits: Tensor = model.classifier(model.dropout(nn.functional.relu(model.pre_classifier(rows_BE))))
        return logits

    def config_fields(
        self, *, layers: int, width: int, heads: int, vocab_size: int, max_length: int, tokenizer: Any | None
    ) -> dict[str, Any]:
        """As BERT's, the feed-forward width under its own name."""
        fields = super().config_fields(
            layers=layers, width=width, heads=heads, vocab_size=vocab_size, max_length=max_length, tokenizer=tokenizer
        )
        return fields | {"hidden_dim": fields.pop("intermediate_size")}


class ElectraFamily(TransformersFamily):
    """ELECTRA (Clark et al. 2020, arXiv:2003.10555), generator and discriminator; its embeddings may be narrower."""

    model_type = "electra"
    token_types = 2
    backbone_class = "ElectraModel"
    classes: ClassVar[Mapping[str, frozenset[str]]] = {
        "ElectraForMaskedLM": frozenset({"masked_lm"}),
        "ElectraForPreTraining": frozenset({"replaced_token_detection"}),
        "ElectraForSequenceClassification": frozenset({"sequence_classification"}),
    }
    embedding_parts = ("embeddings", "embeddings_project")

    def token_head(self, model: PreTrainedModel, rows_NE: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The generator's head: rows are brought to the width of the embeddings, which the output matrix shares."""
        head = getattr(model, "generator_lm_head", None)
        if head is None:
            return super().token_head(model, rows_NE)
        return model.generator_predictions(rows_NE), head.weight, head.bias

    def sequence_head(self, model: PreTrainedModel, rows_BE: Tensor) -> Tensor:
        """The class's own head, which reads the first token of [B, 1, E]."""
        if not _is_class(model, "ForSequenceClassification"):
            return super().sequence_head(model, rows_BE)
        logits: Tensor = model.classifier(rows_BE.unsqueeze(1))
        return logits

    def config_fields(
        self, *, layers: int, width: int, heads: int, vocab_size: int, max_length: int, tokenizer: Any | None
    ) -> dict[str, Any]:
        """As BERT's; embeddings are as wide as the model from 768 on and 128 below, as the paper's models are."""
        fields = super().config_fields(
            layers=layers, width=width, heads=heads, vocab_size=vocab_size, max_length=max_length, tokenizer=tokenizer
        )
        return fields | {"embedding_size": width if width >= 768 else 128}


class Gpt2Family(TransformersFamily):
    """GPT-2 (Radford et al. 2019): causal, and a sequence is read from its last token."""

    model_type = "gpt2"
    sequence_row: Literal["first", "last"] = "last"
    causal = True
    backbone_class = "GPT2Model"
    classes: ClassVar[Mapping[str, frozenset[str]]] = {
        "GPT2LMHeadModel": frozenset({"causal_lm"}),
        "GPT2ForSequenceClassification": frozenset({"sequence_classification"}),
    }
    blocks_path = "h"
    embedding_parts = ("wte", "wpe")
    top_parts = ("ln_f",)

    def token_head(self, model: PreTrainedModel, rows_NE: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The rows themselves (the backbone ends in a norm) and the tied output matrix, without a bias."""
        head = getattr(model, "lm_head", None)
        if head is None:
            return super().token_head(model, rows_NE)
        return rows_NE, head.weight, None

    def sequence_head(self, model: PreTrainedModel, rows_BE: Tensor) -> Tensor:
        """One linear layer without a bias."""
        if not _is_class(model, "ForSequenceClassification"):
            return super().sequence_head(model, rows_BE)
        logits: Tensor = model.score(rows_BE)
        return logits

    def config_fields(
        self, *, layers: int, width: int, heads: int, vocab_size: int, max_length: int, tokenizer: Any | None
    ) -> dict[str, Any]:
        """GPT-2's own names; the feed-forward width is four times the model's by itself."""
        return {
            "n_layer": layers,
            "n_embd": width,
            "n_head": heads,
            "n_positions": max_length,
            "vocab_size": vocab_size,
            # transformers' defaults are ids of OpenAI's vocabulary.
            **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
            **special_ids(tokenizer, "pad", "bos", "eos"),
        }


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


def _is_class(model: PreTrainedModel, ending: str) -> bool:
    return type(model).__name__.endswith(ending)


def _no_head(model: PreTrainedModel, what: str) -> ConfigError:
    return ConfigError(
        f"{type(model).__name__} has no {what}",
        hint="Build or load the model with the class that family.auto_class(tasks) names for the task.",
    )


FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (BertFamily(), RobertaFamily(), DistilBertFamily(), ElectraFamily(), Gpt2Family())
}
"""The built-in families by model_type."""
