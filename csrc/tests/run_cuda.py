"""Build the CUDA kernels with the host compiler over csrc/emulation, and run their tests under the sanitizers.

    python csrc/tests/run_cuda.py [NAME]      only the tests whose name contains NAME

Needs neither nvcc nor a GPU. What the emulation checks is in csrc/README.md. Before that, the same kernels become a
library with the C entries of the real one, which tests/ops/test_cuda_kernels.py loads in its place.
"""

from __future__ import annotations

import sys
from types import ModuleType

from run import ROOT, Source, build, run, setup_module

LIBRARY = ROOT / "build" / "cuda-tests" / "library" / "libtunecore_cuda_emulated.so"
PASSES = {"emulated": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]}


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
    tests = [*sorted((folder / "tests" / "cuda").glob("*.cpp")), folder / "tests" / "main.cpp"]
    return kernels + emulation + [(path, []) for path in tests], ["-Wall", "-Wextra"]


if __name__ == "__main__":
    build_library()
    sys.exit(run("cuda-tests", emulated_sources, PASSES, sys.argv[1:]))
