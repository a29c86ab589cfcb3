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

LEAST_NAME = 8
"""Columns that a study's name takes at least, in a narrow terminal too."""


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
    splits = {own.split for own in studies if own.value is not None}
    # Said once where it is the same of all: names have more room then.
    split = splits.pop() if len(splits) == 1 else None
    rows = [
        (
            "" if own.asked is None else f"{own.done} of {max(own.asked, own.done)}",
            own.state,
            "" if own.value is None else _best(own, own.split if split is None else None),
            age((now - own.written).total_seconds()),
        )
        for own in studies
    ]
    heads = ("trials", "state", "best" if split is None else f"best on {split}", "age")
    trials, state, best, old = (max(map(len, column)) for column in zip(heads, *rows, strict=True))
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    # A long name is folded, and a reason; the value of a trial is not parted from its number.
    left = console.width - trials - state - old - 2 * len(heads)
    best = max(min(best, left - LEAST_NAME), LEAST_NAME)
    table.add_column("study", overflow="fold", max_width=max(left - best, LEAST_NAME))
    table.add_column("trials", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column(heads[2], overflow="fold", min_width=best)
    table.add_column("age", justify="right", no_wrap=True)
    for own, (done, word, value, length) in zip(studies, rows, strict=True):
        told = Text(value or own.reason or "")
        table.add_row(Text(own.study), done, Text(word, style=_COLOURS[word]), told, length)
    console.print(table)


def _best(own: Listed, split: str | None) -> str:
    on = "" if split is None else f" on {split}"
    return f"{own.metric} {own.value:.4f}{on} (trial {own.best})"


def age(seconds: float) -> str:
    """A length of time in the one unit that matters."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"
