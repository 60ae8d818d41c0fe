"""Rows become steps: pure functions of the step's number, whatever the workers, ranks or restarts."""

import os
import signal
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from tunecore.data.loader import EVALUATION_WINDOW, StepLoader, eval_batches
from tunecore.data.rows import PretrainRows, TaskRows, most_structured_unit
from tunecore.errors import ConfigError, DataError
from tunecore.types import Example, Progress, Record, Targets

BEGIN, END = Progress(0, 10, 0.0, 2.0), Progress(10, 10, 2.0, 2.0)
PACKING = {"max_tokens": 96, "position_offset": 0, "pad_id": 0}


@dataclass
class Hide:
    """Replaces a random tenth of the tokens and records what it was given."""

    name: str = "hide"
    unit: str = "document"
    view: str = "encoder"

    def assemble(self, corpus, row_id, stream):
        return corpus.add_special(corpus[row_id])

    def corrupt(self, example, corpus, stream, progress):
        index = np.sort(stream.permutation(len(example))[: 1 + len(example) // 10])
        ids = example.input_ids.copy()
        labels, ids[index] = ids[index], corpus.mask_id
        rate = np.full(1, progress.step / progress.total_steps, dtype=np.float32)
        own = {self.name: Targets(index, labels), f"rate {self.name}": Targets(np.zeros(1, int), rate)}
        targets = {**example.targets, **own}
        return replace(example, input_ids=ids, targets=targets)


@dataclass
class Halves(Hide):
    """Assembles a pair of halves; corrupts nothing."""

    name: str = "halves"
    unit: str = "pair"

    def assemble(self, corpus, row_id, stream):
        chunk = corpus[row_id]
        cut = 1 + int(stream.integers(0, max(1, len(chunk.ids) - 1), 1)[0])
        part = lambda a, b: chunk._replace(ids=chunk.ids[a:b], columns={k: v[a:b] for k, v in chunk.columns.items()})  # noqa: E731
        example = corpus.add_special(part(0, cut), part(cut, len(chunk.ids)))
        return replace(example, targets={"halves": Targets.of_sequence(cut)})

    def corrupt(self, example, corpus, stream, progress):
        return example


class Crowd(Hide):
    """Makes examples that are too long."""

    def assemble(self, corpus, row_id, stream):
        return replace(super().assemble(corpus, row_id, stream), input_ids=np.zeros(99, dtype=np.int64))


@pytest.fixture(scope="module")
def view(corpus):
    return corpus.rows("pair", 32)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    if hasattr(a, "__dataclass_fields__"):
        return all(same(getattr(a, f), getattr(b, f)) for f in a.__dataclass_fields__)
    return a == b


def test_a_row_is_a_pure_function_of_seed_epoch_and_id(view):
    def ids(seed, epoch, row):
        return PretrainRows(view, [Hide()], seed).examples(row, epoch, BEGIN)[0].input_ids.tolist()

    assert ids(1, 0, 3) == ids(1, 0, 3)
    assert len({tuple(ids(*key)) for key in [(1, 0, 3), (2, 0, 3), (1, 1, 3), (1, 0, 4)]}) == 4


def test_the_most_structured_objective_assembles_and_all_corrupt_in_order(view):
    assert most_structured_unit([Hide(), Halves()]) == "pair" and most_structured_unit([Hide()]) == "document"
    (example,) = PretrainRows(view, [Hide(), Halves(), Hide(name="again")], 0).examples(2, 0, BEGIN)
    assert list(example.targets) == ["halves", "hide", "rate hide", "again", "rate again"]
    assert example.token_type_ids is not None
    alone = PretrainRows(view, [Hide(), Halves()], 0).examples(2, 0, BEGIN)[0]
    assert np.array_equal(alone.targets["hide"].index, example.targets["hide"].index)  # its own child stream
    assert not np.array_equal(example.targets["hide"].index, example.targets["again"].index)
    with pytest.raises(ConfigError, match="unit 'page' is none of document, sentence, pair"):
        PretrainRows(view, [Hide(unit="page")], 0)
    with pytest.raises(ConfigError, match="at least one objective"):
        PretrainRows(view, [], 0)


def test_evaluation_sees_the_same_masks_at_any_epoch_and_the_final_rates(view):
    rows = PretrainRows(view, [Hide()], 0, evaluation=True)
    early, late = rows.examples(1, 0, BEGIN)[0], rows.examples(1, 5, END)[0]
    assert np.array_equal(early.input_ids, late.input_ids)
    assert early.targets["rate hide"].labels[0] == late.targets["rate hide"].labels[0] == 1.0
    training = PretrainRows(view, [Hide()], 0)
    assert not np.array_equal(training.examples(1, 0, BEGIN)[0].input_ids, early.input_ids)
    assert training.examples(1, 0, BEGIN)[0].targets["rate hide"].labels[0] == 0.0


def test_an_example_longer_than_the_model_names_its_row(view):
    with pytest.raises(DataError, match=r"row 4 of the corpus .*'hide'.*99 tokens; it must have 1 to 32"):
        PretrainRows(view, [Crowd()], 0).examples(4, 0, BEGIN)


@dataclass
class Letters:
    """A head: one example a letter pair of the text."""

    length: int = 3

    def examples(self, record, row_id, tokenizer, max_length, *, labelled):
        made = []
        for i, letter in enumerate(record.fields["text"]):
            ids = np.full(self.length + i, ord(letter), dtype=np.int64)
            targets = {"letters": Targets.of_sequence(int(record.fields["label"]))} if labelled else {}
            made.append(Example(row_id, ids, ids % 2 if i else None, targets, group=row_id))
        return made


RECORDS = [Record({"text": t, "label": str(i % 2)}, "a.csv", i + 2) for i, t in enumerate(["ab", "c", "def", "g"] * 5)]


def test_task_rows_give_back_what_the_head_made():
    rows, head = TaskRows(RECORDS, Letters(), None, 16), Letters()
    assert len(rows) == 20
    for row_id, record in enumerate(RECORDS):
        wanted = head.examples(record, row_id, None, 16, labelled=True)
        for got, expected in zip(rows.examples(row_id, 3, BEGIN), wanted, strict=True):
            assert got.input_ids.tolist() == expected.input_ids.tolist() and got.input_ids.dtype == np.int64
            assert (got.token_type_ids is None) == (expected.token_type_ids is None)
            if expected.token_type_ids is not None:
                assert got.token_type_ids.tolist() == expected.token_type_ids.tolist()
            assert (got.row_id, got.group, got.num_targets) == (row_id, row_id, {"letters": 1})
    assert TaskRows(RECORDS, Letters(), None, 16, labelled=False).examples(0, 0, BEGIN)[0].num_targets == {}


def test_task_rows_name_the_file_and_row_of_a_bad_example():
    with pytest.raises(DataError, match=r"a.csv:2: the example has 17 tokens; it must have 1 to 16"):
        TaskRows(RECORDS, Letters(length=17), None, 16)
    with pytest.raises(DataError, match="no rows"):
        TaskRows([], Letters(), None, 16)


def loader(rows, **options):
    return StepLoader(rows, **{"batch_size": 6, "seed": 5, "total_steps": 12, **PACKING, **options})


@pytest.fixture(scope="module")
def pretrain(view):
    return PretrainRows(view, [Hide(), Halves()], 1)


def test_workers_change_nothing(pretrain):
    inline = list(loader(pretrain))
    assert [s.step for s in inline] == list(range(12)) and len(inline) == len(loader(pretrain))
    for workers in (1, 2):
        assert same(inline, list(loader(pretrain, num_workers=workers)))


def test_a_restart_goes_on_where_it_was(pretrain):
    whole = list(loader(pretrain))
    assert same(whole[7:], list(loader(pretrain, start_step=7)))
    assert list(loader(pretrain, start_step=12)) == [] and len(loader(pretrain, start_step=13)) == 0


def test_ranks_share_a_step(pretrain):
    whole = list(loader(pretrain))
    ranks = [list(loader(pretrain, rank=r, world_size=4)) for r in range(4)]
    for step, alone in enumerate(whole):
        assert sorted(r for rank in ranks for r in rank[step].row_ids) == sorted(alone.row_ids)
        tokens = sum(b.num_tokens for rank in ranks for b in rank[step].micro_batches)
        assert tokens == sum(b.num_tokens for b in alone.micro_batches)


def test_the_last_step_of_an_epoch_is_short_and_may_leave_a_rank_without_rows():
    rows = TaskRows(RECORDS[:7], Letters(), None, 16)
    steps = list(loader(rows, total_steps=4, rank=1, world_size=2))
    assert [len(s.row_ids) for s in steps] == [3, 0, 3, 0] and steps[1].micro_batches == []
    assert [s.epoch for s in steps] == [0, 0, 1, 1]
    assert loader(rows).steps_per_epoch == 2 and loader(rows).progress(3) == Progress(3, 12, 1.5, 6.0)


def test_accumulation_gives_at_least_that_many_micro_batches(pretrain):
    for step in loader(pretrain, max_tokens=10_000, accumulation=3):
        assert len(step.micro_batches) == 3
    sizes = [b.input_ids.shape[1] for s in loader(pretrain, max_tokens=64) for b in s.micro_batches]
    assert max(sizes) <= 64


def test_each_view_has_its_own_batches(view):
    rows = PretrainRows(view, [Hide(), Hide(name="left", view="causal")], 0)
    assert rows.views == ("encoder", "causal")
    step = next(iter(loader(rows, max_tokens=1000)))
    assert [b.view for b in step.micro_batches] == ["encoder", "causal"]
    assert set(step.micro_batches[1].targets) == {"left", "rate left"}
    assert {b.view for b in next(iter(loader(rows, view="causal"))).micro_batches} == {"causal"}


class Fails:
    """Rows of which one fails, or kills its process."""

    views = ("encoder",)

    def __init__(self, how):
        self.how, self.parent = how, os.getpid()

    def __len__(self):
        return 8

    def examples(self, row_id, epoch, progress, view=None):
        if row_id == 3 and self.how == "data":
            raise DataError("a.csv:3: bad row", hint="Mend it.")
        if row_id == 3 and self.how == "bug":
            raise ZeroDivisionError("a bug of a plugin")
        if row_id == 3 and self.how == "die" and os.getpid() != self.parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return [Example(row_id, np.arange(4))]


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_a_row_arrive_as_they_are(workers):
    with pytest.raises(DataError, match=r"^a\.csv:3: bad row\nMend it\.$") as caught:
        list(loader(Fails("data"), num_workers=workers))
    assert caught.value.hint == "Mend it."
    with pytest.raises(ZeroDivisionError, match="a bug of a plugin"):
        list(loader(Fails("bug"), num_workers=workers))


def test_a_dead_worker_is_a_clear_error():
    with pytest.raises(DataError, match=r"a data worker process died[\s\S]*data.num_workers"):
        list(loader(Fails("die"), num_workers=2))


def test_loader_options_are_checked(pretrain):
    for bad in ({"batch_size": 0}, {"max_tokens": 0}, {"accumulation": 0}, {"num_workers": -1}, {"rank": 1}):
        with pytest.raises(ConfigError):
            loader(pretrain, **bad)
    empty = Fails("data")
    empty.__class__ = type("Empty", (Fails,), {"__len__": lambda self: 0})
    with pytest.raises(DataError, match="no rows to train on"):
        loader(empty)


@pytest.mark.parametrize("ranks", [1, 3])
def test_evaluation_takes_every_row_once_over_all_ranks(pretrain, ranks):
    seen, batches = [], []
    for rank in range(ranks):
        made = list(eval_batches(pretrain, **PACKING, rank=rank, world_size=ranks))
        batches += made
        seen += [r for b in made for r in b.row_ids]
    assert sorted(seen) == list(range(len(pretrain)))
    again = [b for r in range(ranks) for b in eval_batches(pretrain, **PACKING, rank=r, world_size=ranks)]
    assert same(batches, again)


def test_evaluation_batches_are_of_even_lengths(pretrain):
    lengths = [b.layout.cu_seqlens.diff()[: b.num_sequences].tolist() for b in eval_batches(pretrain, **PACKING)]
    flat = [n for batch in lengths for n in batch]
    assert len(pretrain) <= EVALUATION_WINDOW and len(set(flat)) > 3
    # Sorted before first fit: a batch's lengths spread less than the rows' do.
    assert np.mean([max(n) - min(n) for n in lengths]) < 0.5 * (max(flat) - min(flat))


def test_some_rows_of_an_evaluation_are_evenly_spread(pretrain):
    rows = sorted(r for b in eval_batches(pretrain, **PACKING, max_rows=5) for r in b.row_ids)
    n = len(pretrain)
    assert rows == [i * n // 5 for i in range(5)]
    assert len([r for b in eval_batches(pretrain, **PACKING, max_rows=10 * n) for r in b.row_ids]) == n


def test_examples_of_one_row_stay_in_one_batch_when_grouped():
    rows = TaskRows(RECORDS, Letters(), None, 16)
    for batch in eval_batches(rows, max_tokens=16, position_offset=0, pad_id=0):
        for row in set(batch.row_ids):
            assert batch.row_ids.count(row) == len(RECORDS[row].fields["text"])
