"""extractive_qa in a whole model: equal to transformers' padded forward, and saved as a model of its own."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from tunecore import Engine
from tunecore.data.packing import pack
from tunecore.data.rows import TaskRows
from tunecore.heads.extractive_qa import NAME, ExtractiveQA, ExtractiveQAOptions
from tunecore.models.families.builtin import FAMILIES
from tunecore.models.loading import save_model
from tunecore.testing import make_model, make_tokenizer, tiny_records
from tunecore.training.unit import Task, TrainUnit
from tunecore.types import Progress

RECORDS = tiny_records()
WITH_CLASS = sorted(
    name for name, family in FAMILIES.items() if any(NAME in tasks for tasks in family.classes.values())
)


def examples_of(head, tokenizer, max_length):
    rows = TaskRows(RECORDS, head, tokenizer, max_length)
    return [e for i in range(len(rows)) for e in rows.examples(i, 0, Progress(0, 1, 0.0, 1.0))]


@pytest.mark.parametrize("name", WITH_CLASS)
def test_loss_logits_and_gradients_equal_plain_transformers_on_padded_rows(name, tmp_path):
    head, tokenizer, family = ExtractiveQA(ExtractiveQAOptions(stride=4)), make_tokenizer(name), FAMILIES[name]
    model = make_model([NAME], tokenizer, name)
    unit = TrainUnit(model, family, [Task(NAME, head, head.build(model, family), 1.0)]).eval()
    assert not unit.task_modules, "the class has the layer"
    save_model(model, tmp_path, tokenizer)
    plain = AutoModelForQuestionAnswering.from_pretrained(tmp_path, attn_implementation="eager").eval()
    examples = examples_of(head, tokenizer, 32)
    assert len(examples) > len(RECORDS)
    (batch,) = pack(examples, max_tokens=1 << 15, position_offset=family.position_offset(model), pad_id=0)
    ids = {"input_ids": [e.input_ids.tolist() for e in examples]}
    inputs = dict(tokenizer.pad(ids, return_tensors="pt", padding_side="right"))
    if family.token_types:
        types = torch.zeros_like(inputs["input_ids"])
        for row, example in enumerate(examples):
            types[row, : len(example)] = torch.as_tensor(example.token_type_ids)
        inputs["token_type_ids"] = types
    starts, ends = torch.tensor([e.targets[NAME].index.tolist() for e in examples]).T
    assert 0 < int((starts > 0).sum()) < len(examples)
    theirs = plain(**inputs)
    losses, logits = unit.assess(batch)
    # Their own loss takes padding into its softmax; here it is left out, as a row alone would be.
    padded = inputs["attention_mask"] == 0
    both = (theirs.start_logits, theirs.end_logits)
    start_logits, end_logits = (values.masked_fill(padded, -torch.inf) for values in both)
    expected = (
        torch.nn.functional.cross_entropy(start_logits, starts) + torch.nn.functional.cross_entropy(end_logits, ends)
    ) / 2
    for row, (example, found) in enumerate(zip(examples, logits, strict=True)):
        shown = torch.stack((theirs.start_logits, theirs.end_logits), -1)[row, : len(example)]
        torch.testing.assert_close(found, shown, rtol=1e-4, atol=1e-5)
    loss = losses[NAME]
    assert loss.num_targets == 2 * len(examples)
    assert (loss.total / loss.num_targets).item() == pytest.approx(expected.item(), rel=1e-5)
    right = (start_logits.argmax(1) == starts).sum() + (end_logits.argmax(1) == ends).sum()
    assert int(loss.num_correct) == int(right)
    (loss.total / loss.num_targets).backward()
    expected.backward()
    gradients = dict(plain.named_parameters())
    for parameter_name, parameter in model.named_parameters():
        wanted = gradients[parameter_name].grad
        if wanted is None:
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-3, atol=2e-5)


def test_a_row_alone_has_the_loss_of_transformers(tmp_path):
    head, tokenizer = ExtractiveQA(ExtractiveQAOptions()), make_tokenizer()
    model = make_model([NAME], tokenizer)
    unit = TrainUnit(model, FAMILIES["bert"], [Task(NAME, head, head.build(model, FAMILIES["bert"]), 1.0)]).eval()
    save_model(model, tmp_path, tokenizer)
    plain = AutoModelForQuestionAnswering.from_pretrained(tmp_path).eval()
    for example in examples_of(head, tokenizer, 32)[:3]:
        (batch,) = pack([example], max_tokens=64, position_offset=0, pad_id=0)
        start, end = torch.as_tensor(example.targets[NAME].index)
        inputs = {"input_ids": example.input_ids, "token_type_ids": example.token_type_ids}
        inputs = {key: torch.as_tensor(value)[None] for key, value in inputs.items()}
        theirs = plain(**inputs, start_positions=start[None], end_positions=end[None]).loss
        assert (unit(batch)[NAME].total / 2).item() == pytest.approx(theirs.item(), rel=1e-5)


def finetuned(folder, family):
    rows = [dict(record.fields) for record in RECORDS if record.fields["answers"]["text"]]
    engine = Engine.from_scratch(family, size="tiny", tokenizer=make_tokenizer(family), max_length=64, progress=False)
    result = engine.finetune(
        rows, eval=rows, head=NAME, output_dir=folder / "run", epochs=25, batch_size=4, learning_rate=2e-3, seed=1,
        report=False,
    )  # fmt: skip
    return engine, engine.save(folder / "saved"), result, rows


@pytest.fixture(scope="module", params=["bert", "llama"])
def trained(request, tmp_path_factory):
    """(engine, folder, result, rows): BERT has a class of its own, Llama gets a layer beside the model."""
    return (*finetuned(tmp_path_factory.mktemp(request.param), request.param), request.param)


def test_training_learns_and_is_opened_again(trained):
    engine, folder, result, rows, family = trained
    assert result.best_metric > 0.6
    assert engine.evaluate(rows)["f1"] == pytest.approx(result.best_metric)
    assert (folder / "objectives.safetensors").exists() == (family == "llama")
    again = Engine.from_pretrained(folder)
    asked = [(row["question"], row["context"]) for row in rows]
    found = again.predict(asked)
    assert found == engine.predict(asked)
    for (_, context), prediction in zip(asked, found, strict=True):
        assert context[prediction.details["start"] : prediction.details["end"]] == prediction.label


def test_a_plain_folder_of_transformers_is_opened_with_its_head(trained, tmp_path):
    engine, folder, _, rows, family = trained
    if family != "bert":
        pytest.skip("transformers has no class for this head")
    model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = {"question": rows[0]["question"], "context": rows[0]["context"][:60]}
    inputs = tokenizer(*asked.values(), return_tensors="pt", return_offsets_mapping=True)
    places = inputs.pop("offset_mapping")[0].tolist()
    in_context = [kind == 1 for kind in inputs.sequence_ids()]
    with torch.no_grad():
        theirs = model(**inputs)
    best = max(
        (
            (float(theirs.start_logits[0, i] + theirs.end_logits[0, j]), places[i][0], places[j][1])
            for i in range(len(places)) for j in range(i, len(places)) if in_context[i] and in_context[j]
        ),
    )  # fmt: skip
    del model.config.tunecore
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (found,) = Engine.from_pretrained(tmp_path, max_length=64).predict([asked])
    assert (found.details["start"], found.details["end"]) == best[1:]
    assert found == engine.predict([asked])[0]
