"""Text in other scripts goes the whole way English goes: cleaned, cut into sentences, tokenised, parted into words."""

# ruff: noqa: RUF001
from __future__ import annotations

import importlib
import json
import re
import unicodedata
from itertools import pairwise

import numpy as np
import pytest

from tunecore.config import DataConfig
from tunecore.data.clean import Cleaner
from tunecore.data.corpus import build_corpus
from tunecore.data.lexicon import read_lexicon
from tunecore.data.segmenters import Characters, LongestMatch, TokenizersOwn, make_segmenter
from tunecore.data.sentences import split_long, split_sentences
from tunecore.data.streams import PhiloxStream
from tunecore.data.tokenizer import load_tokenizer, train_tokenizer
from tunecore.errors import ConfigError, DataError
from tunecore.objectives.masked_lm import MaskedLM, MaskedLMOptions
from tunecore.types import Progress

START = Progress(0, 1, 0.0, 1.0)
# Sentences of public knowledge; white space between two of them belongs to the second.
CHINESE = [
    "北京是中华人民共和国的首都。", "长江是中国最长的河流,全长约六千三百公里。", "你知道长城有多长吗？",
    "长城始建于春秋战国时期！", "老师说:“水在一百度沸腾。”", "北京大学在北京。", "中国的首都是北京。",
]
JAPANESE = [
    "東京は日本の首都です。", "富士山は日本で一番高い山である。", "「がっこうへ行きますか？」",
    "コンピュータで計算する。", "人々はプログラムを書きます！", "ガラスと紙。",
]
THAI = ["กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย", " แม่น้ำเจ้าพระยาไหลผ่านกรุงเทพ"]
KOREAN = ["서울은 대한민국의 수도이다.", " 한강은 서울을 가로질러 흐른다.", " 물은 백 도에서 끓는가?", " 그렇다!"]
ARABIC = [
    "القاهرة هي عاصمة مصر.", " هل نهر النيل أطول أنهار العالم؟", " يغلي الماء عند مئة درجة!",
    " تقع مكة في غرب الجزيرة العربية.",
]
PERSIAN = ["تهران پایتخت ایران است.", " می‌خواهم کتاب‌ها را بخوانم.", " آیا باران می‌بارد؟", " بله!"]
URDU = ["اسلام آباد پاکستان کا دارالحکومت ہے۔", " کیا یہ شہر بڑا ہے؟", " جی ہاں۔"]
HEBREW = ["ירושלים היא בירת ישראל.", " האם ים המלח הוא המקום הנמוך בעולם?", " כן!", " מים רותחים במאה מעלות."]
HINDI = ["नई दिल्ली भारत की राजधानी है।", " गंगा एक पवित्र नदी है।", " क्या पानी सौ डिग्री पर उबलता है?", " हाँ!"]
RUSSIAN = ["Москва — столица России.", " Волга впадает в Каспийское море!", " Какая река длиннее?", " Лена."]
MIXED = [
    "BERT在2018年由Google发布。", "它有1.1亿个参数!", " The paper is called “BERT: Pre-training”.", " שלום, world.",
    " هل هذا PDF؟", " Да.",
]
ALL = {
    "chinese": CHINESE, "japanese": JAPANESE, "korean": KOREAN, "arabic": ARABIC, "persian": PERSIAN, "urdu": URDU,
    "hebrew": HEBREW, "hindi": HINDI, "russian": RUSSIAN,
}  # fmt: skip
LEXICON = ["北京", "大学", "北京大学", "首都", "长江", "长城", "中国", "中华人民共和国", "老师", "河流"]


@pytest.mark.parametrize("language", ALL)
def test_sentences_of_every_language(language):
    sentences = ALL[language]
    assert split_sentences("".join(sentences)) == sentences


def test_sentences_of_mixed_text_and_nested_quotes():
    assert split_sentences("".join(MIXED)) == MIXED
    quoted = ["他问：“你好吗？！”", "《红楼梦》很长。】", "第3.5节。"]
    assert split_sentences("".join(quoted)) == quoted


def test_direction_marks_go_joiners_and_letters_stay():
    marks = "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    cleaner = Cleaner()
    assert cleaner.clean("\u202bשלום\u202c \u2067عالم\u2069" + marks) == "שלום عالم"
    assert cleaner.summary.control_characters == 4 + len(marks)
    persian = "".join(PERSIAN)
    assert "\u200c" in persian and cleaner.clean(persian) == persian


