"""The benchmarks' --device cuda on a CPU that poses as a GPU: tables, limits, who is left out, who is refused."""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tunecore.models import fused
from tunecore.ops import _cuda

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ["bench_attention", "bench_masked_lm_loss", "bench_train_step"]


class Event:
    """A CUDA event on a clock that goes one millisecond at each record."""

    clock = itertools.count()

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = next(Event.clock)

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return float(other.at - self.at)


@pytest.fixture
def posing(benchmark_module, monkeypatch):
    """``posing(name)``: a benchmark for which the CPU is the GPU; each timed stretch takes a millisecond."""
    devices, limits = benchmark_module("devices"), benchmark_module("limits")
    for module in (devices, limits):
        monkeypatch.setattr(module, "CUDA", "cpu")
    monkeypatch.setattr(limits, "_GPU_SHAPES", ((8, 8, 8), (4, 4, 4)))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 2**20)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 8 * 2**20)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Posing GPU")
    return benchmark_module


def options(**given):
    return argparse.Namespace(
        **{"quick": True, "pairs": 1, "seconds": 0.001, "device": "cpu", "dtype": ["bf16"], "longest": 5.0, **given}
    )


def rows_of(text):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_a_gpu_one_line_says_so(script):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    command = [sys.executable, f"benchmarks/{script}.py", "--device", "cuda"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 77
    assert done.stdout + done.stderr == "bench-gpu: torch sees no CUDA GPU here: nothing was measured\n"


def test_a_gpu_without_our_kernels_is_refused(benchmark_module, monkeypatch, capsys):
    """Else the figures would be PyTorch's under our name."""
    devices = benchmark_module("devices")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_cuda, "info", lambda: _cuda.CudaInfo("it was never built"))
    with pytest.raises(SystemExit) as left:
        devices.prepare("cuda")
    assert left.value.code == 1
    assert "not in use: it was never built" in capsys.readouterr().err
    monkeypatch.setattr(_cuda, "info", lambda: _cuda.CudaInfo())
    devices.prepare("cuda")


def test_a_rate_is_work_by_the_time_between_events(posing):
    devices, steps = posing("devices"), []

    def step():
        steps.append(None)
        return 6

    rate = devices.gpu_rate(step, seconds=0.005)
    assert len(steps) == 1 + 1 + 5  # a first one, one by which five are reckoned
    assert rate == pytest.approx(5 * 6 / 1e-3)


def test_the_limit_is_the_slower_of_products_and_bytes(posing, capsys):
    limits = posing("limits")
    assert limits.Limits(100.0, 10.0).seconds(1000.0, 50.0) == 10.0
    assert limits.Limits(100.0, 10.0).seconds(100.0, 50.0) == 5.0
    found = limits.of_gpu(torch.float32)
    # The posing clock gives each stretch a millisecond, whatever is done in it.
    assert found.flops == pytest.approx(2 * 8**3 * 200 / 1e-3)
    assert found.bandwidth == pytest.approx(2 * 4 * 64 * 2**20 * 200 / 1e-3)
    assert capsys.readouterr().out.startswith("limits of Posing GPU, measured now: ")


def test_attention_beside_every_backend(posing, capsys):
    bench = posing("bench_attention")
    bench.run_on_gpu(options())
    out, err = capsys.readouterr()
    assert out.startswith("limits of Posing GPU")
    header, _, *rows = rows_of(out)
    assert header == ["sequences x length", "", "ms", "TFLOP/s", "of the limit", "ours is", "MiB at the peak"]
    assert [row[1] for row in rows if row[0] == "bf16 2 x 32, causal"] == [
        "tunecore", "sdpa", "sdpa flash", "sdpa math",
    ]  # fmt: skip
    assert {row[6] for row in rows} == {"7"}
    assert "sdpa cudnn is left out: " in err
    assert "varlen_attn is left out: it has no dropout" in err
    assert "varlen_attn is left out: it has no bias" in err


def test_our_own_failure_is_no_contestant_left_out(posing, monkeypatch):
    bench = posing("bench_attention")
    monkeypatch.setattr(bench.Case, "packed", lambda case, dtype: (_ for _ in ()).throw(RuntimeError("a fault")))
    with pytest.raises(RuntimeError, match="a fault"):
        bench.run_on_gpu(options())


def test_vocabulary_losses_and_their_products(posing, monkeypatch, capsys):
    bench = posing("bench_masked_lm_loss")
    limits = posing("limits").Limits(1e12, 1e9)
    lines = bench.measure_on_gpu((64, 32, 1000), "fp32", limits, options())
    names = [line.split("|")[2].strip().partition(" (")[0] for line in lines]
    assert names == ["tunecore", "linear + cross_entropy", "linear_cross_entropy", "three products"]
    moved = bench.bytes_moved((64, 32, 1000), torch.float32)
    assert moved == 4 * (64 * 32 * 2 + 2 * (32 * 1000 + 1000)) + 8 * 64
    # Between two events passes a millisecond; what was done in it is one step here.
    assert lines[0].split("|")[4].strip() == f"{moved / 1e9 / 1e-3:.0%}"
    monkeypatch.delattr(torch.nn, "LinearCrossEntropyOptions")
    lines = bench.measure_on_gpu((64, 32, 1000), "fp32", limits, options())
    assert len(lines) == 3
    assert "this torch has it not" in capsys.readouterr().out


