"""The view while a search runs, on stderr: a bar in a terminal, a line every few seconds in a pipe."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from tunecli.data import Features
from tunecli.live.plans import explain
from tunecli.live.terminal import LINE_SECONDS
from tunecli.report.summary import short, wrap
from tunecli.report.tables import duration
from tunecli.sampler import says
from tunecli.search import Changed, Differed, Ended, Event, Noticed, Opened, OpenedProgram, Progress
from tunecli.source import is_function
from tunecli.space import EXHAUSTIVE, Choice, Float, Int
from tunecli.study import ProgramStudy, Question, Study
from tunecli.trial import State


def show(events: Iterable[Event], console: Console, *, verbose: bool = False) -> Ended:
    """Show a search until it ends; returns how it did. `verbose` says how its plan was chosen."""
    view = _BarView(console) if console.is_terminal else _LineView(console)
    try:
        for event in events:
            if isinstance(event, Opened | OpenedProgram):
                console.print(opening(event, console.width), soft_wrap=True)
                if verbose and isinstance(event, Opened):
                    console.print(explain(event), soft_wrap=True)
                view.open(event)
            elif isinstance(event, Changed):
                console.print(change(event, console.width), soft_wrap=True)
            elif isinstance(event, Differed):
                view.note(
                    f"note: replaying trial {event.trial} gave {event.replayed:.6g} at epoch {event.fidelity}, "
                    f"{event.stored:.6g} is recorded and stays"
                )
            elif isinstance(event, Noticed):
                view.note(f"note: {event.text}")
            elif isinstance(event, Progress):
                view.update(event)
            else:
                view.close(event)
                return event
    finally:
        console.show_cursor()  # an error must not leave a terminal without one
    raise AssertionError("a search ends with Ended")


def say_stopped(ended: Ended, again: str, console: Console) -> None:
    """A signal stopped the search: what is safe, and how to go on."""
    progress = ended.progress
    running = progress.counts[State.RUNNING]
    flight = f", {running} in flight" if running else ""
    console.print(
        f"stopped: {_ended(progress)} of {progress.total} trials done{flight}; all is recorded", soft_wrap=True
    )
    console.print(f"to go on:\n  {again}", soft_wrap=True)


def say_next(
    ended: Ended, study: Question, home: str, again: str, console: Console, exhausted: int | None = None
) -> None:
    """What to type after a search; `exhausted` is how many points its space has, where all were tried."""
    if exhausted is not None:
        console.print(f"all {exhausted:,} points of the space were tried", soft_wrap=True)
    elif ended.how == "timeout":
        console.print(
            f"the time is up: {_ended(ended.progress)} of {ended.progress.total} trials done; to go on:\n  {again}",
            soft_wrap=True,
        )
    elif ended.progress.ended_now == 0:
        console.print(f"all {ended.progress.total} trials were done already; --trials N asks for more", soft_wrap=True)
    failed = ended.progress.counts[State.FAILED]
    if failed and ended.progress.best is not None:
        trials = "1 trial" if failed == 1 else f"{failed} trials"
        console.print(f"{trials} failed: tunecli report {study.name}{home} says why", soft_wrap=True)
    if ended.progress.best is not None:
        # A program keeps its weights itself.
        finetune = "" if isinstance(study, ProgramStudy) else f"\n  tunecli finetune {study.name} --best{home}"
        console.print(f"next:\n  tunecli report {study.name}{home}{finetune}", soft_wrap=True)


def opening(event: Opened | OpenedProgram, width: int) -> Text:
    """What is being searched, a few lines."""
    paragraphs = _of_model(event) if isinstance(event, Opened) else _of_program(event)
    if event.done:
        total = event.study.search.trials
        paragraphs.append(("", [f"{event.done} of {total} done, {total - event.done} to go"]))
    text = Text()
    for label, items in paragraphs:
        lines = wrap(items, width - 7).splitlines()
        text.append(f"{label:<7}", style="bold")
        text.append("\n       ".join(lines) + "\n")
    text.right_crop(1)
    return text


def change(event: Changed, width: int) -> Text:
    """What has changed in the question, and what that means for the trials so far."""
    hidden = event.trials - event.shown
    means = [f"the {event.trials} trials so far stay"]
    if event.sampler in ("random", "qmc", *EXHAUSTIVE):
        pass  # it looks at no value
    elif not hidden:
        means.append(f"{event.sampler} sees them all as today's space has them")
    else:
        means.append(f"{hidden} of them lie outside today's space and are hidden from {event.sampler}")
    lines = wrap([*event.lines, *(means if event.trials else [])], width - 9).splitlines()
    return Text.assemble(("changed  ", "bold"), "\n         ".join(lines))


def _of_model(event: Opened) -> list[tuple[str, list[str]]]:
    study, data = event.study, event.data
    samples = [len(part) for part in (data.train, data.validation, data.test)]
    shape = _shape(data.features)
    kind = f"{len(data.classes)} classes" if data.classes else _TARGETS.get(data.task, data.task)
    looped = event.looped_because
    return [
        ("data", [f"{data.name}: {sum(samples):,} samples{' of ' if shape else ''}{shape}", kind, *_split(samples)]),
        *(("", [notice]) for notice in data.notices),
        ("model", [study.model.source, *_keys(study), f"{event.weights:,} weights"]),
        ("space", list(_ranges(study))),
        (
            "search",
            [
                f"{study.search.trials} trials of up to {study.train.epochs} epochs",
                f"{study.window} in flight",
                _pruner(study),
                f"{event.metric} on validation is {event.direction}d",
            ],
        ),
        *([("", _ASSUMED.format(event.direction).split(", "))] if _direction_is_assumed(study) else []),
        ("", says(study.search.sampler, study.space, study.window).split(", ")),
        ("device", [event.device, *_computed(event)]),
        *([("", f"({looped})".split(", "))] if looped else []),
    ]


def _computed(event: Opened) -> list[str]:
    how = "trials one after another" if event.looped_because else str(event.plan)
    return [f"{event.workers} worker processes", f"in each {how}"] if event.workers else [how]


def _of_program(event: OpenedProgram) -> list[tuple[str, list[str]]]:
    study = event.study
    search = study.search
    return [
        ("run", [study.program.objective or study.program.command or "", f"in {study.base}"]),
        ("space", list(_ranges(study)) if study.space.dimensions else ["as the objective suggests it"]),
        (
            "search",
            [
                f"{search.trials} trials",
                f"{study.window} at a time",
                search.sampler,
                _pruner(study),
                f"{event.metric} is {study.direction}d",
            ],
        ),
        ("logs", [f"{event.folder / 'logs'}"]),
    ]


def _pruner(study: Question) -> str:
    return "no pruner" if study.search.pruner == "none" else study.search.pruner


_ASSUMED = "note: nothing says which way the metric is better, {} is taken, train.direction tells"


def _direction_is_assumed(study: Study) -> bool:
    return is_function(study.train.metric or "") and study.train.direction is None


_TARGETS = {"own": "targets as they are"}
"""What the targets of a task are called where it is not its own name."""


def _shape(features: Features) -> str:
    """3 x 4; of several inputs each, with its name if it has one."""
    if isinstance(features, dict):
        return ", ".join(f"{name} {_shape(shape) or 'one number'}" for name, shape in features.items())
    if any(isinstance(size, tuple) for size in features):
        return " and ".join(_shape(shape) or "one number" for shape in features if isinstance(shape, tuple))
    return " x ".join(str(size) for size in features)


def _split(samples: list[int]) -> list[str]:
    return [f"{count:,} {name}" for count, name in zip(samples, ("train", "validation", "test"), strict=True)]


def _keys(study: Study) -> list[str]:
    return [f"{key} {short(value)}" for key, value in study.model.keys.items()]


def _ranges(study: Study | ProgramStudy) -> Iterator[str]:
    """Each hparam with its range; where optimizers have ranges of their own, from the lowest to the highest."""
    for hparam in dict.fromkeys(dimension.hparam for dimension in study.space.dimensions):
        ranges = [dimension.range for dimension in study.space.dimensions if dimension.hparam == hparam]
        first = ranges[0]
        if isinstance(first, Choice):
            yield f"{hparam} {'|'.join(short(choice) for choice in first.values)}"
        elif isinstance(first, Float | Int):
            bounds = [own for own in ranges if isinstance(own, Float | Int)]
            yield f"{hparam} {min(own.low for own in bounds):g}..{max(own.high for own in bounds):g}"
        else:
            yield f"{hparam} = {short(first)}"


class _LineView:
    """For a pipe or a log: whole lines, none of them rewritten."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown = time.monotonic()
        self._opened: Opened | OpenedProgram | None = None

    def open(self, event: Opened | OpenedProgram) -> None:
        self._opened = event

    def note(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def update(self, progress: Progress) -> None:
        if time.monotonic() - self._shown >= LINE_SECONDS:
            self._shown = time.monotonic()
            self._console.print(_status(progress, self._opened), soft_wrap=True)

    def close(self, event: Ended) -> None:
        if self._opened is not None:
            self._console.print(_status(event.progress, self._opened, ended=True), soft_wrap=True)


class _BarView:
    """For a terminal: one bar, and below it the best so far and the pace."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Bar(
            TextColumn("{task.fields[done]} trials"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[left]}"),
            expand=True,
        )
        self._live = Live(console=console, refresh_per_second=8)
        self._opened: Opened | OpenedProgram | None = None

    def open(self, event: Opened | OpenedProgram) -> None:
        self._opened = event
        total = event.study.search.trials
        self._task = self._bar.add_task("", total=total, completed=event.done, done=f"{event.done}/{total}", left="")
        self._live.start()

    def note(self, text: str) -> None:
        self._live.console.print(text)

    def update(self, progress: Progress) -> None:
        self._show(progress, _left(progress))

    def _show(self, progress: Progress, left: str) -> None:
        ended = _ended(progress)
        self._bar.update(self._task, completed=ended, done=f"{ended}/{progress.total}", left=left)
        self._live.update(Group(self._bar, Text(", ".join(_standing(progress, self._opened)), overflow="ellipsis")))

    def close(self, event: Ended) -> None:
        if self._opened is not None:
            self._show(event.progress, "")
            self._live.stop()


def _ended(progress: Progress) -> int:
    return sum(count for state, count in progress.counts.items() if state.ended)


def _status(progress: Progress, opened: Opened | OpenedProgram | None, *, ended: bool = False) -> str:
    """Where the search is, in one line."""
    left = "" if ended else _left(progress)
    return ", ".join(
        [f"{_ended(progress)} of {progress.total} done", *_standing(progress, opened), *([left] if left else [])]
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
    """The time left at the pace so far; nothing where there is no pace yet, or nothing left."""
    missing, rate = progress.total - _ended(progress), _rate(progress)
    return f"{duration(math.ceil(missing / rate))} left".replace(".0 s", " s") if missing > 0 and rate > 0 else ""
