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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
PASSES = {
    "asan+ubsan": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fopenmp"],
    # The std::thread back end: ThreadSanitizer does not know libgomp's barriers and reports false races.
    "tsan": ["-fsanitize=thread", "-DTUNECORE_STD_THREAD", "-fopenmp-simd", "-pthread"],
}
PROCESSORS = {"Nehalem": "default", "Haswell": "avx2"}
"""Processor that qemu emulates -> the best variant it has; an instruction it lacks ends the process with SIGILL."""
EMULATOR = "qemu-x86_64"


def setup_module() -> ModuleType:
    """setup.py as a module, for its flags and its list of sources."""
    spec = importlib.util.spec_from_file_location("tunecore_setup", ROOT / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def is_stale(target: Path, depfile: Path) -> bool:
    """Whether an object is missing or older than a file it was made from."""
    if not target.exists() or not depfile.exists():
        return True
    files = depfile.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    made = target.stat().st_mtime
    return any(not Path(f).exists() or Path(f).stat().st_mtime > made for f in files)


def build(name: str, flags: list[str], compiler: str, setup: ModuleType) -> Path:
    """Compile and link the driver of one pass; return its path."""
    folder = ROOT / "build" / "native-tests" / name
    sources, defines = setup.native_sources(setup.usable_isas(compiler))
    kept = [(path, own) for path, own in sources if not path.name.endswith("_bind.cpp") and path.name != "module.cpp"]
    kept += [(path, []) for path in sorted((ROOT / "csrc" / "tests").glob("*.cpp"))]
    common = [*compiler.split(), *(f for f in setup.COMMON if f != "-O3"), "-O1", "-g", *flags, *defines]

    def compile_one(item: tuple[Path, list[str]]) -> Path:
        path, own = item
        target = folder / path.relative_to(ROOT / "csrc").with_suffix(".o")
        depfile = target.with_suffix(".d")
        if is_stale(target, depfile):
            target.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run([*common, *own, "-MMD", "-MF", depfile, "-c", path, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        objects = list(pool.map(compile_one, kept))
    driver = folder / "driver"
    subprocess.run([*compiler.split(), *flags, *objects, "-o", driver], check=True)
    return driver


def run_under_sanitizers(compiler: str, setup: ModuleType, arguments: list[str]) -> bool:
    """Every pass this compiler can link; returns whether all is well."""
    usable = {name: flags for name, flags in PASSES.items() if setup.compiles(compiler, flags, link=True)}
    for name in PASSES.keys() - usable.keys():
        print(f"test-native: {compiler} cannot link {name}: skipped", file=sys.stderr)
    passed = bool(usable)
    for name, flags in usable.items():
        print(f"== {name}", flush=True)
        driver = build(name, flags, compiler, setup)
        environment = {"UBSAN_OPTIONS": "print_stacktrace=1", **os.environ}
        passed &= subprocess.run([driver, *arguments], env=environment, check=False).returncode == 0
    return passed


def run_on_processors(compiler: str, setup: ModuleType, arguments: list[str]) -> bool:
    """Every processor of ``PROCESSORS``; returns whether each ran its own variants, all well."""
    if shutil.which(EMULATOR) is None:
        print(f"test-native: {EMULATOR} is not installed (Debian: qemu-user): skipped", file=sys.stderr)
        return True
    driver, passed = build("plain", ["-fopenmp"], compiler, setup), True
    for processor, variant in PROCESSORS.items():
        print(f"== {processor}", flush=True)
        command = [EMULATOR, "-cpu", processor, driver, *arguments]
        ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        last = ran.stdout.strip().rpartition("\n")[2]
        print(last if ran.returncode == 0 else ran.stdout, flush=True)
        passed &= ran.returncode == 0 and f"variants up to {variant}," in last
    return passed


def main(arguments: list[str]) -> int:
    """Build and run what is asked for; 0 where all is well, else 1."""
    setup = setup_module()
    compiler = setup.find_compiler()
    if compiler is None:
        print("test-native: no C++ compiler found; nothing was tested", file=sys.stderr)
        return 1
    if arguments[:1] == ["--processors"]:
        return int(not run_on_processors(compiler, setup, arguments[1:]))
    return int(not run_under_sanitizers(compiler, setup, arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