def test_a_contestant_that_cannot_start_is_named_with_every_reason(benchmark_module, capsys):
    common = benchmark_module("common")

    def torn():
        import warnings

        warnings.warn("flash wants bf16", UserWarning, stacklevel=1)
        raise RuntimeError("No available kernel.\nmore")

    def absent():
        raise ImportError("no module named varlen")

    assert common.taking_part({"a": lambda: 1, "torn": torn, "absent": absent, "b": lambda: 2}) == {"a": 1, "b": 2}
    err = capsys.readouterr().err
    assert "torn is left out: No available kernel.; flash wants bf16\n" in err
    assert "absent is left out: no module named varlen\n" in err


@pytest.mark.parametrize("by_window", [True, False], ids=["window_size", "is_causal"])
@pytest.mark.parametrize("causal", [False, True])
def test_varlen_attention_is_asked_for_what_ours_computes(benchmark_module, monkeypatch, by_window, causal):
    """Both ways in which versions of torch take a causal mask, by a stand-in: the real one needs a GPU."""
    cases = benchmark_module("attention_cases")
    case, seen, grad = cases.Case("", (9, 4), causal=causal), [], torch.autograd.grad

    def standing_in(q, k, v, cu_q, cu_k, longest_q, longest_k, masked):
        assert longest_q == longest_k == 9
        return cases.attention(q, k, v, cu_q, cu_k, longest_q, longest_k, causal=masked)

    def windowed(q, k, v, cu_q, cu_k, max_q, max_k, *, window_size=(-1, -1)):
        return standing_in(q, k, v, cu_q, cu_k, max_q, max_k, window_size == (-1, 0))

    def flagged(q, k, v, cu_q, cu_k, max_q, max_k, is_causal=False):
        return standing_in(q, k, v, cu_q, cu_k, max_q, max_k, is_causal)

    def spy(out, inputs, dout):
        gradients = grad(out, inputs, dout)
        seen.append([out.detach(), *gradients])
        return gradients

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", windowed if by_window else flagged)
    monkeypatch.setattr(torch.autograd, "grad", spy)
    case.packed(torch.float32)()
    case.varlen(torch.float32)()
    for ours, theirs in zip(*seen, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_step_on_a_gpu_is_one_micro_batch_of_larger_models(posing, tmp_path):
    models = posing("step_models")
    for name, model in models.MODELS_ON_GPU.items():
        assert len(model.pack(models.ON_GPU_TOKENS)) == 1, name
        assert model.useful >= models.MODELS[name].useful
    run, once = models.make_training(models.MODELS["tiny"], "fp32", str(tmp_path), "cpu")
    assert once() == models.MODELS["tiny"].useful
    assert run.step == 1


def test_the_peers_on_a_gpu_are_sdpa_plain_and_compiled_and_our_own_layers(benchmark_module, monkeypatch, tmp_path):
    bench = benchmark_module("bench_train_step")
    assert bench.default_peers("auto", "cuda") == ["sdpa bf16", "compile bf16", "own layers"]
    monkeypatch.setattr(fused, "ON_GPU", False)
    given = options(threads=1, precision="fp32")
    model = bench.MODELS["tiny"]
    for name in ("own layers", "sdpa fp32"):
        assert bench.make_contestant(name, model, given, str(tmp_path))().rate > 0
    assert fused.ON_GPU


@pytest.mark.parametrize(
    ("given", "words"),
    [(["--model", "mini"], "--device cuda has no model mini"), (["--profile"], "looks at the operators of a CPU only")],
)
def test_what_a_gpu_has_not_is_an_error_of_the_options(benchmark_module, monkeypatch, capsys, given, words):
    bench = benchmark_module("bench_train_step")
    monkeypatch.setattr(sys, "argv", ["bench_train_step.py", "--device", "cuda", *given])
    with pytest.raises(SystemExit) as left:
        bench.main()
    assert left.value.code == 2
    assert words in capsys.readouterr().err


def test_a_figure_of_a_gpu_names_it(benchmark_module, monkeypatch):
    common = benchmark_module("common")
    assert "gpu" not in common.machine()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Posing GPU")
    monkeypatch.setattr(_cuda, "info", lambda: SimpleNamespace(version="1.2", archs=(80, 90)))
    found = common.machine()
    assert (found["gpu"], found["capability"], found["kernels"]) == ("Posing GPU", "sm_90", "1.2 for sm_80, sm_90")
