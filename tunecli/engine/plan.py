"""The plan: everything about how a study is computed that can change the last bits of a result.

It is chosen once by the rule below, stored with the study and kept on resume.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

NARROW_WEIGHTS = 65_536
"""Up to here the cost of a step is mostly the calls into torch, and rows computed together share them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`way`: how gradients are had: by "rules", by "vmap" (so too where layers have none), or "looped"; `cap`: largest
    micro-batch (None: whole batches); `block_rows`: rows computed at once; `threads`: of the process."""

    way: str
    cap: int | None
    block_rows: int
    threads: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        if self.way == "looped":
            return f"trials one after another, {threads}"
        return f"{self.block_rows} trials at once, micro-batches of up to {self.cap}, {threads}"


LOOPED = Plan("looped", cap=None, block_rows=1, threads=1)


def choose_plan(weights: int, window: int, processors: int | None = None) -> Plan:
    """The written rule, for a model of `weights` weights that allows either way and a window of `window` trials.

    Measured with the benchmark `slots`: narrow models gain from a block as soon as it holds eight trials, by rules or
    by vmap. One lane that holds every trial beats several that are partly full, hence the low cap: at a window of 32
    and the default batch sizes, a cap of 32 costs a third more and one of 64 half as much again; blocks of 16 rows cost
    what blocks of 32 do. One thread: two gain a sixth on an idle machine, and lose tenfold where another process wants
    the second core.
    """
    if weights > NARROW_WEIGHTS:
        return Plan("looped", cap=None, block_rows=1, threads=processors or os.cpu_count() or 1)
    if window < 8:
        return LOOPED
    return Plan("rules", cap=16, block_rows=min(32, 1 << (window - 1).bit_length()), threads=1)
