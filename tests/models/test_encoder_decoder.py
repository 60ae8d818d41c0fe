"""T5 and BART packed: hidden states, loss and every gradient equal those of transformers' eager, padded."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from two_stacks import KINDS, PAD, eager_twin, make, packed_batch, packed_loss, padded_inputs, rows, same_gradients

from tunecore.models.families.builtin import FAMILIES
from tunecore.models.fused import swap_modules
from tunecore.models.loading import enable_gradient_checkpointing


@dataclasses.dataclass
class Draw:
    """A random small configuration and batch."""

    layers: int
    heads: int
    head_width: int
    lengths: list[tuple[int, int]]
    seed: int
    checkpointing: bool
    swapped: bool


length = st.integers(1, 17)
draws = st.builds(
    Draw,
    layers=st.integers(1, 3),
    heads=st.integers(1, 4),
    head_width=st.sampled_from([8, 16, 20]),
    lengths=st.lists(st.tuples(length, length), min_size=1, max_size=5),
    seed=st.integers(0, 10_000),
    checkpointing=st.booleans(),
    swapped=st.booleans(),
)


@pytest.mark.parametrize(("model_type", "overrides"), KINDS)
@settings(max_examples=6, deadline=None, derandomize=True, database=None)
@given(draw=draws)
def test_hidden_states_loss_and_every_gradient(model_type, overrides, draw):
    shape = {"layers": draw.layers, "heads": draw.heads, "width": draw.heads * draw.head_width}
    model = make(model_type, draw.seed, **shape, **overrides).train()
    eager = eager_twin(model)
    if draw.checkpointing:
        enable_gradient_checkpointing(model)
    if draw.swapped:
        swap_modules(model)
    examples = rows(draw.lengths, draw.seed)
    (batch,) = packed_batch(examples, model_type)
    padded = padded_inputs(examples, PAD[model_type])

    hidden, ours = packed_loss(model, batch)
    output = eager(**padded, output_hidden_states=True, use_cache=False)
    wanted = output.decoder_hidden_states[-1][padded["decoder_attention_mask"].bool()]
    torch.testing.assert_close(hidden, wanted, rtol=1e-4, atol=3e-5)
    theirs = output.loss * batch.num_targets["loss"]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    ours.backward()
    theirs.backward()
    assert len(same_gradients(model, eager, 1e-3, 1e-3)) > 15


@pytest.mark.parametrize(("model_type", "overrides"), KINDS)
def test_in_float64_they_agree_to_many_digits(model_type, overrides):
    """Every gradient there is: both stacks, cross attention, the tables of relative positions."""
    model = make(model_type, 3, dtype=torch.float64, **overrides).train()
    eager = eager_twin(model)
    examples = rows([(1, 5), (17, 1), (1, 1), (9, 16)], seed=2)
    (batch,) = packed_batch(examples, model_type)
    padded = padded_inputs(examples, PAD[model_type])
    hidden, ours = packed_loss(model, batch)
    output = eager(**padded, output_hidden_states=True, use_cache=False)
    wanted = output.decoder_hidden_states[-1][padded["decoder_attention_mask"].bool()]
    torch.testing.assert_close(hidden, wanted, rtol=1e-10, atol=1e-10)
    theirs = output.loss * batch.num_targets["loss"]
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    ours.backward()
    theirs.backward()
    compared = same_gradients(model, eager, 1e-9, 1e-10)
    unused = {"model.shared.weight"} if overrides.get("tie_word_embeddings") is False else set()
    assert {name for name, _ in model.named_parameters()} - compared == unused


@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_eight_rows_in_one_batch_are_two_in_four(model_type):
    model = make(model_type, 1, dtype=torch.float64).train()
    examples = rows([(3, 4), (9, 2), (1, 7), (12, 12), (5, 1), (8, 8), (2, 3), (16, 5)])
    gradients = []
    for parts in (1, 4):
        model.zero_grad()
        batches = packed_batch(examples, model_type, parts)
        assert len(batches) == parts
        sum(packed_loss(model, batch)[1] for batch in batches if batch.targets).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_dropout_survives_recomputation(model_type):
    """One key: the same hidden states and gradients with and without recomputation."""
    results = []
    rates = {"dropout_rate": 0.4} if model_type == "t5" else {"attention_dropout": 0.4}
    for checkpointing in (False, True):
        model = make(model_type, **rates).train()
        source = swap_modules(model)
        if checkpointing:
            enable_gradient_checkpointing(model)
        (batch,) = packed_batch(rows([(7, 9), (5, 1)]), model_type)
        source.key = torch.tensor(1234)
        batch = dataclasses.replace(batch, layout=batch.layout._replace(rng_key=source.key))
        torch.manual_seed(checkpointing)
        hidden, loss = packed_loss(model, batch)
        loss.backward()
        results.append((hidden.detach(), [p.grad for p in model.parameters() if p.grad is not None]))
    assert torch.equal(results[0][0], results[1][0])
    for one, other in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    source.key = torch.tensor(5)
    batch = dataclasses.replace(batch, layout=batch.layout._replace(rng_key=source.key))
    assert not torch.allclose(packed_loss(model, batch)[0], results[0][0], atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_compiles_as_one_graph(model_type):
    model = make(model_type).eval()
    (batch,) = packed_batch(rows([(7, 9), (5, 1)]), model_type)
    backbone = FAMILIES[model_type].backbone(model)
    inputs = {
        "input_ids": batch.input_ids, "position_ids": batch.position_ids, "packed": batch.layout, "use_cache": False,
        "decoder_input_ids": batch.decoder_input_ids, "decoder_position_ids": batch.decoder_position_ids,
    }  # fmt: skip
    with torch.no_grad():
        want = backbone(**inputs).last_hidden_state
        torch._dynamo.reset()
        compiled = torch.compile(lambda **k: backbone(**k).last_hidden_state, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(**inputs), want, rtol=1e-4, atol=2e-5)
