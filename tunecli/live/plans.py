"""How a study's plan was chosen, for those who ask with --verbose."""

from __future__ import annotations

import math

from rich.text import Text

from tunecli.search import Opened


def explain(event: Opened) -> Text:
    """What the plan was measured against, or why it was not; a few lines."""
    if event.timings:
        lines = ["measured on this machine, in microseconds for a sample of one trial:"]
        for timing in sorted(event.timings, key=lambda timing: timing.seconds):
            cost = "too slow" if math.isinf(timing.seconds) else f"{timing.seconds * 1e6:8.2f}"
            lines.append(f"{cost}  {timing.plan}")
    elif event.done:
        lines = ["as the study was begun"]
    else:
        lines = ["by the written rule, as the study is too short to repay measuring"]
    return Text.assemble(("plan   ", "bold"), "\n       ".join(lines))
