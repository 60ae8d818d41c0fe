"""XLM-R."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tunecore.models.families.roberta import RobertaFamily


class XlmRobertaFamily(RobertaFamily):
    """XLM-R (Conneau et al. 2019, arXiv:1911.02116): RoBERTa in a hundred languages, the same layers and positions."""

    model_type = "xlm-roberta"
    backbone_class = "XLMRobertaModel"
    classes: ClassVar[Mapping[str, frozenset[str]]] = {
        f"XLM{name}": tasks for name, tasks in RobertaFamily.classes.items()
    }
