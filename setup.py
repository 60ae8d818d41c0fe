"""Build tunecore._C with ninja: plain pybind11, no torch; one object per source, ISA files with their own flags.

TUNECORE_NO_NATIVE=1 installs pure Python (the ops run on PyTorch), TUNECORE_NATIVE=1 makes any failure of the native
build an error; CXX, CXXFLAGS, LDFLAGS and MAX_JOBS work as usual. TUNECORE_CUDA=1 builds the CUDA library too, by nvcc
(csrc/build_cuda.py).
Sources are found by name, so a new folder csrc/<op>/ needs no change here (csrc/README.md).
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from sysconfig import get_path

from setuptools import Distribution, Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
COMMON = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma"]
ISA_FLAGS = {"default": [], "avx2": ["-mavx2", "-mfma"], "avx512": AVX512, "avx512_bf16": [*AVX512, "-mavx512bf16"]}
ISA_FLAGS["amx_bf16"] = [*ISA_FLAGS["avx512_bf16"], "-mamx-tile", "-mamx-bf16"]
ISA_FILE = re.compile(rf"(\w+?)_cpu_({'|'.join(ISA_FLAGS)})\.cpp")


def say(text: str) -> None:
    print(f"[tunecore] {text}", file=sys.stderr, flush=True)


def find_compiler() -> str | None:
    """The C++ compiler: $CXX, else the first of c++, g++, clang++ on the path."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((name for name in names if shutil.which(name.split()[0])), None)


def compiles(compiler: str, flags: list[str], *, link: bool = False) -> bool:
    """Whether the compiler takes these flags (and can link a program with them)."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("int main() { return 0; }\n")
        last = ["-o", str(Path(folder, "probe"))] if link else ["-c", "-o", str(Path(folder, "probe.o"))]
        command = [*compiler.split(), "-Werror", *flags, str(source), *last]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def usable_isas(compiler: str, machine: str | None = None) -> dict[str, str]:
    """ISA -> "" where this compiler can build it, else the reason why not."""
    machine, reasons = machine or platform.machine(), dict.fromkeys(ISA_FLAGS, "")
    for isa, flags in ISA_FLAGS.items():
        if flags and machine.lower() not in ("x86_64", "amd64"):
            reasons[isa] = f"this is {machine}"
        elif not compiles(compiler, flags):
            reasons[isa] = f"{compiler} does not know {' '.join(flags)}"
    return reasons


def native_sources(isas: dict[str, str]) -> tuple[list[tuple[Path, list[str]]], list[str]]:
    """(source, own flags) of everything to compile, and a TUNECORE_HAS_<OP>_<ISA> define for each variant in it."""
    sources, defines = [], []
    for path in sorted((ROOT / "csrc").rglob("*.cpp")):
        match = ISA_FILE.fullmatch(path.name)
        if {"tests", "emulation"} & {*path.relative_to(ROOT / "csrc").parts} or (match and isas[match[2]]):
            continue
        sources.append((path, ISA_FLAGS[match[2]] if match else []))
        if match:
            defines.append("-DTUNECORE_HAS_" + f"{match[1]}_{match[2]}".upper())
    return sources, defines


def write_ninja(folder: Path, target: Path, compiler: str, isas: dict[str, str], version: str) -> None:
    """Write folder/build.ninja that makes ``target`` from csrc."""
    import pybind11

    sources, defines = native_sources(isas)
    variants = [isa for isa, reason in isas.items() if not reason]
    openmp = ["-fopenmp"] if compiles(compiler, ["-fopenmp"], link=True) else []
    shared = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
    includes = [f"-isystem '{path}'" for path in (get_path("include"), pybind11.get_include())]
    strings = [f'-DTUNECORE_VERSION=\\"{version}\\"', f'-DTUNECORE_VARIANTS=\\"{",".join(variants)}\\"']
    flags = [os.environ.get("CXXFLAGS", ""), *COMMON, *openmp, *defines, *strings, *includes]

    def quote(path: Path) -> str:
        return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    lines = [
        f"cxx = {compiler}\nflags = " + " ".join(flags).replace("$", "$$"),
        "rule compile\n  command = $cxx $flags $isa -MMD -MF $out.d -c $in -o $out\n  description = $in $isa",
        "  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = $cxx {' '.join(shared + openmp)} $in -o $out {os.environ.get('LDFLAGS', '')}",
    ]
    objects = []
    for path, own in sources:
        objects.append(folder / "objects" / path.relative_to(ROOT / "csrc").with_suffix(".o"))
        lines.append(f"build {quote(objects[-1])}: compile {quote(path)}\n  isa = {' '.join(own)}")
    lines.append(f"build {quote(target)}: link {' '.join(map(quote, objects))}\n")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "build.ninja").write_text("\n".join(lines))


def announce_pure(reason: str) -> None:
    say("*" * 78)
    say(f"PURE PYTHON INSTALL: {reason}. The ops run on their PyTorch reference, several times slower.")
    say("With a C++17 compiler: TUNECORE_NATIVE=1 pip install -v .")
    say("*" * 78)


class NinjaBuild(build_ext):
    """Hand the whole extension to ninja and say what was built."""

    def build_extension(self, ext: Extension) -> None:
        compiler, ninja = find_compiler(), shutil.which("ninja")
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        folder = Path(self.build_temp).resolve() / "native"
        failed = "no C++ compiler or no ninja on the path"
        if compiler and ninja:
            isas = usable_isas(compiler)
            write_ninja(folder, target, compiler, isas, self.distribution.get_version())
            jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
            done = subprocess.run([ninja, "-C", str(folder), *jobs], check=False)
            failed = f"{compiler} failed, its messages are above" if done.returncode else ""
        if failed and ext.optional:
            announce_pure(failed)
        if failed:
            raise CompileError(failed)
        say(f"built {target.name} with {compiler}: " + ", ".join(isa for isa, reason in isas.items() if not reason))
        for isa in filter(isas.get, isas):
            say(f"left out {isa}: {isas[isa]}")


class CudaFirst(build_py):
    """With TUNECORE_CUDA=1, make the CUDA library before the files of the package are gathered: it is one of them."""

    def run(self) -> None:
        command = [sys.executable, str(ROOT / "csrc" / "build_cuda.py")]
        if os.environ.get("TUNECORE_CUDA") == "1" and subprocess.run(command, check=False).returncode:
            raise CompileError("TUNECORE_CUDA=1, but the CUDA library was not built; the reason is above")
        super().run()


class WithLibraries(Distribution):
    """A wheel with the CUDA library is for one platform, also where there is no extension module."""

    def has_ext_modules(self) -> bool:
        library = ROOT / "tunecore" / "libtunecore_cuda.so"
        return super().has_ext_modules() or os.environ.get("TUNECORE_CUDA") == "1" or library.exists()


def extensions() -> list[Extension]:
    """tunecore._C, or nothing where a pure Python install is wanted or all that is possible."""
    required, refused = (os.environ.get(f"TUNECORE_{name}NATIVE") == "1" for name in ("", "NO_"))
    reason = "" if find_compiler() else "no C++ compiler was found (CXX, c++, g++, clang++)"
    reason = "TUNECORE_NO_NATIVE=1" if refused else reason
    if reason and required:
        raise SystemExit(f"TUNECORE_NATIVE=1, but {reason}.")
    if reason:
        announce_pure(reason)
        return []
    return [Extension("tunecore._C", sources=[], optional=not required)]


if __name__ == "__main__":
    commands = {"build_ext": NinjaBuild, "build_py": CudaFirst}
    setup(ext_modules=extensions(), cmdclass=commands, distclass=WithLibraries)
