"""Cleaning of documents: normal form, control characters, white space, length, exact duplicates; each counted."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tunecore.config import DataConfig
from tunecore.errors import ConfigError

_FORMS: dict[str, Literal["NFC", "NFKC"]] = {"nfc": "NFC", "nfkc": "NFKC"}
_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
# C0 and C1 controls but tab and line feed, zero-width space, word joiner, byte-order mark, and the marks that steer the
# direction of writing, which letters have by themselves. Joiners stay: Persian and Indic spelling needs them.
_CONTROLS = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u200b\u2060\ufeff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
_BLANKS = re.compile(r"[^\S\n]+")
_AROUND_LINE_END = re.compile(r" ?\n ?")
_BLANK_LINES = re.compile(r"\n{3,}")


@dataclass(frozen=True, kw_only=True)
class CleaningOptions:
    """What is done to each document, in this order."""

    remove_controls: bool = True
    """Drop control characters and direction marks; line feed and tab stay, other line ends become line feeds."""
    normalization: Literal["none", "nfc", "nfkc"] = "nfc"
    """Unicode normal form."""
    collapse_whitespace: bool = True
    """One space for a run of blanks, at most one empty line in a row, none at the ends."""
    min_chars: int = 1
    """Drop documents shorter than this."""
    max_chars: int | None = None
    """Drop documents longer than this."""
    deduplicate: bool = False
    """Drop documents whose cleaned text was seen before."""

    def __post_init__(self) -> None:
        if self.normalization not in ("none", *_FORMS):
            raise ConfigError(f"data.normalization is {self.normalization!r}; it must be none, nfc or nfkc")

    @classmethod
    def of(cls, config: DataConfig) -> CleaningOptions:
        """The options of a run's ``data`` section."""
        return cls(
            normalization=config.normalization, min_chars=config.min_chars, max_chars=config.max_chars,
            deduplicate=config.deduplicate,
        )


@dataclass
class CleaningSummary:
    """How many documents met each rule."""

    documents: int = 0
    kept: int = 0
    normalized: int = 0
    """Documents the normal form changed."""
    control_characters: int = 0
    """Characters removed."""
    empty: int = 0
    too_short: int = 0
    too_long: int = 0
    duplicates: int = 0

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable counts."""
        return asdict(self)

    def describe(self) -> str:
        """One line for a person."""
        dropped = {k: v for k, v in asdict(self).items() if k in ("empty", "too_short", "too_long", "duplicates") and v}
        why = f" (dropped: {', '.join(f'{v} {k}' for k, v in dropped.items())})" if dropped else ""
        return f"{self.kept} of {self.documents} documents kept{why}"


class Cleaner:
    """Cleans documents one by one and counts; 16 bytes of memory a document where duplicates are dropped."""

    def __init__(self, options: CleaningOptions | None = None) -> None:
        self.options = CleaningOptions() if options is None else options
        self.summary = CleaningSummary()
        self._seen: set[bytes] = set()

    def clean(self, text: str) -> str | None:
        """The cleaned text, or None where the document is dropped."""
        summary = self.summary
        summary.documents += 1
        text = self._rewrite(text)
        reason = self._unfit(text) or self._seen_before(text)
        if reason is not None:
            setattr(summary, reason, getattr(summary, reason) + 1)
            return None
        summary.kept += 1
        return text

    def clean_pair(self, first: str, second: str) -> tuple[str, str] | None:
        """Both texts cleaned, or None where either is dropped; counted as one document, a duplicate if both recur."""
        summary = self.summary
        summary.documents += 1
        pair = self._rewrite(first), self._rewrite(second)
        reason = self._unfit(pair[0]) or self._unfit(pair[1]) or self._seen_before("\0".join(pair))
        if reason is not None:
            setattr(summary, reason, getattr(summary, reason) + 1)
            return None
        summary.kept += 1
        return pair

    def _rewrite(self, text: str) -> str:
        options = self.options
        if options.remove_controls:
            text, removed = _CONTROLS.subn("", _LINE_ENDS.sub("\n", text))
            self.summary.control_characters += removed
        form = _FORMS.get(options.normalization)
        # After the controls: one between a letter and its accent would keep them apart.
        if form is not None and not unicodedata.is_normalized(form, text):
            text = unicodedata.normalize(form, text)
            self.summary.normalized += 1
        if options.collapse_whitespace:
            text = _BLANK_LINES.sub("\n\n", _AROUND_LINE_END.sub("\n", _BLANKS.sub(" ", text))).strip()
        return text

    def _unfit(self, text: str) -> str | None:
        options = self.options
        if not text.strip():
            return "empty"
        if len(text) < options.min_chars:
            return "too_short"
        if options.max_chars is not None and len(text) > options.max_chars:
            return "too_long"
        return None

    def _seen_before(self, text: str) -> str | None:
        if self.options.deduplicate:
            key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            if key in self._seen:
                return "duplicates"
            self._seen.add(key)
        return None
