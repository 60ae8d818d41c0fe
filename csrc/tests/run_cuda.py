"""Build the CUDA kernels with the host compiler over csrc/emulation, and run their tests under the sanitizers.

    python csrc/tests/run_cuda.py [NAME]      only the tests whose name contains NAME

Needs neither nvcc nor a GPU. What the emulation checks is in csrc/README.md. Before that, the same kernels become a
library with the C entries of the real one, which tests/ops/test_cuda_kernels.py loads in its place. At the end the
driver that run_gpu.py takes to a GPU runs on that library, with the host's memory for a GPU's.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

from run import ROOT, Source, build, run, setup_module

TESTS = ROOT / "csrc" / "tests"
LIBRARY = ROOT / "build" / "cuda-tests" / "library" / "libtunecore_cuda_emulated.so"
PASSES = {"emulated": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]}
ON_DEVICE = "-DTUNECORE_TESTS_ON_DEVICE"


def kernel_sources() -> list[Source]:
    """Every kernel, for the host compiler."""
    return [(path, ["-x", "c++"]) for path in sorted((ROOT / "csrc").rglob("*.cu"))]


def build_library() -> None:
    """Kernels and emulation as a shared library that takes any pointer: its callers register no buffers."""
    setup = setup_module()
    compiler = setup.find_compiler()
    if compiler is None:
        return  # said by run()
    version = (ROOT / "tunecore" / "__init__.py").read_text(encoding="utf-8").split('__version__ = "')[1].split('"')[0]
    defines = ["-DTUNECORE_EMULATION_LOOSE", f'-DTUNECORE_VERSION="{version}"', '-DTUNECORE_CUDA_ARCHS="0"']
    emulation: list[Source] = [(path, []) for path in sorted((ROOT / "csrc" / "emulation").glob("*.cpp"))]
    build(LIBRARY, kernel_sources() + emulation, [*defines, "-shared"], compiler, setup)


def emulated_sources(compiler: str, setup: ModuleType) -> tuple[list[Source], list[str]]:
    """The emulation, every kernel, and their tests."""
    folder, kernels = ROOT / "csrc", kernel_sources()
    # Looks at every access of every kernel and is no subject of the sanitizers itself.
    emulation: list[Source] = [(folder / "emulation" / "memory.cpp", ["-O2", "-fno-sanitize=all"])]
    emulation.append((folder / "emulation" / "emulation.cpp", []))
    tests = [*sorted((TESTS / "cuda").glob("test_*.cpp")), TESTS / "main.cpp"]
    return kernels + emulation + [(path, []) for path in tests], ["-Wall", "-Wextra"]


def driver_sources(memory: str) -> list[Path]:
    """The tests that call the library through its C entries, with ``memory`` (cuda or host) in the place of a GPU's."""
    tests = [path for path in sorted((TESTS / "cuda").glob("test_*.cpp")) if path.name != "test_emulation.cpp"]
    return [*tests, TESTS / "cuda" / f"device_memory_{memory}.cpp", TESTS / "main.cpp"]


def run_driver_on_host(arguments: list[str]) -> int:
    """Build and run the driver of the device's tests over the emulated library; its exit code."""
    setup = setup_module()
    compiler = setup.find_compiler()
    if compiler is None:
        return 1  # said by run()
    print("== driver of the GPU tests, in memory of the host", flush=True)
    driver = ROOT / "build" / "cuda-tests" / "driver-on-host" / "driver"
    sources: list[Source] = [(path, []) for path in driver_sources("host")]
    libraries = (str(LIBRARY), f"-Wl,-rpath,{LIBRARY.parent}")
    build(driver, sources, [*PASSES["emulated"], "-Wall", "-Wextra", ON_DEVICE], compiler, setup, libraries)
    return subprocess.run([driver, *arguments], check=False).returncode


def main(arguments: list[str]) -> int:
    """The number of the failure, 0 where all is well."""
    build_library()
    failed = run("cuda-tests", emulated_sources, PASSES, arguments)
    # The emulation's own tests have no device: a name that only they have leaves the driver without any.
    if arguments and not any(arguments[0] in path.read_text(encoding="utf-8") for path in driver_sources("host")):
        return failed
    return failed | int(run_driver_on_host(arguments) != 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
