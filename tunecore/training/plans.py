"""From strategies to one plan per parameter."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from tunecore.errors import ConfigError
from tunecore.types import ParamPlan, Progress, Strategy

_FIELDS = tuple(field.name for field in dataclasses.fields(ParamPlan))


def combine_plans(
    base: Mapping[str, ParamPlan], strategies: Sequence[Strategy], progress: Progress
) -> dict[str, ParamPlan]:
    """Ask every strategy for its changes to ``base`` and join them; their order does not matter.

    Raises:
        ConfigError: two strategies change one field of a parameter to different values, or a strategy names a
            parameter that is not there.
    """
    owners: dict[tuple[str, str], str] = {}
    plans = dict(base)
    for strategy in strategies:
        for name, wanted in strategy.plan(base, progress).items():
            if name not in base:
                raise ConfigError(f"strategy {strategy.name!r} plans {name!r}, which is no parameter of this model")
            if wanted == base[name]:
                continue
            changes = {f: getattr(wanted, f) for f in _FIELDS if getattr(wanted, f) != getattr(base[name], f)}
            for field, value in changes.items():
                other = owners.setdefault((name, field), strategy.name)
                if other != strategy.name and getattr(plans[name], field) != value:
                    raise ConfigError(
                        f"strategies {other!r} and {strategy.name!r} both set {field} of {name!r}, to "
                        f"{getattr(plans[name], field)} and {value}",
                        hint="Leave one of them out of strategies.",
                    )
            plans[name] = dataclasses.replace(plans[name], **changes)
    return plans
