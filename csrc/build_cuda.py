"""Build tunecore/libtunecore_cuda.so with nvcc alone: no torch, static cudart, so it loads where there is no driver.

    python csrc/build_cuda.py [--if-nvcc]

Machine code for the compute capabilities in CUDA_ARCHS (default "80 90"), PTX of the last one for later devices. NVCC
names the compiler, MAX_JOBS how many files are compiled at once. What ptxas says of registers and spills is kept in
build/cuda/report.txt; a kernel that spills registers is an error. --if-nvcc: without nvcc, say so and exit with 0.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "cuda"
LIBRARY = ROOT / "tunecore" / "libtunecore_cuda.so"
FLAGS = [
    "-std=c++17", "-O3", "--Werror", "all-warnings", "-Xptxas", "-v",
    "-Xcompiler", "-Wall,-Wextra,-fPIC,-fvisibility=hidden",
]  # fmt: skip
SPILL = re.compile(r"Function properties for (\w+)\n.*?(\d+) bytes spill stores, (\d+) bytes spill loads")


def find_tool(name: str, variable: str) -> str | None:
    """A program of the CUDA toolkit: $variable, else on the path, else that of $CUDA_HOME or the usual place."""
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    names = [os.environ.get(variable, ""), name, *(f"{home}/bin/{name}" for home in homes if home)]
    return next((found for name in names if name and (found := shutil.which(name))), None)


def find_nvcc() -> str | None:
    """Which nvcc to build with, None where there is none."""
    return find_tool("nvcc", "NVCC")


def version() -> str:
    """The version of tunecore, read from its source: the build imports nothing."""
    text = (ROOT / "tunecore" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    assert found
    return found[1]


def arch_flags(archs: list[str]) -> list[str]:
    """Machine code for each, and PTX of the last."""
    pairs = [(arch, f"sm_{arch}") for arch in archs] + [(archs[-1], f"compute_{archs[-1]}")]
    return [flag for arch, code in pairs for flag in ("-gencode", f"arch=compute_{arch},code={code}")]


def is_stale(target: Path, depfile: Path, command: str) -> bool:
    """Whether an object is missing, was made by another command, or is older than a file it was made from."""
    stamp = target.with_suffix(".cmd")
    if not (target.exists() and depfile.exists() and stamp.exists()) or stamp.read_text() != command:
        return True
    files = depfile.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    made = target.stat().st_mtime
    return any(not Path(f).exists() or Path(f).stat().st_mtime > made for f in files)


def compile_one(nvcc: str, source: Path, flags: list[str]) -> Path:
    """One object and, beside it, what ptxas said; CalledProcessError after the compiler's messages where it fails."""
    target = FOLDER / source.relative_to(ROOT / "csrc").with_suffix(".o")
    depfile, report = target.with_suffix(".d"), target.with_suffix(".txt")
    command = [nvcc, *flags, "-MD", "-MF", str(depfile), "-c", str(source), "-o", str(target)]
    if is_stale(target, depfile, " ".join(command)):
        target.parent.mkdir(parents=True, exist_ok=True)
        print(f"nvcc {source.relative_to(ROOT)}", flush=True)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stdout + done.stderr, file=sys.stderr)
            raise subprocess.CalledProcessError(done.returncode, nvcc)
        report.write_text(done.stdout + done.stderr)
        target.with_suffix(".cmd").write_text(" ".join(command))
    return target


def compile_all(nvcc: str, sources: list[Path], flags: list[str]) -> list[Path]:
    """The objects of all, MAX_JOBS at once."""
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda source: compile_one(nvcc, source, flags), sources))


def spills(report: str) -> list[str]:
    """The kernels of a ptxas report that keep registers in memory, with how many bytes."""
    found = SPILL.findall(report)
    return [f"{name}: {stored} bytes stored, {read} loaded" for name, stored, read in found if int(stored) + int(read)]


def build(nvcc: str, archs: list[str]) -> int:
    """Compile, link, report; 1 where a kernel spills."""
    defines = [f'-DTUNECORE_VERSION="{version()}"', f'-DTUNECORE_CUDA_ARCHS="{" ".join(archs)}"']
    flags = [*FLAGS, *arch_flags(archs), *defines]
    objects = compile_all(nvcc, sorted((ROOT / "csrc").rglob("*.cu")), flags)
    report = "".join(target.with_suffix(".txt").read_text() for target in objects)
    (FOLDER / "report.txt").write_text(report)
    subprocess.run([nvcc, "-shared", "-cudart", "static", *map(str, objects), "-o", str(LIBRARY)], check=True)
    kernels = report.count("Compiling entry function")
    print(f"built {LIBRARY.relative_to(ROOT)}: {kernels} kernels, sm_{', sm_'.join(archs)}; see build/cuda/report.txt")
    spilled = spills(report)
    for line in spilled:
        print(f"build-cuda: registers spilled: {line}", file=sys.stderr)
    return int(bool(spilled))


def main(arguments: list[str]) -> int:
    """The number of the failure, 0 where all is well."""
    nvcc = find_nvcc()
    if nvcc is None:
        print("build-cuda: no nvcc found (NVCC, the path, CUDA_HOME): the CUDA library was not built", file=sys.stderr)
        return 0 if "--if-nvcc" in arguments else 1
    try:
        return build(nvcc, os.environ.get("CUDA_ARCHS", "80 90").split())
    except subprocess.CalledProcessError as error:
        print(f"build-cuda: {error.cmd if isinstance(error.cmd, str) else nvcc} failed", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
