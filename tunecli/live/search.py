"""A search shown from its first event to its last, and what to type after it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from tunecli.live.opening import change, explain, opening
from tunecli.live.progress import BarView, LineView
from tunecli.report.console import VisibleConsole
from tunecli.search import Changed, Differed, Ended, Event, Failed, Noticed, Opened, OpenedProgram, Progress
from tunecli.study import ProgramStudy, Question
from tunecli.trial import State

MOST_KINDS = 3
"""Failures of so many kinds are told of while a search runs, the first trial of each; `report` tells of all."""


def show(events: Iterable[Event], console: Console, *, verbose: bool = False) -> Ended:
    """Show a search until it ends; returns how it did. `verbose` says how its plan was chosen."""
    view = BarView(console) if console.is_terminal else LineView(console)
    notes = _Notes()
    try:
        for event in events:
            if isinstance(event, Opened | OpenedProgram):
                console.print(opening(event, console.width, whole=verbose), soft_wrap=True)
                if verbose and isinstance(event, Opened):
                    console.print(explain(event), soft_wrap=True)
                view.open(event)
            elif isinstance(event, Changed):
                console.print(change(event, console.width), soft_wrap=True)
            for text in notes.of(event):
                view.note(f"note: {text}")
            if isinstance(event, Progress):
                view.update(event)
            elif isinstance(event, Ended):
                view.close(event)
                return event
    finally:
        console.show_cursor()  # an error must not leave a terminal without one
    raise AssertionError("a search ends with Ended")


class _Notes:
    """What is said of a search beside its progress: what differs in a replay once that is through, and of failures the
    first of each kind as soon as it is there, for it may be the user's to mend before all others have failed so."""

    def __init__(self) -> None:
        self._differed: list[Differed] = []
        self._tick: int | None = None
        self._kinds: set[str] = set()
        self._logs: Path | None = None

    def of(self, event: Event) -> Iterator[str]:
        """What is to be noted now that this has come."""
        if isinstance(event, OpenedProgram):
            self._logs = event.folder / "logs"
        elif isinstance(event, Noticed):
            yield event.text
        elif isinstance(event, Failed):
            kind = re.sub(r"\d[\d.]*(e[+-]?\d+)?", "", event.reason)  # by a learning rate, say, all of them differ
            if kind not in self._kinds and len(self._kinds) < MOST_KINDS:
                self._kinds.add(kind)
                yield self._failure(event)
        elif isinstance(event, Differed):
            self._differed.append(event)
        elif isinstance(event, Progress | Ended):
            tick = event.tick if isinstance(event, Progress) else None
            if self._differed and (tick is None or self._tick not in (None, tick)):
                yield _replayed(self._differed)
                self._differed = []
            self._tick = tick

    def _failure(self, event: Failed) -> str:
        printed = "" if self._logs is None else f"\n  {self._logs / f'trial-{event.trial}.txt'} has what it printed"
        return f"trial {event.trial} failed: {event.reason}{printed}"


def _replayed(differed: Sequence[Differed]) -> str:
    """What a replay showed otherwise than it is recorded: the first of it, with digits enough to differ, and how much
    more there is."""
    first = differed[0]
    pairs = ((f"{first.replayed:.{digits}g}", f"{first.stored:.{digits}g}") for digits in range(6, 18))
    replayed, stored = next((pair for pair in pairs if pair[0] != pair[1]), (f"{first.replayed}", f"{first.stored}"))
    what = "" if first.of == "value" else f"a {first.of} of "
    said = f"replaying trial {first.trial} gave {what}{replayed} at epoch {first.fidelity} where {stored} is recorded"
    if more := len(differed) - 1:
        trials = len({own.trial for own in differed})
        said += f", and so on in {more} more epoch{'s' * (more > 1)} of {trials} trial{'s' * (trials > 1)}"
    return f"{said}; what is recorded stays (a changed model, or another version of torch, computes otherwise)"


def say_stopped(ended: Ended, again: str, console: VisibleConsole) -> None:
    """A signal stopped the search: what is safe, and how to go on."""
    progress = ended.progress
    running = progress.counts[State.RUNNING]
    flight = f", {running} in flight" if running else ""
    console.say(f"stopped: {progress.ended} of {progress.total} trials done{flight}; all is recorded")
    console.say(f"to go on:\n  {again}")


def say_next(
    ended: Ended, study: Question, home: str, again: str, console: VisibleConsole, exhausted: int | None = None
) -> None:
    """What to type after a search; `exhausted` is how many points its space has, where all were tried."""
    if exhausted is not None:
        console.say(f"all {exhausted:,} points of the space were tried")
    elif ended.how == "timeout":
        console.say(
            f"the time is up: {ended.progress.ended} of {ended.progress.total} trials done; to go on:\n  {again}"
        )
    elif ended.progress.ended_now == 0:
        console.say(f"all {ended.progress.total} trials were done already; --trials N asks for more")
    failed = ended.progress.counts[State.FAILED]
    if failed and ended.progress.best is not None:
        trials = "1 trial" if failed == 1 else f"{failed} trials"
        console.say(f"{trials} failed: tunecli report {study.name}{home} says why")
    if ended.progress.best is not None:
        # A program keeps its weights itself.
        finetune = "" if isinstance(study, ProgramStudy) else f"\n  tunecli finetune {study.name} --best{home}"
        console.say(f"next:\n  tunecli report {study.name}{home}{finetune}")
