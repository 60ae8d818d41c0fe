"""How two configurations differ, and which differences a run that resumes may have."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from tunecore.config import RunConfig
from tunecore.config_io import to_plain
from tunecore.errors import ConfigError

RESUMABLE_KEYS = frozenset({
    "output_dir", "training.steps", "training.epochs", "training.threads", "data.test", "data.cache_dir",
    "data.num_workers", "data.worker_timeout", "evaluation.every", "checkpoint.every", "checkpoint.keep",
    "tracking.every", "tracking.trackers", "tracking.progress", "tracking.report",
})  # fmt: skip
"""Keys that may differ when a run resumes; none of them changes what an optimizer step computes. Steps and epochs
end bit-equality with an uncut run where the schedule depends on them."""

NEUTRAL_KEYS = frozenset({
    "output_dir", "training.threads", "data.cache_dir", "data.num_workers", "data.worker_timeout",
    "tracking.every", "tracking.trackers", "tracking.progress", "tracking.report",
})  # fmt: skip
"""Keys that may differ where a finished run is still the result of its configuration."""


def diff_configs(old: RunConfig, new: RunConfig) -> list[str]:
    """Dotted keys that differ; two spellings of one setting (``adamw`` and ``{adamw: {}}``) do not."""
    before, after = _flat(_canonical(old)), _flat(_canonical(new))
    changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    # "optimizer.adamw" went from {} to having keys: the keys say it.
    return [key for key in changed if not any(other.startswith(f"{key}.") for other in changed)]


def check_resumable(old: RunConfig, new: RunConfig, allowed: Collection[str] = RESUMABLE_KEYS) -> None:
    """Refuse changes that would make a resumed run another run.

    Raises:
        ConfigError: a key outside ``allowed`` differs; every such key is named with both values.
    """
    changed = [key for key in diff_configs(old, new) if key not in allowed]
    if changed:
        before, after = _flat(_canonical(old)), _flat(_canonical(new))
        listed = ", ".join(f"{key} was {before.get(key)!r} and is now {after.get(key)!r}" for key in changed)
        raise ConfigError(
            listed,
            hint=f"A run that resumes may change only {', '.join(sorted(allowed))}.",
        )


def _canonical(config: RunConfig) -> dict[str, Any]:
    """The plain form with every component in its long spelling."""
    plain: dict[str, Any] = to_plain(config)
    plain["objectives"] = {
        name: {"weight": 1.0, **value} if isinstance(value, dict) else {"weight": value}
        for name, value in plain["objectives"].items()
    }
    plain["strategies"] = [_long(item) for item in plain["strategies"]]
    plain["head"] = _long(plain["head"])
    for key in ("optimizer", "schedule"):
        plain["training"][key] = _long(plain["training"][key])
    return plain


def _long(value: Any) -> Any:
    if isinstance(value, str):
        return {value: {}}
    return {name: options or {} for name, options in value.items()} if isinstance(value, dict) else value


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    dot = f"{prefix}." if prefix else ""
    return {name: value for key, item in node.items() for name, value in _flat(item, f"{dot}{key}").items()}
