"""What the compiler made of the per-ISA files: no instruction, symbol or initialiser leaks out of its variant.

A vector instruction or a merged template of a wide variant in code that runs everywhere is a crash on older machines.
"""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

WIDE = re.compile(r"%zmm|%[xy]mm(1[6-9]|2\d|3[01])|\{%k[0-7]\}|%k[0-7]\b")


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="session")
def isa_objects(builder, compiler):
    """ISA -> the objects of it, compiled as setup.py would, in a build folder that is kept between runs."""
    for tool in ("objdump", "nm", "ninja"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not on this machine")
    folder = builder.ROOT / "build" / "object-tests"
    isas = builder.usable_isas(compiler)
    builder.write_ninja(folder, folder / "_C.so", compiler, isas, "0")
    found = {isa: [] for isa, reason in isas.items() if not reason}
    for path, _ in builder.native_sources(isas)[0]:
        if match := builder.ISA_FILE.fullmatch(path.name):
            relative = path.relative_to(builder.ROOT / "csrc")
            found[match[2]].append(str(folder / "objects" / relative.with_suffix(".o")))
    subprocess.run(["ninja", "-C", folder, *(o for objects in found.values() for o in objects)], check=True)
    return found


def test_one_global_symbol_no_weak_ones_no_initialisers(isa_objects):
    for isa, objects in isa_objects.items():
        for path in objects:
            defined = [line.split()[-2:] for line in output("nm", "--defined-only", path).splitlines()]
            exported = [name for kind, name in defined if kind.isupper() and kind not in "WVU"]
            assert len(exported) == 1, (isa, path, exported)
            assert isa in exported[0]
            assert not [name for kind, name in defined if kind in "WVwvu"], path
            assert ".init_array" not in output("objdump", "-h", path), path


def test_wide_instructions_only_where_they_belong(isa_objects):
    if "avx512" not in isa_objects:
        pytest.skip("this compiler builds no avx512 variant")
    for isa, objects in isa_objects.items():
        for path in objects:
            code = output("objdump", "-d", "--no-show-raw-insn", path)
            wide = sorted({match[0] for match in WIDE.finditer(code)})
            if isa.startswith(("avx512", "amx")):
                assert "%zmm" in code, f"{path}: the compiler made no use of {isa}"
            else:
                assert not wide, f"{path}: {wide}"
            if isa == "default":
                assert "%ymm" not in code, path


def test_nothing_but_the_c_library_is_called_from_outside(isa_objects):
    for objects in isa_objects.values():
        for path in objects:
            wanted = {line.split()[-1] for line in output("nm", "--undefined-only", path).splitlines()}
            mangled = {name for name in wanted if name.startswith("_Z")}
            assert not mangled, f"{path} calls C++ code of another file: {mangled}"
