"""``python -m tunecore doctor``: what this installation is made of, what is wrong with it, and the way out.

Nothing here is allowed to stop at a broken part: a part that does not import is a finding, not a crash.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from tunecore import __version__
from tunecore.errors import TunecoreError

REBUILD = "Rebuild with: TUNECORE_NATIVE=1 pip install -v --force-reinstall --no-deps . (in the source tree)"
PHILOX_ZERO = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
"""Philox4x32-10 of key 0 and counter 0: the first known answer of the Random123 distribution."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. A ``problem`` makes the exit code 1; a ``note`` is worth a look."""

    part: str
    text: str
    level: Literal["ok", "note", "problem"] = "ok"
    advice: str = ""


def run() -> int:
    """Print the report; 0, or 1 where a problem was found."""
    findings = list(examine())
    width = max(len(f.part) for f in findings)
    marks = {"ok": "ok  ", "note": "note", "problem": "!!  "}
    for finding in findings:
        print(f"{marks[finding.level]}  {finding.part:<{width}}  {finding.text}")
        if finding.advice:
            print(f"      {'':<{width}}  -> {finding.advice}")
    problems = sum(f.level == "problem" for f in findings)
    print(f"\n{problems} problem{'' if problems == 1 else 's'} found." if problems else "\nNo problems found.")
    return 1 if problems else 0


