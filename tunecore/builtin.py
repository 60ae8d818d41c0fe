"""Registers everything built in, through the hooks that any plugin uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tunecore.data.sources import SOURCES
from tunecore.heads.causal_generation import CausalGeneration, CausalGenerationOptions
from tunecore.heads.extractive_qa import ExtractiveQA, ExtractiveQAOptions
from tunecore.heads.minimal_pairs import MinimalPairs, MinimalPairsOptions
from tunecore.heads.multi_label_classification import MultiLabelClassification, MultiLabelClassificationOptions
from tunecore.heads.multiple_choice import MultipleChoice, MultipleChoiceOptions
from tunecore.heads.regression import Regression, RegressionOptions
from tunecore.heads.sentence_embedding import SentenceEmbedding, SentenceEmbeddingOptions
from tunecore.heads.seq2seq import Seq2Seq, Seq2SeqOptions
from tunecore.heads.sequence_classification import SequenceClassification, SequenceClassificationOptions
from tunecore.heads.token_classification import TokenClassification, TokenClassificationOptions
from tunecore.hookspecs import Register, hookimpl
from tunecore.models.families.builtin import FAMILIES
from tunecore.objectives.causal_lm import CausalLM, CausalLMOptions
from tunecore.objectives.contrastive import Contrastive, ContrastiveOptions
from tunecore.objectives.denoising import Denoising, DenoisingOptions
from tunecore.objectives.masked_lm import MaskedLM, MaskedLMOptions
from tunecore.objectives.next_sentence import NextSentence, NextSentenceOptions
from tunecore.objectives.phrase_masked_lm import PhraseMaskedLM, PhraseMaskedLMOptions
from tunecore.objectives.prefix_lm import PrefixLM, PrefixLMOptions
from tunecore.objectives.replaced_token_detection import ReplacedTokenDetection, ReplacedTokenDetectionOptions
from tunecore.objectives.sentence_order import SentenceOrder, SentenceOrderOptions
from tunecore.objectives.span_corruption import SpanCorruption, SpanCorruptionOptions
from tunecore.objectives.translation_lm import TranslationLM, TranslationLMOptions
from tunecore.registry import NoOptions
from tunecore.strategies.adaptive_lr import AdaptiveLR, AdaptiveLROptions
from tunecore.strategies.freeze_layers import FreezeLayers, FreezeLayersOptions
from tunecore.strategies.full import Full
from tunecore.strategies.gradual_unfreezing import GradualUnfreezing, GradualUnfreezingOptions
from tunecore.strategies.head_only import HeadOnly
from tunecore.strategies.layerwise_lr_decay import LayerwiseLRDecay, LayerwiseLRDecayOptions
from tunecore.strategies.mixed import Mixed, MixedOptions
from tunecore.strategies.reinit_top_layers import ReinitTopLayers, ReinitTopLayersOptions
from tunecore.tracking.trackers import TRACKERS
from tunecore.training.optimizer import OPTIMIZERS
from tunecore.training.schedule import SCHEDULES
from tunecore.types import Family

Components = Mapping[str, tuple[Callable[[Any], Any], type]]
"""Name -> (factory, Options), as ``register`` takes them."""

OBJECTIVES: Components = {
    "masked_lm": (MaskedLM, MaskedLMOptions),
    "phrase_masked_lm": (PhraseMaskedLM, PhraseMaskedLMOptions),
    "next_sentence": (NextSentence, NextSentenceOptions),
    "sentence_order": (SentenceOrder, SentenceOrderOptions),
    "causal_lm": (CausalLM, CausalLMOptions),
    "prefix_lm": (PrefixLM, PrefixLMOptions),
    "span_corruption": (SpanCorruption, SpanCorruptionOptions),
    "denoising": (Denoising, DenoisingOptions),
    "replaced_token_detection": (ReplacedTokenDetection, ReplacedTokenDetectionOptions),
    "translation_lm": (TranslationLM, TranslationLMOptions),
    "contrastive": (Contrastive, ContrastiveOptions),
}
HEADS: Components = {
    "sequence_classification": (SequenceClassification, SequenceClassificationOptions),
    "token_classification": (TokenClassification, TokenClassificationOptions),
    "extractive_qa": (ExtractiveQA, ExtractiveQAOptions),
    "seq2seq": (Seq2Seq, Seq2SeqOptions),
    "causal_generation": (CausalGeneration, CausalGenerationOptions),
    "multi_label_classification": (MultiLabelClassification, MultiLabelClassificationOptions),
    "regression": (Regression, RegressionOptions),
    "multiple_choice": (MultipleChoice, MultipleChoiceOptions),
    "sentence_embedding": (SentenceEmbedding, SentenceEmbeddingOptions),
    "minimal_pairs": (MinimalPairs, MinimalPairsOptions),
}
STRATEGIES: Components = {
    "full": (Full, NoOptions),
    "head_only": (HeadOnly, NoOptions),
    "gradual_unfreezing": (GradualUnfreezing, GradualUnfreezingOptions),
    "layerwise_lr_decay": (LayerwiseLRDecay, LayerwiseLRDecayOptions),
    "reinit_top_layers": (ReinitTopLayers, ReinitTopLayersOptions),
    "freeze_layers": (FreezeLayers, FreezeLayersOptions),
    "adaptive_lr": (AdaptiveLR, AdaptiveLROptions),
    "mixed": (Mixed, MixedOptions),
}


def _register_all(register: Register, components: Components) -> None:
    for name, (factory, options) in components.items():
        register(name, factory, options)


def _family_factory(family: Family) -> Callable[[NoOptions], Family]:
    # A family has no state, so one object serves every run.
    return lambda options: family


@hookimpl
def tunecore_register_objectives(register: Register) -> None:
    _register_all(register, OBJECTIVES)


@hookimpl
def tunecore_register_heads(register: Register) -> None:
    _register_all(register, HEADS)


@hookimpl
def tunecore_register_strategies(register: Register) -> None:
    _register_all(register, STRATEGIES)


@hookimpl
def tunecore_register_optimizers(register: Register) -> None:
    _register_all(register, OPTIMIZERS)


@hookimpl
def tunecore_register_schedules(register: Register) -> None:
    _register_all(register, SCHEDULES)


@hookimpl
def tunecore_register_sources(register: Register) -> None:
    _register_all(register, SOURCES)


@hookimpl
def tunecore_register_families(register: Register) -> None:
    for name, family in FAMILIES.items():
        register(name, _family_factory(family), NoOptions)


@hookimpl
def tunecore_register_trackers(register: Register) -> None:
    _register_all(register, TRACKERS)
