"""Where the time of our training step goes, by torch's profiler."""

from __future__ import annotations

import time
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile, record_function

from tunecore.training.run import Run

OPTIMIZER = "optimizer step"
GROUPS: dict[str, tuple[str, ...]] = {
    "matrix products": ("tunecore::linear", "aten::mm", "aten::addmm", "aten::bmm", "aten::linear",
                        "aten::mkldnn_linear"),
    "attention": ("tunecore::attention", "aten::_scaled_dot_product", "aten::scaled_dot_product"),
    "vocabulary loss": ("tunecore::masked_lm_loss",),
    "norms and activations": ("tunecore::residual_norm", "tunecore::bias_gelu", "aten::native_layer_norm", "aten::tanh",
                              "aten::gelu"),
    "dropout": ("tunecore::dropout", "aten::bernoulli", "aten::native_dropout"),
    "embeddings": ("tunecore::embedding", "aten::embedding"),
    "optimizer": (OPTIMIZER, "aten::_foreach", "aten::linalg_vector_norm"),
    "Python of our backward passes": ("GeneratedBackwardFor_tunecore",),
    "copies and fills": ("aten::copy_", "aten::fill_", "aten::zero_", "aten::cat", "aten::index_select", "aten::add",
                         "aten::mul", "aten::clone", "aten::empty", "aten::index"),
}  # fmt: skip
"""Group -> beginnings of the names of its operators; the first group that fits takes one. ``add`` and ``mul`` copy
their way through whole activations or gradients. The products of the vocabulary loss count to it where they are our own
GEMM's, which is no operator there."""
TOP = 20


def profile_steps(run: Run, once: Callable[[], int], steps: int) -> str:
    """Profile ``steps`` steps after one that is not looked at; a table of groups, then the operators that take most.

    What the profiler sees is the time inside operators; the rest of the wall time is Python.
    """
    once()
    step = run.optimizer.step

    def named_step(multiplier: float) -> None:
        with record_function(OPTIMIZER):  # its kernel is no operator of torch
            step(multiplier)

    run.optimizer.step = named_step  # type: ignore[method-assign]
    try:
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            start = time.perf_counter()
            for _ in range(steps):
                once()
            wall = (time.perf_counter() - start) / steps * 1e3
    finally:
        run.optimizer.step = step  # type: ignore[method-assign]
    operators = seen.key_averages()
    by_group = dict.fromkeys((*GROUPS, "other operators"), 0.0)
    for operator in operators:
        by_group[_group(operator.key)] += operator.self_cpu_time_total / 1e3 / steps
    by_group["other Python"] = max(0.0, wall - sum(by_group.values()))
    lines = [f"| one step, {wall:.1f} ms under the profiler | ms | share |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {ms:.2f} | {ms / wall:.0%} |" for name, ms in by_group.items()]
    top = operators.table(sort_by="self_cpu_time_total", row_limit=TOP, max_name_column_width=48)
    return "\n".join([*lines, "", top])


def _group(operator: str) -> str:
    return next((name for name, starts in GROUPS.items() if operator.startswith(starts)), "other operators")
