"""The last layer at the rows that are read only: the same losses and gradients as at all rows."""

from itertools import pairwise

import pytest
import torch

from tunecore.models import last_layer
from tunecore.models.families.builtin import FAMILIES
from tunecore.models.loading import enable_gradient_checkpointing
from tunecore.training.unit import Task, TrainUnit
from tunecore.types import BatchTargets, LossSum, PackedBatch

LENGTHS = [9, 1, 14, 5, 20]


class Reader:
    """Sums what it reads, weighted: targets' rows, or the first row of each sequence."""

    view, uses = "encoder", ("masked_lm",)

    def __init__(self, name, reads):
        self.name, self.losses = name, (name,)
        if reads:
            self.reads = reads

    def loss(self, forward, module, stream):
        target = forward.batch.targets[self.name]
        rows = forward.sequence_rows() if target.level == "sequence" else forward.hidden()
        read = rows.index_select(0, target.index)
        weights = torch.linspace(-1, 1, read.numel(), dtype=read.dtype).view(read.shape)
        return {self.name: LossSum((read * weights).sum(), len(target.index))}


def make_batch(packed, *, empty=()):
    """Two targets in every sequence that is not ``empty`` (one where it is short), and one for each sequence."""
    rows = [s for i, s in enumerate(packed.rows) if i not in empty]
    index = torch.tensor([i for s in rows for i in sorted({s.start, (s.start + s.stop) // 2})])
    sequences = torch.arange(len(packed.rows))
    targets = {
        "tokens": BatchTargets(index, torch.zeros(len(index)), "token"),
        "sequences": BatchTargets(sequences, torch.zeros(len(sequences)), "sequence"),
    }
    ids = tuple(range(len(packed.rows)))
    types = packed.token_type_ids
    return PackedBatch(
        packed.input_ids, packed.position_ids, types, packed.layout, ids, targets, num_tokens=sum(LENGTHS)
    )


def unit_of(model, *readers):
    family = FAMILIES[model.config.model_type]
    return TrainUnit(model, family, [Task(r.name, r, None, 1.0) for r in readers])


def count_rows(model):
    """The number of rows that the last layer's feed-forward part gets, call by call."""
    seen = []
    intermediate = FAMILIES[model.config.model_type].backbone(model).encoder.layer[-1].intermediate
    intermediate.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    return seen


def run(unit, batch):
    unit.zero_grad()
    losses = unit(batch)
    sum(loss.total for loss in losses.values()).backward()
    return {n: s.total.item() for n, s in losses.items()}, {n: p.grad for n, p in unit.parameters_by_name().items()}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("model_type", ["bert", "roberta", "electra", "ernie", "xlm-roberta"])
def test_losses_and_gradients_are_those_of_all_rows(model_type, checkpointing, make_small, make_packed):
    model = make_small(model_type, {"masked_lm"}).double()
    if checkpointing:
        enable_gradient_checkpointing(model)
    batch = make_batch(make_packed(model_type, model, LENGTHS, key=3), empty=(2,))
    unit = unit_of(model, Reader("tokens", ("targets",)), Reader("sequences", ("sequence_rows",)))
    unit.train()
    seen = count_rows(model)
    losses, gradients = run(unit, batch)
    assert set(seen) == {len(set(batch.targets["tokens"].index.tolist()) | {s.start for s in spans(batch)})}
    unit._reads = {}
    seen.clear()
    wanted, reference = run(unit, batch)
    assert set(seen) == {batch.input_ids.shape[1]}
    assert losses == pytest.approx(wanted, rel=1e-12)
    for name, gradient in reference.items():
        assert (gradients[name] is None) == (gradient is None), name
        if gradient is not None:
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def spans(batch):
    return [slice(a, b) for a, b in pairwise(batch.layout.cu_seqlens.tolist())][: batch.num_sequences]


def test_a_task_that_does_not_say_what_it_reads_gets_all_rows(make_small, make_packed):
    model = make_small("bert", {"masked_lm"})
    batch = make_batch(make_packed("bert", model, LENGTHS))
    unit = unit_of(model, Reader("tokens", ("targets",)), Reader("sequences", ()))
    seen = count_rows(model)
    unit(batch)
    assert seen == [batch.input_ids.shape[1]]


def test_rows_that_nobody_reads_are_zero_and_the_state_dict_is_unchanged(make_small, make_packed):
    model = make_small("bert", {"masked_lm"})
    names, kind = list(model.state_dict()), type(model.bert.encoder.layer[0])
    batch = make_batch(make_packed("bert", model, LENGTHS))
    unit = unit_of(model, Reader("tokens", ("targets",)), Reader("sequences", ("sequence_rows",)))
    assert list(model.state_dict()) == names and isinstance(model.bert.encoder.layer[-1], kind)
    hidden = unit._forward_of(batch).hidden()
    read = set(batch.targets["tokens"].index.tolist()) | {s.start for s in spans(batch)}
    assert {i for i, row in enumerate(hidden) if row.abs().max() > 0} == read


def test_dropout_still_falls_on_a_share_of_the_weights(make_small, make_packed):
    model = make_small("bert", {"masked_lm"}, attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.5)
    packed = make_packed("bert", model, LENGTHS, key=5)
    unit = unit_of(model, Reader("tokens", ("targets",)), Reader("sequences", ("sequence_rows",)))
    unit.train()
    batch = make_batch(packed)
    first, again = run(unit, batch), run(unit, batch)
    assert first[0] == again[0], "the same key draws the same mask"
    unit.eval()
    assert run(unit, batch)[0] != first[0]


def test_a_hooked_part_is_called(make_small, make_packed):
    model = make_small("bert", {"masked_lm"})
    batch = make_batch(make_packed("bert", model, LENGTHS))
    unit = unit_of(model, Reader("tokens", ("targets",)), Reader("sequences", ("sequence_rows",)))
    seen, calls = count_rows(model), []
    unit(batch)
    model.bert.encoder.layer[-1].attention.self.register_forward_hook(lambda *_: calls.append(1))
    unit(batch)
    assert seen[0] < seen[1] == batch.input_ids.shape[1] and calls == [1]


def test_what_is_not_narrowed(make_small, make_packed):
    model = make_small("bert", {"masked_lm"})
    packed = make_packed("bert", model, LENGTHS)
    batch = make_batch(packed)
    assert last_layer.narrow(batch, ("targets",)).layout.last_layer is not None
    every = BatchTargets(torch.arange(sum(LENGTHS)), torch.zeros(sum(LENGTHS)), "token")
    batch.targets["tokens"] = every
    assert last_layer.narrow(batch, ("targets",)) is batch, "most rows are read"
    batch.targets.clear()
    assert last_layer.narrow(batch, ("targets",)) is batch, "no row is read"


@pytest.mark.parametrize("model_type", ["gpt2", "distilbert", "albert", "modernbert", "llama", "deberta-v2"])
def test_other_layers_are_left_alone(model_type, make_small):
    model = make_small(model_type, {"masked_lm", "causal_lm"})
    assert not last_layer.install(model)
