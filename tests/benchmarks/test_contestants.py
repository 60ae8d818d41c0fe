"""What benchmarks set side by side computes the same: the same attention, loss and step on the same rows."""

import argparse

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode


@pytest.mark.parametrize(
    ("lengths", "options"),
    [((9, 9), {}), ((9, 4), {}), ((9, 9), {"causal": True}), ((150,), {"bias": True})],
    ids=["even", "ragged", "causal", "T5"],
)
def test_packed_attention_is_that_of_the_padded_batch(benchmark_module, monkeypatch, lengths, options):
    cases = benchmark_module("attention_cases")
    case, seen, grad = cases.Case("", lengths, **options), [], torch.autograd.grad

    def spy(out, inputs, dout):
        gradients = grad(out, inputs, dout)
        seen.append([out.detach(), *gradients])
        return gradients

    monkeypatch.setattr(torch.autograd, "grad", spy)
    case.packed(torch.float32)()
    case.padded(torch.float32, None)()
    ours, theirs = seen
    theirs = [case._pack(x.transpose(1, 2)) for x in theirs[:4]] + theirs[4:]
    assert len(ours) == len(theirs) == (5 if case.bias else 4)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_all_vocabulary_losses_are_one(benchmark_module):
    bench = benchmark_module("bench_masked_lm_loss")
    x, results = bench.make_inputs((6, 8, 50), torch.float32), []
    losses = [bench.ours, bench.gathered, *(bench.fused(options) for options in bench.option_sets().values())]
    assert len(losses) >= 2
    for loss in losses:
        total = loss(x)
        bench.with_gradients(loss, x)
        results.append([total.detach(), x.hidden.grad, x.weight.grad, x.bias.grad])
    for result in results[1:]:
        for a, b in zip(results[0], result, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", ["masked_lm", "causal_lm"])
def test_the_peer_has_the_loss_of_the_packed_rows(benchmark_module, tmp_path, objective):
    models, peer = benchmark_module("step_models"), benchmark_module("peer")
    family = "bert" if objective == "masked_lm" else "gpt2"
    model = models.StepModel("", family, "tiny", objective, 3, (5, 20), 1200)
    run, _ = models.make_training(model, "fp32", str(tmp_path))
    run.unit.eval()
    plain, (batch,) = model.build().eval(), model.pack(4096)
    with torch.no_grad():
        loss = run.unit(batch)[objective]
        theirs = plain(**peer.padded([batch], 0)).loss
    assert loss.num_targets == sum(row.num_targets[objective] for row in model.rows[0])
    torch.testing.assert_close(loss.total / loss.num_targets, theirs, rtol=1e-5, atol=1e-5)


def test_both_sides_take_the_batches_in_turn(benchmark_module, monkeypatch, tmp_path):
    models, bench = benchmark_module("step_models"), benchmark_module("bench_train_step")
    model = models.StepModel("", "bert", "tiny", "masked_lm", 3, (5, 20), 1200, batches=3)
    lengths = [[len(row) for row in rows] for rows in model.rows]
    assert len({tuple(x) for x in lengths}) == 3 and model.useful == sum(map(sum, lengths)) / 3
    _, once = models.make_training(model, "fp32", str(tmp_path))
    assert [once() for _ in range(4)] == [sum(x) for x in (*lengths, lengths[0])]
    given = argparse.Namespace(device="cpu", seconds=0.0)
    peer = bench.make_peer("eager fp32", model, given)  # has taken the first to warm up
    monkeypatch.setattr(bench, "timed_turn", lambda step, *_: [step() for _ in range(3)])
    assert peer() == [sum(x) for x in (lengths[1], lengths[2], lengths[0])]


def test_the_flops_of_a_step_are_those_torch_counts(benchmark_module):
    models, peer = benchmark_module("step_models"), benchmark_module("peer")
    model = models.StepModel("", "bert", "tiny", "masked_lm", 3, (8, 8), 1200)
    plain, (batch,) = model.build(), model.pack(4096)
    plain.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counted:
        plain(**peer.padded([batch], 0)).loss.backward()
    width, idle = plain.config.hidden_size, model.useful - batch.num_targets["masked_lm"]
    assert model.flops(plain) == counted.get_total_flops() - 6 * idle * width * (width + model.vocabulary)


def test_a_contestant_that_fails_is_named_and_left_out(benchmark_module, capsys):
    common = benchmark_module("common")

    def broken():
        raise common.LeftOutError("no compiler")

    figures = common.alternate({"ours": lambda: 2.0, "theirs": lambda: 1.0, "broken": broken}, pairs=3)
    assert figures == {"ours": [2.0] * 3, "theirs": [1.0] * 3}
    assert common.ratios(figures, "ours") == {"ours": 1.0, "theirs": 2.0}
    assert "broken is left out: no compiler" in capsys.readouterr().err
