"""The native core: loading, the fallback, its checks on what it is given, and doctor's words about it."""

from __future__ import annotations

import importlib.machinery
import json
import os
import platform
import subprocess
import sys
import threading
import warnings

import pytest
import torch

from tunecore import __version__, doctor
from tunecore.errors import NativeError
from tunecore.ops import _native
from tunecore.ops._native import CAPABILITIES


@pytest.fixture
def core():
    module = _native.load()
    if module is None:
        pytest.skip("no compiled core in this installation")
    before = module.capability()
    yield module
    module.set_capability(before)


@pytest.fixture
def forgetful(fresh_environment):
    """Nothing loaded yet, before and after."""
    _native.load.cache_clear()
    yield fresh_environment
    _native.load.cache_clear()


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("TUNECORE_")} | environment
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)


def test_info_describes_the_build(core):
    info = _native.info()
    assert info.available
    assert info.reason == ""
    assert info.version == __version__
    assert info.variants[0] == "default"
    assert set(info.variants) <= set(CAPABILITIES)
    assert info.capability == core.detected_capability()
    assert info.compiler.split()[0] in ("gcc", "clang")


def test_absent_core_is_one_warning_and_a_fallback(forgetful, monkeypatch):
    monkeypatch.setattr(_native.importlib.util, "find_spec", lambda name: None)
    with pytest.warns(RuntimeWarning, match="without its compiled core.*doctor"):
        assert _native.load() is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _native.load() is None
        assert not _native.tune_allocator()
    info = _native.info()
    assert not info.available
    assert "no tunecore._C" in info.reason


def test_the_switch_does_without_the_core(forgetful, monkeypatch):
    monkeypatch.setenv("TUNECORE_NO_NATIVE", "1")
    with pytest.warns(RuntimeWarning, match="TUNECORE_NO_NATIVE=1 is set"):
        assert _native.load() is None


def test_broken_core_is_an_error(forgetful, monkeypatch, tmp_path):
    broken = tmp_path / f"_C{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    broken.write_bytes(b"not a library")
    loader = importlib.machinery.ExtensionFileLoader("tunecore._C", str(broken))
    spec = importlib.machinery.ModuleSpec("tunecore._C", loader, origin=str(broken))
    monkeypatch.setattr(_native.importlib.util, "find_spec", lambda name: spec)

    def load_it(name):
        return loader.create_module(spec)

    monkeypatch.setattr(_native.importlib, "import_module", load_it)
    with pytest.raises(NativeError, match=r"does not load.*\n.*TUNECORE_NATIVE=1 pip install") as caught:
        _native.load()
    assert isinstance(caught.value.__cause__, ImportError)


def test_capability_can_be_chosen_and_is_checked(core):
    detected = CAPABILITIES.index(core.detected_capability())
    for isa in CAPABILITIES[: detected + 1]:
        core.set_capability(isa)
        assert core.capability() == isa
    for isa in CAPABILITIES[detected + 1 :]:
        with pytest.raises(NativeError, match=f"'{isa}' is not supported by this processor; choices here: default"):
            core.set_capability(isa)
    with pytest.raises(NativeError, match="TUNECORE_CPU_CAPABILITY='sse9' is unknown; choices here: default"):
        core.set_capability("sse9")


def test_a_process_of_its_own_takes_capability_and_allocator(core):
    code = "from tunecore.ops import _native; print(_native.info().capability, _native.tune_allocator())"
    done = python(code, TUNECORE_CPU_CAPABILITY="default")
    assert done.stdout.split() == ["default", str(platform.libc_ver()[0] == "glibc")], done.stderr
    failed = python(code, TUNECORE_CPU_CAPABILITY="fastest")
    assert failed.returncode == 1
    assert "NativeError: TUNECORE_CPU_CAPABILITY='fastest' is unknown; choices here: default" in failed.stderr


