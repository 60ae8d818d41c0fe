"""Every instruction set of this machine in turn, and the CUDA kernels, emulated and not."""

import shutil
from pathlib import Path

import pytest
import torch

from tunecore.ops import _cuda, _native
from tunecore.ops._native import CAPABILITIES

LIBRARY = Path(__file__).resolve().parents[2] / "build" / "cuda-tests" / "library" / "libtunecore_cuda_emulated.so"


@pytest.fixture
def each_variant():
    """A function whose generator sets one variant after the other and yields its name."""
    core = _native.load()

    def variants():
        for variant in CAPABILITIES[: CAPABILITIES.index(core.detected_capability()) + 1]:
            core.set_capability(variant)
            yield variant

    yield variants
    if core is not None:
        core.set_capability("")


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def calls(request, fresh_environment, tmp_path):
    """Ops on tensors of the default device go to the CUDA kernels; a list of the entries that ran."""
    device = "cpu" if request.param == "emulated" else "cuda"
    if device == "cuda" and _cuda.load() is None:
        pytest.skip("no libtunecore_cuda.so: make build-cuda (needs nvcc)")
    if device == "cpu":
        if not LIBRARY.exists():
            pytest.skip("no emulated kernels: make test-cuda-emulated")
        # A path of its own for each test: a library that is loaded already would not be read again.
        library, info = _cuda.open_library(Path(shutil.copy(LIBRARY, tmp_path / "libtunecore_cuda.so")))
        assert info.reason == ""
        for name, value in (("_library", library), ("_ready", True), ("_DEVICES", ("cpu",))):
            fresh_environment.setattr(_cuda, name, value)
        fresh_environment.setattr(_native, "serves", lambda x: False)
    ran, call = [], _cuda._call

    def noted(entry, params, like):
        ran.append(entry)
        call(entry, params, like)

    fresh_environment.setattr(_cuda, "_call", noted)
    with torch.device(device):
        yield ran