def examine() -> Iterator[Finding]:
    """Every finding, in the order of the report."""
    cores = available_cores()
    yield Finding("tunecore", f"{__version__} at {Path(__file__).parent}")
    yield Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}, {cores} cores")
    parts: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("packages", _packages),
        ("torch", _torch),
        ("transformers", _transformers),
        ("native", _native),
        ("threads", _threads),
        ("gpu", _gpu),
        ("plugins", _plugins),
    )
    for part, examine_part in parts:
        try:
            yield from examine_part()
        except (Exception, SystemExit) as error:  # a finding whatever it is; only Ctrl-C ends a doctor
            hint = error.hint if isinstance(error, TunecoreError) else None
            message = error.message if isinstance(error, TunecoreError) else f"{type(error).__name__}: {error}"
            yield Finding(part, message, "problem", hint or "Reinstall it: pip install --force-reinstall tunecore")


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def requirements() -> dict[str, str]:
    """Distribution name -> lowest supported version of what this installation of tunecore requires."""
    try:
        lines = metadata.requires("tunecore") or []
    except metadata.PackageNotFoundError:
        return {}
    found = (re.match(r"([\w.-]+)\s*>=\s*([\d.]+)\s*$", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def older(version: str, lowest: str) -> bool:
    """Whether a version such as "2.13.0+cpu" is below one such as "2.10"."""

    def numbers(text: str) -> list[int]:
        return [int(n) for n in re.findall(r"\d+", re.split(r"[+a-z]", text)[0])]

    return numbers(version) < numbers(lowest)


def openmp_runtimes(maps: str) -> list[str]:
    """The OpenMP runtimes among the mapped files of a process (the text of /proc/self/maps)."""
    paths = {line.split(maxsplit=5)[5] for line in maps.splitlines() if len(line.split(maxsplit=5)) == 6}
    return sorted(path for path in paths if re.match(r"lib(gomp|iomp5|omp)[-.]", Path(path).name))


def _packages() -> Iterator[Finding]:
    wanted = requirements()
    if not wanted:
        text = "tunecore is imported from a folder, not installed"
        yield Finding("packages", text, "note", "pip install -e . (in the source tree)")
    for name, lowest in wanted.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding("packages", f"{name} is not installed", "problem", f'pip install "{name}>={lowest}"')
            continue
        if older(version, lowest):
            text = f"{name} {version} is older than {lowest}"
            yield Finding("packages", text, "problem", f'pip install "{name}>={lowest}"')


def _torch() -> Iterator[Finding]:
    torch = importlib.import_module("torch")
    config = torch.__config__.show()
    isa = re.search(r"CPU capability usage: (\S+)", config)
    kernels = f", CPU kernels {isa[1]}" if isa else ""
    yield Finding("torch", f"{torch.__version__} at {Path(str(torch.__file__)).parent}{kernels}")


def _transformers() -> Iterator[Finding]:
    yield Finding("transformers", importlib.import_module("transformers").__version__)


def _native() -> Iterator[Finding]:
    native = importlib.import_module("tunecore.ops._native")
    info = native.info()
    if not info.available:
        wanted = os.environ.get(native.SWITCH) == "1"
        advice = f"unset {native.SWITCH}" if wanted else f"Install a C++17 compiler (gcc or clang). {REBUILD}"
        text = f"not in use: {info.reason}; the ops run on PyTorch, several times slower"
        yield Finding("native", text, "note" if wanted else "problem", advice)
        return
    yield Finding("native", f"{Path(info.path).name} {info.version} by {info.compiler}")
    core = native.load()
    if info.version != __version__:
        yield Finding("native", f"built from tunecore {info.version}, this is {__version__}", "problem", REBUILD)
    if core.philox(0, [0, 0, 0, 0]) != PHILOX_ZERO:
        yield Finding("native", "self-test failed: Philox4x32-10 gives wrong words", "problem", REBUILD)
    yield _isa(info.variants, info.capability, core.detected_capability())
    if info.openmp is None:
        text = "built without OpenMP: kernels run on one thread"
        yield Finding("native", text, "problem", f"Use a compiler with -fopenmp. {REBUILD}")


def _isa(variants: tuple[str, ...], in_use: str, detected: str) -> Finding:
    text = f"in use {in_use}; built {', '.join(variants)}; this machine has {detected}"
    if in_use != detected:
        return Finding("isa", text, "note", "unset TUNECORE_CPU_CAPABILITY to use all the machine has")
    if detected not in variants:
        return Finding("isa", text, "note", f"A newer compiler builds {detected}. {REBUILD}")
    return Finding("isa", text)


def _threads() -> Iterator[Finding]:
    torch = importlib.import_module("torch")
    threads, cores = torch.get_num_threads(), available_cores()
    setting = os.environ.get("OMP_NUM_THREADS")
    text = f"{threads} of {cores} cores; OMP_NUM_THREADS {'is ' + setting if setting else 'is not set'}"
    if threads < cores:
        yield Finding("threads", text, "note", f"export OMP_NUM_THREADS={cores} uses all of them")
    elif threads > cores:
        advice = f"export OMP_NUM_THREADS={cores}: more threads than cores wait for each other"
        yield Finding("threads", text, "note", advice)
    else:
        yield Finding("threads", text)
    maps = Path("/proc/self/maps")
    if not maps.exists():
        yield Finding("openmp", "not examined: this system has no /proc/self/maps")
        return
    runtimes = openmp_runtimes(maps.read_text(encoding="utf-8", errors="replace"))
    text = f"{len(runtimes)} runtime{'' if len(runtimes) == 1 else 's'} loaded: {', '.join(runtimes) or 'none'}"
    if len(runtimes) > 1:
        advice = (
            "Their pools of threads fight for the cores: keep the one of torch, and remove the package that brings "
            "another."
        )
        yield Finding("openmp", text, "note", advice)
    else:
        yield Finding("openmp", text)


def _gpu() -> Iterator[Finding]:
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Finding("gpu", f"{', '.join(names)}; CUDA {torch.version.cuda}")
        yield _cuda_library()
    elif shutil.which("nvidia-smi"):
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
        text = f"this machine has a driver, but torch {torch.__version__} ({build}) sees no device"
        advice = "Install a CUDA build of torch (pytorch.org/get-started), or update the driver (see nvidia-smi)."
        yield Finding("gpu", text, "note", advice)
    else:
        yield Finding("gpu", "none; training runs on the CPU")


def _cuda_library() -> Finding:
    cuda = importlib.import_module("tunecore.ops._cuda")
    info = cuda.info()
    if not info.reason:
        built = f"{info.version} for sm_{', sm_'.join(map(str, info.archs))}, CUDA {info.toolkit / 1000:g}"
        return Finding("cuda kernels", f"{cuda.LIBRARY.name} {built}")
    text = f"not in use: {info.reason}; the ops run on PyTorch there"
    unset = f"unset {cuda.SWITCH}" if os.environ.get(cuda.SWITCH) == "1" else ""
    return Finding("cuda kernels", text, "note", unset or "make build-cuda (in the source tree, with nvcc)")


def _plugins() -> Iterator[Finding]:
    plugins = importlib.import_module("tunecore.plugins")
    loaded: Any = plugins.load_plugins(strict=False)
    names = [f"{name} ({version})" for name, version in loaded.versions().items()]
    yield Finding("plugins", ", ".join(names))
    for broken in loaded.broken:
        yield Finding("plugins", broken.error.message, "problem", broken.error.hint or "tunecore plugins check")
