"""Causal generation: a prompt, and the text that a causal model goes on with. Instructions, dialogue, completions.

Supervised instruction tuning as in InstructGPT (Ouyang et al. 2022, arXiv:2203.02155) and FLAN (Wei et al. 2021,
arXiv:2109.01652): prompt and completion are one sequence, and only the completion's tokens are learned, the end token
included. Without a template whole texts are learned, as in pretraining, one a row. The model is a plain
``...ForCausalLM`` of transformers.

Shape letters: P tokens of the prompt, L tokens of the whole example.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter
from typing import Any, ClassVar

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from tunecore.errors import ConfigError
from tunecore.heads.generating import GeneratingHead, GeneratingOptions, texts_in
from tunecore.types import Example, Family, IntArray, Record, Targets

NAME = "causal_generation"


@dataclass(frozen=True, kw_only=True)
class CausalGenerationOptions(GeneratingOptions):
    """Options of causal_generation."""

    owner: ClassVar[str] = NAME

    template: str | None = "{prompt}\n"
    """The prompt, columns in braces: "Question: {question}\\nAnswer: ". None learns and continues whole texts of the
    column ``completion``."""
    completion: str = "completion"
    """Column with the text to write; a list holds several right ones, of which the first is learned."""
    learn_prompt: bool = False
    """Learn the tokens of the prompt too."""
    append_end: bool = True
    """End every completion with the end token, so that the model learns to stop."""
    max_prompt_length: int | None = None
    """Longest prompt in tokens; a longer one loses its beginning, and is counted. None is data.max_length less
    max_new_tokens."""
    bidirectional_prompt: bool = False
    """The tokens of a prompt see each other, what follows is causal (prefix language model, arXiv:1910.10683), here
    and in ``Engine.predict``; other tools read the saved model causally."""
    metrics: tuple[str, ...] = ()
    """What written texts are measured by: bleu, chrf (extra translation), rouge (extra summarization), exact_match.
    The first chooses the best checkpoint; without any, the loss does and nothing is generated."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _columns(self.template)
        if self.max_prompt_length is not None and self.max_prompt_length < 1:
            raise ConfigError(f"{NAME}.max_prompt_length is {self.max_prompt_length}; it must be at least 1")
        if self.bidirectional_prompt and (self.learn_prompt or self.template is None):
            raise ConfigError(
                f"{NAME}.bidirectional_prompt is set, but the tokens of the prompt are learned: each would see itself",
                hint="Keep learn_prompt: false and a template.",
            )
        if self.metrics and self.template is None:
            raise ConfigError(
                f"{NAME}.metrics are set, but without a template there is no prompt to answer",
                hint="Set a template, or leave metrics out: perplexity is measured anyway.",
            )


