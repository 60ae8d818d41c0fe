"""Tokenizers: trained ones are deterministic and load anywhere; published ones load as they are."""

import subprocess
import sys

import pytest
from transformers import CONFIG_MAPPING, AutoTokenizer

from tunecore.data.special_layout import SpecialLayout
from tunecore.data.tokenizer import (
    default_kind,
    load_tokenizer,
    roles,
    text_backend,
    tokenizer_hash,
    train_tokenizer,
)
from tunecore.errors import ConfigError, DataError

TEXTS = [f"The quick brown fox number {i} jumps over the lazy dog, caf\u00e9 {i * i}!" for i in range(60)]


@pytest.mark.parametrize(
    ("family", "cls", "mask"),
    [
        ("bert", "[CLS]", "[MASK]"), ("distilbert", "[CLS]", "[MASK]"), ("electra", "[CLS]", "[MASK]"),
        ("roberta", "<s>", "<mask>"), ("gpt2", None, None), ("albert", "[CLS]", "[MASK]"), ("ernie", "[CLS]", "[MASK]"),
        ("deberta-v2", "[CLS]", "[MASK]"), ("deberta", "<s>", "<mask>"), ("xlm-roberta", "<s>", "<mask>"),
        ("modernbert", "<s>", "<mask>"), ("llama", None, None), ("mistral", None, None),
        ("bart", "<s>", "<mask>"), ("t5", None, None),
    ],
)
def test_a_trained_tokenizer_loads_anywhere(tmp_path, family, cls, mask):
    tokenizer = train_tokenizer(TEXTS, vocab_size=400, family=family, max_length=32)
    tokenizer.save_pretrained(tmp_path)
    CONFIG_MAPPING[family]().save_pretrained(tmp_path)  # transformers looks there for the kind of tokenizer
    again = AutoTokenizer.from_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    text = "The lazy fox, cafe\u0301?"
    assert len(tokenizer) <= 400
    assert tokenizer(text, "a pair").input_ids == again(text, "a pair").input_ids == ours(text, "a pair").input_ids
    assert (again.cls_token, again.mask_token, again.model_max_length) == (cls, mask, 32)
    assert again.pad_token is not None and tokenizer_hash(again) == tokenizer_hash(tokenizer)
    assert roles(ours) == roles(tokenizer)


@pytest.mark.parametrize("family", ["bert", "roberta", "t5"])
def test_a_tokenizer_that_was_loaded_is_saved_in_the_bytes_it_was_loaded_from(tmp_path, family):
    train_tokenizer(TEXTS, vocab_size=300, family=family).save_pretrained(tmp_path / "one")
    load_tokenizer(tmp_path / "one").save_pretrained(tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        assert (tmp_path / "two" / path.name).read_bytes() == path.read_bytes(), path.name


def test_bpe_gives_the_very_text_back_and_wordpiece_lowercases_as_asked():
    bpe = train_tokenizer(TEXTS, vocab_size=400, family="gpt2")
    text = "The caf\u00e9\n\n\u4e2d  x"
    assert bpe.decode(bpe(text).input_ids) == text
    lower, cased = (train_tokenizer(TEXTS, vocab_size=400, lowercase=b) for b in (True, False))
    assert lower.tokenize("The") == ["the"] and cased.tokenize("The") == ["The"]
    assert train_tokenizer(TEXTS, vocab_size=400, kind="bpe").mask_token == "<mask>"


SCRIPT = """
from tunecore.data.tokenizer import tokenizer_hash, train_tokenizer
texts = [f"The quick brown fox number {i} jumps over the lazy dog, caf\\u00e9 {i * i}!" for i in range(60)]
for family in ("bert", "roberta", "t5"):
    print(tokenizer_hash(train_tokenizer(texts, vocab_size=200 if family == "t5" else 400, family=family)))
"""


def test_the_same_text_gives_the_same_vocabulary_in_another_process():
    there = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout.split()
    sizes = {"bert": 400, "roberta": 400, "t5": 200}
    assert there == [tokenizer_hash(train_tokenizer(TEXTS, vocab_size=n, family=f)) for f, n in sizes.items()]


def test_wordpiece_vocabulary_is_the_same_however_often_it_is_trained():
    vocabularies = [train_tokenizer(iter(TEXTS), vocab_size=300).get_vocab() for _ in range(3)]
    assert vocabularies[0] == vocabularies[1] == vocabularies[2]
    assert [t for t, i in sorted(vocabularies[0].items(), key=lambda x: x[1])[:5]] == [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]",
    ]


