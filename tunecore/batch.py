"""One example and one packed batch: what travels from the data to the model.

Shape letters: T tokens in the batch, B sequences in the batch, L tokens of one example, N rows with a target,
C classes.
This module imports nothing of tunecore and needs no torch at run time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor

IntArray = NDArray[np.int64]
Level = Literal["token", "sequence"]


class RowSubset(NamedTuple):
    """Some rows of a packed row of T tokens: ``rows`` int64 [N], rising; ``cu_seqlens`` int32 [B+1] says how many of
    them lie before each sequence, ``max_seqlen`` how many a sequence has at most.
    """

    rows: Tensor
    cu_seqlens: Tensor
    max_seqlen: int


class PackedLayout(NamedTuple):
    """Where the sequences of a packed row lie; reaches every attention module as the kwarg ``packed``.

    ``cu_seqlens`` is int32 [B+1], ``max_seqlen`` its largest difference. The decoder's fields are None for
    models of one stack. ``rng_key`` is an int64 scalar tensor (None: no dropout) and ``row_ids`` int64 [B] (another
    number for each further part of a row): dropout is a pure function of (key, site, row id, head, i, j), whatever the
    packing. ``prefix_lens`` is int32 [B]:
    all tokens of a sequence see its first so many, the rest is causal (None: as the model reads). ``last_layer`` names
    the rows that are read of an encoder's last layer (None: all), ``queries`` those that are the queries of one
    attention call.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    decoder_cu_seqlens: Tensor | None = None
    decoder_max_seqlen: int = 0
    rng_key: Tensor | None = None
    row_ids: Tensor | None = None
    prefix_lens: Tensor | None = None
    last_layer: RowSubset | None = None
    queries: RowSubset | None = None


@dataclass(frozen=True, slots=True)
class Targets:
    """What one loss asks of one example.

    ``index`` is int64 [N]: token positions inside the example (level "token"), or zeros (level "sequence":
    the whole example). ``labels`` is int64 [N] (class or token ids) or float32 [N] / [N, C].
    """

    index: IntArray
    labels: NDArray[Any]
    level: Level = "token"

    @classmethod
    def of_sequence(cls, label: int | float | Sequence[float]) -> Targets:
        """One label for the whole example: an int class, a float value or a list of C floats."""
        labels = np.asarray([label], dtype=np.int64 if isinstance(label, int) else np.float32)
        return cls(np.zeros(1, dtype=np.int64), labels, "sequence")

    def __len__(self) -> int:
        return int(self.index.shape[0])


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence, ready to be packed. A pure function of (data, seed, epoch, row id)."""

    row_id: int
    """The row this example was made from; rows split into several examples share it."""
    input_ids: IntArray
    """int64 [L], special tokens included, L from 1 to the model's maximum."""
    token_type_ids: IntArray | None = None
    """int64 [L] segment ids, for families that have them."""
    targets: Mapping[str, Targets] = field(default_factory=dict)
    """Named loss -> its targets. The count of each is fixed by the data, before any gradient."""
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Token-aligned columns [L] for corruption: ``special`` (bool: never touched), ``word_starts`` (bool) ..."""
    prefix_len: int | None = None
    """Tokens at the start that all tokens see, the rest being causal: 0 to L; None: as the model reads."""
    part: int = 0
    """Which of its row's examples this is (windows of a long text, choices of a question)."""
    group: int = -1
    """Examples with one non-negative group (choices of a question) never part in packing."""
    decoder_input_ids: IntArray | None = None
    """int64 [M], what the decoder of an encoder-decoder model reads; token targets then index these."""
    position_ids: IntArray | None = None
    """int64 [L] counted from 0, the family's offset left out; None is 0, ..., L - 1."""

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])

    @property
    def num_tokens(self) -> int:
        """Tokens of both stacks."""
        return len(self) + (0 if self.decoder_input_ids is None else int(self.decoder_input_ids.shape[0]))

    @property
    def num_targets(self) -> dict[str, int]:
        return {name: len(t) for name, t in self.targets.items()}


class BatchTargets(NamedTuple):
    """The targets of one loss in a packed batch: ``index`` int64 [N] rows of hidden [T, E] (level "token") or
    sequence numbers (level "sequence"); ``labels`` [N] or [N, C].
    """

    index: Tensor  # type: ignore[assignment]  # shadows tuple.index, which nobody calls on a record
    labels: Tensor
    level: Level


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One micro-batch: B sequences laid end to end in a row of T tokens, never padded between.

    A last filler sequence without targets may round T up to a multiple of 8: it has row id -1, is not
    counted in ``num_tokens`` and is not one of the ``num_sequences``.
    """

    input_ids: Tensor
    """int64 [1, T]."""
    position_ids: Tensor
    """int64 [1, T], restarting per sequence at the family's own offset."""
    token_type_ids: Tensor | None
    """int64 [1, T] or None."""
    layout: PackedLayout
    row_ids: tuple[int, ...]
    """Row id of each sequence, the filler left out (length ``num_sequences``)."""
    targets: Mapping[str, BatchTargets]
    num_tokens: int
    """Useful tokens of both stacks: the fillers left out."""
    view: str = "encoder"
    """The view (kind of forward) this batch is for."""
    decoder_input_ids: Tensor | None = None
    """int64 [1, T_dec], the decoder's row; it has the sequences of ``input_ids``, in their order."""
    decoder_position_ids: Tensor | None = None
    """int64 [1, T_dec]."""
    parts: tuple[int, ...] = ()
    """Which of its row's examples each sequence is."""
    groups: tuple[int, ...] = ()
    """Group of each sequence, -1 where it has none; a group lies in one batch."""

    @property
    def num_sequences(self) -> int:
        return len(self.row_ids)

    @property
    def num_targets(self) -> dict[str, int]:
        return {name: int(t.index.shape[0]) for name, t in self.targets.items()}

    def to(self, device: torch.device | str) -> PackedBatch:
        """Return the batch with every tensor on ``device``."""
        def move(x: Any) -> Any:
            if isinstance(x, RowSubset):
                return RowSubset(*map(move, x))
            return x if x is None or isinstance(x, int | str) else x.to(device, non_blocking=True)

        return replace(
            self,
            input_ids=move(self.input_ids),
            position_ids=move(self.position_ids),
            token_type_ids=move(self.token_type_ids),
            decoder_input_ids=move(self.decoder_input_ids),
            decoder_position_ids=move(self.decoder_position_ids),
            layout=PackedLayout(*(move(x) for x in self.layout)),
            targets={k: BatchTargets(*(move(x) for x in t)) for k, t in self.targets.items()},
        )
