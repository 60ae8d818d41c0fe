from __future__ import annotations

import errno
import json
import os
import shutil

import pytest

from tunecore import checkpoint
from tunecore.checkpoint import MANIFEST, clean_leftovers, commit, newest_good, prune, read_manifest, verify
from tunecore.errors import CheckpointError


def writer(text="weights", extra=None):
    def write(folder):
        (folder / "model.safetensors").write_text(text * 50)
        (folder / "sub").mkdir()
        (folder / "sub" / "state.json").write_text(f'{{"of": "{text}"}}')
        if extra is not None:
            extra(folder)

    return write


def fail_with(error):
    def fail(folder):
        raise error

    return fail


@pytest.fixture
def run_dir(tmp_path):
    for step in (1, 2, 3):
        commit(tmp_path / "run", f"step-{step}", writer(f"weights {step}"), {"step": step})
    return tmp_path / "run"


def visible(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_committed_folder_verifies_and_says_what_it_holds(run_dir):
    manifest = verify(run_dir / "step-2")
    assert manifest.name == "step-2" and manifest.info == {"step": 2}
    assert sorted(manifest.files) == ["model.safetensors", "sub/state.json"]
    assert manifest.files["model.safetensors"][0] == (run_dir / "step-2" / "model.safetensors").stat().st_size
    assert visible(run_dir) == ["step-1", "step-2", "step-3"]


def test_equal_content_is_equal_bytes(tmp_path):
    info = {"numbers": (1, 2.5), "ü": None, 3: "key"}
    first = commit(tmp_path / "a", "step-1", writer(), info)
    second = commit(tmp_path / "b", "step-1", writer(), info)
    assert (first / MANIFEST).read_bytes() == (second / MANIFEST).read_bytes()
    assert verify(first).info == {"numbers": [1, 2.5], "ü": None, "3": "key"}


def flip(path, at=-1, bit=1):
    data = bytearray(path.read_bytes())
    data[at] ^= bit
    path.write_bytes(bytes(data))


def swap(one, other):
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


FILES = ["model.safetensors", "sub/state.json", MANIFEST]
DAMAGES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "first bit": lambda path: flip(path, 0),
    "middle bit": lambda path: flip(path, path.stat().st_size // 2, 0x20),
    "last bit": lambda path: flip(path),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_found_named_and_stepped_over(run_dir, file, damage):
    DAMAGES[damage](run_dir / "step-3" / file)
    with pytest.raises(CheckpointError) as error:
        verify(run_dir / "step-3")
    assert file in error.value.message
    path, skipped = newest_good(run_dir)
    assert path == run_dir / "step-2"
    assert [p for p, _ in skipped] == [run_dir / "step-3"] and file in skipped[0][1]


def test_every_single_bit_of_a_manifest_counts(tmp_path):
    path = commit(tmp_path, "step-1", writer(), {"step": 1}) / MANIFEST
    good = path.read_bytes()
    for at in range(len(good)):
        flip(path, at, 1 << at % 8)
        with pytest.raises(CheckpointError):
            verify(tmp_path / "step-1")
        path.write_bytes(good)
    assert verify(tmp_path / "step-1").info == {"step": 1}


def test_swapped_files_and_swapped_folders_are_found(run_dir):
    swap(run_dir / "step-3" / "model.safetensors", run_dir / "step-3" / "sub" / "state.json")
    assert newest_good(run_dir)[0] == run_dir / "step-2"
    os.rename(run_dir / "step-2", run_dir / "step-20")
    path, skipped = newest_good(run_dir)
    assert path == run_dir / "step-1"
    assert "committed as 'step-2'" in skipped[0][1]


def test_all_damaged_is_none_with_every_reason(run_dir):
    for step in (1, 2, 3):
        (run_dir / f"step-{step}" / "model.safetensors").unlink()
    path, skipped = newest_good(run_dir)
    assert path is None and len(skipped) == 3


def test_no_folder_is_no_checkpoint(tmp_path):
    assert newest_good(tmp_path / "absent") == (None, [])
    assert clean_leftovers(tmp_path / "absent") == []


def test_steps_are_ordered_as_numbers(tmp_path):
    for step in (9, 10, 100):
        commit(tmp_path, f"step-{step}", writer(), {})
    assert newest_good(tmp_path)[0].name == "step-100"
    assert [p.name for p in prune(tmp_path, 1)] == ["step-10", "step-9"]


def test_prune_keeps_the_newest_and_the_protected(run_dir):
    commit(run_dir, "final", writer(), {})
    assert [p.name for p in prune(run_dir, 1, [run_dir / "step-1"])] == ["step-2"]
    assert visible(run_dir) == ["final", "step-1", "step-3"]
    assert prune(run_dir, 5) == []


def test_damaged_steps_ahead_of_a_resumed_run_do_not_crowd_out_its_own(run_dir):
    for step in (8, 9):
        commit(run_dir, f"step-{step}", writer(), {})
        (run_dir / f"step-{step}" / MANIFEST).unlink()
    assert [p.name for p in prune(run_dir, 2, newest=3)] == ["step-1"]
    assert visible(run_dir) == ["step-2", "step-3", "step-8", "step-9"]


@pytest.mark.parametrize("call", ["rename", "unlink", "rmdir"])
def test_what_cannot_be_pruned_is_said_and_ends_no_run(run_dir, monkeypatch, call):
    def refuse(*args, **kwargs):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, call, refuse)
    with pytest.warns(UserWarning, match=r"step-1.* cannot be removed and takes room on the disk: .*Input/output"):
        prune(run_dir, 2)
    monkeypatch.undo()
    assert newest_good(run_dir)[0] == run_dir / "step-3"
    clean_leftovers(run_dir)
    assert [p.name for p in prune(run_dir, 2)] == (["step-1"] if call == "rename" else [])
    assert visible(run_dir) == ["step-2", "step-3"]


def test_a_leftover_that_cannot_be_removed_is_said(run_dir, monkeypatch):
    shutil.copytree(run_dir / "step-1", run_dir / ".tmp-step-4-4242")
    os.rename(run_dir / "step-3", run_dir / ".old-step-3-4242")

    def refuse(*args, **kwargs):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    for call in ("rename", "unlink", "rmdir"):
        monkeypatch.setattr(os, call, refuse)
    with pytest.warns(UserWarning, match="cannot be removed") as told:
        assert clean_leftovers(run_dir) == []
    assert [name in str(w.message) for w, name in zip(told, (".old-step-3", ".tmp-step-4"), strict=True)] == [True] * 2
    assert newest_good(run_dir)[0] == run_dir / ".old-step-3-4242"


def test_a_file_the_manifest_does_not_list_is_left_alone(run_dir):
    (run_dir / "step-3" / "notes.txt").write_text("mine")
    assert "notes.txt" not in verify(run_dir / "step-3").files and newest_good(run_dir)[0] == run_dir / "step-3"


def test_files_that_are_not_asked_for_may_be_gone(run_dir):
    (run_dir / "step-3" / "model.safetensors").unlink()
    assert verify(run_dir / "step-3", but=["model.safetensors"]).name == "step-3"
    with pytest.raises(CheckpointError, match="missing"):
        verify(run_dir / "step-3", but=["sub/state.json"])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_while_writing_leaves_what_was_there(run_dir, code):
    before = newest_good(run_dir)
    with pytest.raises(CheckpointError, match="step-4") as error:
        commit(run_dir, "step-4", writer(extra=fail_with(OSError(code, os.strerror(code)))), {})
    assert os.strerror(code) in error.value.message and "disk" in error.value.hint
    assert newest_good(run_dir) == before and visible(run_dir) == ["step-1", "step-2", "step-3"]


def test_a_disk_that_is_really_full(run_dir):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")

    def write(folder):
        with open("/dev/full", "wb") as file:
            file.write(b"x" * 100000)

    with pytest.raises(CheckpointError, match="No space left"):
        commit(run_dir, "step-3", write, {})
    assert verify(run_dir / "step-3").info == {"step": 3}


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_any_failing_call_of_the_commit_leaves_what_was_there(run_dir, monkeypatch, call):
    """Fail the n-th call for every n until the commit gets through, on a name that exists already."""
    real, calls = getattr(os, call), []

    for allowed in range(40):
        calls.clear()

        def failing(*args, allowed=allowed):
            calls.append(args)
            if len(calls) == allowed + 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args)

        monkeypatch.setattr(checkpoint.os, call, failing)
        try:
            commit(run_dir, "step-3", writer("new"), {"step": "new"})
        except CheckpointError:
            monkeypatch.setattr(checkpoint.os, call, real)
            assert newest_good(run_dir)[0].name == "step-3", f"{call} number {allowed}"
            assert not [name for name in visible(run_dir) if name.startswith(".tmp")]
        else:
            break
    else:
        raise AssertionError("the commit never got through")
    assert allowed >= 2
    assert verify(run_dir / "step-3").info == {"step": "new"}