def test_normal_form_joins_what_belongs_together():
    decomposed = unicodedata.normalize("NFD", "がっこう 서울 é آ")
    assert decomposed != "がっこう 서울 é آ" and Cleaner().clean(decomposed) == "がっこう 서울 é آ"
    assert Cleaner().clean("か\u200f\u3099") == "が"  # also where a mark stood between


def test_long_text_without_spaces_is_cut_after_a_full_stop():
    text = "水在一百度沸腾。" * 40
    pieces = split_long(text, 100)
    assert "".join(pieces) == text and all(piece.endswith("。") for piece in pieces)


# Tokenizers


def letters(text):
    return [c for c in text.lower() if unicodedata.category(c)[0] in "LMN"]


@pytest.mark.parametrize("language", [*ALL, "thai"])
def test_wordpiece_keeps_every_letter(language):
    """Lowercasing is on, as by default; no letter comes apart, is lost or is unknown."""
    sentences = THAI if language == "thai" else ALL[language]
    tokenizer = train_tokenizer(sentences, vocab_size=400)
    text = "".join(sentences)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids
    pieces = "".join(piece.removeprefix("##") for piece in tokenizer.convert_ids_to_tokens(ids))
    expected = letters(text)
    if language in ("arabic", "persian", "urdu", "russian"):  # accents go, as in BERT: Й is И, آ is ا
        expected = [c for c in unicodedata.normalize("NFD", "".join(expected)) if unicodedata.category(c) != "Mn"]
    assert letters(pieces) == expected


@pytest.mark.parametrize("sentences", [CHINESE, JAPANESE])
def test_han_characters_are_tokens_of_their_own_as_in_bert(sentences):
    tokenizer = train_tokenizer(sentences, vocab_size=400)
    pieces = tokenizer.tokenize("".join(sentences))
    assert all(len(p) == 1 for p in pieces if re.search("[\u4e00-\u9fff]", p))


def test_accents_are_stripped_as_asked_and_the_choice_is_saved(tmp_path):
    spanish = ["El niño comió en el café."] * 3
    assert "niño" not in "".join(train_tokenizer(spanish, vocab_size=300).tokenize("niño"))
    for accents in (None, False):
        texts = JAPANESE if accents is None else spanish
        tokenizer = train_tokenizer(texts, vocab_size=400, strip_accents=accents)
        tokenizer.save_pretrained(tmp_path / str(accents))
        again = load_tokenizer(tmp_path / str(accents))
        sample = "がっこう" if accents is None else "niño"
        for one in (tokenizer, again):
            assert "".join(p.removeprefix("##") for p in one.tokenize(sample)) == sample
    forced = train_tokenizer(JAPANESE, vocab_size=400, strip_accents=True)
    assert "か" in "".join(forced.tokenize("が"))


@pytest.mark.parametrize("family", ["gpt2", "roberta"])
def test_byte_level_bpe_gives_every_text_back(family):
    texts = [sentence for sentences in [*ALL.values(), THAI] for sentence in sentences]
    tokenizer = train_tokenizer(texts, vocab_size=600, family=family)
    for text in texts:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_a_text_of_many_characters_has_them_in_its_vocabulary():
    characters = [chr(0x4E00 + i) for i in range(3000)]
    texts = ["".join(characters[i : i + 50]) + "。" for i in range(0, 3000, 50)] * 2
    large = train_tokenizer(texts, vocab_size=8192)
    known = [len(set(t("".join(characters), add_special_tokens=False).input_ids) - {t.unk_token_id}) for t in (
        large, train_tokenizer(texts, vocab_size=4000), train_tokenizer(texts, vocab_size=1500)
    )]  # fmt: skip
    # 99.95 % of the text; half of the vocabulary; a thousand at least, one of them the full stop.
    assert known == [2999, 1999, 999]


# Words


def words_of(text, segmenter):
    edges = sorted({0, *(edge for word in segmenter.words(text) for edge in word), len(text)})
    return [text[a:b] for a, b in pairwise(edges)]


def test_characters_are_words_with_their_marks_and_other_scripts_stay_whole():
    assert words_of("我们用BERT吗", Characters()) == ["我", "们", "用", "BERT", "吗"]
    assert words_of("人々はコーヒー", Characters()) == ["人々", "は", "コー", "ヒー"]
    assert words_of("ที่นี่", Characters()) == ["ที่", "นี่"]
    assert Characters().words("plain words, קצת عربي и русский") == []
    assert TokenizersOwn().words("北京") == []


