"""The built-in families: what differs per transformers ``model_type``, one file each beside this one."""

from __future__ import annotations

from tunecore.models.families.bart import BartFamily
from tunecore.models.families.bert import BertFamily
from tunecore.models.families.distilbert import DistilBertFamily
from tunecore.models.families.electra import ElectraFamily
from tunecore.models.families.gpt2 import Gpt2Family
from tunecore.models.families.roberta import RobertaFamily
from tunecore.models.families.t5 import T5Family
from tunecore.types import Family

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        BertFamily(), RobertaFamily(), DistilBertFamily(), ElectraFamily(), Gpt2Family(), T5Family(), BartFamily(),
    )
}
"""The built-in families by model_type."""
