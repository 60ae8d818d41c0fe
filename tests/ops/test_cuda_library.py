"""The CUDA library: what its loader makes of one that is absent, broken, of another version or right, without a GPU."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import pytest
import torch

from tunecore import __version__, doctor
from tunecore.ops import _cuda, bias_gelu

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def forgetful(fresh_environment):
    """Nothing tried yet, before and after."""
    for name, value in (("_tried", False), ("_ready", False), ("_library", None)):
        fresh_environment.setattr(_cuda, name, value)
    return fresh_environment


@pytest.fixture(scope="module")
def builder():
    """csrc/build_cuda.py, which builds only when run."""
    spec = importlib.util.spec_from_file_location("tunecore_build_cuda", ROOT / "csrc" / "build_cuda.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def built(builder, fresh_environment):
    """The library of this checkout; skipped where it was not built."""
    if not _cuda.LIBRARY.exists():
        pytest.skip("no libtunecore_cuda.so: make build-cuda (needs nvcc)")
    library, info = _cuda.open_library(_cuda.LIBRARY)
    return library, info


def test_the_library_loads_without_a_driver_and_says_what_it_is(built):
    library, info = built
    assert (info.reason, info.version) == ("", __version__)
    assert min(info.archs) >= 80
    assert info.toolkit >= 12000
    for entry in _cuda.ENTRIES:
        assert getattr(library, f"tunecore_cuda_{entry}")
    if not torch.cuda.is_available():
        refused = library.tunecore_cuda_check(0)
        assert refused is not None, "no device is no error of the process"


def test_another_version_or_layout_is_not_used(built, monkeypatch):
    monkeypatch.setattr(_cuda, "VERSION", "9.9")
    library, info = _cuda.open_library(_cuda.LIBRARY)
    assert library is None
    assert f"was built from tunecore {__version__}, this is 9.9" in info.reason
    monkeypatch.undo()
    monkeypatch.setitem(_cuda.LAYOUTS, "BiasGeluCuda", _cuda.AdamW)
    library, info = _cuda.open_library(_cuda.LIBRARY)
    assert library is None
    assert "another layout of BiasGeluCuda" in info.reason


def test_an_absent_or_broken_library_says_why(fresh_environment, tmp_path):
    library, info = _cuda.open_library(tmp_path / "libtunecore_cuda.so")
    assert library is None
    assert info.reason == "this installation has no libtunecore_cuda.so (built by `make build-cuda`)"
    broken = tmp_path / "libbroken.so"
    broken.write_bytes(b"not a library")
    assert _cuda.open_library(broken)[1].reason.startswith("libbroken.so does not load: ")
    fresh_environment.setenv(_cuda.SWITCH, "1")
    assert _cuda.open_library(broken)[1].reason == "TUNECORE_NO_CUDA=1 is set"


def test_without_a_device_nothing_is_opened(forgetful):
    forgetful.setattr(torch.cuda, "is_available", lambda: False)
    forgetful.setattr(_cuda, "open_library", lambda path: pytest.fail("opened"))
    assert _cuda.load() is None


def test_a_device_without_a_library_is_one_warning_and_a_fallback(forgetful, tmp_path):
    forgetful.setattr(torch.cuda, "is_available", lambda: True)
    forgetful.setattr(_cuda, "LIBRARY", tmp_path / "libtunecore_cuda.so")
    forgetful.setattr(_cuda, "_DEVICES", ("cpu",))
    x = torch.randn(2, 8)
    with pytest.warns(RuntimeWarning, match="without its CUDA kernels: this installation has no.*fall back to PyTorch"):
        assert not _cuda.serves(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not _cuda.serves(x)
        bias_gelu(x)


def test_an_unfit_device_is_named(forgetful):
    class Old:
        @staticmethod
        def tunecore_cuda_check(device):
            return b"CUDA driver version is insufficient for CUDA runtime version"

    forgetful.setattr(torch.cuda, "is_available", lambda: True)
    forgetful.setattr(torch.cuda, "device_count", lambda: 1)
    forgetful.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    forgetful.setattr(_cuda, "open_library", lambda path: (Old, _cuda.CudaInfo(archs=(80, 90))))
    forgetful.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    assert _cuda.info().reason == "Tesla V100 is sm_70, the library begins at sm_80"
    forgetful.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert _cuda.info().reason == "device 0 refuses it: CUDA driver version is insufficient for CUDA runtime version"
    with pytest.warns(RuntimeWarning, match="driver version is insufficient"):
        assert _cuda.load() is None


@pytest.mark.parametrize(
    ("info", "level", "words"),
    [
        (_cuda.CudaInfo("", "0.1.0", (80, 90), 13000), "ok", "libtunecore_cuda.so 0.1.0 for sm_80, sm_90, CUDA 13"),
        (_cuda.CudaInfo("it was never built"), "note", "not in use: it was never built; the ops run on PyTorch there"),
    ],
)
def test_doctor_says_why_it_is_not_in_use(forgetful, info, level, words):
    forgetful.setattr(torch.cuda, "is_available", lambda: True)
    forgetful.setattr(torch.cuda, "device_count", lambda: 1)
    forgetful.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    forgetful.setattr(_cuda, "info", lambda: info)
    (finding,) = [f for f in doctor._gpu() if f.part == "cuda kernels"]
    assert (finding.level, finding.text) == (level, words)
    assert ("make build-cuda" in finding.advice) == (level == "note")


def test_a_kernel_that_spills_registers_is_named(builder):
    report = "\n".join(
        [
            "ptxas info    : Function properties for quick_kernel",
            "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads",
            "ptxas info    : Used 32 registers",
            "ptxas info    : Function properties for greedy_kernel",
            "    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads",
        ]
    )
    assert builder.spills(report) == ["greedy_kernel: 4 bytes stored, 12 loaded"]


def test_no_kernel_of_the_last_build_spills(builder):
    report = builder.FOLDER / "report.txt"
    if not report.exists():
        pytest.skip("no report: make build-cuda (needs nvcc)")
    text = report.read_text()
    assert text.count("Compiling entry function") >= 10
    assert builder.spills(text) == []


def test_without_nvcc_only_make_test_goes_on(builder, monkeypatch, capsys):
    monkeypatch.setattr(builder, "find_nvcc", lambda: None)
    assert builder.main([]) == 1
    assert builder.main(["--if-nvcc"]) == 0
    assert capsys.readouterr().err.count("no nvcc found") == 2


def test_the_newest_architecture_has_ptx_for_later_devices(builder):
    assert builder.arch_flags(["80", "90"])[1::2] == [
        "arch=compute_80,code=sm_80", "arch=compute_90,code=sm_90", "arch=compute_90,code=compute_90",
    ]  # fmt: skip
