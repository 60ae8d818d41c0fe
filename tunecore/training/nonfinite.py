"""NaN and Inf: found in the step that makes them, named, and kept out of weights and checkpoints.

What is looked at is known anyway, the losses and the norm of the gradient, so a sound step pays nothing for it.
``training.on_nonfinite`` says what follows: the run stops (raise), the step is left out (skip), or the run goes back to
its newest good checkpoint and goes on with the rows after the step (rollback), as PaLM's training did after a spike
(Chowdhery et al. 2022, arXiv:2204.02311, section 5.1).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence

from torch import Tensor

from tunecore.errors import TrainingError
from tunecore.training.run import Run
from tunecore.training.state import newest_on_all, restore

NAMED_ROWS = 20
"""Most row ids a message lists."""
MOST_IN_A_ROW = 20
"""Steps left out one after another after which a run is taken for lost."""


def gradient_problem(run: Run, norm: float, row_ids: Sequence[int]) -> str | None:
    """What is not finite in the gradient whose norm is ``norm``, named; None where all is. The same on every rank.

    Args:
        run: the run; its gradients are summed over ranks.
        norm: their Euclidean norm.
        row_ids: rows of this rank in the step.
    """
    if math.isfinite(norm):
        return None
    names = [n for n, g in run.optimizer.gradients().items() if g is not None and not bool(g.isfinite().all())]
    rows = named_rows(row for rank in run.ranks.gather(list(row_ids)) for row in rank)
    what = f"of {names[0]!r} and {len(names) - 1} more parameters" if names else "norm, though no single gradient,"
    return f"the gradient {what} is not finite (losses: {', '.join(run.unit.losses)}; rows {rows})"


def leave_out(run: Run, problem: str) -> None:
    """Forget the gradients of step ``run.step`` and do what ``training.on_nonfinite`` says. Every rank calls it.

    Args:
        run: the run, its optimizer not yet stepped.
        problem: what is not finite, and where.

    Raises:
        TrainingError: the policy is "raise"; or it is "skip", or there is no checkpoint to go back to, and a weight is
            not finite itself; or so it was in the ``MOST_IN_A_ROW`` steps before.
    """
    run.optimizer.zero_grad()
    policy = run.config.training.on_nonfinite
    weight = nonfinite_weight(run)
    if weight is not None:
        problem = f"{problem}; the weight {weight!r} is not finite before the step"
    message = f"step {run.step + 1}: {problem}"
    if run.left_out_in_a_row == MOST_IN_A_ROW:
        raise TrainingError(
            f"{message}, as in the {MOST_IN_A_ROW} steps before",
            hint="Lower the learning rate, or clip more (training.max_grad_norm), and run the same command again.",
        )
    if policy == "raise":
        raise TrainingError(
            message,
            hint="Look at these rows, or lower the learning rate; training.on_nonfinite: skip leaves such steps out, "
            "rollback goes back to the newest checkpoint and goes on behind them.",
        )
    left_out = "the step is left out"
    if policy == "rollback" and (back := roll_back(run)) is not None:
        left_out = f"back to the weights of step {back}; the steps from there to here are left out"
    elif weight is not None:
        raise TrainingError(
            message, hint="Leaving steps out does not mend a weight: start from a sound checkpoint, with a lower rate."
        )
    run.counters.skipped_steps += 1
    run.left_out_in_a_row += 1
    if run.ranks.is_main:
        warnings.warn(f"{message}; {left_out}", stacklevel=3)


def roll_back(run: Run) -> int | None:
    """Take weights, optimizer, strategies and plugins' states from the newest good checkpoint; the step stays.

    Returns:
        The checkpoint's step; None, with the run as it was, where there is no checkpoint.
    """
    path = newest_on_all(run)
    if path is None:
        return None
    step = run.step
    back = int(restore(run, path)["step"])
    run.step = step
    run.counters.skipped_steps += step - back
    return back


def check_weights(run: Run) -> None:
    """Hold the weights that are about to be saved to be finite; one pass over them. Every rank calls it.

    A sound gradient can still step a weight to Inf, by a rate too high. With "rollback" the run then goes back.

    Raises:
        TrainingError: a weight is not finite, and the policy is another or there is nothing to go back to.
    """
    name = nonfinite_weight(run)
    if name is None:
        return
    message = f"after step {run.step} the weight {name!r} is not finite"
    if run.config.training.on_nonfinite == "rollback" and (back := roll_back(run)) is not None:
        if run.ranks.is_main:
            warnings.warn(f"{message}; back to the weights of step {back}", stacklevel=3)
        return
    raise TrainingError(
        f"{message}, so it is not saved",
        hint="Earlier checkpoints are as they were. Lower the learning rate and run the same command again.",
    )


def nonfinite_weight(run: Run) -> str | None:
    """Name of the first parameter that holds a NaN or Inf, the same on every rank; None where all are finite.

    Both are looked at, the master and the weight rounded from it: what the model computes with may be damaged alone.
    """
    masters, weights = run.optimizer.masters, run.optimizer.parameters
    mine = next((name for name in masters if not (_all_finite(masters[name]) and _all_finite(weights[name]))), None)
    return next((name for name in run.ranks.gather(mine) if name is not None), None)


def _all_finite(x: Tensor) -> bool:
    x = x.detach()
    # No NaN or Inf leaves a sum finite. That is one pass of reading; what overflows it is looked at one by one.
    return bool(x.sum().isfinite()) or bool(x.isfinite().all())


def named_rows(row_ids: Iterable[int]) -> str:
    """Row ids as a message lists them, each once."""
    rows = list(dict.fromkeys(row_ids))
    listed = ", ".join(str(row) for row in rows[:NAMED_ROWS])
    return listed if len(rows) <= NAMED_ROWS else f"{listed} and {len(rows) - NAMED_ROWS} more"