def test_a_disk_error_that_a_library_dresses_up_is_still_one(run_dir):
    with pytest.raises(CheckpointError, match=r"cannot write checkpoint .*step-4.*No space left"):
        commit(run_dir, "step-4", writer(extra=fail_with(Exception("No space left on device (os error 28)"))), {})
    assert visible(run_dir) == ["step-1", "step-2", "step-3"]


def test_an_error_that_is_no_disk_error_comes_out_as_it_is(run_dir):
    with pytest.raises(ZeroDivisionError):
        commit(run_dir, "step-4", writer(extra=fail_with(ZeroDivisionError())), {})
    assert visible(run_dir) == ["step-1", "step-2", "step-3"]


def test_saving_again_replaces_the_folder(run_dir):
    commit(run_dir, "step-3", writer("again"), {"step": 33})
    assert verify(run_dir / "step-3").info == {"step": 33}
    assert (run_dir / "step-3" / "model.safetensors").read_text().startswith("again")
    assert visible(run_dir) == ["step-1", "step-2", "step-3"]


def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(run_dir):
    os.rename(run_dir / "step-3", run_dir / ".old-step-3-4242")
    path, skipped = newest_good(run_dir)
    assert path == run_dir / ".old-step-3-4242" and not skipped
    assert clean_leftovers(run_dir) == []
    assert newest_good(run_dir)[0] == run_dir / "step-3"


