"""Mistakes a user makes, through the engine: each is one typed error that names what is wrong and the way out."""

import builtins
import io

import pytest

from tunecore import Engine
from tunecore.errors import CheckpointError, ConfigError, DataError, PluginError


def test_an_empty_corpus(pretrain, file):
    with pytest.raises(DataError, match=r"no text is left: 0 rows of 1 files.*\n.*Check data.train"):
        pretrain(file("empty.txt", ""))
    with pytest.raises(DataError, match="holds no row"):
        pretrain([])


def test_a_missing_file_names_its_neighbour(pretrain, file):
    file("words.txt", "text")
    with pytest.raises(DataError, match=r"word.txt: no such file.*\n.*Did you mean .*words.txt"):
        pretrain(file("words.txt", "text").replace("words", "word"))


def test_an_unreadable_file(pretrain, file, monkeypatch):
    path, real = file("secret.txt", "text"), builtins.open

    def refuse(name, *args, **kwargs):  # root may read everything, so chmod alone shows nothing
        if str(name) == path:
            raise PermissionError(13, "Permission denied")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr(io, "open", refuse)
    with pytest.raises(DataError, match=r"secret.txt: cannot be read: Permission denied"):
        pretrain(path)


def test_a_file_that_is_not_utf8(pretrain, file):
    with pytest.raises(DataError, match=r"latin.txt:2: not UTF-8: byte 0xe9.*\n.*iconv"):
        pretrain(file("latin.txt", "plain\ncaf\xe9\n".encode("latin1")))


def test_a_csv_without_the_text_column_lists_what_it_has(finetune, file):
    with pytest.raises(DataError, match=r"a.csv:2: no column 'text', 'label'; columns found: review, stars"):
        finetune(file("a.csv", "review,stars\nfine,5\n"))
    with pytest.raises(DataError, match=r"b.csv:2: no column 'label'; columns found: text, stars"):
        finetune(file("b.csv", "text,stars\nfine,5\n"))


def test_a_label_unseen_in_training(finetune, file):
    with pytest.raises(DataError, match=r"dev.csv:3: unknown label 'maybe' \(column 'label'\); known: neg, pos"):
        finetune(eval=file("dev.csv", "text,label\nfine,pos\nodd,maybe\n"))


def test_a_missing_label(finetune, file):
    with pytest.raises(DataError, match=r"a.csv:3: the label \(column 'label'\) is missing"):
        finetune(file("a.csv", "text,label\nfine,pos\nodd,\ndull,neg\n"))


def test_sequences_longer_than_the_model(finetune):
    with pytest.raises(ConfigError, match=r"data.max_length is 512, but the model's positions end at 64"):
        finetune(max_length=512)


def test_a_vocabulary_larger_than_the_embedding(model, topics, tmp_path, settings):
    from tunecore.data.tokenizer import train_tokenizer

    train_tokenizer(topics, vocab_size=1500).save_pretrained(tmp_path / "large")
    engine = Engine.from_pretrained(model, tokenizer={"path": str(tmp_path / "large")})
    with pytest.raises(ConfigError, match=r"the tokenizer has ids up to 1499 .*embedding has 1000 rows"):
        engine.pretrain(topics, output_dir=tmp_path / "run", **settings)


def test_a_nan_in_the_text_column_is_left_out_counted_and_named(finetune, reviews, tmp_path, caplog):
    bad = [*reviews[:3], {"text": float("nan"), "label": "pos"}, *reviews[3:]]
    finetune(bad)
    assert "skipped 1 text: NaN (first: " in caplog.text and ":4)" in caplog.text


def test_unknown_components_list_the_known_nearest_first(pretrain, finetune):
    with pytest.raises(ConfigError, match=r"unknown objective 'maskd_lm'; known: masked_lm, .*Did you mean 'masked"):
        pretrain(objectives={"maskd_lm": 1.0})
    with pytest.raises(ConfigError, match=r"unknown head 'sequence_clasification'; known: sequence_classification"):
        finetune(head="sequence_clasification")
    with pytest.raises(ConfigError, match=r"unknown strategy 'head_onyl'; known: head_only, .*Did you mean 'head_o"):
        finetune(strategies=["head_onyl"])
    with pytest.raises(ConfigError, match=r"'masked_lm' has no option 'mask_rte'. Did you mean 'mask_rate'"):
        pretrain(objectives={"masked_lm": {"mask_rte": 0.3}})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"hidden_size": 256}, CheckpointError, r"bert\..* is \(128,.*\), but config.json makes it \(256,"),
        ({"model_type": "gpt2"}, CheckpointError, r"no complete gpt2 model: \d+ tensors are missing"),
        ({"model_type": "vit"}, ConfigError, r"unknown model_type 'vit'; known: .*bert"),
    ],
)
def test_a_checkpoint_of_another_architecture(copied, finetune, changes, error, message):
    with pytest.raises(error, match=message):
        finetune(checkpoint=copied(**changes))


def test_an_output_folder_with_another_run(pretrain):
    pretrain()
    with pytest.raises(ConfigError, match=r"holds another run: .*learning_rate was .* is now 0.5.*\n.*another output"):
        pretrain(learning_rate=0.5, steps=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "training.steps is 0; it must be greater than 0"),
        ({"learning_rate": -1e-3}, "training.learning_rate is -0.001; it must be greater than 0"),
        ({"batch_size": 0}, "training.batch_size is 0; it must be greater than 0"),
        ({"learnin_rate": 1e-3}, "unknown option 'learnin_rate'. Did you mean learning_rate"),
    ],
)
def test_options_out_of_range(pretrain, options, message):
    with pytest.raises(ConfigError, match=message):
        pretrain(**options)


def test_a_plugin_that_is_not_installed():
    with pytest.raises(PluginError, match=r"tunecore-nowhere.*not installed"):
        Engine.from_scratch("bert", size="tiny", plugins={"require": ["tunecore-nowhere"]})


def test_what_cannot_be_predicted_is_named(model):
    engine = Engine.from_pretrained(model, head="sequence_classification", labels=["neg", "pos"])
    with pytest.raises(DataError, match=r"row 1 to predict is 3; give a str, a \(str, str\) or a dict"):
        engine.predict(["fine", 3])
