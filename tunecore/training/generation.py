"""Texts written by a model: prompts sorted by length, padded in batches, answered by transformers' ``generate``.

The model is the one that trains on packed rows; without a packed layout its attention is that of ``sdpa``, with a
cache of keys and values. What is drawn for a row depends on the seed and the row alone, not on the batch it is in.

Shape letters: B prompts in a batch, L tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import TextStreamer

from tunecore.data.streams import derive_key
from tunecore.errors import ConfigError, DataError
from tunecore.generation import GenerationOptions
from tunecore.models.packed import prompt_seen_whole
from tunecore.training.distributed import Ranks
from tunecore.types import Family, Generated, IntArray, Record, RowMetrics

if TYPE_CHECKING:
    from tunecore.data.rows import TaskRows

MAX_TOKENS = 16_384
"""Most tokens of a batch, prompts and answers of all beams together."""

Watch = Callable[[Iterator[int], int], Iterator[int]]
"""Shows progress: takes how many rows each batch had, and how many there are in all; yields the same."""


class Writer:
    """Writes answers to prompts.

    Args:
        model: a causal or an encoder-decoder model.
        family: what differs for its ``model_type``.
        tokenizer: turns ids into text.
        max_length: what ``max_new_tokens`` None is measured by.
        options: how to write.
        bidirectional_prompt: let the tokens of a prompt see each other (models of one stack).
        max_tokens: most tokens of a batch.
        extra: more arguments for transformers' ``generate``.

    Raises:
        ConfigError: the model cannot generate, or is not built for such prompts.
    """

    def __init__(
        self, model: PreTrainedModel, family: Family, tokenizer: PreTrainedTokenizerBase, max_length: int,
        options: GenerationOptions, *, bidirectional_prompt: bool = False, max_tokens: int = MAX_TOKENS,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        if not model.can_generate():
            raise ConfigError(f"{type(model).__name__} cannot generate; that takes a causal or encoder-decoder model")
        self.model, self.family, self.tokenizer, self.options = model, family, tokenizer, options
        self.answers = bool(model.config.is_encoder_decoder)
        """Whether a decoder answers what the encoder reads; else it goes on where the prompt ends."""
        self.max_new_tokens = options.max_new_tokens or (max_length if self.answers else max(max_length // 2, 1))
        self.max_tokens = max_tokens
        self.bidirectional_prompt = bidirectional_prompt
        self.extra = dict(extra or {})
        self.end_ids = _end_ids(model, tokenizer)
        pad = tokenizer.pad_token_id
        self.pad_id = int(pad) if pad is not None else min(self.end_ids, default=0)

    def write(
        self, prompts: Sequence[IntArray], row_ids: Sequence[int] | None = None, *,
        on_text: Callable[[int, str], None] | None = None,
    ) -> Iterator[list[tuple[int, Generated]]]:
        """Answer prompts, long ones first, a batch at a time; yield (place in ``prompts``, answer).

        Args:
            prompts: int64 [L] each; an empty one begins with the token that begins a text.
            row_ids: what the draws depend on beside the seed; None takes the places.
            on_text: called with the place of a prompt and each piece of its text as it is written; prompts are then
                answered one by one, in their order.

        Raises:
            DataError: a prompt and its answer are longer than the model's positions.
        """
        ids = [self._checked(place, prompt) for place, prompt in enumerate(prompts)]
        rows = range(len(ids)) if row_ids is None else row_ids
        for places in self._batches([len(prompt) for prompt in ids], one_by_one=on_text is not None):
            hand_on = None if on_text is None else partial(on_text, places[0])
            written = self._batch([ids[i] for i in places], [rows[i] for i in places], hand_on)
            yield list(zip(places, written, strict=True))

    def _checked(self, place: int, prompt: IntArray) -> IntArray:
        if len(prompt) == 0:
            first = [i for i in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id) if i is not None]
            prompt = np.asarray(first[:1] or [self.pad_id], dtype=np.int64)
        positions = self.family.max_length(self.model)
        # The last new token is written, but never read.
        needed = max(len(prompt), self.max_new_tokens) if self.answers else len(prompt) + self.max_new_tokens - 1
        if needed > positions:
            raise DataError(
                f"prompt {place} has {len(prompt)} tokens and max_new_tokens is {self.max_new_tokens}, but the model's "
                f"positions end at {positions}",
                hint="Shorten the prompt, or lower max_new_tokens.",
            )
        return prompt

    def _batches(self, lengths: Sequence[int], *, one_by_one: bool) -> Iterator[list[int]]:
        """Places of each batch: in their order one by one, else the longest first, as many as ``max_tokens`` hold."""
        if one_by_one:
            yield from ([place] for place in range(len(lengths)))
            return
        order = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
        while order:
            each = (lengths[order[0]] + self.max_new_tokens) * self.options.num_beams
            count = max(self.max_tokens // each, 1)
            yield order[:count]
            order = order[count:]

    def _batch(
        self, prompts: Sequence[IntArray], rows: Sequence[int], on_text: Callable[[str], None] | None
    ) -> list[Generated]:
        longest, device = max(map(len, prompts)), self.model.device
        ids_BL = torch.full((len(prompts), longest), self.pad_id, dtype=torch.int64)
        mask_BL = torch.zeros_like(ids_BL)
        for row, prompt in enumerate(prompts):
            # A decoder goes on where the prompt ends; an encoder counts positions from the left.
            begin = 0 if self.answers else longest - len(prompt)
            ids_BL[row, begin : begin + len(prompt)] = torch.from_numpy(prompt)
            mask_BL[row, begin : begin + len(prompt)] = 1
        arguments = self.options.for_transformers() | {"use_cache": True, "max_new_tokens": self.max_new_tokens}
        arguments |= {"pad_token_id": self.pad_id, "eos_token_id": sorted(self.end_ids) or None} | self.extra
        if self.options.samples:
            sampler = Sampler(self.options, rows)
            given = self.extra.get("logits_processor") or []
            arguments["logits_processor"] = LogitsProcessorList([*given, sampler])
        if on_text is not None:
            arguments["streamer"] = _Pieces(self.tokenizer, on_text)
        with torch.no_grad(), prompt_seen_whole(self.bidirectional_prompt):
            output = self.model.generate(
                input_ids=ids_BL.to(device), attention_mask=mask_BL.to(device), **arguments
            )
        start = 1 if self.answers else longest
        return [self._read(row[start:]) for row in output.tolist()]

    def _read(self, ids: Sequence[int]) -> Generated:
        end = next((place for place, token in enumerate(ids) if token in self.end_ids), len(ids))
        kept = tuple(ids[:end])
        text = self.tokenizer.decode(list(kept), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Generated(str(text), kept)


class Sampler(LogitsProcessor):
    """Draws the next token of each row, and leaves it the only likely one, so that greedy search takes it.

    The draw is the largest logit plus Gumbel noise (Gumbel 1954; Maddison et al. 2014, arXiv:1411.0030) after
    temperature, top_k and top_p. A row's noise is that of a generator of its own, seeded by (seed, row id).

    Args:
        options: temperature, top_k, top_p and seed.
        row_ids: of the batch, in its order.
    """

    def __init__(self, options: GenerationOptions, row_ids: Sequence[int]) -> None:
        self.warpers = LogitsProcessorList()
        if options.temperature != 1.0:
            self.warpers.append(TemperatureLogitsWarper(float(options.temperature)))
        if options.top_k > 0:
            self.warpers.append(TopKLogitsWarper(options.top_k))
        if options.top_p < 1.0:
            self.warpers.append(TopPLogitsWarper(float(options.top_p)))
        self.generators = [torch.Generator().manual_seed(derive_key(options.seed, row)) for row in row_ids]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [B, V], 0 for the drawn token and -inf for all others."""
        logits_BV = self.warpers(input_ids, scores.float())
        width = logits_BV.shape[1]
        uniform_BV = torch.stack([torch.rand(width, generator=generator) for generator in self.generators])
        tiny = torch.finfo(torch.float32).tiny
        gumbel_BV = -(-uniform_BV.clamp_min(tiny).log()).clamp_min(tiny).log()
        drawn_B1 = (logits_BV + gumbel_BV.to(logits_BV.device)).argmax(-1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn_B1, 0.0)


