"""Metrics of sentence vectors: how well cosines order scored pairs, and how well a text finds its counterpart.

Shape letters: N rows, M texts to be found, E width of the vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tunecore.heads.correlation import pearson, spearman
from tunecore.types import Record

_CHUNK = 1024


class SimilarityMetrics:
    """Spearman's and Pearson's correlation of the cosine of a pair with its score.

    Args:
        score: reads the score of a row.
    """

    def __init__(self, score: Callable[[Record], float]) -> None:
        self._score = score
        self._pairs: list[tuple[float, float]] = []

    def update_row(self, raw: Sequence[Tensor], record: Record, row_id: int) -> None:
        """Keep the cosine and the score of one row."""
        first, second = (_unit(vector) for vector in raw[:2])
        self._pairs.append((float(first @ second), self._score(record)))

    def merge(self, others: Sequence[Any]) -> None:
        """Add the rows of other ranks."""
        self._pairs += [(float(cosine), float(score)) for other in others for cosine, score in other]

    def state(self) -> list[list[float]]:
        return [list(pair) for pair in self._pairs]

    def compute(self) -> dict[str, Any]:
        """``spearman`` and ``pearson``."""
        cosines, scores = np.asarray(self._pairs, dtype=np.float64).reshape(-1, 2).T
        return {"spearman": spearman(cosines, scores), "pearson": pearson(cosines, scores)}


class RetrievalMetrics:
    """How well a text finds its counterpart among those of all rows (and the texts that do not belong to any).

    A counterpart's rank is one more than the number of texts that are nearer.
    """

    def __init__(self) -> None:
        self._vectors: list[list[NDArray[np.float32]]] = []

    def update_row(self, raw: Sequence[Tensor], record: Record, row_id: int) -> None:
        """Keep the vectors of one row: the text, its counterpart, others."""
        self._vectors.append([_unit(vector) for vector in raw])

    def merge(self, others: Sequence[Any]) -> None:
        """Add the rows of other ranks."""
        self._vectors += [[np.asarray(vector, np.float32) for vector in row] for other in others for row in other]

    def state(self) -> list[list[list[float]]]:
        return [[vector.tolist() for vector in row] for row in self._vectors]

    def compute(self) -> dict[str, Any]:
        """``accuracy`` (the nearest is the right one), ``recall_at_10``, and ``mrr``: the mean of 1 / rank."""
        if not self._vectors:
            return dict.fromkeys(("accuracy", "recall_at_10", "mrr"), 0.0)
        texts_NE = np.stack([row[0] for row in self._vectors])
        others_ME = np.stack([row[1] for row in self._vectors] + [v for row in self._vectors for v in row[2:]])
        rank_N = np.concatenate(
            [_ranks(texts_NE, others_ME, start) for start in range(0, len(texts_NE), _CHUNK)]
        )
        return {
            "accuracy": float((rank_N == 1).mean()),
            "recall_at_10": float((rank_N <= 10).mean()),
            "mrr": float((1 / rank_N).mean()),
        }


def _ranks(texts_NE: NDArray[np.float32], others_ME: NDArray[np.float32], start: int) -> NDArray[np.int64]:
    """The rank of each counterpart (others row n belongs to text n), of one chunk of texts."""
    cosines = texts_NE[start : start + _CHUNK] @ others_ME.T
    own = cosines[np.arange(len(cosines)), start + np.arange(len(cosines))]
    return 1 + (cosines > own[:, None]).sum(1)


def _unit(vector: Any) -> NDArray[np.float32]:
    array = np.asarray(vector.detach().cpu() if hasattr(vector, "detach") else vector, dtype=np.float32)
    size = np.linalg.norm(array)
    return array / size if size > 0 else array
