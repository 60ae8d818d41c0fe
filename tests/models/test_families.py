"""What differs per family: classes, position offsets, parameter prefixes, heads."""

from __future__ import annotations

import pytest
import torch

from tunecore.errors import ConfigError
from tunecore.models.families.builtin import FAMILIES
from tunecore.types import Family

MODEL_TYPES = sorted(name for name, family in FAMILIES.items() if not family.encoder_decoder)


@pytest.mark.parametrize(
    ("model_type", "tasks", "name"),
    [
        ("bert", {"masked_lm"}, "BertForMaskedLM"),
        ("bert", {"masked_lm", "next_sentence"}, "BertForPreTraining"),
        ("bert", {"next_sentence"}, "BertForNextSentencePrediction"),
        ("bert", {"sequence_classification"}, "BertForSequenceClassification"),
        ("bert", set(), "BertModel"),
        ("bert", {"a_plugin_s_task"}, "BertModel"),
        ("bert", {"masked_lm", "a_plugin_s_task"}, "BertForMaskedLM"),
        ("roberta", {"masked_lm", "next_sentence"}, "RobertaForMaskedLM"),
        ("distilbert", {"sequence_classification"}, "DistilBertForSequenceClassification"),
        ("electra", {"masked_lm"}, "ElectraForMaskedLM"),
        ("electra", {"replaced_token_detection"}, "ElectraForPreTraining"),
        ("gpt2", {"causal_lm"}, "GPT2LMHeadModel"),
        ("gpt2", set(), "GPT2Model"),
        ("albert", {"masked_lm"}, "AlbertForMaskedLM"),
        ("albert", {"masked_lm", "sentence_order"}, "AlbertForPreTraining"),
        ("ernie", {"masked_lm", "next_sentence"}, "ErnieForPreTraining"),
        ("xlm-roberta", {"masked_lm", "next_sentence"}, "XLMRobertaForMaskedLM"),
        ("modernbert", {"sequence_classification"}, "ModernBertForSequenceClassification"),
        ("deberta-v2", {"masked_lm"}, "DebertaV2ForMaskedLM"),
        ("deberta", set(), "DebertaModel"),
        ("llama", {"causal_lm"}, "LlamaForCausalLM"),
        ("mistral", {"sequence_classification"}, "MistralForSequenceClassification"),
    ],
)
def test_the_class_is_the_one_with_a_place_for_most_tasks(model_type, tasks, name):
    assert FAMILIES[model_type].auto_class(frozenset(tasks)).__name__ == name


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_families_meet_the_contract(model_type):
    family = FAMILIES[model_type]
    assert isinstance(family, Family) and family.model_type == model_type
    assert (family.sequence_row == "last") == family.causal == (model_type in ("gpt2", "llama", "mistral"))
    assert family.padded == model_type.startswith("deberta")


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("task", ["masked_lm", "causal_lm", "next_sentence", "sequence_classification", ""])
def test_layers_cover_every_parameter_once(model_type, task, make_small):
    overrides = {
        "electra": {"embedding_size": 16},
        "albert": {"num_hidden_groups": 11, "inner_group_num": 2},
        "deberta-v2": {"conv_kernel_size": 3},
    }.get(model_type, {})
    model = make_small(model_type, {task}, num_hidden_layers=11, **overrides)
    layers = FAMILIES[model_type].layers(model)
    assert len(layers.blocks) == 11
    groups = [layers.embeddings, *layers.blocks, *((head,) for head in layers.heads)]
    used = set()
    for name, _ in model.named_parameters():
        owners = [i for i, group in enumerate(groups) if any(name.startswith(prefix) for prefix in group)]
        assert len(owners) == 1, name
        used |= set(owners)
    assert used == set(range(len(groups)))
    if model_type in ("gpt2", "llama", "mistral", "modernbert"):
        last = {"gpt2": "ln_f.", "modernbert": "final_norm."}.get(model_type, "norm.")
        assert any(prefix.endswith(last) for prefix in layers.blocks[-1][1:]), "the last norm goes with the last block"
    assert all(prefix.endswith(".") for group in groups for prefix in group)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_positions_and_lengths(model_type, make_small):
    model = make_small(model_type, {"masked_lm", "causal_lm"}, max_length=24)
    family = FAMILIES[model_type]
    offset = family.position_offset(model)
    assert offset == (2 if model_type.endswith("roberta") else 0)
    assert family.max_length(model) == 24
    assert model.config.max_position_embeddings == 24 + offset


@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta"])
def test_roberta_s_offset_is_what_it_makes_of_ids_itself(model_type, make_small):
    """pad_id + 1 whatever the pad id, bare or under a head; another offset gives other hidden states."""
    family = FAMILIES[model_type]
    for pad in (0, 1, 5):
        for tasks in ({"masked_lm"}, set()):
            model = make_small(model_type, tasks, pad_token_id=pad, max_position_embeddings=30).eval()
            offset = family.position_offset(model)
            assert offset == pad + 1 and family.max_length(model) == 30 - offset
            ids = torch.arange(10, 20)[None]
            backbone = family.backbone(model)
            with torch.no_grad():
                own = backbone(input_ids=ids).last_hidden_state
                given = backbone(input_ids=ids, position_ids=torch.arange(10)[None] + offset).last_hidden_state
                wrong = backbone(input_ids=ids, position_ids=torch.arange(10)[None]).last_hidden_state
            assert torch.equal(own, given) and not torch.allclose(own, wrong, atol=1e-3)
    model = make_small(model_type, set(), pad_token_id=None)
    with pytest.raises(ConfigError, match="pad_token_id"):
        family.position_offset(model)


def test_pooled_is_the_pooler_or_the_rows(make_small):
    rows = torch.randn(3, 32)
    bert = make_small("bert", set())
    want = torch.tanh(bert.pooler.dense(rows))
    torch.testing.assert_close(FAMILIES["bert"].pooled(bert, rows), want)
    albert = make_small("albert", set())
    torch.testing.assert_close(FAMILIES["albert"].pooled(albert, rows), torch.tanh(albert.pooler(rows)))
    without = [("bert", {"masked_lm"}), ("albert", {"masked_lm"})]
    for model_type, tasks in without + [(name, set()) for name in ("distilbert", "electra", "modernbert", "gpt2")]:
        assert FAMILIES[model_type].pooled(make_small(model_type, tasks), rows) is rows


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_missing_head_is_named(model_type, make_small):
    family, rows = FAMILIES[model_type], torch.randn(3, 32)
    with pytest.raises(ConfigError, match="no prediction head"):
        family.token_head(make_small(model_type, set()), rows)
    with pytest.raises(ConfigError, match="no sequence classification head"):
        family.sequence_head(make_small(model_type, {"masked_lm", "causal_lm"}), rows)
    assert family.sequence_relationship(make_small(model_type, {"masked_lm", "causal_lm"}), rows) is None


@pytest.mark.parametrize("model_type", ["bert", "ernie"])
def test_next_sentence_alone_has_its_head(model_type, make_small):
    model = make_small(model_type, {"next_sentence"}).eval()
    ids = torch.arange(10, 20)[None]
    with torch.no_grad():
        row = FAMILIES[model_type].backbone(model)(input_ids=ids).last_hidden_state[:, 0]
        logits = FAMILIES[model_type].sequence_relationship(model, row)
        torch.testing.assert_close(logits, model(input_ids=ids).logits)
