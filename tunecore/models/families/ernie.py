"""ERNIE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tunecore.models.families.bert import BertFamily


class ErnieFamily(BertFamily):
    """ERNIE 1.0 to 3.0 (Sun et al. 2019, arXiv:1904.09223; 2021, arXiv:2107.02137): BERT's layers and heads.

    Where a model has a table of task types, every token is of type 0.
    """

    model_type = "ernie"
    backbone_class = "ErnieModel"
    classes: ClassVar[Mapping[str, frozenset[str]]] = {
        name.replace("Bert", "Ernie"): tasks for name, tasks in BertFamily.classes.items()
    }
