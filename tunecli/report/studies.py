"""The studies of a home, listed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_COLOURS = {"done": "green", "running": "cyan", "unfinished": "yellow", "unreadable": "red", "not begun": "dim"}


@dataclass(frozen=True, slots=True)
class Listed:
    """A study in one line. `written` is when anything was last written to it; `best` the number of its best trial.

    `state` is done, running, unfinished, not begun, or unreadable for the `reason`.
    """

    study: str
    state: str
    written: datetime
    done: int = 0
    asked: int | None = None
    metric: str | None = None
    split: str | None = None
    direction: str | None = None
    best: int | None = None
    value: float | None = None
    reason: str | None = None


def as_document(studies: Sequence[Listed]) -> dict[str, Any]:
    """The list as JSON."""
    rows = [asdict(own) | {"written": own.written.isoformat(timespec="seconds")} for own in studies]
    return {"studies": rows}


def draw_studies(studies: Sequence[Listed], now: datetime, console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    table.add_column("study", overflow="fold")
    table.add_column("trials", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("best", overflow="fold")
    table.add_column("age", justify="right", no_wrap=True)
    for own in studies:
        trials = "" if own.asked is None else f"{own.done} of {max(own.asked, own.done)}"
        best = own.reason or ""
        if own.value is not None:
            split = f" on {own.split}" if own.split is not None else ""
            best = f"{own.metric} {own.value:.4f}{split} (trial {own.best})"
        state = Text(own.state, style=_COLOURS[own.state])
        table.add_row(Text(own.study), trials, state, Text(best), age((now - own.written).total_seconds()))
    console.print(table)


def age(seconds: float) -> str:
    """A length of time in the one unit that matters."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"
