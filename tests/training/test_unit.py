from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import fake_training as fake
import pytest
import torch
from torch import nn

from tunecore.data.packing import pack
from tunecore.errors import ConfigError, TrainingError
from tunecore.training.unit import ForwardPass, Task, TrainUnit
from tunecore.types import LossSum


@pytest.fixture
def batch():
    rows = fake.FakeRows()
    examples = [e for row in (1, 2, 3, 6) for e in rows.examples(row, 0, None, "encoder")]
    (packed,) = pack(examples, max_tokens=1000, position_offset=1, pad_id=0)
    return packed


class Returning(fake.Parity):
    """Returns what it is told to."""

    name, losses = "odd", ("odd", "parity")

    def __init__(self, returned):
        self.returned = returned

    def loss(self, forward, module, stream):
        return self.returned


def unit_of(component, module=None):
    return TrainUnit(fake.FakeModel(), fake.FakeFamily(), [Task(component.name, component, module, 1.0)])


def test_losses_are_sums_with_the_announced_counts(batch):
    losses = fake.make_unit()(batch)
    assert list(losses) == ["words_lm", "parity"]
    assert {n: s.num_targets for n, s in losses.items()} == batch.num_targets == {"words_lm": 8, "parity": 4}
    assert losses["words_lm"].total.ndim == 0 and losses["words_lm"].total.requires_grad


def test_weights_and_names():
    unit = fake.make_unit()
    assert unit.losses == ("words_lm", "parity") and unit.weights == {"words_lm": 2.0, "parity": 0.5}
    names = unit.parameters_by_name()
    assert "body.words.weight" in names and "tasks.parity.weight" in names
    assert "decoder.weight" not in names, "a tied parameter comes once"


def test_what_a_task_shares_with_the_model_is_the_models():
    model = fake.FakeModel()
    module = nn.ModuleDict({"words": model.body.words, "own": nn.Linear(2, 2)})
    names = TrainUnit(model, fake.FakeFamily(), [Task("parity", fake.Parity(), module, 1.0)]).parameters_by_name()
    assert [n for n in names if n.startswith("tasks.")] == ["tasks.parity.own.weight", "tasks.parity.own.bias"]


def test_hidden_is_computed_once_for_all_tasks(batch):
    unit, calls = fake.make_unit(), []
    unit.model.body.register_forward_hook(lambda *_: calls.append(1))
    unit(batch)
    assert calls == [1]


@pytest.mark.parametrize("end", ["first", "last"])
def test_sequence_rows_are_the_familys_end_of_every_real_sequence(batch, end):
    family = fake.FakeFamily()
    family.sequence_row = end
    forward = ForwardPass(fake.FakeModel(), family, batch)
    ends = batch.layout.cu_seqlens.tolist()
    wanted = [a if end == "first" else b - 1 for a, b in pairwise(ends)][: batch.num_sequences]
    assert len(ends) - 1 > batch.num_sequences, "the batch must have a filler for this to prove anything"
    assert torch.equal(forward.sequence_rows(), forward.hidden()[wanted])


def test_token_types_go_to_families_that_have_them(batch):
    seen = {}

    def body(**inputs):
        seen.update(inputs)
        return SimpleNamespace(last_hidden_state=torch.zeros(1, batch.input_ids.shape[1], 2))

    family = SimpleNamespace(backbone=lambda model: body, token_types=2, sequence_row="first")
    ForwardPass(None, family, batch).hidden()
    assert batch.token_type_ids is None and torch.equal(seen["token_type_ids"], torch.zeros_like(batch.input_ids))
    assert seen["packed"] is batch.layout and seen["use_cache"] is False
    seen.clear()
    family.token_types = 0
    ForwardPass(None, family, batch).hidden()
    assert "token_type_ids" not in seen


def test_a_wrong_count_names_the_objective(batch):
    with pytest.raises(TrainingError, match="'odd' summed loss 'parity' over 3 targets; the batch announced 4"):
        unit_of(Returning({"parity": LossSum(torch.tensor(1.0), 3)}))(strip(batch))


def test_an_unknown_loss_is_refused(batch):
    good = LossSum(torch.tensor(1.0), 4)
    with pytest.raises(TrainingError, match=r"'odd' returned an unknown loss 'oddd'.*Did you mean 'odd'"):
        unit_of(Returning({"oddd": good, "parity": good}))(strip(batch))


def test_a_loss_left_out_is_refused(batch):
    with pytest.raises(TrainingError, match="'odd' returned no loss 'parity', though the batch has 4 targets"):
        unit_of(Returning({}))(strip(batch))


def test_targets_of_no_task_are_refused(batch):
    with pytest.raises(TrainingError, match="unknown loss 'words_lm'"):
        unit_of(Returning({}))(batch)


def strip(batch):
    return type(batch)(**{**fields(batch), "targets": {"parity": batch.targets["parity"]}})


def fields(batch):
    return {name: getattr(batch, name) for name in batch.__slots__}


def test_a_loss_of_zero_targets_is_left_out(batch):
    losses = unit_of(Returning({"odd": LossSum(torch.tensor(0.0), 0), "parity": LossSum(torch.tensor(1.0), 4)}))
    assert list(losses(strip(batch))) == ["parity"]


def test_tasks_of_another_view_rest(batch):
    component = Returning({})
    component.view = "decoder"
    assert unit_of(component)(strip(batch)) == {}


def test_two_tasks_with_one_loss_name_are_refused():
    tasks = [Task("a", fake.Words(), None, 1.0), Task("b", fake.Words(), None, 1.0)]
    with pytest.raises(ConfigError, match="words_lm"):
        TrainUnit(fake.FakeModel(), fake.FakeFamily(), tasks)


def test_each_task_draws_from_a_stream_of_its_own(batch):
    given = []

    class Drawing(fake.Parity):
        def loss(self, forward, module, stream):
            given.append(stream)
            return super().loss(forward, module, stream)

    stream = SimpleNamespace(child=lambda purpose: f"child {purpose}")
    unit_of(Drawing(), nn.Linear(fake.WIDTH, 2))(strip(batch), stream)
    assert given == ["child parity"]


def test_predict_and_assess(batch):
    unit = fake.make_unit(head=True)
    raw = unit.predict(strip(batch))
    assert raw.shape == (batch.num_sequences, 2)
    losses, again = unit.assess(strip(batch))
    assert torch.equal(raw, again) and losses["parity"].num_targets == 4


def test_only_heads_predict(batch):
    with pytest.raises(ConfigError, match="words_lm, parity"):
        fake.make_unit().predict(batch)
