"""Whether the checkpoints of a run have room on the disk, asked before the first step and not after hours."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

from tunecore.errors import CheckpointError
from tunecore.training.run import Run

ADAMW_TENSORS = 2
"""Tensors the optimizer keeps of each parameter it trains: known once it has made a step, until then AdamW's."""


def checkpoint_bytes(run: Run, tokenizer: Path) -> int:
    """About the size of a checkpoint: the weights and the optimizer in fp32, and the folder of the tokenizer."""
    masters = run.optimizer.masters
    weights = sum(4 * master.numel() for master in masters.values())
    kept = sum(tensor.nbytes for tensor in run.optimizer.state_dict().tensors.values())
    trained = sum(4 * ADAMW_TENSORS * masters[name].numel() for name in run.optimizer.trainable)
    return weights + (kept or trained) + sum(p.stat().st_size for p in tokenizer.rglob("*") if p.is_file())


def check_room(run: Run, tokenizer: Path, *, best: bool) -> None:
    """Hold what the run is still to save against what is free where ``output_dir`` lies; a quota is not seen.

    Args:
        run: made, and resumed where there was a checkpoint.
        tokenizer: folder of its tokenizer.
        best: the run evaluates, so that its best checkpoint is kept as well.

    Raises:
        CheckpointError: there is not even room for one checkpoint. Less than all need is a warning.
    """
    folder, keep = run.output_dir, run.config.checkpoint.keep
    disk = shutil.disk_usage(folder)
    if run.step >= run.total_steps or disk.total == 0:
        return
    one = checkpoint_bytes(run, tokenizer)
    # A new one is whole before the oldest goes.
    copies = max(1, keep + 1 + best - sum(1 for path in folder.glob("step-*") if path.is_dir()))
    told = f"{_shown(disk.free)} free in {str(folder)!r}, and a checkpoint takes about {_shown(one)}"
    way_out = "Make room on the disk, name an output_dir on another one, or train a smaller model."
    if disk.free < one:
        raise CheckpointError(f"there are {told}", hint=way_out)
    if disk.free < copies * one:
        warnings.warn(
            f"there are {told}: {copies} more are to lie there at a time (checkpoint.keep is {keep}), which takes "
            f"{_shown(copies * one)}. Make room, or lower checkpoint.keep",
            stacklevel=2,
        )


def _shown(size: int) -> str:
    """Bytes in the unit that suits them."""
    value = float(size)
    for unit in ("bytes", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
