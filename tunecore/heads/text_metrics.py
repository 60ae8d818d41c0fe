"""What written texts are worth beside references: BLEU, chrF, ROUGE, and how many are exactly right.

BLEU (Papineni et al. 2002) and chrF (Popovic 2015) are sacrebleu's (Post 2018, arXiv:1804.08771), ROUGE (Lin 2004) that
of the package rouge-score, with Porter's stemmer, all from 0 to 100. Texts are kept until the end, so the figures are
those of all rows together, whatever rank or batch they came from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

from tunecore.errors import ConfigError, unknown_name
from tunecore.types import Generated, Record

_SACREBLEU = ("sacrebleu", "translation")
EXTRAS = {"bleu": _SACREBLEU, "chrf": _SACREBLEU, "rouge": ("rouge_score", "summarization")}
"""Metric -> (the module that computes it, the extra of tunecore that installs it)."""
RESULTS = {
    "bleu": ("bleu",), "chrf": ("chrf",), "rouge": ("rouge1", "rouge2", "rougeL"), "exact_match": ("exact_match",),
}  # fmt: skip
"""Metric -> the figures it gives."""
SAMPLES = 3
"""Rows that are shown with what was written."""


@dataclass(frozen=True, kw_only=True)
class TextMetricsOptions:
    """Options of metrics of written texts."""

    owner: ClassVar[str] = "metrics"

    metrics: tuple[str, ...] = ()
    """bleu, chrf (extra translation), rouge (extra summarization), exact_match."""
    bleu_tokenize: str = "13a"
    """How sacrebleu splits words: 13a, intl, char, zh, ja-mecab, none ..."""
    bleu_lowercase: bool = False
    """Ignore case in bleu."""

    def check_metrics(self) -> None:
        """Raises ConfigError: a metric is unknown, or what computes it is not installed."""
        for name in self.metrics:
            if name not in RESULTS:
                raise ConfigError(f"{self.owner}.metrics: {unknown_name('metric', name, RESULTS)}")
            module, extra = EXTRAS.get(name, ("", ""))
            if module and find_spec(module) is None:
                package = module.replace("_", "-")
                raise ConfigError(
                    f"{self.owner}.metrics: {name} needs the package {package}, which is not installed",
                    hint=f"pip install 'tunecore[{extra}]', or take {name} out of metrics.",
                )


class TextMetrics:
    """Metrics of texts (a :class:`tunecore.types.RowMetrics`).

    Args:
        options: which metrics.
        references: a row -> the texts that would be right, at least one.
    """

    def __init__(self, options: TextMetricsOptions, references: Callable[[Record], Sequence[str]]) -> None:
        self.options = options
        self._references = references
        self._rows: dict[int, tuple[str, list[str]]] = {}

    def update_row(self, raw: Sequence[Generated], record: Record, row_id: int) -> None:
        (answer,) = raw
        self._rows[row_id] = (answer.text.strip(), [text.strip() for text in self._references(record)])

    def state(self) -> list[Any]:
        return [[row_id, text, references] for row_id, (text, references) in self._rows.items()]

    def merge(self, others: Sequence[Any]) -> None:
        for state in others:
            self._rows.update({int(row_id): (text, list(references)) for row_id, text, references in state})

    def compute(self) -> dict[str, Any]:
        """The figures of each metric; ``generated_rows``, how many texts they are of; ``samples``, a few of them."""
        rows = [self._rows[row_id] for row_id in sorted(self._rows)]
        texts, references = [text for text, _ in rows], [given for _, given in rows]
        found: dict[str, Any] = {}
        for name in self.options.metrics:
            if not rows:
                found |= dict.fromkeys(RESULTS[name], 0.0)
            elif name == "exact_match":
                right = sum(text in given for text, given in rows)
                found[name] = right / len(rows)
            elif name == "rouge":
                found |= rouge(texts, references)
            elif name == "bleu":
                found[name] = bleu(texts, references, self.options.bleu_tokenize, self.options.bleu_lowercase)
            else:
                found[name] = chrf(texts, references)
        samples = [{"text": text, "reference": given[0]} for text, given in rows[:SAMPLES]]
        return {**found, "generated_rows": len(rows), "samples": samples}


def bleu(texts: Sequence[str], references: Sequence[Sequence[str]], tokenize: str, lowercase: bool) -> float:
    """BLEU of a corpus, 0 to 100, by sacrebleu.

    Raises:
        ConfigError: sacrebleu knows no such ``tokenize``, or lacks a package for it.
    """
    from sacrebleu.metrics import BLEU

    try:
        # force: no advice about texts that look tokenised.
        metric = BLEU(tokenize=tokenize, lowercase=lowercase, force=True)
    except (KeyError, AssertionError, ImportError, RuntimeError) as error:
        message = f"bleu_tokenize {tokenize!r} cannot be used: {error}"
        raise ConfigError(message, hint="Take 13a, intl or char.") from error
    return float(metric.corpus_score(list(texts), _streams(references)).score)


def chrf(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """chrF2 of a corpus, 0 to 100, by sacrebleu."""
    from sacrebleu.metrics import CHRF

    return float(CHRF().corpus_score(list(texts), _streams(references)).score)


def rouge(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L, 0 to 100; of several references the best counts, for each by itself.

    rouge-score splits words at all that is not a-z or 0-9: for languages written with other letters take chrf.
    """
    from rouge_score.rouge_scorer import RougeScorer

    names = RESULTS["rouge"]
    scorer = RougeScorer(list(names), use_stemmer=True)
    sums: dict[str, float] = dict.fromkeys(names, 0.0)
    for text, given in zip(texts, references, strict=True):
        scores: Mapping[str, Any] = scorer.score_multi(list(given), text)
        for name in names:
            sums[name] += float(scores[name].fmeasure)
    return {name: 100 * total / len(texts) for name, total in sums.items()}


def _streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """As sacrebleu takes them: the first reference of every row, the second ..., None where a row has fewer."""
    most = max(map(len, references))
    return [[given[i] if i < len(given) else None for given in references] for i in range(most)]
