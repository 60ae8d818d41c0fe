"""The one module that is trained: a model with its tasks, from a packed batch to named loss sums.

Shape letters: T tokens in the batch, B sequences in the batch, E hidden width.
Nothing calls a submodule of :class:`TrainUnit` around it while training: what is wrapped later (sharded, compiled) is
the unit, and a call around the wrapper would leave ranks with different gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunecore.errors import ConfigError, TrainingError, unknown_name
from tunecore.models import last_layer
from tunecore.models.fused import swap_modules
from tunecore.models.packed import assign_sites
from tunecore.models.padded import backbone_hidden
from tunecore.ops.sequence_vectors import sequence_means
from tunecore.types import Family, Head, LossSum, Objective, PackedBatch, Stream

ENCODER_VIEW = "encoder"
"""The view of batches for tasks that name none (heads)."""

TASK_PREFIX = "tasks."
"""Parameters of a task's own module are named ``tasks.<task>.<name>``; the model's keep the names the model gives."""

SEQ2SEQ = "seq2seq"
"""The view of encoder-decoder models."""


class Task(NamedTuple):
    """One objective or head, with its own parameters and its weight in the sum of losses."""

    name: str
    component: Objective | Head
    module: nn.Module | None
    weight: float


class ForwardPass:
    """One forward of a batch, shared by all tasks of its view (a :class:`tunecore.types.Forward`)."""

    def __init__(self, model: PreTrainedModel, family: Family, batch: PackedBatch) -> None:
        self.model = model
        self.family = family
        self.batch = batch
        self._hidden: Tensor | None = None

    def hidden(self) -> Tensor:
        """Hidden states of the backbone [T, E], the decoder's of two stacks; computed at the first call."""
        if self._hidden is None:
            self._hidden = self._run(self.model, self.batch)
        return self._hidden

    def encode(self, *, model: PreTrainedModel | None = None, input_ids: Tensor | None = None) -> Tensor:
        """One forward more, not remembered: another model of the family, or other ids [1, T] in the same layout.

        Returns: hidden states [T, E] of that model's backbone, at all rows.
        """
        ids = self.batch.input_ids if input_ids is None else input_ids
        batch = replace(self.batch, input_ids=ids, layout=self.batch.layout._replace(last_layer=None))
        return self._run(self.model if model is None else model, batch)

    def _run(self, model: PreTrainedModel, batch: PackedBatch) -> Tensor:
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "position_ids": batch.position_ids}
        if self.family.token_types:
            # Given even where all are 0: the model's own default is a table no longer than one sequence.
            types = batch.token_type_ids
            inputs["token_type_ids"] = torch.zeros_like(batch.input_ids) if types is None else types
        if batch.decoder_input_ids is not None:
            inputs["decoder_input_ids"] = batch.decoder_input_ids
            inputs["decoder_position_ids"] = batch.decoder_position_ids
        return backbone_hidden(self.family, model, inputs, batch)

    def sequence_rows(self) -> Tensor:
        """What each sequence is read from, its first or last row or their mean by family: [B, E], no filler."""
        count = self.batch.num_sequences
        layout = self.batch.layout
        cu_seqlens = layout.cu_seqlens if layout.decoder_cu_seqlens is None else layout.decoder_cu_seqlens
        ends = cu_seqlens[: count + 1].long()
        pooling = getattr(self.family, "sequence_pooling", lambda model: self.family.sequence_row)(self.model)
        if pooling == "mean":
            return sequence_means(self.hidden(), ends).to(self.hidden().dtype)
        rows = ends[:-1] if pooling == "first" else ends[1:] - 1
        return self.hidden().index_select(0, rows)


