"""Sequence to sequence: a text in, a text out. Translation, summarisation, and whatever else is put that way.

The model is a plain ``...ForConditionalGeneration`` of transformers (T5: Raffel et al. 2020, arXiv:1910.10683; BART:
Lewis et al. 2019, arXiv:1910.13461). The encoder reads the source, the decoder learns every token of the target, the
end token included; evaluation and prediction let it write by itself.

Shape letters: L tokens of the source, M tokens of the target.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from tunecore.errors import ConfigError
from tunecore.heads.generating import GeneratingHead, GeneratingOptions, texts_in
from tunecore.types import Example, Family, IntArray, Record, Targets

NAME = "seq2seq"


@dataclass(frozen=True, kw_only=True)
class Seq2SeqOptions(GeneratingOptions):
    """Options of seq2seq."""

    owner: ClassVar[str] = NAME

    source: str | None = None
    """Column with the text to read; a list of texts is joined by spaces. None takes ``text``, or the first of two."""
    target: str | None = None
    """Column with the text to write; a list holds several right ones, of which the first is learned. None takes
    ``target``, or the second of two columns."""
    prefix: str = ""
    """Put before every source, as T5 does: "translate English to German: "."""
    max_source_length: int | None = None
    """Longest source in tokens, the rest is cut and counted; None is data.max_length."""
    max_target_length: int | None = None
    """Longest target in tokens, the rest is cut and counted; None is data.max_length."""
    metrics: tuple[str, ...] = ("bleu", "chrf")
    """What written texts are measured by: bleu, chrf (extra translation), rouge (extra summarization), exact_match.
    The first chooses the best checkpoint."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_source_length", "max_target_length"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise ConfigError(f"{NAME}.{name} is {value}; it must be at least 2")


class Seq2Seq(GeneratingHead):
    """The head ``seq2seq``; its one loss has the same name."""

    name = NAME
    losses: tuple[str, ...] = (NAME,)
    view = "seq2seq"
    uses = ("span_corruption", "denoising")
    options: Seq2SeqOptions

    def __init__(self, options: Seq2SeqOptions) -> None:
        super().__init__(options)
        if options.max_new_tokens is None and options.max_target_length is not None:
            self.generation = replace(options, max_new_tokens=options.max_target_length)
        self._start: tuple[str, int] | None = None

    @property
    def row_columns(self) -> tuple[str, ...]:
        """The column that a str to predict is put in."""
        return (self.options.source or "text",)

    def reject(self, record: Record, *, labelled: bool) -> str | None:
        """Why a row cannot be used: a text is missing.

        Raises:
            DataError: a file has no such column.
        """
        return self.unusable(record, self._columns(record, labelled))

    def examples(
        self, record: Record, row_id: int, tokenizer: Any, max_length: int, *, labelled: bool
    ) -> list[Example]:
        """One example: the source for the encoder, the target as labels and, one place later, for the decoder.

        Raises:
            DataError: a column is not there or holds no text.
            ConfigError: an option's length is above ``max_length``, or the tokenizer has no token to start with.
        """
        start = self._start_id(tokenizer)
        source = self.prompt(record, tokenizer, max_length)
        if not labelled:
            return [Example(row_id=row_id, input_ids=source, decoder_input_ids=np.asarray([start], dtype=np.int64))]
        length = self._length("max_target_length", max_length)
        labels = self.encoded(tokenizer, self.references(record)[0], length, "targets")
        return [
            Example(
                row_id=row_id, input_ids=source,
                decoder_input_ids=np.concatenate([np.asarray([start], dtype=np.int64), labels[:-1]]),
                targets={NAME: Targets(np.arange(len(labels), dtype=np.int64), labels)},
            )
        ]  # fmt: skip

    def prompt(self, record: Record, tokenizer: Any, max_length: int) -> IntArray:
        """The source with its prefix, as the encoder reads it: int64 [L]."""
        column = self._columns(record, False)["source"]
        text = self.options.prefix + " ".join(texts_in(record, column, "source", NAME))
        return self.encoded(tokenizer, text, self._length("max_source_length", max_length), "sources")

    def references(self, record: Record) -> list[str]:
        """The targets of a row."""
        return texts_in(record, self._columns(record, True)["target"], "target", NAME)

    def build(self, model: PreTrainedModel, family: Family) -> nn.Module | None:
        """Return None: the transformers class has the prediction head.

        Raises:
            ConfigError: the model has one stack, its decoder starts with another token than the examples, or its
                positions end before the longest answer.
        """
        if not getattr(family, "encoder_decoder", False):
            raise ConfigError(
                f"{NAME} needs an encoder-decoder model; {family.model_type} has one stack",
                hint="Use a family such as t5 or bart, or the head causal_generation for gpt2 and llama.",
            )
        config = model.config
        if self._start is None:
            self._start = "start", int(config.decoder_start_token_id)
        if config.decoder_start_token_id != self._start[1]:
            raise ConfigError(
                f"{NAME} starts the decoder with the {self._start[0]} token ({self._start[1]}) of this tokenizer, but "
                f"the model is made to start with {config.decoder_start_token_id} (decoder_start_token_id)",
                hint="Use the tokenizer that the model was trained with.",
            )
        wanted = self.generation.max_new_tokens
        if wanted is not None and wanted > family.max_length(model):
            raise ConfigError(
                f"{NAME}.max_new_tokens is {wanted}, but the decoder's positions end at {family.max_length(model)}",
                hint="Lower max_new_tokens.",
            )
        return None

    def _start_id(self, tokenizer: Any) -> int:
        """What the decoder reads first. Where a tokenizer opens texts by a token of its own (BART) that is the end
        token, as after a text before; else the padding token (T5).
        """
        if self._start is None:
            role = "pad" if tokenizer.bos_token_id is None else "eos"
            token = getattr(tokenizer, f"{role}_token_id")
            if token is None or tokenizer.eos_token_id is None:
                raise ConfigError(
                    f"{NAME} needs a tokenizer with an end token and a {role} token", hint="Use one of T5 or BART."
                )
            self._start = role, int(token)
        return self._start[1]

    def _length(self, option: str, max_length: int) -> int:
        value: int | None = getattr(self.options, option)
        if value is not None and value > max_length:
            raise ConfigError(
                f"{NAME}.{option} is {value}, but data.max_length is {max_length}", hint="Raise data.max_length."
            )
        return max_length if value is None else value

    def _columns(self, record: Record, labelled: bool) -> dict[str, str]:
        """The columns of source and target: as named, else ``text`` and ``target``, else the first and the second."""
        found, options = [str(name) for name in record.fields], self.options
        others = [name for name in found if name not in (options.source, options.target)]
        source = options.source or ("text" if "text" in found or len(found) > 2 or not others else others[0])
        others = [name for name in others if name != source]
        target = options.target or ("target" if "target" in found or len(others) != 1 else others[0])
        return {"source": source, "target": target} if labelled else {"source": source}

