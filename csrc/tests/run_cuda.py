"""Build the CUDA kernels with the host compiler over csrc/emulation, and run their tests under the sanitizers.

    python csrc/tests/run_cuda.py [NAME]      only the tests whose name contains NAME

Needs neither nvcc nor a GPU. What the emulation checks is in csrc/README.md.
"""

from __future__ import annotations

import sys
from types import ModuleType

from run import ROOT, Source, run

PASSES = {"emulated": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]}


def emulated_sources(compiler: str, setup: ModuleType) -> tuple[list[Source], list[str]]:
    """The emulation, every kernel, and their tests."""
    folder = ROOT / "csrc"
    kernels: list[Source] = [(path, ["-x", "c++"]) for path in sorted(folder.rglob("*.cu"))]
    tests = [*sorted((folder / "emulation").glob("*.cpp")), *sorted((folder / "tests" / "cuda").glob("*.cpp"))]
    return kernels + [(path, []) for path in (*tests, folder / "tests" / "main.cpp")], ["-Wall", "-Wextra"]


if __name__ == "__main__":
    sys.exit(run("cuda-tests", emulated_sources, PASSES, sys.argv[1:]))
