"""Build the C++ tests and run them twice: AddressSanitizer + UBSan, then ThreadSanitizer with the std::thread back end.

    python csrc/tests/run.py [NAME]               only the tests whose name contains NAME
    python csrc/tests/run.py --processors [NAME]  on emulated older processors instead (qemu-x86_64)

Compiler, flags and variants come from setup.py; files that bind to Python are left out. A sanitizer this compiler
cannot link is named and skipped; a failing test, or no sanitizer at all, is exit code 1.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
Source = tuple[Path, list[str]]
"""A file and the flags of its own."""
SourcesOf = Callable[[str, ModuleType], tuple[list[Source], list[str]]]
"""Compiler and setup.py -> what to compile, and flags for all of it."""
PASSES = {
    "asan+ubsan": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fopenmp"],
    # The std::thread back end: ThreadSanitizer does not know libgomp's barriers and reports false races.
    "tsan": ["-fsanitize=thread", "-DTUNECORE_STD_THREAD", "-fopenmp-simd", "-pthread"],
}
PROCESSORS = {"Nehalem": "default", "Haswell": "avx2"}
"""Processor that qemu emulates -> the best variant it has; an instruction it lacks ends the process with SIGILL."""
EMULATOR = "qemu-x86_64"
DETECTED = "capability_is_detected"
"""The test that prints which variant is the best."""


def setup_module() -> ModuleType:
    """setup.py as a module, for its flags and its list of sources."""
    spec = importlib.util.spec_from_file_location("tunecore_setup", ROOT / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiler_for(name: str, setup: ModuleType) -> str | None:
    """The C++ compiler; where there is none, that is said."""
    compiler: str | None = setup.find_compiler()
    if compiler is None:
        print(f"{name}: no C++ compiler found; nothing was tested", file=sys.stderr)
    return compiler


def is_stale(target: Path, depfile: Path) -> bool:
    """Whether an object is missing or older than a file it was made from."""
    if not target.exists() or not depfile.exists():
        return True
    files = depfile.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    made = target.stat().st_mtime
    return any(not Path(f).exists() or Path(f).stat().st_mtime > made for f in files)


def cpu_sources(compiler: str, setup: ModuleType) -> tuple[list[Source], list[str]]:
    """The kernels of the CPU and their tests, and the defines they need."""
    sources, defines = setup.native_sources(setup.usable_isas(compiler))
    kept = [(path, own) for path, own in sources if not path.name.endswith("_bind.cpp") and path.name != "module.cpp"]
    return kept + [(path, []) for path in sorted((ROOT / "csrc" / "tests").glob("*.cpp"))], defines


def build(
    target: Path,
    sources: list[Source],
    flags: list[str],
    compiler: str,
    setup: ModuleType,
    libraries: tuple[str, ...] = (),
) -> None:
    """Compile into the folder of ``target`` and link it, with ``libraries`` behind the objects."""
    common = [*compiler.split(), *(f for f in setup.COMMON if f != "-O3"), "-O1", "-g", *flags]

    def compile_one(item: Source) -> Path:
        path, own = item
        made = target.parent / path.relative_to(ROOT / "csrc").with_suffix(f"{path.suffix}.o")
        depfile = made.with_suffix(".d")
        if is_stale(made, depfile):
            made.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run([*common, *own, "-MMD", "-MF", depfile, "-c", path, "-o", made], check=True)
        return made

    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        objects = list(pool.map(compile_one, sources))
    subprocess.run([*compiler.split(), *flags, *objects, *libraries, "-o", target], check=True)


def run(name: str, sources_of: SourcesOf, passes: dict[str, list[str]], arguments: list[str]) -> int:
    """Build and run every pass of the suite ``name``; the number of the failure, 0 where all is well."""
    setup = setup_module()
    compiler = compiler_for(name, setup)
    if compiler is None:
        return 1
    sources, defines = sources_of(compiler, setup)
    usable = {one: flags for one, flags in passes.items() if setup.compiles(compiler, flags, link=True)}
    for one in passes.keys() - usable.keys():
        print(f"{name}: {compiler} cannot link {one}: skipped", file=sys.stderr)
    failed = not usable
    for one, flags in usable.items():
        print(f"== {one}", flush=True)
        driver = ROOT / "build" / name / one / "driver"
        build(driver, sources, [*flags, *defines], compiler, setup)
        environment = {"UBSAN_OPTIONS": "print_stacktrace=1", **os.environ}
        failed |= subprocess.run([driver, *arguments], env=environment, check=False).returncode != 0
    return int(failed)


def run_on_processors(arguments: list[str]) -> int:
    """Every processor of ``PROCESSORS``; 0 where each ran its own variants, all well."""
    if shutil.which(EMULATOR) is None:
        print(f"native-tests: {EMULATOR} is not installed (Debian: qemu-user): skipped", file=sys.stderr)
        return 0
    setup = setup_module()
    compiler = compiler_for("native-tests", setup)
    if compiler is None:
        return 1
    sources, defines = cpu_sources(compiler, setup)
    driver = ROOT / "build" / "native-tests" / "plain" / "driver"
    build(driver, sources, ["-fopenmp", *defines], compiler, setup)
    failed = False
    for processor, variant in PROCESSORS.items():
        print(f"== {processor}", flush=True)
        emulated = [EMULATOR, "-cpu", processor, driver]
        detected = subprocess.run([*emulated, DETECTED], stdout=subprocess.PIPE, text=True, check=False).stdout
        if f"the best variant here is {variant}\n" not in detected:
            print(f"native-tests: {variant} was expected:\n{detected}", file=sys.stderr)
            failed = True
        failed |= subprocess.run([*emulated, *arguments], check=False).returncode != 0
    return int(failed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--processors"]:
        sys.exit(run_on_processors(sys.argv[2:]))
    sys.exit(run("native-tests", cpu_sources, PASSES, sys.argv[1:]))
