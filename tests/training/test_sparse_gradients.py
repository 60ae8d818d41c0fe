"""Gradients of tables that are only looked up hold the rows of the batch; nothing else may be different by that."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import fake_training as fake
import numpy as np
import pytest
import torch
from torch import nn

from tunecore import hookimpl
from tunecore.data.packing import pack
from tunecore.errors import NativeError
from tunecore.models.families.builtin import FAMILIES
from tunecore.models.loading import build_model
from tunecore.objectives.masked_lm import MaskedLM, MaskedLMOptions
from tunecore.ops import _native, embedding
from tunecore.ops.adamw import AdamWTensor, adamw_step
from tunecore.training import step as step_module
from tunecore.training.optimizer import AdamWOptions, MasterOptimizer, SgdOptions, adamw, sgd
from tunecore.training.step import train_step
from tunecore.training.unit import Task, TrainUnit
from tunecore.types import Example, Targets

pytestmark = pytest.mark.skipif(not _native.info().available, reason="this installation has no compiled core")
ROWS, WIDTH, VOCAB = 200, 40, 97


def looked_up(make, sparse, *, dtype=torch.float32, decay=0.1, micro_batches=2, **options):
    """Three clipped steps of one table; what it is then, and its layout and norm at each step."""
    drawn = torch.Generator().manual_seed(0)
    table = nn.Parameter(torch.randn(ROWS, WIDTH, generator=drawn))
    optimizer = MasterOptimizer({"table": table}, make, learning_rate=0.1, weight_decay=decay, dtype=dtype, **options)
    seen = []
    for _ in range(3):
        for _ in range(micro_batches):
            ids = torch.randint(0, ROWS // 2, (3, 10), generator=drawn)
            weights = torch.randn(3, 10, WIDTH, generator=drawn).to(dtype)
            (embedding(ids, table, padding_idx=3, sparse=sparse) * weights).sum().backward()
        seen.append((table.grad.layout, optimizer.grad_norm()))
        optimizer.clip(seen[-1][1], 1.0)
        optimizer.step(1.0)
    return optimizer.masters["table"].detach(), table.detach(), seen


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [adamw(AdamWOptions()), sgd(SgdOptions(momentum=0.9))], ids=["adamw", "sgd"])
def test_a_table_learns_the_same_to_the_last_bit(make, dtype, decay, micro_batches, each_thread_count):
    options = {"dtype": dtype, "decay": decay, "micro_batches": micro_batches}
    master, weight, dense = looked_up(make, False, **options)
    assert all(layout == torch.strided for layout, _ in dense)
    for _ in each_thread_count():
        same_master, same_weight, seen = looked_up(make, True, **options)
        assert all(layout == torch.sparse_coo for layout, _ in seen)
        assert torch.equal(master, same_master) and torch.equal(weight, same_weight)
        assert [norm for _, norm in seen] == pytest.approx([norm for _, norm in dense], rel=1e-6)


def test_who_asks_for_gradients_gets_dense_ones_that_can_be_changed():
    table = nn.Parameter(torch.ones(ROWS, WIDTH))
    optimizer = MasterOptimizer({"table": table}, sgd(SgdOptions()), learning_rate=1.0)
    embedding(torch.tensor([4, 4]), table, sparse=True).sum().backward()
    gradient = optimizer.gradients()["table"]
    assert gradient is not None and gradient.layout == torch.strided and gradient.sum() == 2 * WIDTH
    gradient += 1
    optimizer.step(1.0)
    assert torch.equal(table[:5, 0].detach(), torch.tensor([0.0, 0, 0, 0, -2]))


def test_a_step_whose_batch_looked_up_nothing_moves_what_has_momentum():
    tables = [nn.Parameter(torch.ones(ROWS, WIDTH)) for _ in range(2)]
    for sparse, table in enumerate(tables):
        optimizer = MasterOptimizer({"table": table}, adamw(AdamWOptions()), learning_rate=0.1, weight_decay=0.0)
        for ids in ([4, 4], []):
            embedding(torch.tensor(ids, dtype=torch.int64), table, sparse=bool(sparse)).sum().backward()
            optimizer.step(1.0)
        assert (table[:, 0] != 1).nonzero().tolist() == [[4]]
    assert torch.equal(*tables)


def test_rows_that_are_not_ascending_are_refused():
    whole, rows = torch.ones(4, 3), torch.tensor([2, 1])
    entry = AdamWTensor(whole, torch.ones(2, 3), whole.clone(), whole.clone(), None, 1.0, 0.1, 1.0, rows)
    for wrong in (rows, torch.tensor([1, 1]), torch.tensor([0, 4]), torch.tensor([-1, 0])):
        with pytest.raises(NativeError, match=r"'rows'.*ascending rows of a weight of 4"):
            adamw_step([entry._replace(rows=wrong)], beta1=0.9, beta2=0.999, eps=1e-8, scale=1.0)


def test_a_sparse_gradient_of_another_layer_is_taken_too():
    """``nn.Embedding(sparse=True)`` of a plugin: rows come as often as they were looked up."""
    tables = [nn.Embedding(ROWS, WIDTH, sparse=sparse) for sparse in (True, False)]
    tables[1].load_state_dict(tables[0].state_dict())
    for table in tables:
        optimizer = MasterOptimizer({"table": table.weight}, adamw(AdamWOptions()), learning_rate=0.1)
        table(torch.tensor([7, 2, 7])).square().sum().backward()
        assert (table.weight.grad.layout == torch.sparse_coo) is table.sparse
        optimizer.step(1.0)
    assert torch.equal(tables[0].weight, tables[1].weight)


class Watch:
    """What a plugin sees at the parameters themselves."""

    def __init__(self):
        self.layouts = set()

    @hookimpl
    def tunecore_before_optimizer_step(self, run):
        self.layouts |= {p.grad.layout for p in run.unit.parameters() if p.grad is not None}


def train_bert(tied, *, watch=None, steps=3):
    """Masters of a small BERT after some steps."""
    objective = MaskedLM(MaskedLMOptions())
    model = build_model(
        FAMILIES["bert"], frozenset({objective.name}), size="tiny", vocab_size=VOCAB, max_length=24, seed=0,
        overrides={"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48,
                   "tie_word_embeddings": tied},
    )  # fmt: skip
    unit = TrainUnit(model, FAMILIES["bert"], [Task(objective.name, objective, None, 1.0)])
    hooks = fake.make_hooks(*([watch] if watch else []))
    run = fake.make_fake_run(fake.make_config(precision="fp32"), steps=steps, unit=unit, hooks=hooks)
    unit.train()
    rng = np.random.default_rng(0)
    targets = {objective.name: Targets(np.array([1, 4]), np.array([7, 8]))}
    rows = [Example(n, rng.integers(5, VOCAB, 12), targets=targets) for n in range(3)]
    batches = pack(rows, max_tokens=64, position_offset=0, pad_id=0, view=objective.view)
    layouts = set()
    inner = run.optimizer.grad_norm

    def grad_norm():
        layouts.update(g.layout for n, g in run.optimizer._gathered().items() if "word_embeddings" in n)
        return inner()

    run.optimizer.grad_norm = grad_norm
    for _ in range(steps):
        train_step(run, SimpleNamespace(micro_batches=batches, row_ids=(0, 1, 2), views=(objective.view,)))
    return {name: master.detach() for name, master in run.optimizer.masters.items()}, layouts


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_learns_the_same(tied, monkeypatch):
    masters, layouts = train_bert(tied)
    assert layouts == {torch.strided if tied else torch.sparse_coo}
    monkeypatch.setattr(step_module, "sparse_gradients", contextlib.nullcontext)
    wanted, dense = train_bert(tied)
    assert dense == {torch.strided}
    for name, master in masters.items():
        # The norm, by which gradients are clipped, is summed in another order.
        torch.testing.assert_close(master, wanted[name], rtol=1e-5, atol=1e-6, msg=name)


def test_a_plugin_sees_dense_gradients_at_the_parameters():
    watch = Watch()
    train_bert(False, watch=watch, steps=1)
    assert watch.layouts == {torch.strided}
