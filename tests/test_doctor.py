"""doctor: every part reported, every problem with its way out, no crash on a broken part."""

from __future__ import annotations

import pytest

from tunecore import doctor
from tunecore.errors import NativeError
from tunecore.ops import _native


def findings(part: str) -> list[doctor.Finding]:
    return [f for f in doctor.examine() if f.part == part]


def test_report_names_every_part(capsys):
    code = doctor.run()
    text = capsys.readouterr().out
    for part in ("tunecore", "python", "torch", "transformers", "native", "threads", "openmp", "gpu", "plugins"):
        assert f"  {part} " in text, text
    assert code == int("problem" in {f.level for f in doctor.examine()})
    assert ("No problems found." in text) == (code == 0)


def test_every_problem_has_a_way_out(monkeypatch):
    monkeypatch.setattr(_native, "_open", lambda: (None, "it was never built"))
    (finding,) = findings("native")
    assert finding.level == "problem"
    assert "it was never built" in finding.text
    assert "compiler" in finding.advice
    assert "TUNECORE_NATIVE=1 pip install" in finding.advice


def test_wanted_pure_python_is_no_problem(monkeypatch):
    monkeypatch.setenv("TUNECORE_NO_NATIVE", "1")
    (finding,) = findings("native")
    assert (finding.level, finding.advice) == ("note", "unset TUNECORE_NO_NATIVE")


def test_a_broken_part_is_a_finding_and_the_rest_goes_on(monkeypatch, capsys):
    def broken():
        raise NativeError("the compiled core /x/_C.so does not load: undefined symbol", hint="Rebuild it.")

    monkeypatch.setattr(_native, "_open", broken)
    assert doctor.run() == 1
    text = capsys.readouterr().out
    assert "!!    native" in text
    assert "undefined symbol" in text
    assert "-> Rebuild it." in text
    assert "plugins" in text
    assert "1 problem found." in text


def test_a_part_that_does_not_import_is_a_finding(monkeypatch):
    real = doctor.importlib.import_module

    def fail(name):
        if name == "transformers":
            raise ModuleNotFoundError("No module named 'transformers'")
        return real(name)

    monkeypatch.setattr(doctor.importlib, "import_module", fail)
    (finding,) = findings("transformers")
    assert finding.level == "problem"
    assert "No module named 'transformers'" in finding.text
    assert "pip install" in finding.advice


def test_packages_missing_or_too_old(monkeypatch):
    monkeypatch.setattr(doctor, "requirements", lambda: {"torch": "99.0", "no-such-thing": "1.2", "numpy": "1.0"})
    old, missing = findings("packages")
    assert old.text.endswith("is older than 99.0")
    assert old.advice == 'pip install "torch>=99.0"'
    assert missing.text == "no-such-thing is not installed"


@pytest.mark.parametrize(
    ("version", "lowest", "is_older"),
    [("2.13.0+cpu", "2.10", False), ("2.9.1", "2.10", True), ("3", "2.10", False), ("2.10.0a1", "2.10", False)],
)
def test_versions_compare_by_number(version, lowest, is_older):
    assert doctor.older(version, lowest) == is_older


def test_openmp_runtimes_are_counted_by_file():
    maps = "\n".join(
        [
            "7f00-7f01 r-xp 00000000 08:01 1 /a b/libgomp.so.1",
            "7f01-7f02 r--p 00000000 08:01 1 /a b/libgomp.so.1",
            "7f02-7f03 r--p 00000000 08:01 2 /x/libgomp-a34b3233.so.1.0.0",
            "7f03-7f04 r--p 00000000 08:01 3 /x/libiomp5.so",
            "7f04-7f05 r--p 00000000 08:01 4 /x/libompstream.so",
            "7f05-7f06 rw-p 00000000 00:00 0",
        ]
    )
    assert doctor.openmp_runtimes(maps) == ["/a b/libgomp.so.1", "/x/libgomp-a34b3233.so.1.0.0", "/x/libiomp5.so"]


def test_slower_instruction_set_is_noted():
    built = ("default", "avx2")
    assert doctor._isa(built, "avx2", "avx2").level == "ok"
    assert "unset TUNECORE_CPU_CAPABILITY" in doctor._isa(built, "default", "avx2").advice
    assert "newer compiler builds avx512" in doctor._isa(built, "avx512", "avx512").advice
