"""From source to a clean environment, as a stranger does it: sdist -> wheel -> install, with build isolation."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).resolve().parents[2]
# What can be imported where only tunecore is installed, without its dependencies.
PROBE = "import tunecore._C as c; print('core', *c.build_info()['variants'], c.philox(0, [0]*4)[0])"


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("TUNECORE_", "PYTHONPATH"))} | environment
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, env=env, cwd=cwd)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """Python of an environment with nothing but pip and setuptools; skips where no package index is reached."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    command = [str(python), "-m", "pip", "install", "-q", "setuptools>=77"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no package index is reached from here")
    return python


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the sources without anything that was built."""
    folder = tmp_path_factory.mktemp("source")
    built = shutil.ignore_patterns("__pycache__", "*.so", "*.o", "*.egg-info")
    for name in ("csrc", "tunecore"):
        shutil.copytree(ROOT / name, folder / name, ignore=built)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(python, source, compiler, tmp_path_factory) -> Path:
    """A wheel built from the sdist in pip's ordinary isolation."""
    folder = tmp_path_factory.mktemp("dist")
    build = "import setuptools.build_meta as b, sys; print(b.build_sdist(sys.argv[1]))"
    run(python, "-c", build, folder, cwd=source)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = archive.getnames()
    for name in ("setup.py", "csrc/module.cpp", "csrc/masked_lm_loss/masked_lm_loss_cpu.inc", "csrc/common/philox.h"):
        assert any(member.endswith(name) for member in members), name
    run(python, "-m", "pip", "wheel", "--no-deps", "-w", folder, sdist, TUNECORE_NATIVE="1")
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_holds_the_core_and_no_sources(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert len([n for n in names if n.startswith("tunecore/_C.") and n.endswith(".so")]) == 1
    assert "tunecore/py.typed" in names
    outside = {n.split("/")[0] for n in names} - {"tunecore"}
    assert all(n.endswith(".dist-info") for n in outside), outside
    assert not [n for n in names if n.endswith((".cpp", ".inc", ".h"))]
    assert "py3-none-any" not in wheel.name


def test_the_wheel_runs_in_a_clean_environment(wheel, python, tmp_path):
    run(python, "-m", "pip", "install", "--no-deps", "--force-reinstall", wheel)
    words = run(python, "-c", PROBE, cwd=tmp_path).split()
    assert (words[1], words[-1]) == ("default", str(0x6627E8D5))


def test_editable_install_builds_the_core_in_place(python, source, compiler, tmp_path):
    run(python, "-m", "pip", "install", "--no-deps", "-e", source, TUNECORE_NATIVE="1")
    assert list((source / "tunecore").glob("_C.*.so"))
    words = run(python, "-c", PROBE, cwd=tmp_path).split()
    assert (words[1], words[-1]) == ("default", str(0x6627E8D5))


def test_pure_python_wheel_on_demand(python, source, tmp_path):
    text = run(python, "-m", "pip", "wheel", "-v", "--no-deps", "-w", tmp_path, source, TUNECORE_NO_NATIVE="1")
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("py3-none-any.whl")
    assert "PURE PYTHON INSTALL: TUNECORE_NO_NATIVE=1" in text
    assert not [n for n in zipfile.ZipFile(wheel).namelist() if n.endswith(".so")]
