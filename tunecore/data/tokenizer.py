"""Tokenizers: train one on the run's text, or load one; always a fast tokenizer of transformers.

A trained tokenizer is of the family's own class, so that ``AutoTokenizer`` loads the saved folder as any other.
WordPiece: Schuster, Nakajima 2012, as in BERT. Byte-level BPE: Radford et al. 2019 (GPT-2). Unigram: Kudo 2018
(arXiv:1804.10959), as in T5.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Literal, NamedTuple

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.bert.tokenization_bert import BertTokenizer
from transformers.models.distilbert.tokenization_distilbert import DistilBertTokenizer
from transformers.models.gpt2.tokenization_gpt2 import GPT2Tokenizer
from transformers.models.roberta.tokenization_roberta import RobertaTokenizer
from transformers.models.t5.tokenization_t5 import T5Tokenizer

from tunecore.data.sentences import split_long
from tunecore.errors import ConfigError, DataError

Kind = Literal["wordpiece", "bpe", "unigram"]

_WORDPIECE_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ROBERTA_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_GPT2_SPECIALS = ("<|endoftext|>",)
_LLAMA_SPECIALS = ("<s>", "</s>", "<pad>")
_T5_SPECIALS = ("<pad>", "</s>", "<unk>")
_SENTINELS = tuple(f"<extra_id_{i}>" for i in reversed(range(100)))
"""T5's, in the order of their ids: the last id is that of <extra_id_0>."""
_CAUSAL_FAMILIES = ("gpt2", "llama", "mistral")
_BPE_FAMILIES = (*_CAUSAL_FAMILIES, "roberta", "xlm-roberta", "modernbert", "deberta", "bart")
_UNIGRAM_FAMILIES = ("t5",)
_LARGEST_ALPHABET = 1000
"""Most characters a WordPiece or unigram vocabulary spells out; rarer ones are unknown (BERT's trainer has the same
limit). Text with more of them (Chinese) has as many as cover ``_COVERED`` of it, up to half of the vocabulary."""
_COVERED = 0.9995
_LETTERS_WITH_MARKS = re.compile("[\u0900-\u109f\u1780-\u17ff\u3041-\u30ff\uac00-\ud7a3]")
"""Letters of scripts whose vowels or consonants are marks, or come apart where accents are stripped: Devanagari to
Burmese (Thai among them), Khmer, kana, Hangul."""
_MARKED_SHARE = 0.01
"""Text with at least this share of such letters keeps its accents by default."""
_MIN_FREQUENCY = 2
_SCORE_DIGITS = 6
"""Digits kept of a piece's log probability: beyond them the trainer's sums depend on the order of a hash table."""
_PIECE_CHARS = 10_000
"""Longest text handed to the trainer at once: its memory grows with it."""


class Roles(NamedTuple):
    """Ids of the special tokens by role; None where the tokenizer has none."""

    cls_id: int | None
    sep_id: int | None
    mask_id: int | None
    pad_id: int | None
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None


def roles(tokenizer: PreTrainedTokenizerFast) -> Roles:
    """The special tokens of a tokenizer by role."""
    return Roles(
        tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id, tokenizer.pad_token_id,
        tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id,
    )


def default_kind(family: str) -> Kind:
    """WordPiece for encoders of BERT's kin, byte-level BPE for decoders, BART and RoBERTa's kin, unigram for T5."""
    if family in _UNIGRAM_FAMILIES:
        return "unigram"
    return "bpe" if family in _BPE_FAMILIES else "wordpiece"


