"""The built-in families: what differs per transformers ``model_type``, one file each beside this one."""

from __future__ import annotations

from tunecore.models.families.albert import AlbertFamily
from tunecore.models.families.bart import BartFamily
from tunecore.models.families.bert import BertFamily
from tunecore.models.families.deberta import DebertaFamily, DebertaV2Family
from tunecore.models.families.distilbert import DistilBertFamily
from tunecore.models.families.electra import ElectraFamily
from tunecore.models.families.ernie import ErnieFamily
from tunecore.models.families.gpt2 import Gpt2Family
from tunecore.models.families.llama import LlamaFamily, MistralFamily
from tunecore.models.families.modernbert import ModernBertFamily
from tunecore.models.families.roberta import RobertaFamily
from tunecore.models.families.t5 import T5Family
from tunecore.models.families.xlm_roberta import XlmRobertaFamily
from tunecore.types import Family

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        BertFamily(), RobertaFamily(), DistilBertFamily(), ElectraFamily(), AlbertFamily(), ErnieFamily(),
        XlmRobertaFamily(), ModernBertFamily(), DebertaFamily(), DebertaV2Family(), Gpt2Family(), LlamaFamily(),
        MistralFamily(), T5Family(), BartFamily(),
    )
}  # fmt: skip
"""The built-in families by model_type."""