def test_training_needs_text_and_a_kind_that_fits():
    with pytest.raises(DataError, match="no text to train"):
        train_tokenizer([], vocab_size=300)
    with pytest.raises(ConfigError, match="gpt2 takes bpe"):
        train_tokenizer(TEXTS, vocab_size=300, kind="wordpiece", family="gpt2")
    for kind, family in (("wordpiece", "t5"), ("bpe", "t5"), ("unigram", "bert"), ("unigram", "bart")):
        with pytest.raises(ConfigError, match=f"kind {kind} does not fit {family}, which takes {default_kind(family)}"):
            train_tokenizer(TEXTS, vocab_size=300, kind=kind, family=family)
    families = ("bert", "electra", "roberta", "gpt2", "bart", "t5")
    assert [default_kind(f) for f in families] == ["wordpiece", "wordpiece", "bpe", "bpe", "bpe", "unigram"]


def test_a_t5_tokenizer_has_its_sentinels_last_and_never_reads_them_in_a_text(tmp_path):
    tokenizer = train_tokenizer([*TEXTS, "</s> <pad> <extra_id_0>" * 9], vocab_size=250, family="t5")
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, load_tokenizer(tmp_path)):
        layout = SpecialLayout.of(one)
        size = layout.vocab_size
        assert layout.sentinel_ids == tuple(range(size - 1, size - 101, -1)) and size == len(one) <= 250
        assert (layout.pad_id, layout.eos_id, one.unk_token_id) == (0, 1, 2)
        assert layout.single.before == () and layout.single.after == (1,) and not layout.has_segments
        special = {0, 1, *layout.sentinel_ids}
        text = "the </s> <pad> <extra_id_0> <extra_id_99> fox"
        ids = text_backend(one).encode(text, add_special_tokens=False).ids
        assert not special & set(ids) and one.decode(ids) == text
        assert one("a <extra_id_7>").input_ids[-2:] == [layout.sentinel_ids[7], 1]
    assert SpecialLayout.of(train_tokenizer(TEXTS, vocab_size=300)).sentinel_ids == ()


def test_a_small_t5_vocabulary_leaves_rare_characters_unknown():
    with pytest.raises(ConfigError, match="vocab_size is 103"):
        train_tokenizer(TEXTS, vocab_size=103, family="t5")
    size = 103 + 2 * len(set("".join(TEXTS)))
    tokenizer = train_tokenizer([*TEXTS, "rare \u4e2d"], vocab_size=size, family="t5")
    assert len(tokenizer) <= size
    ids = tokenizer("the \u4e2d fox", add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id in ids and ids.count(tokenizer.unk_token_id) == 1


def test_special_tokens_written_in_a_text_stay_text():
    tokenizer = train_tokenizer(TEXTS, vocab_size=400)
    backend = text_backend(tokenizer)
    assert tokenizer.mask_token_id in tokenizer("the [MASK]").input_ids
    assert tokenizer.mask_token_id not in backend.encode("the [MASK]", add_special_tokens=False).ids
    assert tokenizer.mask_token_id in tokenizer("the [MASK]").input_ids  # the original is untouched


def test_the_hash_ignores_the_last_calls_padding_and_sees_the_vocabulary():
    tokenizer = train_tokenizer(TEXTS, vocab_size=400)
    before = tokenizer_hash(tokenizer)
    tokenizer("the fox", truncation=True, max_length=4, padding="max_length")
    assert tokenizer_hash(tokenizer) == before
    tokenizer.add_tokens(["newword"])
    assert tokenizer_hash(tokenizer) != before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", "cannot be loaded"),
        ("tokenizer.json", '{"model": {}}', "cannot be loaded"),
        ("encoder.json", "{}", "vocabulary .* and merges"),
        ("merges.txt", "#version", "vocabulary .* and merges"),
        ("spiece.model", "garbage", "cannot be loaded"),
    ],
)
def test_what_is_no_tokenizer_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rf"{name}.*{message}|{message}"):
        load_tokenizer(tmp_path / name)


def test_missing_and_empty_paths_are_named(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(DataError, match=r"holds no tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_published_tokenizers(shared_data, tmp_path):
    folder = shared_data / "tokenizers"
    expected = {
        "bert_base_uncased_vocab.txt": [101, 7592, 2088, 102], "bert_base_cased_vocab.txt": [101, 8667, 1291, 102],
        "gpt2_bpe_encoder.json": [15496, 2159], "gpt2_bpe_vocab.bpe": [15496, 2159],
    }
    for name, ids in expected.items():
        assert load_tokenizer(folder / name)("Hello World").input_ids == ids
    bert = load_tokenizer(folder / "bert_base_uncased_vocab.txt")
    bert.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert roles(load_tokenizer(tmp_path)) == roles(bert)
    assert load_tokenizer(tmp_path)("Hello").input_ids == bert("Hello").input_ids


def test_t5_sentencepiece(shared_data):
    pytest.importorskip("sentencepiece")
    tokenizer = load_tokenizer(shared_data / "tokenizers" / "t5_tokenizer_base.model")
    assert tokenizer("Hello World").input_ids == [8774, 1150, 1]
