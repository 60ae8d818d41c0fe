"""Outputs of a row's sequences come together again in order, whatever batches packing put them in."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tunecore.data.loader import eval_batches
from tunecore.data.rows import TaskRows
from tunecore.training.whole_rows import WholeRows, metrics_over
from tunecore.types import Example, Record


class Windows:
    """A head that cuts a row into examples of the lengths it is given."""

    def examples(self, record, row_id, tokenizer, max_length, *, labelled):
        return [Example(row_id=row_id, input_ids=np.full(n, n, dtype=np.int64)) for n in record.fields["lengths"]]

    def metrics(self):
        return Seen()


class Seen:
    def __init__(self):
        self.rows = {}

    def update_row(self, raw, record, row_id):
        assert row_id not in self.rows
        self.rows[row_id] = (raw, record.fields["lengths"])


@given(st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=5), min_size=1, max_size=20), st.integers(8, 64))
def test_every_row_comes_back_whole_and_in_order(lengths, max_tokens):
    records = [Record({"lengths": row}, "rows", number) for number, row in enumerate(lengths)]
    head = Windows()
    rows = TaskRows(records, head, None, 30, keep_records=True)
    metrics = metrics_over(head, rows)
    whole, found = WholeRows(rows), {}
    for batch in eval_batches(rows, max_tokens=max_tokens, position_offset=0, pad_id=0):
        starts = batch.layout.cu_seqlens[: batch.num_sequences].tolist()
        raw = [int(batch.input_ids[0, start]) for start in starts]  # each token is its sequence's length
        metrics.update(raw, batch)
        found.update(whole.add(raw, batch))
    assert [found[row] for row in range(len(lengths))] == lengths
    assert metrics._metrics.rows == {row: (values, values) for row, values in enumerate(lengths)}


def test_metrics_of_batches_are_taken_as_they_are():
    plain = SimpleNamespace(update=None)
    head = SimpleNamespace(metrics=lambda: plain)
    assert metrics_over(head, None) is plain
