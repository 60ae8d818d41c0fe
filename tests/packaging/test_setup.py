"""setup.py: what it finds, what it leaves out and says, and what makes it fail."""

from __future__ import annotations

import re
import shutil
import stat
import tomllib
from pathlib import Path

import pytest
from setuptools import Distribution, Extension
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fake_compiler(tmp_path, compiler):
    """A compiler that knows neither AVX-512 bf16 nor OpenMP."""
    path = tmp_path / "old-c++"
    path.write_text(
        '#!/bin/sh\nfor a in "$@"; do case $a in -mavx512bf16|-fopenmp) exit 1;; esac; done\n'
        f'exec {compiler} "$@"\n'
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_setup_is_short_and_the_build_needs_no_torch():
    text = (ROOT / "setup.py").read_text()
    assert len(text.splitlines()) < 180
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert sorted(re.split(r"[<>=]", r)[0] for r in requires) == ["ninja", "pybind11", "setuptools"]
    for path in [ROOT / "setup.py", *(ROOT / "csrc").rglob("*.[ch]*")]:
        assert not re.search(r"#include\s*[<\"](torch|ATen|c10)/|import torch", path.read_text()), path


def test_no_forbidden_flags(builder):
    flags = {*builder.COMMON, *(f for own in builder.ISA_FLAGS.values() for f in own)}
    assert not {f for f in flags if re.match(r"-ffast-math|-Ofast|-march=native|-flto|-funsafe", f)}
    assert not any(f.startswith("-m") for f in builder.COMMON)
    assert "-fvisibility=hidden" in flags


def test_a_flag_the_compiler_lacks_leaves_its_variant_out_and_names_it(builder, fake_compiler):
    isas = builder.usable_isas(fake_compiler, "x86_64")
    assert isas["default"] == isas["avx2"] == ""
    assert isas["avx512_bf16"] == f"{fake_compiler} does not know {' '.join(builder.ISA_FLAGS['avx512_bf16'])}"
    sources, defines = builder.native_sources(isas)
    names = {path.name for path, _ in sources}
    assert "masked_lm_loss_cpu_avx2.cpp" in names
    assert not {n for n in names if "avx512_bf16" in n}
    assert "-DTUNECORE_HAS_MASKED_LM_LOSS_AVX2" in defines
    assert not {d for d in defines if "BF16" in d}


def test_other_processors_build_the_default_only(builder, compiler):
    isas = builder.usable_isas(compiler, "aarch64")
    assert isas.pop("default") == ""
    assert set(isas.values()) == {"this is aarch64"}


def test_each_source_gets_its_own_flags_only(builder):
    sources, defines = builder.native_sources(dict.fromkeys(builder.ISA_FLAGS, ""))
    flags = {path.name: own for path, own in sources}
    assert flags["masked_lm_loss_cpu_avx512.cpp"] == builder.ISA_FLAGS["avx512"]
    assert flags["masked_lm_loss_cpu_default.cpp"] == flags["masked_lm_loss_cpu.cpp"] == flags["module.cpp"] == []
    assert not {name for name in flags if name.startswith("test_") or name == "main.cpp"}
    assert len(defines) == len(set(defines))


def test_a_new_op_folder_needs_no_change(builder, monkeypatch, tmp_path):
    folder = tmp_path / "csrc" / "rotary"
    folder.mkdir(parents=True)
    for name in ("rotary_bind.cpp", "rotary_cpu_default.cpp", "rotary_cpu_avx512_bf16.cpp"):
        (folder / name).write_text("")
    monkeypatch.setattr(builder, "ROOT", tmp_path)
    sources, defines = builder.native_sources(dict.fromkeys(builder.ISA_FLAGS, ""))
    own = {path.name: flags for path, flags in sources}
    assert own["rotary_cpu_avx512_bf16.cpp"] == builder.ISA_FLAGS["avx512_bf16"]
    assert sorted(defines) == ["-DTUNECORE_HAS_ROTARY_AVX512_BF16", "-DTUNECORE_HAS_ROTARY_DEFAULT"]


def test_ninja_file_has_openmp_where_the_compiler_has_it(builder, compiler, fake_compiler, tmp_path):
    for name in (compiler, fake_compiler):
        isas = builder.usable_isas(name, "x86_64")
        builder.write_ninja(tmp_path, tmp_path / "_C.so", name, isas, "1.2.3")
        text = (tmp_path / "build.ninja").read_text()
        assert ("-fopenmp" in text) == builder.compiles(name, ["-fopenmp"], link=True)
        assert "1.2.3" in text
        assert f"cxx = {name}" in text


@pytest.mark.parametrize("native", ["", "1"])
def test_no_compiler_is_loud_or_an_error(builder, monkeypatch, capsys, native):
    monkeypatch.delenv("TUNECORE_NO_NATIVE", raising=False)
    monkeypatch.setenv("TUNECORE_NATIVE", native)
    monkeypatch.setattr(builder, "find_compiler", lambda: None)
    if native:
        with pytest.raises(SystemExit, match="TUNECORE_NATIVE=1, but no C\\+\\+ compiler was found"):
            builder.extensions()
        return
    assert builder.extensions() == []
    assert "PURE PYTHON INSTALL: no C++ compiler was found" in capsys.readouterr().err


def test_pure_python_on_demand(builder, monkeypatch, capsys):
    monkeypatch.setenv("TUNECORE_NO_NATIVE", "1")
    monkeypatch.delenv("TUNECORE_NATIVE", raising=False)
    assert builder.extensions() == []
    assert "PURE PYTHON INSTALL: TUNECORE_NO_NATIVE=1" in capsys.readouterr().err
    monkeypatch.setenv("TUNECORE_NATIVE", "1")
    with pytest.raises(SystemExit, match="TUNECORE_NATIVE=1, but TUNECORE_NO_NATIVE=1"):
        builder.extensions()


@pytest.mark.parametrize("optional", [True, False])
def test_a_failing_compiler_is_loud_or_an_error(builder, compiler, monkeypatch, capfd, tmp_path, optional):
    broken = tmp_path / "broken-c++"
    broken.write_text("#!/bin/sh\necho 'internal compiler error' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    extension = Extension("tunecore._C", [], optional=optional)
    command = builder.NinjaBuild(Distribution({"name": "tunecore", "version": "1", "ext_modules": [extension]}))
    command.build_temp, command.build_lib = str(tmp_path / "temp"), str(tmp_path / "lib")
    command.finalize_options()
    if optional:
        command.run()
        assert "PURE PYTHON INSTALL" in capfd.readouterr().err
    else:
        with pytest.raises(CompileError, match="broken-c\\+\\+ failed, its messages are above"):
            command.run()
    assert not list((tmp_path / "lib").rglob("*.so"))


FAKE_NVCC = r"""#!/bin/sh
for a in "$@"; do case $last in -o) out=$a;; -MF) dep=$a;; -c) source=$a;; esac; last=$a; done
test -z "$FAIL" || { echo "nvcc fatal: unsupported" >&2; exit 1; }
test -z "$dep" || echo "$out: $source" > "$dep"
echo "made of $*" > "$out"
"""


@pytest.fixture
def checkout(tmp_path, builder, monkeypatch):
    """A small tree with one CUDA source, and a compiler for it."""
    for name, text in (("csrc/op.cu", ""), ("tunecore/__init__.py", '__version__ = "1.2.3"\n')):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    shutil.copy(ROOT / "csrc" / "build_cuda.py", tmp_path / "csrc")
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(FAKE_NVCC)
    nvcc.chmod(0o755)
    for name, value in (("NVCC", str(nvcc)), ("CUDA_ARCHS", "90"), ("TUNECORE_CUDA", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(builder, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def gathered(builder, checkout):
    """The files build_py puts together."""
    files = {"packages": ["tunecore"], "package_data": {"tunecore": ["libtunecore_cuda.so"]}}
    command = builder.CudaFirst(builder.WithLibraries({"script_name": "setup.py", **files}))
    command.build_lib = str(checkout / "lib")
    command.finalize_options()
    command.run()
    return {path.name: path for path in (checkout / "lib" / "tunecore").iterdir()}


def test_the_cuda_library_is_built_and_taken_along_on_demand(builder, checkout):
    found = gathered(builder, checkout)
    assert "-cudart static" in found["libtunecore_cuda.so"].read_text()
    assert builder.WithLibraries().has_ext_modules(), "no wheel for any platform"


def test_without_the_word_no_cuda_library_is_built(builder, checkout, monkeypatch):
    monkeypatch.delenv("TUNECORE_CUDA")
    assert set(gathered(builder, checkout)) == {"__init__.py"}
    assert not builder.WithLibraries().has_ext_modules()


def test_a_cuda_library_that_is_asked_for_and_fails_is_an_error(builder, checkout, monkeypatch, capfd):
    monkeypatch.setenv("FAIL", "1")
    with pytest.raises(CompileError, match="TUNECORE_CUDA=1, but the CUDA library was not built"):
        gathered(builder, checkout)
    assert "nvcc fatal: unsupported" in capfd.readouterr().err
