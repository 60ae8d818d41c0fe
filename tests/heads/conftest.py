"""A head in a tiny model of any family, and the same model as plain transformers reads it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tunecore.data.packing import pack
from tunecore.data.rows import TaskRows, examples_of
from tunecore.models.families.builtin import FAMILIES
from tunecore.models.loading import save_model, seeded
from tunecore.saved_tasks import config_fields_of
from tunecore.testing import make_model, make_tokenizer
from tunecore.training.unit import Task, TrainUnit
from tunecore.types import Progress, Record

START = Progress(0, 1, 0.0, 1.0)
WIDE = {"initializer_range": 0.3}
"""Rows that differ: those of new weights are all alike, and differences between them would be rounding."""


class Built(SimpleNamespace):
    """``unit``, ``head``, ``module``, ``family``, ``tokenizer``, ``rows``, ``records``, ``examples``."""

    def pack(self, parts: int = 1, max_tokens: int = 1 << 16) -> list[Any]:
        offset = self.family.position_offset(self.unit.model)
        return pack(
            self.examples, max_tokens=max_tokens, position_offset=offset, pad_id=self.tokenizer.pad_token_id or 0,
            min_micro_batches=parts,
        )  # fmt: skip

    def gradient(self, batches: list[Any]) -> dict[str, torch.Tensor]:
        """Of the sum of the losses, by parameter name."""
        self.unit.zero_grad(set_to_none=True)
        for batch in batches:
            self.unit(batch)[self.head.losses[0]].total.backward()
        return {n: p.grad.clone() for n, p in self.unit.parameters_by_name().items() if p.grad is not None}

    def plain(self, folder: Any, auto: Any) -> Any:
        """The model as transformers loads it."""
        save_model(self.unit.model, folder, self.tokenizer)
        return auto.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.fixture(scope="session")
def build() -> Callable[..., Built]:
    def make(family: str, head: Any, records: list[Record], **config: Any) -> Built:
        tokenizer = make_tokenizer(family)
        facts = head.prepare(records)
        head.load(facts)
        fields = {**WIDE, **config_fields_of(head, facts), **config}
        model = make_model([head.name, *getattr(head, "uses", ())], tokenizer, family, config=fields)
        with seeded(0):
            module = head.build(model, FAMILIES[family])
        unit = TrainUnit(model, FAMILIES[family], [Task(head.name, head, module, 1.0)]).eval()
        rows = TaskRows(records, head, tokenizer, 32, keep_records=True)
        examples = examples_of(rows, range(len(rows)), 0, START, rows.views[0])
        return Built(
            unit=unit, head=head, module=module, family=FAMILIES[family], tokenizer=tokenizer, rows=rows,
            records=records, examples=examples,
        )  # fmt: skip

    return make
