from __future__ import annotations

import os

import fake_ranks
import pytest
import torch

from tunecore.locks import RunLock
from tunecore.training import distributed
from tunecore.training.distributed import Ranks, open_ranks, set_threads


def test_one_process_is_a_rank_of_its_own():
    with open_ranks("cpu") as ranks:
        assert ranks == Ranks() and ranks.is_main
        assert ranks.sum([1.5]) == [1.5] and ranks.gather("x") == ["x"] and ranks.any(True) and not ranks.any(False)
        ranks.barrier()
    assert not torch.distributed.is_initialized()


def test_ranks_share_numbers_and_values(on_ranks):
    parts = on_ranks(2, fake_ranks.gather_on)
    assert [p["sum"].tolist() for p in parts] == [[1, 2**53]] * 2
    assert [int(p["threads"]) for p in parts] == [1, 1]


def test_cores_are_shared_between_the_ranks_of_a_machine(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(distributed.os, "sched_getaffinity", lambda pid: range(8), raising=False)
    try:
        assert set_threads(None, 2) == 4
        assert set_threads(3, 2) == 3
        assert set_threads(None, 1) == 3, "a single process keeps what there is"
        assert set_threads(None, 16) == 1
    finally:
        torch.set_num_threads(before)


def test_gradients_are_summed_in_buckets_of_one_dtype(monkeypatch):
    monkeypatch.setattr(distributed, "BUCKET_BYTES", 20)
    tensors = [torch.zeros(n, dtype=d) for n, d in ((2, torch.float32), (3, torch.float32), (1, torch.float32),
                                                     (1, torch.float64), (9, torch.float64))]  # fmt: skip
    assert [[t.numel() for t in bucket] for bucket in distributed._buckets(tensors)] == [[2, 3], [1], [1, 9]]


def test_two_ranks_train_stop_together_and_resume_bit_for_bit(on_ranks, tmp_path):
    whole = on_ranks(2, fake_ranks.train_on, str(tmp_path / "whole"), 12)
    for name, value in whole[0].items():
        assert torch.equal(value, whole[1][name]), f"ranks differ in {name}"
    # Step 5 is inside an epoch and between evaluations; only rank 1 is asked to stop.
    cut = on_ranks(2, fake_ranks.train_on, str(tmp_path / "cut"), 12, 5)
    assert [(int(p["steps"]), int(p["code"])) for p in cut] == [(5, 130)] * 2
    rest = on_ranks(2, fake_ranks.train_on, str(tmp_path / "cut"), 12)
    assert int(rest[0]["steps"]) == 12
    for file in (tmp_path / "whole" / "step-12").iterdir():
        assert file.read_bytes() == (tmp_path / "cut" / "step-12" / file.name).read_bytes(), file.name
    for name in whole[0].keys() - {"steps"}:
        assert torch.equal(whole[0][name], rest[0][name])


def test_a_stop_in_the_evaluation_of_one_rank_is_the_exit_code_of_all(on_ranks, tmp_path):
    cut = on_ranks(2, fake_ranks.train_on, str(tmp_path / "cut"), 12, 0, 4)
    assert [(int(p["steps"]), int(p["code"])) for p in cut] == [(4, 130)] * 2


def test_a_rank_whose_peer_is_gone_says_so(on_ranks):
    message = bytes(on_ranks(2, fake_ranks.leave_or_wait)[0]["message"].tolist())
    assert message == b"TrainingError: another rank has ended"


def test_a_turn_of_rank_0_may_last_longer_than_a_collective(on_ranks):
    assert [float(part["first"]) for part in on_ranks(2, fake_ranks.slow_turn)] == [1.0, 0.0]


@pytest.mark.parametrize("count", [11, 3])
def test_evaluation_is_that_of_one_process(on_ranks, count):
    """With three rows the second of three ranks has a batch without targets, and metrics of ranks are merged."""
    alone = fake_ranks.evaluate_on(Ranks(), count)
    for part in on_ranks(3, fake_ranks.evaluate_on, count):
        assert part.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(part[name], value, rtol=1e-12, atol=0)


def test_a_nan_on_one_rank_is_named_on_all(on_ranks):
    messages = [bytes(p["message"].tolist()).decode() for p in on_ranks(2, fake_ranks.nan_on_rank_1, "raise")]
    assert messages[0] == messages[1]
    assert messages[0].startswith("TrainingError: step 1: loss 'words_lm' is nan on rows")


def test_a_nan_on_one_rank_skips_the_step_on_all(on_ranks):
    assert [float(p["skipped"]) for p in on_ranks(2, fake_ranks.nan_on_rank_1, "skip")] == [1.0, 1.0]


def test_a_full_disk_on_rank_0_ends_every_rank(on_ranks, tmp_path):
    parts = on_ranks(2, fake_ranks.full_disk_on_rank_0, str(tmp_path / "run"))
    messages = [bytes(p["message"].tolist()).decode() for p in parts]
    assert "No space left" in messages[0] and "rank 0 could not write" in messages[1]


def test_a_folder_that_another_run_is_in_is_refused_to_every_rank(on_ranks, tmp_path):
    lock = RunLock(tmp_path)
    lock.acquire()
    parts = on_ranks(2, fake_ranks.refused, str(tmp_path))
    messages = [bytes(p["message"].tolist()).decode() for p in parts]
    assert messages[0] == messages[1] and f"is in use by process {os.getpid()} on" in messages[0]
    lock.release()
    parts = on_ranks(2, fake_ranks.refused, str(tmp_path))
    assert [bytes(p["message"].tolist()).decode() for p in parts] == ["taken", "taken"]
