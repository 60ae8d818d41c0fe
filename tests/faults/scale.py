"""How large the campaigns are."""

from __future__ import annotations

import os


def scaled(count: int) -> int:
    """``count`` times TUNECORE_FAULTS_SCALE (1.0 by default), at least 1."""
    return max(1, round(count * float(os.environ.get("TUNECORE_FAULTS_SCALE", "1"))))
