"""How far a search is, while it runs: lines for a pipe or a log, a bar for a terminal."""

from __future__ import annotations

import math
import time

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from tunecli.live.terminal import ECHOED, LINE_SECONDS
from tunecli.output import broken
from tunecli.report.tables import duration
from tunecli.search import Ended, Opened, OpenedProgram, Progress
from tunecli.trial import State


class LineView:
    """For a pipe or a log: whole lines, none of them rewritten."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._opened: Opened | OpenedProgram | None = None
        self._shown, self._said = time.monotonic(), ""

    def open(self, event: Opened | OpenedProgram) -> None:
        self._opened = event
        self._shown = time.monotonic()

    def note(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def update(self, progress: Progress) -> None:
        if time.monotonic() - self._shown >= LINE_SECONDS:
            self._shown = time.monotonic()
            self._say(_status(progress, self._opened))

    def close(self, event: Ended) -> None:
        if self._opened is not None:
            self._say(_status(event.progress, self._opened, ended=True))

    def _say(self, status: str) -> None:
        """Once, for nobody learns from the same line again."""
        if status != self._said:
            self._console.print(status, soft_wrap=True)
        self._said = status


class BarView:
    """For a terminal: one bar, and below it the best so far and the pace."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Bar(
            TextColumn("{task.fields[done]} trials"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[left]}"),
            expand=True,
        )
        self._live = Live(console=console, refresh_per_second=8, redirect_stdout=False)
        self._opened: Opened | OpenedProgram | None = None

    def open(self, event: Opened | OpenedProgram) -> None:
        self._opened = event
        total = event.study.search.trials
        self._task = self._bar.add_task("", total=total, completed=event.done, done=f"{event.done}/{total}", left="")
        self._live.start()

    def note(self, text: str) -> None:
        self._live.console.print(broken(text, self._console.width), soft_wrap=True)

    def update(self, progress: Progress) -> None:
        self._show(progress, _left(progress))

    def _show(self, progress: Progress, left: str) -> None:
        ended = progress.ended
        self._bar.update(self._task, completed=ended, done=f"{ended}/{progress.total}", left=left)
        self._live.update(Group(self._bar, _fitting(_standing(progress, self._opened), self._console.width - ECHOED)))

    def close(self, event: Ended) -> None:
        if self._opened is not None:
            self._show(event.progress, "")
            self._live.stop()


def _fitting(parts: list[str], width: int) -> Text:
    """As many of the parts as fit into a line, or what fits of the first."""
    while len(parts) > 1 and len(", ".join(parts)) > width:
        parts = parts[:-1]
    text = Text(", ".join(parts), no_wrap=True)
    text.truncate(max(width, 1), overflow="ellipsis")
    return text


def _status(progress: Progress, opened: Opened | OpenedProgram | None, *, ended: bool = False) -> str:
    """Where the search is, in one line."""
    left = "" if ended else _left(progress)
    return ", ".join(
        [
            f"{progress.ended} of {progress.total} done",
            *_standing(progress, opened),
            *([left] if left else []),
        ]
    )


def _standing(progress: Progress, opened: Opened | OpenedProgram | None) -> list[str]:
    """The most important first, since a narrow terminal cuts the end off."""
    parts = []
    if progress.best is not None and opened is not None:
        # What a program measures its value on, it alone knows.
        split = " on validation" if isinstance(opened, Opened) else ""
        parts.append(f"best {opened.metric} {progress.best.value:.4f}{split} (trial {progress.best.number})")
    parts += [f"{progress.counts[s]} {s}" for s in (State.RUNNING, State.PRUNED, State.FAILED) if progress.counts[s]]
    rate = _rate(progress)
    if rate > 0:
        parts.append(f"{rate:.1f} trials/s" if rate >= 0.1 else f"{rate * 60:.1f} trials/min")
    return parts


def _rate(progress: Progress) -> float:
    return progress.ended_now / progress.seconds if progress.seconds > 0 else 0.0


def _left(progress: Progress) -> str:
    """The time left, where it is known and there is some."""
    left = progress.left_seconds
    return "" if not left else f"{duration(math.ceil(left))} left".replace(".0 s", " s")
