"""How large a campaign is."""

from __future__ import annotations

import os


def scaled(count: int) -> int:
    """``count`` times TUNECORE_FAULTS_SCALE, at least one."""
    return max(1, round(count * float(os.environ.get("TUNECORE_FAULTS_SCALE", "1"))))
