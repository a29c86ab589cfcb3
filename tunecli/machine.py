"""What a machine has for this process."""

from __future__ import annotations

import math
import os
import platform
from contextlib import suppress
from pathlib import Path

CONTROL_GROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """The cores that this process may use: a scheduler or a container may give it some of the machine's alone, or so
    much time as some of them have."""
    given = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return given if quota is None else max(1, min(given, math.ceil(quota)))


def _quota() -> float | None:
    """Seconds of CPU that the control group of a container has for each second, by either version; None if no limit."""
    with suppress(OSError, ValueError):
        quota, period = (CONTROL_GROUP / "cpu.max").read_text().split()
        return int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota, period = ((CONTROL_GROUP / "cpu" / f"cpu.cfs_{own}_us").read_text() for own in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None
    return None


def processor() -> str:
    """The model of the CPU."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
