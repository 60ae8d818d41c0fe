"""Run the tests of the CUDA kernels on the GPU at hand, the kernels under compute-sanitizer's four tools too.

    python csrc/tests/run_gpu.py [NAME]         of the C++ tests only those whose name contains NAME
    python csrc/tests/run_gpu.py --build-only   build what the C++ tests need; wants no GPU where CUDA_ARCHS is set

Builds tunecore/libtunecore_cuda.so for the compute capability of this GPU (CUDA_ARCHS overrides), and the C++ tests as
a driver that calls it with memory of the GPU. Runs the driver, then the driver under memcheck, racecheck, synccheck and
initcheck where there is a compute-sanitizer (COMPUTE_SANITIZER, the path, CUDA_HOME), then tests/ops/test_cuda_*.py,
which need torch, transformers, numpy, pluggy and pytest. Without nvcc it takes the library and the driver that
an earlier build left.

Exit code 0: all passed; 1: something failed; 77: there is no GPU, and nothing was tested.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys

from run_cuda import ON_DEVICE, ROOT, driver_sources

sys.path[:0] = [str(ROOT), str(ROOT / "csrc")]
import build_cuda  # noqa: E402

DRIVER = build_cuda.FOLDER / "driver"
FLAGS = ["-std=c++17", "-O1", "-g", "--Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra", ON_DEVICE]
TOOLS: dict[str, dict[str, str]] = {
    "memcheck": {},
    "racecheck": {},
    "synccheck": {},
    "initcheck": {"TUNECORE_TEST_RAW_OUTPUTS": "1"},
}
"""Tool -> what the driver is told: initcheck sees an output that nobody wrote only where nobody filled it before."""
NO_GPU = 77
FOUND_FAULTS = 9
"""compute-sanitizer's exit code where it found something, unlike any of the driver's."""


def say(text: str) -> None:
    print(f"test-gpu: {text}", file=sys.stderr, flush=True)


def capability() -> str | None:
    """Compute capability of the first GPU, such as "90"; None where torch sees none."""
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}"


def build(archs: str) -> bool:
    """Make the library and the driver, or see that they are there; whether they are."""
    nvcc = build_cuda.find_nvcc()
    if nvcc is None:
        present = build_cuda.LIBRARY.exists() and DRIVER.exists()
        say(f"no nvcc found (NVCC, the path, CUDA_HOME): {'taking the last build' if present else 'nothing is built'}")
        return present
    try:
        if build_cuda.build(nvcc, archs.split()):
            return False
        link_driver(nvcc)
    except subprocess.CalledProcessError as error:
        say(f"the build failed: {error}")
        return False
    return True


def link_driver(nvcc: str) -> None:
    """The C++ tests as a program that finds the library where it lies, wherever the tree is moved to."""
    objects = build_cuda.compile_all(nvcc, driver_sources("cuda"), FLAGS)
    folder = build_cuda.LIBRARY.parent
    beside = os.path.join("$ORIGIN", os.path.relpath(folder, DRIVER.parent))
    library = [f"-L{folder}", f"-l:{build_cuda.LIBRARY.name}", "-Xlinker", "-rpath", "-Xlinker", beside]
    subprocess.run([nvcc, "-cudart", "static", *map(str, objects), *library, "-o", str(DRIVER)], check=True)


def run_driver(names: list[str], tool: str = "", sanitizer: str = "") -> bool:
    """The C++ tests, plainly or under a tool of compute-sanitizer; whether all passed."""
    print(f"== C++ tests on the GPU{tool and f' under {tool}'}", flush=True)
    command, environment = [str(DRIVER), *names], dict(os.environ)
    if tool:
        command = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND_FAULTS), *command]
        environment |= {"TUNECORE_TEST_REPEATS": "1", **TOOLS[tool]}
    return subprocess.run(command, env=environment, check=False).returncode == 0


def run_sanitizer(names: list[str]) -> list[str]:
    """The tools under which something failed; says so where there are none."""
    sanitizer = build_cuda.find_tool("compute-sanitizer", "COMPUTE_SANITIZER")
    if sanitizer is None:
        say(f"no compute-sanitizer found (COMPUTE_SANITIZER, the path, CUDA_HOME): {', '.join(TOOLS)} were not run")
        return []
    return [tool for tool in TOOLS if not run_driver(names, tool, sanitizer)]


def run_python_tests() -> bool:
    """tests/ops/test_cuda_*.py; false also where they would skip the library."""
    print("== Python tests on the GPU", flush=True)
    reason = importlib.import_module("tunecore.ops._cuda").info().reason
    if reason:
        say(f"the library is not used, so there is nothing to test: {reason}")
        return False
    files = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests" / "ops").glob("test_cuda_*.py"))]
    # Before the site's packages: the tunecore that is tested is this one.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "pytest", "-rs", *files]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0


def main(arguments: list[str]) -> int:
    """The exit code that the module's words promise."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="*", help="part of the name of the C++ tests to run")
    parser.add_argument("--build-only", action="store_true")
    args = parser.parse_args(arguments)
    found, archs = capability(), os.environ.get("CUDA_ARCHS", "")
    if found is None and not (args.build_only and archs):
        say("torch sees no CUDA GPU here: nothing was tested")
        return NO_GPU
    if not build(archs or str(found)):
        return 1
    if args.build_only:
        return 0
    failed = [] if run_driver(args.name) else ["C++ tests"]
    failed += run_sanitizer(args.name)
    failed += [] if run_python_tests() else ["Python tests"]
    say(f"failed: {', '.join(failed)}" if failed else "all that was run passed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
