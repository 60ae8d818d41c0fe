"""Extractive question answering: the stretch of a context that answers a question, or that there is none.

The model is a plain ``...ForQuestionAnswering`` of transformers (Devlin et al. 2018, sections 4.2 and 4.3): a logit for
the answer's first and one for its last token at every token. A context longer than the model takes is cut into
windows that overlap; a window without the answer says so by its first token.

Shape letters: T tokens in the batch, B sequences in the batch, L tokens of one example, N targets.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from tunecore.errors import ConfigError, DataError
from tunecore.heads.answer_metrics import Answered, AnswerMetrics
from tunecore.heads.answer_rows import QuestionColumns, place_of, read_answers, read_question, rejected
from tunecore.heads.answer_windows import QuestionLayout, QuestionWindows, best_answers, no_answer_score
from tunecore.heads.token_layer import own_layer
from tunecore.types import Example, Family, Forward, LossSum, Prediction, Record, Stream, Targets

NAME = "extractive_qa"
START, END = 0, 1
"""What a target's label says of its token."""
_log = logging.getLogger("tunecore")


@dataclass(frozen=True, kw_only=True)
class ExtractiveQAOptions:
    """Options of extractive_qa."""

    question: str = "question"
    """Column with the question."""
    context: str = "context"
    """Column with the text that has the answer."""
    answers: str = "answers"
    """Column with the answers: SQuAD's list of {text, answer_start}, or {text: [...], answer_start: [...]}; empty where
    the question has no answer."""
    stride: int = 128
    """Pieces that two windows of a long context share; never more than half a window."""
    max_question_length: int = 64
    """Most pieces of a question; the rest is cut off."""
    max_answer_length: int = 30
    """Most pieces of a predicted answer."""
    n_best: int = 5
    """How many answers a prediction lists."""
    no_answer: bool | None = None
    """Whether "no answer" may be predicted; None is where training rows have none."""
    null_threshold: float = 0.0
    """"No answer" is predicted where it scores higher than the best answer by more than this."""
    max_null_windows: int | None = None
    """Of a row's windows without the answer, train on at most so many an epoch, drawn anew; None trains on all."""

    def __post_init__(self) -> None:
        for name in ("max_question_length", "max_answer_length", "n_best"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{NAME}.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("stride", "max_null_windows"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{NAME}.{name} is {getattr(self, name)}; it must not be negative")
        if not math.isfinite(self.null_threshold):
            raise ConfigError(f"{NAME}.null_threshold is {self.null_threshold}; it must be a number")


class ExtractiveQA:
    """The head ``extractive_qa``; its one loss has the same name and two targets a window, start and end."""

    name = NAME
    losses: tuple[str, ...] = (NAME,)
    default_metric = "f1"
    needs_facts = False

    def __init__(self, options: ExtractiveQAOptions) -> None:
        self.options = options
        self.columns = QuestionColumns(options.question, options.context, options.answers)
        self.row_columns = (options.question, options.context)
        self.no_answer = bool(options.no_answer)
        self._files: set[str] = set()
        self._windows: QuestionWindows | None = None
        self._max_length = 0

    def reject(self, record: Record, *, labelled: bool) -> str | None:
        """Why a row cannot be used; None where it can.

        Raises:
            DataError: no row of its file so far has the columns.
        """
        return rejected(record, self.columns, self._files, labelled=labelled)

    def prepare(self, records: Sequence[Record]) -> Mapping[str, Any]:
        """Look whether questions without an answer are among the rows: {"no_answer": bool}.

        Raises:
            DataError: a row cannot be used, or none has an answer.
        """
        if not records:
            raise DataError("there are no training rows")
        without = 0
        for record in records:
            self._check(record)
            without += not read_answers(record, self.options.answers)
        if without == len(records):
            raise DataError(f"no training row has an answer (column {self.options.answers!r} of {records[0].file})")
        facts = {"no_answer": without > 0}
        self.load(facts)
        return facts

    def _check(self, record: Record) -> None:
        reason = self.reject(record, labelled=True)
        if reason is not None:
            raise DataError(f"{record.file}:{record.row}: {reason}")

    def load(self, facts: Mapping[str, Any]) -> None:
        """Take what a saved model knows; the option ``no_answer`` goes first."""
        chosen = self.options.no_answer
        self.no_answer = bool(facts.get("no_answer", False)) if chosen is None else chosen

    def config_fields(self) -> Mapping[str, Any]:
        """Two outputs a token, whatever the checkpoint was for."""
        return {"num_labels": 2}

    def examples(
        self, record: Record, row_id: int, tokenizer: Any, max_length: int, *, labelled: bool
    ) -> list[Example]:
        """One example a window of at most ``max_length`` tokens, the question in each.

        Raises:
            DataError: question, context or answers cannot be used (file and row).
        """
        if labelled:
            self._check(record)
        if self._windows is None or self._windows.tokenizer is not tokenizer:
            self._windows = QuestionWindows(tokenizer, self.options.stride, self.options.max_question_length)
        self._max_length = max_length
        _, context = read_question(record, self.columns)
        layout = self._layout(record)
        positions = self._positions(record, layout, context) if labelled else []
        made = []
        for number, (first, stop) in enumerate(layout.windows):
            targets = {}
            if positions:
                index = np.asarray(positions[number], dtype=np.int64)
                targets[NAME] = Targets(index, np.asarray([START, END], dtype=np.int64))
            ids = layout.context.ids[first:stop]
            made.append(self._windows.encoder.example(row_id, layout.question, ids, targets))
        return made

    def _layout(self, record: Record) -> QuestionLayout:
        assert self._windows is not None, "examples are made before outputs are read"
        return self._windows.layout(*read_question(record, self.columns), self._max_length)

    def _positions(self, record: Record, layout: QuestionLayout, context: str) -> list[tuple[int, int]]:
        """First and last token of the answer in each window, (0, 0) for none; [] where nothing is to be learned."""
        answers = read_answers(record, self.options.answers)
        place = place_of(answers, context)
        if place is None:
            return [(0, 0)] * len(layout.windows)
        pieces = layout.pieces_of(place)
        if pieces is None:
            _log.warning("%s:%s: the tokenizer drops the whole answer; nothing is learned", record.file, record.row)
            return []
        return [layout.positions(pieces, number) for number in range(len(layout.windows))]

    def training_examples(self, examples: Sequence[Example], stream: Stream) -> list[Example]:
        """All windows with the answer, and ``max_null_windows`` of the others."""
        most = self.options.max_null_windows
        null = [number for number, e in enumerate(examples) if NAME in e.targets and not e.targets[NAME].index.any()]
        if most is None or len(null) <= most:
            return list(examples)
        count = max(most, 1) if len(null) == len(examples) else most
        drawn = {null[place] for place in stream.permutation(len(null))[:count]}
        return [e for number, e in enumerate(examples) if number in drawn or number not in set(null)]

    def build(self, model: PreTrainedModel, family: Family) -> nn.Module | None:
        """Return None where the transformers class has the layer, else one of our own.

        Raises:
            ConfigError: the model has another number of outputs than two.
        """
        module = own_layer(model, getattr(family, "span_head", None), 2, dropout=False)
        if module is None and int(model.config.num_labels) != 2:
            raise ConfigError(f"the model has {model.config.num_labels} outputs a token; {NAME} needs two")
        return module

    def loss(self, forward: Forward, module: nn.Module | None, stream: Stream | None) -> Mapping[str, LossSum]:
        """Cross-entropy in fp32 of each start and end among all tokens of its sequence, summed."""
        targets = forward.batch.targets.get(NAME)
        if targets is None:
            return {NAME: LossSum(forward.hidden()[:0].float().sum(), 0)}
        logits = self._logits(forward, module)
        # Short rows end in -inf, which a softmax over tokens leaves out.
        log_p_BL2 = pad_sequence(logits, batch_first=True, padding_value=-math.inf).log_softmax(1)
        ends_B = forward.batch.layout.cu_seqlens[: len(logits) + 1].long()
        sequence_N = torch.searchsorted(ends_B, targets.index, right=True) - 1
        token_N = targets.index - ends_B[sequence_N]
        total = -log_p_BL2[sequence_N, token_N, targets.labels].sum()
        found_B2 = log_p_BL2.detach().argmax(1)
        correct = (found_B2[sequence_N, targets.labels] == token_N).sum()
        return {NAME: LossSum(total, int(targets.index.shape[0]), correct)}

    def predict(self, forward: Forward, module: nn.Module | None) -> list[Tensor]:
        """Logits of start and end at every token, fp32, of each sequence: [L, 2]."""
        return [logits_L2.cpu() for logits_L2 in self._logits(forward, module)]

    def _logits(self, forward: Forward, module: nn.Module | None) -> list[Tensor]:
        batch = forward.batch
        lengths = batch.layout.cu_seqlens[: batch.num_sequences + 1].diff().tolist()
        rows_TE = forward.hidden()[: sum(lengths)]
        family: Any = forward.family
        logits_T2: Tensor = module(rows_TE) if module is not None else family.span_head(forward.model, rows_TE)
        return list(logits_T2.float().split(lengths))

    def decode(self, raw: Sequence[Any], record: Record | None, row_id: int) -> Prediction:
        """The answer's text, "" for none, and its probability among the answers listed.

        ``details``: ``start`` and ``end`` (first character in the context and one past the last; None for none),
        ``answers`` (the best ones: text, start, end, score), and the row's ``id`` where it has one.
        """
        assert record is not None
        found, null = self._answers(raw, record)
        answers: list[tuple[float, str, int | None, int | None]] = [*found]
        if null is not None or not found:
            says_none = self._says_none(found, null)
            answers.append((0.0 if null is None else null, "", None, None))
            answers.sort(key=lambda answer: -answer[0])
            chosen = next(i for i, answer in enumerate(answers) if (answer[2] is None) == says_none)
            answers.insert(0, answers.pop(chosen))
        scores = torch.tensor([answer[0] for answer in answers]).double().softmax(0).tolist()
        shown = [
            {"text": text, "start": start, "end": end, "score": score}
            for (_, text, start, end), score in zip(answers, scores, strict=True)
        ]
        kept = {"id": record.fields["id"]} if "id" in record.fields else {}
        details = {"start": answers[0][2], "end": answers[0][3], "answers": shown, **kept}
        return Prediction(label=answers[0][1], score=scores[0], row_id=row_id, details=details)

    def _answers(
        self, raw: Sequence[Any], record: Record
    ) -> tuple[list[tuple[float, str, int, int]], float | None]:
        """The best answers (score, text, start, end), and the score of "no answer" where it may be predicted."""
        _, context = read_question(record, self.columns)
        outputs = [torch.as_tensor(logits_L2).double().numpy() for logits_L2 in raw]
        limit = self.options.max_answer_length
        found = best_answers(outputs, self._layout(record), context, self.options.n_best, limit)
        answers = [(score, context[start:end], start, end) for score, start, end in found]
        return answers, no_answer_score(outputs) if self.no_answer else None

    def _says_none(self, answers: Sequence[tuple[float, str, int, int]], null: float | None) -> bool:
        return not answers or (null is not None and null - answers[0][0] > self.options.null_threshold)

    def metrics(self) -> AnswerMetrics:
        return AnswerMetrics(self._read)

    def _read(self, raw: Sequence[Any], record: Record) -> Answered:
        true = [answer.text for answer in read_answers(record, self.options.answers)]
        answers, null = self._answers(raw, record)
        best = answers[0][1] if answers else ""
        margin = None if null is None or not answers else null - answers[0][0]
        return Answered("" if self._says_none(answers, null) else best, true, best, margin)
