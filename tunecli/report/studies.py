"""The studies of a home, listed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from tunecli.output import broken

_COLOURS = {
    "done": "green",
    "running": "cyan",
    "unfinished": "yellow",
    "failed": "red",
    "unreadable": "red",
    "not begun": "dim",
}

LEAST_NAME = 8
"""Columns that studies' names have at least beside the rest of a line, in a narrow terminal too."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A study in one line. `written` is when anything was last written to it; `best` the number of its best trial.

    `state` is done, running, unfinished, failed (all of its trials have), not begun, or unreadable for the `reason`.
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
    """A study a line, and below them why some cannot be read. In a terminal that is too narrow for that the trials'
    numbers are left out, and a long name has a line of its own; elsewhere lines are as long as they are."""
    splits = {own.split for own in studies if own.value is not None}
    # Said once where it is the same of all: names have more room then.
    split = splits.pop() if len(splits) == 1 else None
    heads = ("study", "trials", "state", "best" if split is None else f"best on {split}", "age")
    room = console.width if console.is_terminal else None
    for numbered in (True, False):
        rows = [_cells(own, now, said=split is not None, numbered=numbered) for own in studies]
        longest, *widths = (max(map(len, column)) for column in zip(heads, *rows, strict=True))
        left = longest if room is None else room - sum(widths) - 2 * len(widths)
        if longest <= left:
            break
    if left >= LEAST_NAME or longest <= left:
        widths = [max(len(name) for name in (heads[0], *(row[0] for row in rows)) if len(name) <= left), *widths]
        console.print(_line(heads, widths), style="dim", soft_wrap=True)
        for own, row in zip(studies, rows, strict=True):
            console.print(_line(row, widths, _COLOURS[own.state]), soft_wrap=True)
    else:
        for own in studies:
            console.print(Text(own.study), soft_wrap=True)
            told = filter(None, _cells(own, now, said=False, numbered=True)[1:])
            console.print(Padding("  ".join(told), (0, 0, 0, 2)))
    for own in studies:
        if own.reason is not None:
            text = f"{own.study}: {own.reason}"
            console.print(text if room is None else broken(text, room), style="yellow", soft_wrap=True)


def _cells(own: Listed, now: datetime, *, said: bool, numbered: bool) -> tuple[str, ...]:
    """What there is of a study. `said`: of which split its value is, is said elsewhere; `numbered`: of which trial."""
    trials = "" if own.asked is None else f"{own.done} of {max(own.asked, own.done)}"
    on = "" if said or own.split is None else f" on {own.split}"
    which = f" (trial {own.best})" if numbered else ""
    best = "none complete" if own.state == "done" else ""
    if own.value is not None:
        best = f"{own.metric} {own.value:.4f}{on}{which}"
    return own.study, trials, own.state, best, age((now - own.written).total_seconds())


def _line(row: Sequence[str], widths: Sequence[int], style: str = "") -> Text:
    """The cells of a line below those of the one before, the state in its style; a longer name has its own line."""
    if len(row[0]) > widths[0]:
        return Text(f"{row[0]}\n").append(_line(("", *row[1:]), widths, style))
    study, trials, state, best, old = (
        f"{cell:>{width}}" if head in (1, 4) else f"{cell:<{width}}"
        for head, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return Text.assemble(f"{study}  {trials}  ", (state, style), f"  {best}  {old}")


def age(seconds: float) -> str:
    """A length of time in the one unit that matters."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"
