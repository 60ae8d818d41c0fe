from __future__ import annotations

import fake_training as fake
import pytest
import torch

from tunecore.errors import ConfigError
from tunecore.training import precision
from tunecore.training.distributed import choose_device
from tunecore.training.precision import cpu_computes_bf16, weight_dtype
from tunecore.training.step import train_step

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "has"),
    [("flags\t\t: fpu avx2 avx512f avx512_bf16 sse", True), ("flags : fpu avx2 amx_bf16 amx_tile", True),
     ("Features\t: fp asimd bf16 i8mm", True), ("flags\t\t: fpu avx2 avx512f avx512_vbmi", False), ("", False)],
)  # fmt: skip
def test_bf16_is_read_from_the_cpus_flags(tmp_path, flags, has):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\n{flags}\nmodel : bf16\n")
    assert cpu_computes_bf16(cpuinfo) is has


def test_no_cpuinfo_is_no_bf16(tmp_path):
    assert cpu_computes_bf16(tmp_path / "absent") is False


@pytest.mark.parametrize("has", [True, False])
def test_auto_goes_by_the_hardware(monkeypatch, has):
    monkeypatch.setattr(precision, "cpu_computes_bf16", lambda: has)
    assert weight_dtype("auto", CPU) is (torch.bfloat16 if has else torch.float32)
    assert weight_dtype("fp32", CPU) is torch.float32


def test_bf16_without_the_hardware_is_done_with_a_warning(monkeypatch):
    monkeypatch.setattr(precision, "cpu_computes_bf16", lambda: False)
    with pytest.warns(UserWarning, match="slower than fp32"):
        assert weight_dtype("bf16", CPU) is torch.bfloat16


def test_bf16_with_the_hardware_is_silent(monkeypatch, recwarn):
    monkeypatch.setattr(precision, "cpu_computes_bf16", lambda: True)
    assert weight_dtype("bf16", CPU) is torch.bfloat16
    assert not recwarn.list


def test_unknown_names():
    with pytest.raises(ConfigError, match="fp8"):
        weight_dtype("fp8", CPU)
    with pytest.raises(ConfigError, match="tpu"):
        choose_device("tpu")


def test_cuda_that_is_not_there():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ConfigError, match="no CUDA device"):
        choose_device("cuda")
    assert choose_device("auto") == CPU


def test_a_bf16_run_learns_like_an_fp32_run(monkeypatch):
    monkeypatch.setattr(precision, "cpu_computes_bf16", lambda: True)

    def losses(name):
        run = fake.make_fake_run(fake.make_config(precision=name), steps=20)
        assert run.model.body.mix.weight.dtype == (torch.bfloat16 if name == "bf16" else torch.float32)
        return [train_step(run, batches)["loss"] for batches in fake.make_loader(run)]

    low, full = losses("bf16"), losses("fp32")
    assert low != full
    assert low == pytest.approx(full, rel=0.03)
