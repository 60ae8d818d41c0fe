"""The raw outputs of a row's sequences, put together again whatever batches they were in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tunecore.types import Head, Metrics, PackedBatch, RowMetrics

if TYPE_CHECKING:
    from tunecore.data.rows import TaskRows


class WholeRows:
    """Collects outputs until all of a row's are there.

    Args:
        rows: says how many sequences each row has.
    """

    def __init__(self, rows: TaskRows) -> None:
        self._rows = rows
        self._parts: dict[int, dict[int, Any]] = {}

    def add(self, raw: Any, batch: PackedBatch) -> Iterator[tuple[int, list[Any]]]:
        """Take the outputs of one batch; yield (row id, its outputs in the order of its examples) of finished rows."""
        for row_id, part, output in zip(batch.row_ids, batch.parts, raw, strict=True):
            parts = self._parts.setdefault(row_id, {})
            parts[part] = output
            if len(parts) == self._rows.num_parts(row_id):
                del self._parts[row_id]
                yield row_id, [parts[i] for i in sorted(parts)]


class MetricsOfRows:
    """Feeds :class:`RowMetrics` from batches, so that it is a :class:`Metrics`.

    Args:
        metrics: what counts.
        rows: the rows that are evaluated; they keep their records.
    """

    def __init__(self, metrics: RowMetrics, rows: TaskRows) -> None:
        self._metrics, self._rows = metrics, rows
        self._whole = WholeRows(rows)

    def update(self, raw: Any, batch: PackedBatch) -> None:
        for row_id, outputs in self._whole.add(raw, batch):
            self._metrics.update_row(outputs, self._rows.records[row_id], row_id)

    def merge(self, others: Sequence[Any]) -> None:
        self._metrics.merge(others)

    def state(self) -> Any:
        return self._metrics.state()

    def compute(self) -> dict[str, Any]:
        return self._metrics.compute()


def metrics_over(head: Head, rows: TaskRows) -> Metrics:
    """The metrics of a head, ready to be fed with the batches of ``rows``."""
    metrics: Any = head.metrics()
    return MetricsOfRows(metrics, rows) if hasattr(metrics, "update_row") else metrics
