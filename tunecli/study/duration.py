"""A time as people write it: 90s, 10m, 1h30m, or a number of seconds."""

from __future__ import annotations

import re

_PARTS = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")

EXAMPLES = "90s, 10m or 1h30m"


def read_seconds(text: str) -> float | None:
    """How many seconds that is, or None where it is no time."""
    match = _PARTS.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        return None
    hours, minutes, seconds = (float(group or 0) for group in match.groups())
    return 3600 * hours + 60 * minutes + seconds