@pytest.mark.parametrize("first", ["torch", "tunecore._C"])
def test_one_openmp_runtime_in_either_import_order(core, first):
    if not os.path.exists("/proc/self/maps"):
        pytest.skip("this system has no /proc/self/maps")
    second = {"torch": "tunecore._C", "tunecore._C": "torch"}[first]
    code = (
        f"import json, {first}, {second}; from tunecore import doctor; "
        "print(json.dumps(doctor.openmp_runtimes(open('/proc/self/maps').read())))"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == 1


def test_arguments_are_named_with_what_was_wanted_and_got(core):
    logits, targets = torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64)
    wide = torch.zeros(10)[::2]

    def call(x, bias, t):
        core.masked_lm_loss(*(_native.dl(v) if isinstance(v, torch.Tensor) else v for v in (x, bias, t)), 0, 0, True, 1)

    cases = [
        ((logits.double(), None, targets), r"'logits': wanted float32 or bfloat16, got float64\[3, 5\] strides"),
        ((logits[0], None, targets), r"'logits': wanted 2 dimensions, got float32\[5\]"),
        ((logits.t(), None, targets), r"'logits': wanted a last stride of 1, got float32\[5, 3\] strides \(1, 5\)"),
        ((logits, torch.zeros(4), targets), r"'bias': wanted shape \[5\], got float32\[4\]"),
        ((logits, wide, targets), r"'bias': wanted a contiguous tensor, got float32\[5\] strides \(2\)"),
        ((logits, None, targets.int()), r"'targets': wanted int64, got int32\[3\]"),
        ((logits, None, targets + 5), r"'targets': 5 at row 0 is not a class of a vocabulary of 5"),
        ((logits, None, "three"), r"'targets': wanted an unused DLPack capsule.*got <class 'str'>"),
        ((logits.to(torch.complex64), None, targets), r"'logits': element type not supported"),
    ]
    for args, message in cases:
        with pytest.raises(NativeError, match=f"argument {message}"):
            call(*args)
    assert not logits.any()


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_a_fake_tensor_is_refused(core):
    with torch._subclasses.FakeTensorMode():
        fake = torch.zeros(3, 5)
    try:
        capsule = _native.dl(fake)
    except (RuntimeError, ValueError, BufferError):
        pytest.skip("this torch exports no fake tensor")
    with pytest.raises(NativeError, match="wanted data in memory, not a fake or meta tensor"):
        core.masked_lm_loss(capsule, None, _native.dl(torch.zeros(3, dtype=torch.int64)), 0, 0, True, 1)


def test_a_used_capsule_is_refused_and_a_lent_one_is_not_consumed(core):
    x = torch.ones(2, 3)
    capsule, total = _native.dl(x), torch.zeros(3)
    core.column_sum(capsule, _native.dl(total), 1)
    core.column_sum(capsule, _native.dl(total), 1)
    assert total.tolist() == [4, 4, 4]
    torch.utils.dlpack.from_dlpack(capsule)
    with pytest.raises(NativeError, match="unused DLPack capsule"):
        core.column_sum(capsule, _native.dl(total), 1)


def test_the_gil_is_free_inside_a_kernel(core):
    x, targets = torch.randn(2000, 2000), torch.zeros(2000, dtype=torch.int64)
    ticks, stop = [0], threading.Event()

    def tick():
        while not stop.is_set():
            ticks[0] += 1
            stop.wait(1e-4)

    thread = threading.Thread(target=tick)
    core.set_capability("default")
    thread.start()
    capsules, before = [_native.dl(v) for v in (x, None, targets)], ticks[0]
    core.masked_lm_loss(*capsules, 0, 0, True, 1)
    during = ticks[0] - before
    stop.set()
    thread.join()
    assert during > 0


def test_philox_has_the_published_words(core):
    assert core.philox(0, [0] * 4) == doctor.PHILOX_ZERO
    key = 0xA4093822 | 0x299F31D0 << 32
    assert core.philox(key, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]) == [
        0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1,
    ]  # fmt: skip
    with pytest.raises(NativeError, match="wanted 4 words, got 3"):
        core.philox(0, [0] * 3)


def test_threads_follow_torch():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert _native.threads() == 3
    finally:
        torch.set_num_threads(before)