class CausalGeneration(GeneratingHead):
    """The head ``causal_generation``; its one loss has the same name."""

    name = NAME
    losses: tuple[str, ...] = (NAME,)
    uses = ("causal_lm",)
    options: CausalGenerationOptions

    def __init__(self, options: CausalGenerationOptions) -> None:
        super().__init__(options)
        self.columns = _columns(options.template)
        self.bidirectional_prompt = options.bidirectional_prompt

    @property
    def row_columns(self) -> tuple[str, ...]:
        """The columns that the values of a row to predict are put in."""
        return self.columns or (self.options.completion,)

    def reject(self, record: Record, *, labelled: bool) -> str | None:
        """Why a row cannot be used: a text is missing.

        Raises:
            DataError: a file has no such column.
        """
        named = {f"template ({column})": column for column in self.columns}
        if labelled or not self.columns:
            named["completion"] = self.options.completion
        return self.unusable(record, named)

    def examples(
        self, record: Record, row_id: int, tokenizer: Any, max_length: int, *, labelled: bool
    ) -> list[Example]:
        """One example: the prompt, then the completion, cut at its end to what is left of ``max_length``.

        Raises:
            DataError: a column is not there or holds no text.
            ConfigError: ``max_length`` leaves no room for prompts, or the tokenizer has no end token to append.
        """
        if not labelled:
            prompt = self.prompt(record, tokenizer, max_length)
            return [Example(row_id=row_id, input_ids=prompt, prefix_len=self._prefix(len(prompt)))]
        whole = self.options.template is None
        prompt = self._opening(tokenizer) if whole else self._prompt(record, tokenizer, max_length)
        written = self._completion(record, tokenizer, max_length - len(prompt))
        ids = np.concatenate([prompt, written])
        first = 0 if self.options.learn_prompt or whole else max(len(prompt) - 1, 0)
        index = np.arange(first, len(ids) - 1, dtype=np.int64)
        targets = {NAME: Targets(index, ids[index + 1])} if len(index) else {}
        return [Example(row_id=row_id, input_ids=ids, targets=targets, prefix_len=self._prefix(len(prompt)))]

    def prompt(self, record: Record, tokenizer: Any, max_length: int) -> IntArray:
        """What the model goes on from: the filled template, or without one the text so far. int64 [P]."""
        return self._prompt(record, tokenizer, max_length)

    def references(self, record: Record) -> list[str]:
        """The completions of a row."""
        return texts_in(record, self.options.completion, "completion", NAME)

    def build(self, model: PreTrainedModel, family: Family) -> nn.Module | None:
        """Return None: the transformers class has the prediction head.

        Raises:
            ConfigError: the family reads both ways or has two stacks, or knows no prefixes where they are asked for.
        """
        if not family.causal:
            raise ConfigError(
                f"{NAME} needs a model that reads from left to right; {family.model_type} does not",
                hint="Use a family such as gpt2 or llama, or the head seq2seq for t5 and bart.",
            )
        if self.bidirectional_prompt and getattr(family, "padded", False):
            raise ConfigError(f"{NAME}.bidirectional_prompt: {family.model_type} takes padded rows, without prefixes")
        return None

    def _prefix(self, length: int) -> int | None:
        return length if self.bidirectional_prompt else None

    def _prompt(self, record: Record, tokenizer: Any, max_length: int) -> IntArray:
        """The prompt's last tokens, after what opens a text of this tokenizer."""
        opening = self._opening(tokenizer)
        new = self.options.max_new_tokens or max_length // 2
        longest = self.options.max_prompt_length or max_length - new
        room = longest - len(opening)
        if room < 1 or longest + new > max_length:
            raise ConfigError(
                f"{NAME}: a prompt of {max(longest, 1)} tokens and max_new_tokens {new} do not fit data.max_length "
                f"{max_length} together",
                hint="Lower max_new_tokens or max_prompt_length, or raise data.max_length.",
            )
        ids = _plain_ids(tokenizer, self._text(record))
        if len(ids) > room:
            self._cut[f"prompts cut to their last {room + len(opening)} tokens"] += 1
            ids = ids[-room:]
        return np.concatenate([opening, ids])

    def _completion(self, record: Record, tokenizer: Any, room: int) -> IntArray:
        ids = _plain_ids(tokenizer, self.references(record)[0])
        if self.options.append_end:
            if tokenizer.eos_token_id is None:
                raise ConfigError(
                    f"{NAME}.append_end is set, but the tokenizer has no end token", hint="Set its eos_token."
                )
            ids = np.append(ids, int(tokenizer.eos_token_id))
        if len(ids) > room:
            self._cut["completions cut to what their prompt leaves of data.max_length"] += 1
        return ids[:room]

    def _text(self, record: Record) -> str:
        template = self.options.template
        if template is None:
            return texts_in(record, self.options.completion, "completion", NAME)[0]
        return template.format(**{name: " ".join(texts_in(record, name, "template", NAME)) for name in self.columns})

    def _opening(self, tokenizer: Any) -> IntArray:
        """The tokens this tokenizer puts before every text: Llama's beginning token, nothing for GPT-2."""
        ids = [i for i in tokenizer("")["input_ids"] if i == tokenizer.bos_token_id]
        return np.asarray(ids[:1], dtype=np.int64)


def _plain_ids(tokenizer: Any, text: str) -> IntArray:
    return np.asarray(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64)


def _columns(template: str | None) -> tuple[str, ...]:
    """The columns a template names.

    Raises:
        ConfigError: it is malformed, or names none.
    """
    if template is None:
        return ()
    try:
        fields = [(name, spec, convert) for _, name, spec, convert in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ConfigError(f"{NAME}.template {template!r}: {error}", hint="Write {{ and }} for braces.") from error
    names = tuple(dict.fromkeys(name for name, _, _ in fields))
    if not names or not all(names):
        raise ConfigError(f"{NAME}.template {template!r} names no column", hint='For example: "{prompt}\\n".')
    strange = [name for name, spec, convert in fields if spec or convert or not name.isidentifier()]
    if strange:
        raise ConfigError(f"{NAME}.template {template!r}: {{{strange[0]}}} is not just the name of a column")
    return names