class Answers:
    """What a head that generates writes for this rank's share of rows. Iterating writes, and feeds the metrics.

    Args:
        writer: writes.
        head: makes prompts and metrics.
        rows: the rows that are evaluated; they keep their records.
        max_length: longest prompt the head may make.
        max_rows: how many rows are answered over all ranks, evenly spread; None answers all.
        ranks: who shares the rows.
        watch: shows progress.
    """

    def __init__(
        self, writer: Writer, head: Any, rows: TaskRows, max_length: int, *, max_rows: int | None = None,
        ranks: Ranks | None = None, watch: Watch | None = None,
    ) -> None:
        self.writer, self.head, self.rows, self.max_length = writer, head, rows, max_length
        self.metrics: RowMetrics = head.metrics()
        ranks = ranks or Ranks()
        count = len(rows) if max_rows is None else min(max_rows, len(rows))
        taken = np.arange(count) * len(rows) // max(count, 1)
        self.row_ids = [int(row) for row in taken[ranks.rank :: ranks.world_size]]
        self._watch = watch if ranks.is_main else None

    def __iter__(self) -> Iterator[int]:
        """Yield how many rows each batch had."""
        written = self._write()
        return written if self._watch is None else self._watch(written, len(self.row_ids))

    def _write(self) -> Iterator[int]:
        records = [self.rows.records[row] for row in self.row_ids]
        prompts, _ = prompts_of(self.head, records, self.writer.tokenizer, self.max_length)
        for batch in self.writer.write(prompts, self.row_ids):
            for place, answer in batch:
                row = self.row_ids[place]
                self.metrics.update_row([answer], self.rows.records[row], row)
            yield len(batch)


def generates(head: Any) -> bool:
    """Whether a head answers by text."""
    return bool(getattr(head, "generate", False))


def prompts_of(
    head: Any, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[IntArray], str | None]:
    """The prompts of rows, and what the head has to say of them (texts that were cut)."""
    prompts = [head.prompt(record, tokenizer, max_length) for record in records]
    return prompts, head.row_notes() if hasattr(head, "row_notes") else None


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that end an answer: those of the model and the tokenizer's."""
    own = getattr(model.generation_config, "eos_token_id", None)
    ids = list(own) if isinstance(own, list | tuple) else [own]
    return {int(i) for i in (*ids, tokenizer.eos_token_id) if i is not None}


class _Pieces(TextStreamer):
    """Hands text on as it is written."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None]) -> None:
        super().__init__(
            tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        self._on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._on_text(text)