def train_tokenizer(
    texts: Iterable[str], *, vocab_size: int, kind: Kind | None = None, family: str = "bert", lowercase: bool = True,
    strip_accents: bool | None = None, max_length: int | None = None, progress: bool = False,
) -> PreTrainedTokenizerFast:
    """Train a tokenizer; the same texts give the same vocabulary.

    Args:
        texts: read once into a temporary file, in short pieces, so memory does not grow with them.
        vocab_size: entries wanted, special tokens included; a small text gives fewer.
        kind: "wordpiece", "bpe" or "unigram"; None is what the family uses.
        family: model_type it is for; decides the special tokens and the class.
        lowercase: lowercase and strip accents (wordpiece only).
        strip_accents: whether accents are stripped (wordpiece only); None is where ``lowercase`` is set, unless the
            text is in a script whose letters would be lost with their marks (kana, Hangul, Devanagari, Thai ...).
        max_length: kept as ``model_max_length``.
        progress: show a bar (tokens merged).

    Raises:
        DataError: there is no text.
        ConfigError: the kind does not fit the family.
    """
    kind = default_kind(family) if kind is None else kind
    if kind == "wordpiece" and family in _CAUSAL_FAMILIES:
        raise ConfigError(f"tokenizer.kind wordpiece cannot be decoded to the very text; {family} takes bpe")
    if (kind == "unigram") != (family in _UNIGRAM_FAMILIES):
        raise ConfigError(f"tokenizer.kind {kind} does not fit {family}, which takes {default_kind(family)}")
    with TemporaryFile("w+", encoding="utf-8") as file:
        pieces = _Pieces(texts, file)
        if not pieces.counts:
            raise DataError("there is no text to train a tokenizer on", hint="Check data.train and the cleaning rules.")
        if kind == "wordpiece":
            if strip_accents is None:
                strip_accents = lowercase and not pieces.are_of_marked_letters()
            trained = _wordpiece(pieces, vocab_size, family, lowercase, strip_accents, progress)
        elif kind == "unigram":
            trained = _unigram(pieces, vocab_size, progress)
        else:
            trained = _bpe(pieces, vocab_size, family, progress)
    if max_length is not None:
        trained.model_max_length = max_length
    return trained


class _Pieces:
    """The texts in short pieces, spooled to a file at the first pass so that they can be read again."""

    def __init__(self, texts: Iterable[str], file: IO[str]) -> None:
        self.file = file
        self.counts: Counter[str] = Counter()
        """How often each character occurs."""
        for text in texts:
            for piece in split_long(text, _PIECE_CHARS):
                self.counts.update(piece)
                file.write(json.dumps(piece) + "\n")

    def are_of_marked_letters(self) -> bool:
        """Whether stripping accents would cost the text letters."""
        marked = sum(count for character, count in self.counts.items() if _LETTERS_WITH_MARKS.match(character))
        return marked >= _MARKED_SHARE * sum(count for c, count in self.counts.items() if not c.isspace()) > 0

    def __iter__(self) -> Iterator[str]:
        self.file.seek(0)
        return map(json.loads, self.file)


def _wordpiece(
    pieces: _Pieces, vocab_size: int, family: str, lowercase: bool, strip_accents: bool, progress: bool
) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    characters, inner = _alphabet(pieces.counts, tokenizer, vocab_size)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, show_progress=progress, min_frequency=_MIN_FREQUENCY,
        initial_alphabet=characters, limit_alphabet=len(characters),
        # Left to itself the trainer numbers the inner characters in the order of a hash table that differs from run
        # to run, and ties between merges with them; named here, they have fixed numbers.
        special_tokens=[*_WORDPIECE_SPECIALS, *characters, *(f"##{c}" for c in inner)],
    )
    tokenizer.train_from_iterator(iter(pieces), trainer)
    made = DistilBertTokenizer if family == "distilbert" else BertTokenizer
    # Said only where it differs from what lowercasing implies, so that the usual tokenizer is saved as it always was.
    accents = {} if strip_accents == lowercase else {"strip_accents": strip_accents}
    return made(vocab=_by_id(tokenizer), do_lower_case=lowercase, **accents)


