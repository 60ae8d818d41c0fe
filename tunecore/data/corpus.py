"""Documents -> the tokenised corpus: cached by what went into it, split into training and held-out text, cut into rows.

Shape letters: D documents, S spans (stretches of documents that belong to this corpus).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from tunecore.data.clean import Cleaner, CleaningOptions
from tunecore.data.corpus_file import VERSION, CorpusFile, CorpusWriter
from tunecore.data.corpus_rows import CorpusRows, Spans, Unit
from tunecore.data.encoding import encode_documents
from tunecore.data.files import MEMBER, physical_files
from tunecore.data.segmenters import Characters, Segmenter
from tunecore.data.sources import (
    OnBadRow,
    ReadSummary,
    builtin_sources,
    documents,
    expand_paths,
    read_records,
    text_pairs,
)
from tunecore.data.special_layout import SpecialLayout
from tunecore.data.spool_folder import remove_abandoned
from tunecore.data.streams import PhiloxStream
from tunecore.data.text_pairs import SECOND_STARTS
from tunecore.data.tokenizer import tokenizer_hash
from tunecore.errors import ConfigError, DataError
from tunecore.types import Source

COLUMNS = ("word_starts", "sentence_starts", SECOND_STARTS)
"""The boundary columns a corpus can carry; one with the last is of pairs of texts."""
_log = logging.getLogger(__name__)
_FEW_DOCUMENTS = 8
_LEAST_BLOCK = 64


class Corpus:
    """Tokenised text: a committed file, and the spans of it that belong to this corpus.

    Args:
        file: the memory-mapped file.
        layout: special tokens of its tokenizer.
        spans: None is every document, whole.
        note: how it came about, for people.
    """

    def __init__(self, file: CorpusFile, layout: SpecialLayout, spans: Spans | None = None, note: str = "") -> None:
        self.file, self.layout, self.note = file, layout, note
        self.spans = Spans.of_documents(file.offsets) if spans is None else spans
        self._is_whole = spans is None

    @classmethod
    def open(cls, path: str | os.PathLike[str], tokenizer: PreTrainedTokenizerFast) -> Corpus:
        """Open a corpus file made with this tokenizer.

        Raises:
            DataError: the file is missing, damaged, or made with another tokenizer.
        """
        return cls(CorpusFile(path, tokenizer_hash(tokenizer)), SpecialLayout.of(tokenizer))

    @property
    def num_documents(self) -> int:
        return len(np.unique(self.spans.document))

    @property
    def num_tokens(self) -> int:
        return int((self.spans.stop - self.spans.start).sum())

    @property
    def columns(self) -> tuple[str, ...]:
        return self.file.columns

    @property
    def digest(self) -> str:
        """Hash of the tokens and of which of them belong to this corpus."""
        whole = self.file.digest
        if self._is_whole:
            return whole
        digest = hashlib.blake2b(whole.encode(), digest_size=16)
        for values in self.spans:
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()

    @property
    def summary(self) -> dict[str, Any]:
        """JSON-serialisable: what was read, cleaned and skipped, and what this corpus holds."""
        made: Mapping[str, Any] = self.file.header["summary"]
        own = {"documents": self.num_documents, "tokens": self.num_tokens, "digest": self.digest}
        return {**made, **own, "note": self.note} if self.note else {**made, **own}

    def with_file(self, file: CorpusFile) -> Corpus:
        """The same documents of the same tokens, with the columns of another file."""
        return Corpus(file, self.layout, None if self._is_whole else self.spans, self.note)

    def rows(self, unit: Unit, max_length: int, row_length: int | None = None) -> CorpusRows:
        """The row table for a unit: rows of at most ``max_length`` tokens, special tokens included.

        With ``row_length`` rows are of that many, and ``max_length`` holds for the examples made of them.

        Raises:
            ConfigError: ``max_length`` leaves no room for text, or the unit is unknown.
            DataError: the unit needs sentences and the corpus was made without ``sentence_starts``.
        """
        return CorpusRows(self.file, self.layout, self.spans, unit, max_length, row_length)

    def split(self, eval_fraction: float, seed: int) -> tuple[Corpus, Corpus]:
        """(training, held-out): disjoint, together this corpus; a pure function of the arguments.

        Whole documents are held out. Where fewer than eight would be, and documents are long, one contiguous block
        of each document is held out instead (``note`` says which), so that held-out text stays varied.

        Raises:
            ConfigError: the fraction is not between 0 and 1.
            DataError: there is too little text to hold any out.
        """
        if not 0 < eval_fraction < 1:
            raise ConfigError(f"data.eval_fraction is {eval_fraction}; it must be between 0 and 1 to hold text out")
        if self.num_tokens < 2:
            raise DataError("the corpus has one token; none can be held out", hint="Name held-out files in data.eval.")
        stream = PhiloxStream(seed, purpose="held-out")
        lengths = self.spans.stop - self.spans.start
        whole = SECOND_STARTS in self.columns  # the two texts of a pair never part
        few = len(lengths) * eval_fraction < _FEW_DOCUMENTS and lengths.mean() * eval_fraction >= _LEAST_BLOCK
        chosen = None if (few and not whole) or len(lengths) < 2 else _choose_documents(lengths, eval_fraction, stream)
        if chosen is None and whole:
            raise DataError(
                f"{len(lengths)} pairs of texts are too few to hold any out", hint="Name held-out files in data.eval."
            )
        if chosen is not None:
            note = f"{chosen.sum()} of {len(chosen)} documents held out"
            kept, held = self.spans.take(~chosen), self.spans.take(chosen)
        else:
            kept, held = _cut_blocks(self.spans, eval_fraction, stream)
            note = f"one block of each of {len(held.document)} documents held out ({eval_fraction:.2%} of the tokens)"
        return (Corpus(self.file, self.layout, kept, f"training part; {note}"),
                Corpus(self.file, self.layout, held, f"held-out part; {note}"))


def _choose_documents(lengths: NDArray[np.int64], fraction: float, stream: PhiloxStream) -> NDArray[np.bool_] | None:
    """Documents, in random order, until about ``fraction`` of the tokens is held; None where none is short enough."""
    target = fraction * lengths.sum()
    chosen = np.zeros(len(lengths), dtype=bool)
    held = 0
    for document in stream.permutation(len(lengths)):
        if held >= 0.9 * target:
            break
        if held + lengths[document] <= max(1.25 * target, lengths.min()):
            chosen[document] = True
            held += int(lengths[document])
    return chosen if chosen.any() and not chosen.all() else None


def _cut_blocks(spans: Spans, fraction: float, stream: PhiloxStream) -> tuple[Spans, Spans]:
    """Cut one block out of each span, at a random place: (what is left before and after, the blocks)."""
    lengths = spans.stop - spans.start
    # Rounding the running sum keeps the total right where single blocks are small; one token at least is held out.
    ends = np.rint(np.cumsum(lengths) * fraction).astype(np.int64)
    ends[-1] = max(ends[-1], 1)
    sizes = np.minimum(np.diff(ends, prepend=0), lengths)
    begin = spans.start + (stream.uniform(len(lengths)) * (lengths - sizes + 1)).astype(np.int64)
    held = Spans(spans.document, begin, begin + sizes).take(sizes > 0)
    before, after = Spans(spans.document, spans.start, begin), Spans(spans.document, begin + sizes, spans.stop)
    both = Spans(*(np.stack(pair, axis=1).reshape(-1) for pair in zip(before, after, strict=True)))
    return both.take(both.stop > both.start), held


def build_corpus(
    paths: Sequence[str | os.PathLike[str]], tokenizer: PreTrainedTokenizerFast, *,
    cache_dir: str | os.PathLike[str], columns: Iterable[str] = (), cleaning: CleaningOptions | None = None,
    text_column: str | None = None, pair_column: str | None = None, sources: Mapping[str, Source] | None = None,
    on_bad_row: OnBadRow = "skip", progress: bool = False, segmenter: Segmenter | None = None,
) -> Corpus:
    """Tokenise files into a corpus, or open the one made before from the same files, options and tokenizer.

    Files count as the same by path, size and time of change. Memory stays flat: text is read, cleaned and encoded
    (in the threads of ``tokenizers``) a megabyte at a time. A damaged cached file is made again, with a warning.

    Args:
        paths: files, folders, globs and archives.
        tokenizer: encodes the text, without special tokens; "[MASK]" written in a text stays text.
        cache_dir: where corpora are kept.
        columns: boundary columns to compute, of ``COLUMNS``.
        cleaning: None takes the defaults.
        text_column: None takes "text", or the only column (the first of two, of pairs).
        pair_column: the second text's, where ``columns`` has "second_starts"; None takes "text_pair", or the second of
            two columns.
        sources: suffix -> reader; None takes the built-ins.
        on_bad_row: "skip" counts and names rows that cannot be used, "raise" stops at the first.
        progress: show a bar.
        segmenter: where words begin in text without spaces, for ``word_starts``; None is every character.

    Raises:
        DataError: a file cannot be read, a column is missing, or no text is left (with the reasons' counts).
        ConfigError: an unknown column is asked for.
    """
    columns = tuple(sorted(set(columns)))
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown:
        raise ConfigError(f"no corpus has the column {unknown[0]!r}; there are: {', '.join(COLUMNS)}")
    cleaning = CleaningOptions() if cleaning is None else cleaning
    sources = builtin_sources() if sources is None else sources
    segmenter = Characters() if segmenter is None else segmenter
    files = expand_paths(paths, tuple(sources))
    pairs = SECOND_STARTS in columns
    names = [text_column, pair_column] if pairs else text_column
    words = segmenter.key if "word_starts" in columns else ""
    key = _cache_key(files, sources, tokenizer, columns, cleaning, names, words)
    path = Path(cache_dir) / f"corpus-{key}.arrow"
    remove_abandoned(path.parent)
    if path.exists():
        try:
            return Corpus.open(path, tokenizer)
        except DataError as error:
            _log.warning("%s It is made again.", error.message)
    read, cleaner = ReadSummary(), Cleaner(cleaning)
    records = read_records(files, sources, summary=read, on_bad_row=on_bad_row)
    cleaned: Iterable[str | tuple[str, str]]
    if pairs:
        both = text_pairs(records, text_column, pair_column, summary=read, on_bad_row=on_bad_row)
        cleaned = (pair for first, second in both if (pair := cleaner.clean_pair(first, second)) is not None)
    else:
        texts = documents(records, text_column, summary=read, on_bad_row=on_bad_row)
        cleaned = (text for raw, _ in texts if (text := cleaner.clean(raw)) is not None)
    _write_corpus(path, _watched(cleaned, files, progress), tokenizer, columns, read, cleaner, segmenter)
    read.warn()
    return Corpus.open(path, tokenizer)


def _write_corpus(
    path: Path, texts: Iterable[str | tuple[str, str]], tokenizer: PreTrainedTokenizerFast, columns: tuple[str, ...],
    read: ReadSummary, cleaner: Cleaner, segmenter: Segmenter,
) -> None:
    try:
        with CorpusWriter(path, len(tokenizer), columns) as writer:
            empty = encode_documents(texts, tokenizer, columns, writer, segmenter)
            counts = {"read": read.as_dict(), "cleaning": cleaner.summary.as_dict(), "without_tokens": empty}
            if writer.num_documents == 0:
                raise DataError(
                    f"no text is left: {read.describe()}; {cleaner.summary.describe()}; "
                    f"{empty} documents without a token",
                    hint="Check data.train, data.text, data.min_chars and data.max_chars.",
                )
            writer.commit(tokenizer_hash(tokenizer), counts)
    except OSError as error:
        raise DataError(
            f"corpus {str(path)!r}: cannot be written: {error.strerror or error}", hint="Choose another data.cache_dir."
        ) from error


def _cache_key(
    files: Sequence[str], sources: Mapping[str, Source], tokenizer: PreTrainedTokenizerFast, columns: tuple[str, ...],
    cleaning: CleaningOptions, text_column: str | list[str | None] | None, words: str,
) -> str:
    stamps = []
    for file in files:
        for status in map(os.stat, physical_files(file)):
            stamps.append([os.path.abspath(file), status.st_size, status.st_mtime_ns])
    readers = {suffix: [type(s).__qualname__, repr(getattr(s, "options", None))] for suffix, s in sources.items()}
    parts = [VERSION, stamps, readers, tokenizer_hash(tokenizer), columns, asdict(cleaning), text_column, words]
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=12).hexdigest()


def _watched(
    texts: Iterable[str | tuple[str, str]], files: Sequence[str], progress: bool
) -> Iterator[str | tuple[str, str]]:
    """The texts, with a bar of their share of the files' bytes."""
    if not progress:
        yield from texts
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn("tokenising"), BarColumn(), DownloadColumn(), TimeRemainingColumn()) as bar:
        total = _total_bytes(files)
        task = bar.add_task("tokenising", total=total)
        done = 0
        for text in texts:
            yield text
            done += len(("".join(text)).encode("utf-8", "replace"))
            bar.update(task, completed=done if total is None else min(done, total))
        # Cleaning drops a little; the files are read to their end all the same.
        bar.update(task, total=total or done, completed=total or done)


def _total_bytes(files: Sequence[str]) -> int | None:
    """Bytes of text in the files; None where that cannot be known beforehand (gzip)."""
    total = 0
    archives: dict[str, dict[str, int]] = {}
    for file in files:
        path, is_member, member = file.partition(MEMBER)
        if file.endswith((".gz", ".parquet")):
            return None
        if is_member:
            if path not in archives:
                with zipfile.ZipFile(path) as archive:
                    archives[path] = {info.filename: info.file_size for info in archive.infolist()}
            total += archives[path][member]
        else:
            total += sum(map(os.path.getsize, physical_files(file)))
    return total
