"""make test-gpu without a GPU: what it says and returns, which tools it runs, what it does not call a success."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tunecore.ops import _cuda

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ["memcheck", "racecheck", "synccheck", "initcheck"]


@pytest.fixture
def run_gpu(monkeypatch, tmp_path):
    """csrc/tests/run_gpu.py; its driver is a script that fails where the environment says so."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "csrc" / "tests"), *sys.path])
    module = importlib.import_module("run_gpu")
    driver = tmp_path / "driver"
    words = '"driver $* $TUNECORE_TEST_REPEATS $TUNECORE_TEST_RAW_OUTPUTS"'
    driver.write_text(f"#!/bin/sh\necho {words}\nexit ${{FAULT:-0}}\n")
    driver.chmod(0o755)
    monkeypatch.setattr(module, "DRIVER", driver)
    yield module
    for name in ("run_gpu", "run_cuda", "run", "build_cuda"):
        sys.modules.pop(name, None)


@pytest.fixture
def on_gpu(run_gpu, monkeypatch):
    """As on a machine with a GPU, its build done and its Python tests passed."""
    monkeypatch.setattr(run_gpu, "capability", lambda: "90")
    monkeypatch.setattr(run_gpu, "build", lambda archs: True)
    monkeypatch.setattr(run_gpu, "run_python_tests", lambda: True)
    return run_gpu


@pytest.fixture
def sanitizer(monkeypatch, tmp_path):
    """A compute-sanitizer that finds a fault by the tool of $FAULTY_TOOL and else runs the driver."""
    fake = tmp_path / "compute-sanitizer"
    fake.write_text('#!/bin/sh\ntool=$2; code=$4; shift 4\n[ "$tool" = "$FAULTY_TOOL" ] && exit $code\nexec "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("COMPUTE_SANITIZER", str(fake))


def test_without_a_gpu_one_line_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = subprocess.run([sys.executable, "csrc/tests/run_gpu.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 77
    assert done.stdout + done.stderr == "test-gpu: torch sees no CUDA GPU here: nothing was tested\n"


def test_each_tool_runs_the_driver_and_initcheck_alone_sees_raw_outputs(on_gpu, sanitizer, capfd):
    assert on_gpu.main(["dropout"]) == 0
    out, err = capfd.readouterr()
    lines = [line for line in out.splitlines() if line.startswith(("==", "driver"))]
    assert lines == [
        "== C++ tests on the GPU", "driver dropout  ",
        *(line for tool in TOOLS for line in (f"== C++ tests on the GPU under {tool}",
                                              f"driver dropout 1 {1 if tool == 'initcheck' else ''}")),
    ]  # fmt: skip
    assert "all that was run passed" in err


@pytest.mark.parametrize("tool", TOOLS)
def test_a_fault_that_a_tool_finds_is_a_failure_with_its_name(on_gpu, sanitizer, monkeypatch, capfd, tool):
    monkeypatch.setenv("FAULTY_TOOL", tool)
    assert on_gpu.main([]) == 1
    assert f"test-gpu: failed: {tool}\n" in capfd.readouterr().err


def test_without_compute_sanitizer_it_says_which_tools_were_not_run(on_gpu, monkeypatch, capfd):
    monkeypatch.setattr(on_gpu.build_cuda, "find_tool", lambda name, variable: None)
    assert on_gpu.main([]) == 0
    err = capfd.readouterr().err
    assert "no compute-sanitizer found" in err
    assert "memcheck, racecheck, synccheck, initcheck were not run" in err


def test_what_fails_is_the_exit_code(on_gpu, monkeypatch, capfd):
    monkeypatch.setattr(on_gpu, "run_sanitizer", lambda names: [])
    monkeypatch.setattr(on_gpu, "run_python_tests", lambda: False)
    monkeypatch.setenv("FAULT", "1")
    assert on_gpu.main([]) == 1
    assert "failed: C++ tests, Python tests" in capfd.readouterr().err
    monkeypatch.setattr(on_gpu, "build", lambda archs: False)
    assert on_gpu.main([]) == 1


def test_a_library_that_is_not_used_is_no_success(run_gpu, monkeypatch, capfd):
    """Its tests would all be skipped."""
    monkeypatch.setattr(_cuda, "info", lambda: _cuda.CudaInfo("it was never built"))
    monkeypatch.setattr(subprocess, "run", lambda *given, **options: pytest.fail("pytest was started"))
    assert not run_gpu.run_python_tests()
    assert "nothing to test: it was never built" in capfd.readouterr().err


def test_without_nvcc_the_last_build_is_taken_or_missed(run_gpu, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(run_gpu.build_cuda, "find_nvcc", lambda: None)
    monkeypatch.setattr(run_gpu.build_cuda, "LIBRARY", tmp_path / "library.so")
    assert not run_gpu.build("90")
    (tmp_path / "library.so").touch()
    assert run_gpu.build("90")
    assert "nothing is built" in (err := capfd.readouterr().err)
    assert "taking the last build" in err


def test_the_driver_has_every_test_of_a_kernel(run_gpu):
    names = {path.name for path in run_gpu.driver_sources("cuda")}
    tests = {path.name for path in (ROOT / "csrc" / "tests" / "cuda").glob("test_*.cpp")}
    assert tests - names == {"test_emulation.cpp"}
    assert names - tests == {"device_memory_cuda.cpp", "main.cpp"}
    ops = {path.parent.name for path in (ROOT / "csrc").glob("*/*_cuda.h")}
    assert {f"test_{op}_cuda.cpp" for op in ops} <= names


def test_the_marker_asks_for_a_gpu_and_no_name_does(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    folder = tmp_path / "gpu"
    folder.mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", folder)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    marked = "import pytest\n\ndef test_plain(): pass\n\n@pytest.mark.gpu\ndef test_marked(): pass\n"
    (folder / "test_both.py").write_text(marked)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert "1 passed, 1 skipped" in done.stdout