def _alphabet(counts: Counter[str], tokenizer: Tokenizer, vocab_size: int) -> tuple[list[str], list[str]]:
    """The most frequent characters after normalisation, sorted, and those of them that can stand inside a word."""
    normal: Counter[str] = Counter()
    for raw, count in counts.items():
        for character in tokenizer.normalizer.normalize_str(raw):
            if not character.isspace():
                normal[character] += count
    frequent = sorted(normal, key=lambda c: (-normal[c], c))
    covering = 1 + bisect_left(list(accumulate(normal[c] for c in frequent)), _COVERED * normal.total())
    characters = sorted(frequent[: max(_LARGEST_ALPHABET, min(covering, vocab_size // 2))])
    # The normaliser puts spaces around Chinese characters, so these never stand inside a word.
    parts = tokenizer.pre_tokenizer.pre_tokenize_str
    inner = [c for c in characters if len(parts(tokenizer.normalizer.normalize_str(f"a{c}a"))) == 1]
    return characters, inner


def _bpe(pieces: _Pieces, vocab_size: int, family: str, progress: bool) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    causal = family in _CAUSAL_FAMILIES
    specials = _GPT2_SPECIALS if family == "gpt2" else _LLAMA_SPECIALS if causal else _ROBERTA_SPECIALS
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=progress,
        min_frequency=_MIN_FREQUENCY,
    )
    tokenizer.train_from_iterator(iter(pieces), trainer)
    merges = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    if causal:
        # One token for all (GPT-2), or one for each (Llama), none of them for unknown text: bytes are always known.
        bos, eos, pad = specials[0], specials[1 % len(specials)], specials[-1]
        return GPT2Tokenizer(
            vocab=_by_id(tokenizer), merges=merges, bos_token=bos, eos_token=eos, pad_token=pad, unk_token=eos
        )
    return RobertaTokenizer(vocab=_by_id(tokenizer), merges=merges)


def _unigram(pieces: _Pieces, vocab_size: int, progress: bool) -> PreTrainedTokenizerFast:
    """T5's: specials first, pieces from the likeliest down, sentinels last."""
    own = len(_T5_SPECIALS) + len(_SENTINELS)
    if vocab_size <= own:
        raise ConfigError(f"tokenizer.vocab_size is {vocab_size}; {own} of them are T5's special tokens")
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = T5Tokenizer().backend_tokenizer.pre_tokenizer
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size - own, special_tokens=[], unk_token=None, show_progress=progress
    )
    # The trainer must spell out every character it meets; rarer ones become unknown, as in WordPiece.
    largest = min(_LARGEST_ALPHABET, (vocab_size - own) // 2)
    frequent = sorted(pieces.counts, key=lambda c: (-pieces.counts[c], c))
    rare = dict.fromkeys(map(ord, frequent[largest:]), " ")
    tokenizer.train_from_iterator((piece.translate(rare) for piece in pieces), trainer)
    found = json.loads(tokenizer.to_str())["model"]["vocab"]
    scored = sorted(((piece, round(score, _SCORE_DIGITS)) for piece, score in found), key=lambda p: (-p[1], p[0]))
    # So unlikely that "</s>" written in a text is spelt.
    unlikely = min((score for _, score in scored), default=0.0) - 100.0
    vocabulary = [*((name, unlikely) for name in _T5_SPECIALS), *scored]
    return T5Tokenizer(vocab=vocabulary, additional_special_tokens=list(_SENTINELS))


def _by_id(tokenizer: Tokenizer) -> dict[str, int]:
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return dict(sorted(vocabulary.items(), key=lambda item: item[1]))


def load_tokenizer(path: str | os.PathLike[str]) -> PreTrainedTokenizerFast:
    """Load a tokenizer without running any code that comes with it.

    Args:
        path: a folder (of transformers, or with the files below in it), a ``tokenizer.json``, a BERT ``vocab.txt``,
            a GPT-2 vocabulary ``.json`` or merges ``.bpe`` / ``merges.txt`` (the other is looked for beside it), or a
            sentencepiece ``.model`` of T5.

    Raises:
        DataError: the path is missing, or nothing there is a tokenizer.
        ConfigError: reading it needs a package that is not installed.
    """
    file = Path(path)
    if not file.exists():
        raise DataError(
            f"tokenizer {str(path)!r}: no such file or folder",
            hint="Name a folder, tokenizer.json, vocab.txt, GPT-2 .json + .bpe, or T5 .model; nothing is downloaded.",
        )
    try:
        tokenizer = _load(file)
    except ImportError as error:
        raise ConfigError(f"tokenizer {str(path)!r}: reading it needs a package that is missing: {error}") from error
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"tokenizer {str(path)!r}: cannot be loaded: {type(error).__name__}: {error}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            f"tokenizer {str(path)!r}: {type(tokenizer).__name__} has no fast version",
            hint="Save it as tokenizer.json first.",
        )
    if tokenizer.get_vocab().keys() <= set(tokenizer.all_special_tokens):
        raise DataError(
            f"tokenizer {str(path)!r}: knows no token but its special ones",
            hint="Its tokenizer.json or vocab.txt is missing: copy all files of the tokenizer.",
        )
    # How it was found is no part of it: saved with it, a resumed run's files would not be those of a first one.
    for key in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)
    return tokenizer


def _load(path: Path) -> PreTrainedTokenizerFast:
    if path.is_dir():
        return _load_folder(path)
    suffix = path.suffix
    if suffix == ".model":
        return T5Tokenizer.from_pretrained(str(path))
    if suffix == ".txt" and "merges" not in path.name:
        return _load_vocabulary(path)
    if suffix == ".json" and isinstance(json.loads(path.read_text(encoding="utf-8")).get("model"), dict):
        return _load_json(path)
    return _load_gpt2(path)


def _load_folder(folder: Path) -> PreTrainedTokenizerFast:
    if any((folder / name).exists() for name in ("tokenizer_config.json", "config.json")):
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    for pattern in ("tokenizer.json", "vocab.txt", "*.bpe", "merges.txt", "*.model"):
        found = sorted(folder.glob(pattern))
        if found:
            return _load(found[0])
    raise DataError(f"tokenizer {str(folder)!r}: the folder holds no tokenizer.json, vocab.txt, .bpe or .model")


def _load_vocabulary(path: Path) -> PreTrainedTokenizerFast:
    """BERT's vocab.txt; cased where it has a capital letter outside its special tokens."""
    entries = path.read_text(encoding="utf-8").split("\n")
    cased = any(entry != entry.lower() and not entry.startswith("[") for entry in entries)
    return BertTokenizer(vocab=str(path), do_lower_case=not cased)


_ROLE_NAMES = {
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "mask_token": ("[MASK]", "<mask>"),
    "pad_token": ("[PAD]", "<pad>", "<|endoftext|>"),
    "unk_token": ("[UNK]", "<unk>", "<|endoftext|>"),
    "bos_token": ("<s>", "<|endoftext|>"),
    "eos_token": ("</s>", "<|endoftext|>"),
}


def _load_json(path: Path) -> PreTrainedTokenizerFast:
    """A bare tokenizer.json; the roles of its special tokens are read off their usual names."""
    backend = Tokenizer.from_file(str(path))
    named: dict[str, str] = {}
    for role, names in _ROLE_NAMES.items():
        known = [name for name in names if backend.token_to_id(name) is not None]
        if known:
            named[role] = known[0]
    if backend.num_special_tokens_to_add(False) == 0:  # a decoder's: nothing opens or closes a sequence
        named.pop("cls_token", None)
        named.pop("sep_token", None)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named)


def _load_gpt2(path: Path) -> PreTrainedTokenizerFast:
    beside = sorted(path.parent.iterdir())
    if path.suffix == ".json":
        vocabulary, merges = path, _beside(path, [p for p in beside if p.suffix == ".bpe" or p.name == "merges.txt"])
    else:
        vocabulary, merges = _beside(path, [p for p in beside if p.name.endswith(("encoder.json", "vocab.json"))]), path
    return GPT2Tokenizer(vocab=str(vocabulary), merges=str(merges), pad_token=_GPT2_SPECIALS[0])


def _beside(path: Path, candidates: list[Path]) -> Path:
    if len(candidates) != 1:
        found = ", ".join(p.name for p in candidates) or "none"
        raise DataError(f"tokenizer {str(path)!r}: needs vocabulary (.json) and merges (.bpe) together; found {found}")
    return candidates[0]


def text_backend(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A copy of the Rust tokenizer for plain text: never cut, never padded, and "[MASK]" written in a text is text."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """BLAKE2b of all that decides ids: vocabulary, merges, normaliser, template, special tokens."""
    state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    # These two are the marks of the last call, not of the tokenizer.
    state.pop("truncation", None)
    state.pop("padding", None)
    text = json.dumps([state, roles(tokenizer)], sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