def test_a_lexicon_takes_the_longest_match():
    segmenter = LongestMatch(LEXICON)
    assert words_of("北京大学在北京", segmenter) == ["北京大学", "在", "北京"]
    assert words_of("中国的首都", segmenter) == ["中国", "的", "首都"]
    assert words_of("Beijing北京,is", segmenter) == ["Beijing", "北京", ",is"]


def test_the_key_of_a_lexicon_follows_its_words():
    assert LongestMatch(LEXICON).key == LongestMatch(LEXICON[::-1]).key != LongestMatch(LEXICON[1:]).key


@pytest.fixture
def chinese_corpus(tmp_path, write_documents):
    def make(family="bert", **options):
        tokenizer = train_tokenizer(CHINESE, vocab_size=400, family=family)
        path = write_documents(tmp_path / "zh.jsonl", ["".join(CHINESE)] * 3)
        corpus = build_corpus([path], tokenizer, cache_dir=tmp_path, columns=["word_starts"], **options)
        return corpus, tokenizer

    return make


def column_words(corpus, tokenizer):
    """The words of the first document, as the column says, spelt out."""
    stop = int(corpus.file.offsets[1])
    ids, starts = corpus.file.ids[:stop].astype(int), corpus.file.bits("word_starts", 0, stop)
    groups = np.split(ids, np.flatnonzero(starts)[1:])
    return [tokenizer.decode(group.tolist()).replace(" ", "").replace("##", "") for group in groups]


def test_the_column_follows_the_segmenter(chinese_corpus):
    corpus, tokenizer = chinese_corpus()
    assert column_words(corpus, tokenizer)[:7] == list("北京是中华人民")
    corpus, tokenizer = chinese_corpus(segmenter=make_segmenter("lexicon", LEXICON))
    words = column_words(corpus, tokenizer)
    assert words[:6] == ["北京", "是", "中华人民共和国", "的", "首都", "。"]
    assert "北京大学" in words and "长江" in words
    assert "".join(words) == "".join(CHINESE)


def test_byte_level_pieces_begin_words_at_characters(chinese_corpus):
    """The tokenizer itself takes a stretch of Chinese for one word; characters and a lexicon part it."""
    corpus, tokenizer = chinese_corpus("roberta", segmenter=make_segmenter("tokenizer"))
    assert column_words(corpus, tokenizer)[0] == "北京是中华人民共和国的首都"
    corpus, tokenizer = chinese_corpus("roberta", segmenter=make_segmenter("lexicon", LEXICON))
    text, words = "".join(CHINESE), column_words(corpus, tokenizer)
    assert "".join(words) == text and "\ufffd" not in "".join(words)
    # A piece that holds more than one word keeps them together; every other edge is one of the lexicon's.
    ends, edges = 0, {edge for word in make_segmenter("lexicon", LEXICON).words(text) for edge in word}
    for word in words[:-1]:
        ends += len(word)
        assert ends in edges or not re.search("[\u4e00-\u9fff]", text[ends - 1 : ends + 1])
    assert len(words) > 20


def test_whole_words_of_a_lexicon_are_masked_whole(chinese_corpus):
    corpus, tokenizer = chinese_corpus(segmenter=make_segmenter("lexicon", LEXICON))
    rows = corpus.rows("document", 64)
    objective = MaskedLM(MaskedLMOptions(whole_word=True, mask_rate=0.3))
    masked = set()
    for seed in range(40):
        example = objective.assemble(rows, 0, PhiloxStream(seed))
        index = objective.corrupt(example, rows, PhiloxStream(seed), START).targets["masked_lm"].index
        starts = example.columns["word_starts"]
        for position in index:  # the word a chosen token is in is chosen to its ends
            begin = position - int(np.argmax(starts[position::-1]))
            behind = np.flatnonzero(starts[position + 1 :])
            end = position + 1 + int(behind[0])
            assert set(range(begin, end)) <= set(index.tolist())
            masked.add("".join(tokenizer.convert_ids_to_tokens(example.input_ids[begin:end].tolist())))
    assert {"北京", "首都", "中华人民共和国"} <= masked