class TrainUnit(nn.Module):
    """A model and its tasks; its forward maps a packed batch to the sums of every named loss.

    Args:
        model: the transformers model.
        family: what differs for its ``model_type``.
        tasks: objectives, or one head, in the order their losses are reported.

    Raises:
        ConfigError: two tasks have one name or one loss name, or a task is for models of other stacks.
    """

    def __init__(self, model: PreTrainedModel, family: Family, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.model = model
        self.family = family
        self.tasks = tuple(tasks)
        self.task_modules = nn.ModuleDict({t.name: t.module for t in self.tasks if t.module is not None})
        self.dropout = swap_modules(self)
        self._reads = _reads_by_view(self.tasks) if last_layer.install(model) else {}
        assign_sites(self)  # once more over all: a task's own model must not draw the masks of the first
        self._extra_targets = {name for task in self.tasks for name in getattr(task.component, "extra_targets", ())}
        self.weights: dict[str, float] = {}
        """Loss name -> weight of its task, times the task's own factor for that loss."""
        self.view_weights: dict[str, float] = {}
        """View -> summed weight of its tasks."""
        for task in self.tasks:
            check_stacks(task.name, task.component, family)
            for name in task.component.losses:
                if name in self.weights:
                    raise ConfigError(f"two tasks name a loss {name!r}; the second is {task.name!r}")
                self.weights[name] = float(task.weight) * getattr(task.component, "loss_weights", {}).get(name, 1.0)
            view = _view(task)
            self.view_weights[view] = self.view_weights.get(view, 0.0) + float(task.weight)

    def replace_model(self, model: PreTrainedModel) -> None:
        """Take the model as strategies made it; what is new in it runs on our ops too, and draws its own dropout."""
        self.model = model
        self.dropout = swap_modules(self)
        assign_sites(self)

    @property
    def weights_within_views(self) -> dict[str, float]:
        """Loss name -> weight relative to its view: what a step trains by when views take turns."""
        shares = {name: self.view_weights[_view(task)] for task in self.tasks for name in task.component.losses}
        return {name: weight / shares[name] for name, weight in self.weights.items()}

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of all losses, in task order."""
        return tuple(self.weights)

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """Every parameter once: the model's under its own names, a task module's as ``tasks.<task>.<name>``."""
        named = dict(self.model.named_parameters())
        seen = {id(p) for p in named.values()}
        for name, parameter in self.task_modules.named_parameters(prefix=TASK_PREFIX.rstrip(".")):
            if id(parameter) not in seen:  # shared with the model (a generator's embeddings)
                named[name] = parameter
        return named

    def forward(self, batch: PackedBatch, stream: Stream | None = None) -> dict[str, LossSum]:
        """Return the losses of every task that has targets in ``batch``.

        Args:
            batch: one micro-batch.
            stream: source of random draws for objectives that sample; each task gets a child of its own.

        Raises:
            TrainingError: a task returns an unknown loss, leaves one out, or its count is not what the batch
                announced; the task is named.
        """
        self.dropout.key = batch.layout.rng_key
        return self._losses(self._forward_of(batch), stream)

    def predict(self, batch: PackedBatch) -> Any:
        """Raw outputs of the head for one batch; the first axis is the batch's sequences.

        Raises:
            ConfigError: no task of this unit predicts.
        """
        return self._predict(self._forward_of(batch))

    def assess(self, batch: PackedBatch) -> tuple[dict[str, LossSum], Any]:
        """Losses and the head's raw outputs, of one forward; what evaluation needs."""
        forward = self._forward_of(batch)
        return self._losses(forward, None), self._predict(forward)

    def _forward_of(self, batch: PackedBatch) -> ForwardPass:
        reads = self._reads.get(batch.view)
        return ForwardPass(self.model, self.family, last_layer.narrow(batch, reads) if reads else batch)

    def _losses(self, forward: ForwardPass, stream: Stream | None) -> dict[str, LossSum]:
        announced = forward.batch.num_targets
        for name in announced:
            if name not in self.weights and name not in self._extra_targets:
                raise TrainingError(f"the batch has targets of an {unknown_name('loss', name, self.weights)}")
        sums: dict[str, LossSum] = {}
        for task in self.tasks:
            wanted = {name: announced[name] for name in task.component.losses if announced.get(name)}
            if not wanted or getattr(task.component, "view", forward.batch.view) != forward.batch.view:
                continue
            child = None if stream is None else stream.child(task.name)
            returned = task.component.loss(forward, task.module, child)
            sums.update(_checked(task, returned, wanted))
        return sums

    def _predict(self, forward: ForwardPass) -> Any:
        for task in self.tasks:
            if isinstance(task.component, Head):
                return task.component.predict(forward, task.module)
        raise ConfigError(f"none of the tasks {', '.join(t.name for t in self.tasks)} is a head, so none predicts")


def _reads_by_view(tasks: Sequence[Task]) -> dict[str, frozenset[str]]:
    """View -> what its tasks read of the hidden states; a view with a task that does not say is left out."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for task in tasks:
        view = getattr(task.component, "view", ENCODER_VIEW)
        found.setdefault(view, []).append(getattr(task.component, "reads", ()))
    return {view: frozenset(name for reads in all_ for name in reads) for view, all_ in found.items() if all(all_)}


def check_stacks(name: str, component: Objective | Head, family: Family) -> None:
    """Hold the view of an objective or head against the stacks of a family.

    Raises:
        ConfigError: one is for encoder-decoder models and the other is not.
    """
    wants = getattr(component, "view", None) == SEQ2SEQ
    has = getattr(family, "encoder_decoder", False)
    if wants and not has:
        raise ConfigError(
            f"{name} needs an encoder-decoder model; {family.model_type} has one stack",
            hint="Use a family such as t5 or bart.",
        )
    if has and not wants:
        raise ConfigError(
            f"{name} needs a model of one stack; {family.model_type} is an encoder-decoder",
            hint=f"Use its own objective, {getattr(family, 'default_objective', 'of the view seq2seq')}.",
        )


def _view(task: Task) -> str:
    return str(getattr(task.component, "view", ""))  # a head goes with any


def _checked(task: Task, returned: Mapping[str, LossSum], wanted: Mapping[str, int]) -> dict[str, LossSum]:
    """Hold what a task returns against what the batch announced."""
    for name in returned:
        if name not in task.component.losses:
            raise TrainingError(f"{task.name!r} returned an {unknown_name('loss', name, task.component.losses)}")
    for name, count in wanted.items():
        if name not in returned:
            raise TrainingError(f"{task.name!r} returned no loss {name!r}, though the batch has {count} targets of it")
    for name, loss in returned.items():
        if loss.num_targets != wanted.get(name, 0):
            raise TrainingError(
                f"{task.name!r} summed loss {name!r} over {loss.num_targets} targets; "
                f"the batch announced {wanted.get(name, 0)}",
                hint="The counts divide gradients before they are made, so they must be those of batch.targets.",
            )
    return {name: loss for name, loss in returned.items() if loss.num_targets}