def test_leftovers_of_a_killed_process_go_and_nothing_else(run_dir):
    shutil.copytree(run_dir / "step-1", run_dir / ".tmp-step-4-4242")
    shutil.copytree(run_dir / "step-1", run_dir / ".old-step-3-4242")
    (run_dir / ".tmp-best-4242").write_text("step")
    (run_dir / "notes.txt").write_text("mine")
    gone = [".old-step-3-4242", ".tmp-best-4242", ".tmp-step-4-4242"]
    assert sorted(p.name for p in clean_leftovers(run_dir)) == gone
    assert visible(run_dir) == ["notes.txt", "step-1", "step-2", "step-3"]


def rewrite(path, change):
    """Change a manifest and make it consistent again, as only someone who means to would."""
    content = json.loads(path.read_bytes())
    del content["sha256"]
    change(content)
    digest = checkpoint.hashlib.sha256(checkpoint._canonical(content)).hexdigest()
    path.write_bytes(checkpoint._manifest_bytes(content, digest))


def test_a_manifest_of_a_newer_format_is_refused_by_name(run_dir):
    rewrite(run_dir / "step-3" / MANIFEST, lambda content: content.update(format=99))
    with pytest.raises(CheckpointError, match="format 99") as error:
        read_manifest(run_dir / "step-3")
    assert "Upgrade" in error.value.hint


@pytest.mark.parametrize("name", ["../step-1/model.safetensors", "/etc/passwd"])
def test_a_manifest_cannot_reach_out_of_its_folder(run_dir, name):
    rewrite(run_dir / "step-3" / MANIFEST, lambda c: c["files"].update({name: {"size": 1, "sha256": "0"}}))
    with pytest.raises(CheckpointError, match="outside"):
        verify(run_dir / "step-3")


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"sha256": 1}', '{"format": "x", "sha256": ""}', "\xff"])
def test_anything_else_in_place_of_a_manifest_is_a_named_error(run_dir, text):
    (run_dir / "step-3" / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        verify(run_dir / "step-3")
