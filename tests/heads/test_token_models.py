"""token_classification in a whole model: equal to transformers' padded forward, and saved as a model of its own."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

from tunecore import Engine
from tunecore.data.packing import pack
from tunecore.data.rows import TaskRows
from tunecore.errors import DataError
from tunecore.heads.token_classification import NAME, TokenClassification, TokenClassificationOptions
from tunecore.heads.token_layer import TokenLayer
from tunecore.models.families.builtin import FAMILIES
from tunecore.models.loading import save_model
from tunecore.testing import make_model, make_tokenizer, tiny_records
from tunecore.training.unit import Task, TrainUnit
from tunecore.types import Progress

RECORDS = tiny_records()
ONE_STACK = sorted(name for name, family in FAMILIES.items() if not family.encoder_decoder)


def prepared(**options):
    head = TokenClassification(TokenClassificationOptions(**options))
    head.prepare(RECORDS)
    return head


def examples_of(head, tokenizer, max_length):
    rows = TaskRows(RECORDS, head, tokenizer, max_length)
    return [e for i in range(len(rows)) for e in rows.examples(i, 0, Progress(0, 1, 0.0, 1.0))]


def unit_of(head, model, family):
    return TrainUnit(model, family, [Task(NAME, head, head.build(model, family), 1.0)]).eval()


@pytest.mark.parametrize("pieces", ["first", "all"])
@pytest.mark.parametrize("name", ONE_STACK)
def test_loss_logits_and_gradients_equal_plain_transformers_on_padded_rows(name, pieces, tmp_path):
    head, tokenizer, family = prepared(label_pieces=pieces), make_tokenizer(name), FAMILIES[name]
    labels = dict(enumerate(head.labels))
    config = {"id2label": labels, "label2id": {label: number for number, label in labels.items()}}
    model = make_model([NAME], tokenizer, name, config=config)
    unit = unit_of(head, model, family)
    assert not unit.task_modules, "the class has the layer"
    save_model(model, tmp_path, tokenizer)
    plain = AutoModelForTokenClassification.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert list(plain.config.id2label.values()) == list(head.labels)
    examples = examples_of(head, tokenizer, 16)
    (batch,) = pack(examples, max_tokens=4096, position_offset=family.position_offset(model), pad_id=0)
    ids = {"input_ids": [e.input_ids.tolist() for e in examples]}
    inputs = tokenizer.pad(ids, return_tensors="pt", padding_side="right")
    wanted = torch.full_like(inputs["input_ids"], -100)
    for row, example in enumerate(examples):
        wanted[row, example.targets[NAME].index] = torch.as_tensor(example.targets[NAME].labels)
    theirs = plain(**inputs, labels=wanted)
    losses, logits = unit.assess(batch)
    for row, (example, found) in enumerate(zip(examples, logits, strict=True)):
        torch.testing.assert_close(found, theirs.logits[row, : len(example)], rtol=1e-4, atol=1e-5)
    loss = losses[NAME]
    assert loss.num_targets == int((wanted != -100).sum())
    assert (loss.total / loss.num_targets).item() == pytest.approx(theirs.loss.item(), rel=1e-5)
    assert int(loss.num_correct) == int((theirs.logits.argmax(-1) == wanted).sum())
    theirs.loss.backward()
    (loss.total / loss.num_targets).backward()
    gradients = dict(plain.named_parameters())
    for parameter_name, parameter in model.named_parameters():
        expected = gradients[parameter_name].grad
        if expected is None:
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=2e-5)


def test_a_class_without_the_layer_gets_one_that_learns():
    head, tokenizer, family = prepared(), make_tokenizer(), FAMILIES["bert"]
    model = make_model([], tokenizer)
    unit = unit_of(head, model, family)
    assert isinstance(unit.task_modules[NAME], TokenLayer)
    (batch,) = pack(examples_of(head, tokenizer, 32), max_tokens=4096, position_offset=0, pad_id=0)
    losses, logits = unit.assess(batch)
    assert logits[0].shape == (int(batch.layout.cu_seqlens[1]), 3)
    losses[NAME].total.backward()
    assert all(p.grad.abs().sum() > 0 for p in unit.task_modules.parameters())


def words_of(text):
    return [{"tokens": text.split()}]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(engine after fine-tuning, its folder): a tiny model, with windows."""
    folder = tmp_path_factory.mktemp("tokens")
    rows = [dict(record.fields) for record in RECORDS]
    engine = Engine.from_scratch("bert", size="tiny", tokenizer=make_tokenizer(), max_length=16, progress=False)
    result = engine.finetune(
        rows, eval=rows, head=NAME, output_dir=folder / "run", epochs=12, batch_size=4, learning_rate=2e-3, seed=1,
        report=False,
    )  # fmt: skip
    return engine, engine.save(folder / "saved"), result


def test_training_learns_and_chooses_by_f1(trained):
    engine, _, result = trained
    assert result.best_metric > 0.8
    measured = engine.evaluate([dict(record.fields) for record in RECORDS])
    assert measured["f1"] == pytest.approx(result.best_metric)
    assert set(measured["report"]) == {"thing"}
    assert measured["report"]["thing"]["support"] == sum(r.fields["tags"].count("B-thing") for r in RECORDS)


def test_the_saved_model_is_one_of_transformers_with_equal_logits(trained):
    engine, folder, _ = trained
    tagger = pipeline("token-classification", model=str(folder), tokenizer=str(folder))
    text = "My neighbour carries the quiet town"
    (found,) = engine.predict(words_of(text))
    theirs = {(e["start"], e["end"]): (e["entity"], e["score"]) for e in tagger(text, ignore_labels=[])}
    for (start, _), tag, score in zip(found.details["offsets"], found.label, found.details["scores"], strict=True):
        entity, probability = next(value for (a, _), value in theirs.items() if a == start)
        assert (tag, score) == (entity, pytest.approx(probability, rel=1e-4))


def test_it_is_opened_again_with_its_head(trained):
    engine, folder, _ = trained
    again = Engine.from_pretrained(folder)
    text = "The river carries a long letter and forgets the harbour lights"
    assert again.predict(words_of(text)) == engine.predict(words_of(text))
    assert again.session.head.name == NAME
    (plain,) = again.predict(text)
    assert plain.details["words"] == text.split()


def test_a_pair_is_no_row_to_predict(trained):
    with pytest.raises(DataError, match=r"row 1 to predict is \['Ada', 'lives'\]; token_classification reads one text"):
        trained[0].predict(["Ada lives", ["Ada", "lives"]])


def test_a_plain_folder_of_transformers_is_opened_with_its_head(trained, tmp_path):
    _, folder, _ = trained
    model = AutoModelForTokenClassification.from_pretrained(folder)
    del model.config.tunecore
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    engine = Engine.from_pretrained(tmp_path, max_length=16)
    (found,) = engine.predict(words_of("My neighbour carries the quiet town"))
    (expected,) = Engine.from_pretrained(folder).predict(words_of("My neighbour carries the quiet town"))
    assert found == expected
    assert engine.evaluate([dict(record.fields) for record in RECORDS])["f1"] > 0.8
