"""The columns of a corpus that say where phrases are: computed once, kept in a file beside the corpus.

Columns: ``phrase_starts`` and ``phrase_members``, ``entity_starts`` and ``entity_members`` (bool, a token each).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from rich.progress import Progress
from transformers import PreTrainedTokenizerFast

from tunecore.data.clean import CleaningOptions
from tunecore.data.corpus import Corpus
from tunecore.data.corpus_file import CorpusFile, SideColumns
from tunecore.data.lexicon import read_lexicon
from tunecore.data.phrases import BLOCK, Bits, Block, Collocations, Lexicon, Marks, PhraseOptions
from tunecore.data.spool_folder import spooled
from tunecore.data.tokenizer import text_backend
from tunecore.errors import ConfigError, DataError

COLUMNS = ("phrase_starts", "phrase_members", "entity_starts", "entity_members")
_VERSION = 1
_log = logging.getLogger(__name__)


def phrase_options(objectives: Iterable[object]) -> list[PhraseOptions]:
    """What the objectives that ask for phrase columns (by an attribute ``phrase_options``) want of them.

    Raises:
        ConfigError: two of them want different phrases; a corpus has one set.
    """
    wanted = [options for one in objectives if (options := getattr(one, "phrase_options", None)) is not None]
    if any(options != wanted[0] for options in wanted):
        raise ConfigError("two objectives want different phrases of one corpus", hint="Give them the same lists.")
    return wanted[:1]


def with_phrases(
    corpus: Corpus, tokenizer: PreTrainedTokenizerFast, options: PhraseOptions, *,
    cleaning: CleaningOptions | None = None, progress: bool = False,
) -> Corpus:
    """The corpus with the columns of its phrases; made now, or read from the file made before.

    Statistics are of the whole file, whatever part of it the corpus is.

    Args:
        corpus: tokenised text with ``word_starts``.
        tokenizer: the one it was made with.
        options: where phrases come from.
        cleaning: what the text was brought to; the lists are brought to the same form.
        progress: show a bar.

    Raises:
        DataError: a list cannot be read, or the corpus has no ``word_starts``.
    """
    file = corpus.file
    if "word_starts" not in file.columns:
        raise DataError(
            f"corpus {file.path!r}: phrases are of whole words, and the corpus was made without word_starts",
            hint="Name it in the objective's columns.",
        )
    lists = {
        name: [] if path is None else read_lexicon(path, f"phrase_masked_lm.{name}", cleaning)
        for name, path in (("phrases", options.phrases), ("entities", options.entities))
    }
    parts = [_VERSION, file.header["digest"], lists, asdict(options) | {"phrases": None, "entities": None}]
    content = json.dumps(parts, sort_keys=True).encode("utf-8", "surrogatepass")
    key = hashlib.blake2b(content, digest_size=12).hexdigest()
    side = SideColumns(str(Path(file.path).with_suffix(f".phrases-{key}.npy")), COLUMNS, key)
    if not os.path.exists(side.path):
        _write(side, file, _finders(file, tokenizer, options, lists, progress), progress)
    try:
        whole = CorpusFile(file.path, side=side)
    except DataError as error:
        _log.warning("%s It is made again.", error.message)
        _write(side, file, _finders(file, tokenizer, options, lists, progress), progress)
        whole = CorpusFile(file.path, side=side)
    return corpus.with_file(whole)


Finder = Callable[[Block], Marks]


def _finders(
    file: CorpusFile, tokenizer: PreTrainedTokenizerFast, options: PhraseOptions, lists: dict[str, list[str]],
    progress: bool,
) -> tuple[Finder, Finder]:
    """What finds the phrases, and what finds the entities, of a block."""
    phrases, entities = (Lexicon(token_entries(lists[name], tokenizer, name)) for name in ("phrases", "entities"))
    if not options.collocations:
        return phrases.find, entities.find
    blocks = partial(_blocks, file, "counting neighbours" if progress else None)
    found = Collocations(blocks, word_tokens(tokenizer), options)
    return lambda block: _both(phrases.find(block), found.find(block)), entities.find


def _both(first: Marks, second: Marks) -> Marks:
    """The phrases of ``first``, and those of ``second`` that touch none of them."""
    number = np.cumsum(second.starts)
    touched = np.zeros(int(number[-1]) + 1 if len(number) else 1, dtype=bool)
    touched[number[second.members & first.members]] = True
    kept = second.members & ~touched[number]
    return Marks(first.starts | (second.starts & kept), first.members | kept)


def token_entries(entries: list[str], tokenizer: PreTrainedTokenizerFast, name: str) -> list[list[int]]:
    """Token ids of each entry, as it stands at the beginning of a text and after a space; unknown ones are left out."""
    backend = text_backend(tokenizer)
    texts = [text for entry in entries for text in (entry, f" {entry}")]
    ids = [encoding.ids for encoding in backend.encode_batch(texts, add_special_tokens=False)]
    unknown = tokenizer.unk_token_id
    # Where the unknown token is also the one that ends texts (GPT-2), none of the ids is of it.
    known = [i for i in ids if i and unknown not in i]
    lost = sum(not i or unknown in i for i in ids[::2])
    if lost:
        _log.warning("%d of %d %s hold characters the tokenizer does not know; they are never found", lost,
                     len(entries), name)  # fmt: skip
    return known


def word_tokens(tokenizer: PreTrainedTokenizerFast) -> Bits:
    """Which ids, bool [V], are of words: with a letter or digit, or a part of a character."""
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    texts = [tokenizer.convert_tokens_to_string([name]) for name in names]
    found = np.array([any(c.isalnum() or c == "\ufffd" for c in text) for text in texts], dtype=bool)
    found[[i for i in tokenizer.all_special_ids if i < len(found)]] = False
    return found


def _blocks(file: CorpusFile, label: str | None) -> Iterator[Block]:
    count = len(file.ids)
    with Progress(disable=label is None) as bar:
        task = bar.add_task(label or "", total=count)
        for lo in range(0, count, BLOCK):
            hi = min(lo + BLOCK, count)
            opens = np.zeros(hi - lo, dtype=bool)
            begin, end = np.searchsorted(file.offsets, (lo, hi))
            opens[file.offsets[begin:end] - lo] = True
            words = file.bits("word_starts", lo, hi) | opens
            words[0] = True
            yield Block(file.ids[lo:hi].astype(np.int64), words, opens)
            bar.update(task, completed=hi)


def _write(side: SideColumns, file: CorpusFile, finders: tuple[Finder, Finder], progress: bool) -> None:
    """Find all phrases and write the columns as packed bits, uint8 [columns, bytes]."""
    shape = (len(side.names), (len(file.ids) + 7) // 8)
    try:
        with spooled(Path(side.path)) as made:
            bits = np.lib.format.open_memmap(made, mode="w+", dtype=np.uint8, shape=shape)
            at = 0
            for block in _blocks(file, "finding phrases" if progress else None):
                marks = [column for find in finders for column in find(block)]
                packed = np.packbits(np.stack(marks), axis=1, bitorder="little")
                bits[:, at : at + packed.shape[1]] = packed
                at += packed.shape[1]
            bits.flush()
            del bits
    except OSError as error:
        raise DataError(
            f"corpus {file.path!r}: its phrases cannot be written: {error.strerror or error}",
            hint="Choose another data.cache_dir.",
        ) from error
