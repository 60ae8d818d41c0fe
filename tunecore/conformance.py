"""What :func:`tunecore.testing.assert_plugin_conforms` checks of each kind of component.

Shape letters: B sequences in the batch, L tokens of one example.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tunecore.data.packing import pack
from tunecore.data.rows import PretrainRows, TaskRows, as_list, examples_of
from tunecore.data.streams import PhiloxStream
from tunecore.errors import ConfigError, DataError
from tunecore.models.families.builtin import FAMILIES
from tunecore.models.loading import seeded
from tunecore.registry import Entry, Registry, parse_options
from tunecore.saved_tasks import config_fields_of
from tunecore.strategy_checks import StrategyChecks
from tunecore.tiny import MAX_LENGTH, make_corpus, make_model, make_tokenizer, tiny_records
from tunecore.training.generation import Writer, generates
from tunecore.training.plans import make_strategies
from tunecore.training.unit import Task, TrainUnit, check_stacks
from tunecore.training.whole_rows import WholeRows, metrics_over
from tunecore.types import (
    CorpusView,
    Example,
    Family,
    Head,
    Objective,
    PackedBatch,
    Prediction,
    Progress,
    Record,
    Strategy,
)  # fmt: skip

ROWS = 8
START, MIDDLE = Progress(0, 10, 0.0, 1.0), Progress(5, 10, 0.5, 1.0)
TOLERANCE = 2e-4
"""Relative difference that the order of float32 sums may make in a gradient."""
_FAMILIES = ("bert", "electra", "gpt2", "t5", "bart")
"""Tried in this order: an objective may refuse one that reads the other way, or has other stacks."""


def check_component(
    registry: Registry, entry: Entry, options: Mapping[str, Any], records: Sequence[Record] | None
) -> None:
    """Run the checks for the kind of ``entry``.

    Raises:
        AssertionError: what is not kept, and by which component.
    """

    def make() -> Any:
        if entry.kind == "strategy":  # which may need to be told how to make others
            return make_strategies([{entry.name: options}], registry)[0]
        return registry.create(entry.kind, entry.name, options)

    component = make()
    check = _Check(entry, make)
    check.options(options)
    if entry.kind == "head":
        check.head(component, list(records) if records is not None else check.fitting_records())
    else:
        getattr(check, entry.kind)(component)


class _Check:
    """The checks of one component; ``make`` makes another like it."""

    def __init__(self, entry: Entry, make: Any) -> None:
        self.entry, self.make = entry, make

    def require(self, condition: bool, message: str) -> None:
        if not condition:
            raise AssertionError(f"{self.entry.kind} {self.entry.name!r} of {self.entry.owner}: {message}")

    def require_json(self, value: Any, what: str) -> None:
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise AssertionError(
                f"{self.entry.kind} {self.entry.name!r} of {self.entry.owner}: {what} is not JSON: {error}"
            ) from error

    def options(self, given: Mapping[str, Any]) -> None:
        parsed = parse_options(self.entry, given)
        self.require_json(dataclasses.asdict(parsed), "Options")

    # objectives

    def objective(self, objective: Any) -> None:
        self.require(isinstance(objective, Objective), "it lacks members of tunecore.types.Objective")
        self.require(objective.name == self.entry.name, f"its name is {objective.name!r}")
        self.require(bool(objective.losses) and isinstance(objective.losses, tuple), "losses must be a tuple of names")
        family, tokenizer, model, module = self._fitting_family(objective)
        with TemporaryDirectory() as folder:
            columns = tuple(objective.columns)
            corpus = make_corpus(
                tokenizer, Path(folder), unit=objective.unit, columns=columns, objectives=[objective]
            )
            self._corruption(objective, corpus)
            rows = PretrainRows(corpus, [objective], seed=0)
            examples = examples_of(rows, range(ROWS), 0, START, objective.view)
        self._targets(examples, objective.losses, getattr(objective, "extra_targets", ()))
        unit = TrainUnit(model, family, [Task(objective.name, objective, module, 1.0)])
        self._gradients(unit.eval(), examples, objective.view)
        self._module(module, lambda: self.make().build(model, family))

    def _fitting_family(
        self, objective: Any, config: Mapping[str, Any] | None = None
    ) -> tuple[Family, Any, Any, nn.Module | None]:
        refusals = []
        for name in _FAMILIES:
            tokenizer = make_tokenizer(name)
            tasks = [objective.name, *getattr(objective, "uses", ())]
            model = make_model(tasks, tokenizer, name, config=config)
            try:
                check_stacks(objective.name, objective, FAMILIES[name])
                with seeded(0):
                    return FAMILIES[name], tokenizer, model, objective.build(model, FAMILIES[name])
            except ConfigError as error:
                refusals.append(str(error))
        raise AssertionError(f"{self.entry.kind} {self.entry.name!r} of {self.entry.owner}: no family fits: {refusals}")

    def _corruption(self, objective: Any, corpus: CorpusView) -> None:
        """Draws depend on the stream alone, and the example given stays as it is."""
        for row in range(ROWS):
            again = self.make()
            streams = [PhiloxStream(0, row, purpose="assemble") for _ in range(2)]
            both = [
                as_list(one.assemble(corpus, row, stream))
                for one, stream in zip((objective, again), streams, strict=True)
            ]
            self.require(len(both[0]) == len(both[1]), "assemble() makes other numbers of examples for one stream")
            for assembled, other in zip(*both, strict=True):
                before = _frozen(assembled)
                made = [objective.corrupt(assembled, corpus, PhiloxStream(0, row), START) for _ in range(2)]
                kept = _frozen(assembled) == before
                self.require(kept, "corrupt() changed the example it was given; copy its arrays")
                made.append(again.corrupt(other, corpus, PhiloxStream(0, row), START))
                self.require(
                    len({_frozen(example) for example in made}) == 1,
                    "assemble() and corrupt() give another example for the same stream; draw from the stream only",
                )

    def _targets(self, examples: Sequence[Example], losses: Sequence[str], extra: Sequence[str] = ()) -> None:
        for example in examples:
            for name, targets in example.targets.items():
                known = name in losses or name in extra
                self.require(known, f"an example has targets {name!r}, but its losses are {losses}")
                read = example.input_ids if example.decoder_input_ids is None else example.decoder_input_ids
                limit = len(read) if targets.level == "token" else 1
                inside = bool(((targets.index >= 0) & (targets.index < limit)).all())
                self.require(inside, f"targets {name!r} point outside an example of {len(read)} tokens")
                same = len(targets.labels) == len(targets)
                self.require(same, f"targets {name!r} have {len(targets.labels)} labels for {len(targets)} rows")
        for name in losses:
            announced = any(len(example.targets.get(name, ())) for example in examples)
            self.require(announced, f"none of {len(examples)} examples has targets of its loss {name!r}")

    # heads

    def fitting_records(self) -> list[Record]:
        """Rows whose labels are names, or numbers where the head wants those."""
        try:
            self.make().prepare(tiny_records())
        except DataError:
            return tiny_records((0.5, 3.0, 1.25, 4.0, 2.25))
        return tiny_records()

    def head(self, head: Any, records: list[Record]) -> None:
        self.require(isinstance(head, Head), "it lacks members of tunecore.types.Head")
        self.require(head.name == self.entry.name, f"its name is {head.name!r}")
        facts = head.prepare(records)
        self.require_json(facts, "what prepare() returns")
        other = self.make()
        other.load(json.loads(json.dumps(facts)))
        # Ten times the usual range: the rows of new weights are all alike, and what compares them would see rounding.
        fields = {"initializer_range": 0.2, **config_fields_of(other, facts)}
        family, tokenizer, model, module = self._fitting_family(head, fields)
        rows = TaskRows(records, head, tokenizer, MAX_LENGTH, keep_records=True)
        examples = examples_of(rows, range(len(rows)), 0, START, rows.views[0])
        self._targets(examples, head.losses, getattr(head, "extra_targets", ()))
        reloaded = TaskRows(records, other, tokenizer, MAX_LENGTH)
        same = [_frozen(e) for e in examples_of(reloaded, range(len(rows)), 0, START, rows.views[0])]
        self.require([_frozen(e) for e in examples] == same, "after load(facts) it makes other examples")
        unlabelled = TaskRows(records, other, tokenizer, MAX_LENGTH, labelled=False)
        bare = [e for row in range(len(rows)) for e in unlabelled.examples(row, 0, START)]
        told = any(name in head.losses for e in bare for name in e.targets)
        self.require(not told, "examples(labelled=False) have targets")
        unit = TrainUnit(model, family, [Task(head.name, head, module, 1.0)]).eval()
        self._gradients(unit, examples, rows.views[0])
        if generates(head):
            self._generated(unit, head, tokenizer, records)
        else:
            self._predictions(unit, head, rows)
        self._module(module, lambda: self.make_loaded(facts).build(model, family))

    def make_loaded(self, facts: Mapping[str, Any]) -> Any:
        head = self.make()
        head.load(facts)
        return head

    def _predictions(self, unit: TrainUnit, head: Any, rows: TaskRows) -> None:
        whole, first, second = (metrics_over(head, rows) for _ in range(3))
        raw: dict[int, list[Any]] = {}
        gathered = WholeRows(rows)
        with torch.no_grad():
            for part, parity in ((first, 0), (second, 1)):  # a row's sequences may lie in several batches
                examples = examples_of(rows, range(parity, len(rows), 2), 0, START, rows.views[0])
                for batch in _batches(examples, 2):
                    _, output = unit.assess(batch)
                    self.require(len(output) == batch.num_sequences, "predict() must give one output for each sequence")
                    raw.update(gathered.add(output, batch))
                    whole.update(output, batch)
                    part.update(output, batch)
        for row, record in enumerate(rows.records):
            self._prediction(head.decode(raw[row], record, row), row)
        self._merging(head, whole, first, second)

    def _prediction(self, prediction: Any, row: int) -> None:
        self.require(isinstance(prediction, Prediction), "decode() must return a tunecore.types.Prediction")
        self.require(prediction.row_id == row, f"the prediction of row {row} has row_id {prediction.row_id}")

    def _merging(self, head: Any, whole: Any, first: Any, second: Any) -> None:
        """Metrics of all rows are those of two halves put together."""
        state = second.state()
        self.require_json(state, "the state of its metrics")
        first.merge([json.loads(json.dumps(state))])
        expected, merged = whole.compute(), first.compute()
        self.require_json(expected, "what its metrics compute")
        self.require(_alike(expected, merged), f"merged metrics differ from those of all batches: {merged} {expected}")
        chosen = head.default_metric.removeprefix("-")
        known = chosen in expected or chosen == "loss"
        self.require(known, f"default_metric {head.default_metric!r} is none of {sorted(expected)}")

    def _generated(self, unit: TrainUnit, head: Any, tokenizer: Any, records: Sequence[Record]) -> None:
        """What a head that generates needs: prompts, and metrics of whole rows."""
        prompts = [head.prompt(record, tokenizer, MAX_LENGTH // 2) for record in records]
        for prompt in prompts:
            fits = isinstance(prompt, np.ndarray) and prompt.dtype == np.int64 and 0 < len(prompt) <= MAX_LENGTH // 2
            self.require(fits, f"prompt() must give int64 [L], L from 1 to the max_length of {MAX_LENGTH // 2}")
        options = replace(head.generation, max_new_tokens=4)
        writer = Writer(unit.model, unit.family, tokenizer, MAX_LENGTH, options)
        written = dict(pair for batch in writer.write(prompts) for pair in batch)
        whole, first, second = head.metrics(), head.metrics(), head.metrics()
        for row, record in enumerate(records):
            prediction = head.decode([written[row]], record, row)
            self._prediction(prediction, row)
            whole.update_row([written[row]], record, row)
            (first, second)[row % 2].update_row([written[row]], record, row)
        self._merging(head, whole, first, second)

    # objectives and heads

    def _gradients(self, unit: TrainUnit, examples: Sequence[Example], view: str) -> None:
        """The rows in one batch and in several give one gradient; TrainUnit itself compares the counts."""
        whole, split = (_gradient(unit, _batches(examples, parts, view)) for parts in (1, 4))
        size = math.sqrt(sum(float(g.square().sum()) for g in whole.values()))
        self.require(math.isfinite(size) and size > 0, f"its losses have a gradient of norm {size}")
        self.require(whole.keys() == split.keys(), "other parameters have a gradient when the rows are split")
        for name, gradient in whole.items():
            apart = float((gradient - split[name]).norm())
            self.require(
                apart <= TOLERANCE * max(float(gradient.norm()), 1e-3 * size),
                f"8 rows in one batch and in 4 batches of 2 give different gradients of {name}; return sums over "
                "targets, never means, and let no sequence see another",
            )

    def _module(self, module: nn.Module | None, rebuild: Any) -> None:
        if module is None:
            return
        with seeded(1):
            other = rebuild()
        self.require(other is not None, "build() makes a module only sometimes")
        other.load_state_dict(module.state_dict())
        mine, theirs = module.state_dict(), other.state_dict()
        self.require(all(torch.equal(mine[k], theirs[k]) for k in mine), "its module's state dict does not go round")

    def strategy(self, strategy: Any) -> None:
        self.require(isinstance(strategy, Strategy), "it lacks members of tunecore.types.Strategy")
        self.require(strategy.name == self.entry.name, f"its name is {strategy.name!r}")
        StrategyChecks(self.require, self.require_json, self.make).run(strategy)

    # the others: made and used once

    def optimizer(self, make_optimizer: Any) -> None:
        parameter = nn.Parameter(torch.ones(4))
        optimizer = make_optimizer([{"params": [parameter], "lr": 0.1, "weight_decay": 0.0}])
        self.require(isinstance(optimizer, torch.optim.Optimizer), "it must make a torch.optim.Optimizer")
        parameter.grad = torch.ones(4)
        optimizer.step()
        self.require(not torch.equal(parameter.detach(), torch.ones(4)), "a step changes nothing")

    def schedule(self, schedule: Any) -> None:
        values = [schedule(step, 10) for step in range(10)]
        self.require(all(math.isfinite(v) and v >= 0 for v in values), f"its multipliers are {values}")

    def source(self, source: Any) -> None:
        suffixes = source.suffixes
        right = isinstance(suffixes, tuple) and all(isinstance(s, str) and s.startswith(".") for s in suffixes)
        self.require(right and bool(suffixes), f"suffixes are {suffixes!r}; they must be a tuple such as ('.txt',)")
        self.require(callable(getattr(source, "read", None)), "it has no read(path)")

    def family(self, family: Any) -> None:
        self.require(isinstance(family, Family), "it lacks members of tunecore.types.Family")
        self.require(family.model_type == self.entry.name, f"its model_type is {family.model_type!r}")

    def tracker(self, tracker: Any) -> None:
        for method in ("start", "log", "end"):
            self.require(callable(getattr(tracker, method, None)), f"it has no {method}()")


def _frozen(example: Example) -> str:
    """All of an example as one string, to compare."""

    def plain(value: Any) -> Any:
        return None if value is None else [str(value.dtype), value.tolist()]

    targets = {k: [plain(t.index), plain(t.labels), t.level] for k, t in example.targets.items()}
    columns = {k: plain(np.asarray(column)) for k, column in example.columns.items()}
    names = ("input_ids", "token_type_ids", "position_ids", "decoder_input_ids")
    ids = [plain(getattr(example, name)) for name in names]
    return json.dumps([example.row_id, example.group, example.prefix_len, ids, targets, columns])


def _batches(examples: Sequence[Example], parts: int, view: str = "encoder") -> Iterator[PackedBatch]:
    yield from pack(examples, max_tokens=1 << 20, position_offset=0, pad_id=0, min_micro_batches=parts, view=view)


def _gradient(unit: TrainUnit, batches: Iterator[PackedBatch]) -> dict[str, Tensor]:
    """The gradient of the sum of all losses, by parameter name."""
    unit.zero_grad(set_to_none=True)
    for batch in batches:
        losses = unit(batch)
        if losses:
            torch.stack([loss.total.float() for loss in losses.values()]).sum().backward()
    return {name: p.grad.clone() for name, p in unit.parameters_by_name().items() if p.grad is not None}


def _alike(one: Any, other: Any) -> bool:
    """Equal, numbers within rounding."""
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and one.keys() == other.keys() and all(_alike(one[k], other[k]) for k in one)
    if isinstance(one, float):
        return isinstance(other, float | int) and math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-6)
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(_alike, one, other))
    return bool(one == other)