def test_jieba_finds_words_and_takes_further_ones(chinese_corpus):
    pytest.importorskip("jieba", reason="the extra zh is not installed")
    segmenter = make_segmenter("jieba")
    assert words_of("北京是中国的首都", segmenter) == ["北京", "是", "中国", "的", "首都"]
    assert segmenter.key.startswith("jieba ")
    special = make_segmenter("jieba", ["水在一百度"])
    assert words_of("水在一百度沸腾", special)[0] == "水在一百度" and special.key != segmenter.key
    corpus, tokenizer = chinese_corpus(segmenter=segmenter)
    assert "首都" in column_words(corpus, tokenizer)


def test_jieba_is_asked_for_its_words_stretch_by_stretch(monkeypatch):
    """With a stand-in of the package: which text it is given, and what becomes of its answer."""
    asked, added = [], []

    class Tokenizer:
        def add_word(self, word):
            added.append(word)

        def cut(self, run):
            asked.append(run)
            return iter([run[:2], run[2:]])

    stand_in = type("jieba", (), {"Tokenizer": Tokenizer, "setLogLevel": lambda level: None, "__version__": "9"})
    monkeypatch.setattr(importlib, "import_module", lambda name: {"jieba": stand_in}[name])
    segmenter = make_segmenter("jieba", ["北京"])
    assert words_of("在2018年由Google发布了。", segmenter) == ["在", "2018", "年由", "Google", "发布", "了", "。"]
    assert asked == ["在", "年由", "发布了"] and added == ["北京"] and segmenter.key.startswith("jieba 9 ")


def test_without_jieba_the_way_out_is_said(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ConfigError, match=r"jieba is not installed[\s\S]*tunecore\[zh\][\s\S]*characters"):
        make_segmenter("jieba")


def test_another_segmenter_is_another_corpus_and_only_where_words_are_asked_for(chinese_corpus, tmp_path):
    first, _ = chinese_corpus()
    second, _ = chinese_corpus(segmenter=make_segmenter("lexicon", LEXICON))
    third, tokenizer = chinese_corpus(segmenter=make_segmenter("lexicon", LEXICON[:3]))
    assert len({first.file.path, second.file.path, third.file.path}) == 3
    assert first.digest != second.digest
    path = tmp_path / "zh.jsonl"
    plain = [
        build_corpus([path], tokenizer, cache_dir=tmp_path, segmenter=make_segmenter("lexicon", words)).file.path
        for words in (LEXICON, LEXICON[:3])
    ]
    assert plain[0] == plain[1]


def test_lexicon_files_are_read_and_their_faults_named(tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes("\ufeff北京\r\n\n  New   York \n北京\n".encode() + unicodedata.normalize("NFD", "がく").encode())
    assert read_lexicon(path, "data.lexicon") == ["北京", "New York", "がく"]
    path.write_bytes("北京\n".encode() + b"\xff\xfe\n")
    with pytest.raises(DataError, match=r"data\.lexicon '.*words\.txt': line 2 is not UTF-8"):
        read_lexicon(path, "data.lexicon")
    path.write_text("\n \n")
    with pytest.raises(DataError, match="has no entry"):
        read_lexicon(path, "data.lexicon")
    with pytest.raises(DataError, match=r"cannot be read: No such file"):
        read_lexicon(tmp_path / "none.txt", "data.lexicon")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segmenter": "lexicon"}, "data.lexicon names no file"),
        ({"lexicon": "words.txt"}, "the segmenter characters reads no lexicon"),
        ({"segmenter": "tokenizer", "lexicon": "words.txt"}, "the segmenter tokenizer reads no lexicon"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(**options)
    with pytest.raises(ConfigError, match="there are no words"):
        make_segmenter("lexicon")


def test_documents_of_all_scripts_come_back_from_one_corpus(tmp_path, write_documents):
    texts = ["".join(sentences) for sentences in ALL.values()]
    tokenizer = train_tokenizer(texts, vocab_size=700, family="roberta")
    path = write_documents(tmp_path / "all.jsonl", texts)
    corpus = build_corpus([path], tokenizer, cache_dir=tmp_path, columns=["word_starts", "sentence_starts"])
    assert [json.loads(line)["text"] for line in path.read_text().splitlines()] == texts
    for d, sentences in enumerate(ALL.values()):
        lo, hi = int(corpus.file.offsets[d]), int(corpus.file.offsets[d + 1])
        assert tokenizer.decode(corpus.file.ids[lo:hi].astype(int).tolist()) == texts[d]
        assert int(corpus.file.bits("sentence_starts", lo, hi).sum()) == len(sentences)
