"""The view while a search runs, on stderr: a bar in a terminal, a line every few seconds in a pipe."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from tunecli.finetune import Epoch, Finetuned
from tunecli.report.formats import strict_json
from tunecli.report.summary import short, wrap
from tunecli.report.tables import duration
from tunecli.search import Differed, Ended, Event, Opened, Progress
from tunecli.space import Choice, Float, Int
from tunecli.study import Study
from tunecli.trial import State

LINE_SECONDS = 5.0
"""How often a search that nobody watches says where it is."""


class _Unread(Console):
    """A console whose reader may go: then the work goes on in silence."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def progress_console() -> Console:
    """What goes to stderr. Without markup: `--set space.optimizer=[sgd,adam]` is printed as it was typed."""
    return _Unread(stderr=True, highlight=False, markup=False, emoji=False)


class Interrupt:
    """Signals that ask a search to stop: `asked` holds the first. A second Ctrl-C ends the process at once."""

    def __init__(self) -> None:
        self.asked: int | None = None

    def __call__(self) -> bool:
        return self.asked is not None

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 75 after a signal of the system: try again later."""
        return 130 if self.asked == signal.SIGINT else 75

    @contextmanager
    def listening(self) -> Iterator[Interrupt]:
        """Catch Ctrl-C and SIGTERM within this block."""

        def on_signal(number: int, frame: FrameType | None) -> None:
            if self.asked is not None:
                raise KeyboardInterrupt
            self.asked = number

        before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def show(events: Iterable[Event], console: Console) -> Ended:
    """Show a search until it ends; returns how it did."""
    view = _BarView(console) if console.is_terminal else _LineView(console)
    try:
        for event in events:
            if isinstance(event, Opened):
                console.print(opening(event, console.width), soft_wrap=True)
                view.open(event)
            elif isinstance(event, Differed):
                view.note(
                    f"note: replaying trial {event.trial} gave {event.replayed:.6g} at epoch {event.fidelity}, "
                    f"{event.stored:.6g} is recorded and stays"
                )
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
    console.print(f"stopped: {_ended(progress)} of {progress.total} trials done and recorded", soft_wrap=True)
    console.print(f"to go on:\n  {again}", soft_wrap=True)


def say_next(ended: Ended, study: str, home: str, again: str, console: Console) -> None:
    """What to type after a search."""
    if ended.how == "timeout":
        console.print(
            f"the time is up: {_ended(ended.progress)} of {ended.progress.total} trials done; to go on:\n  {again}",
            soft_wrap=True,
        )
    elif ended.progress.ended_now == 0:
        console.print(f"all {ended.progress.total} trials were done already; --trials N asks for more", soft_wrap=True)
    if ended.progress.best is not None:
        console.print(f"next:\n  tunecli report {study}{home}\n  tunecli finetune {study} --best{home}", soft_wrap=True)


def show_finetune(events: Iterable[Epoch | Finetuned], console: Console) -> Finetuned | None:
    """Show fine-tuning until it ends; None where a signal ended it."""
    shown = 0.0
    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        _Status(),
        console=console,
        expand=True,
        transient=True,
    )
    tasks: dict[str, TaskID] = {}
    with bar if console.is_terminal else nullcontext():
        for event in events:
            if isinstance(event, Finetuned):
                return event
            text = f"epoch {event.epoch} of {event.epochs}, training loss {event.train_loss:.4f}"
            if console.is_terminal:
                if event.of not in tasks:
                    tasks[event.of] = bar.add_task(f"{event.of:<12}", total=event.epochs, status="")
                bar.update(tasks[event.of], completed=event.epoch, status=text)
            elif event.epoch == event.epochs or time.monotonic() - shown >= LINE_SECONDS:
                shown = time.monotonic()
                console.print(f"{event.of}: {text}", soft_wrap=True)
    return None


def say_unchanged(again: str, console: Console) -> None:
    console.print(
        f"stopped: nothing was written, the test split was not read\nto do it again:\n  {again}", soft_wrap=True
    )


def print_finetuned(result: Finetuned, console: Console) -> None:
    """What fine-tuning came to, the most important first."""
    name, moved = result.metric, result.after - result.before
    change = f"{'rose' if moved > 0 else 'fell'} by {abs(moved):.4f}" if moved else "stayed the same"
    kept = "" if result.used else ": the starting checkpoint stays the one in use"
    style = "yellow" if not result.used else "bold green" if moved else "bold"
    console.print(Text(f"{name} {change} on the test split of {result.data}{kept}", style=style), soft_wrap=True)
    console.print(f"  (test, {ordinal(result.reading)} reading)")
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
    table.add_column("")
    table.add_column(f"{name}, test", justify="right")
    table.add_column("updates", justify="right")
    seen = f"{result.updates_before:,}"
    table.add_row(f"before ({result.start})", f"{result.before:.4f}", seen)
    table.add_row("after", f"{result.after:.4f}", f"{seen} + {result.updates:,}")
    scratch = f"{result.scratch:.4f}" if math.isfinite(result.scratch) else "diverged"
    table.add_row("from scratch", scratch, f"{result.updates:,}")
    console.print(table)
    trained = "all layers" if len(result.trained) > 4 else ", ".join(result.trained)
    head = ", with a new head for its classes" if result.new_head else ""
    console.print(
        f"trained {trained}{head}: {result.epochs} epoch{'s' if result.epochs > 1 else ''} on "
        f"{result.samples:,} samples, "
        f"learning rate {result.learning_rate:.3g} falling to 0 (cosine)",
        soft_wrap=True,
    )
    unused = "" if result.used else " (not in use)"
    console.print(f"checkpoint: {result.checkpoint}{unused}", soft_wrap=True)
    if result.saved is not None:
        console.print(f"state dict: {result.saved}", soft_wrap=True)


def finetune_json(result: Finetuned) -> str:
    """The result as one JSON document."""
    document = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(result).items()}
    return strict_json({**document, "split": "test"})


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def opening(event: Opened, width: int) -> Text:
    """What is being searched, a few lines."""
    study, data = event.study, event.data
    samples = [len(part) for part in (data.train, data.validation, data.test)]
    shape = " x ".join(str(size) for size in data.features)
    kind = f"{len(data.classes)} classes" if data.classes else "regression"
    looped = f"trials one after another ({event.looped_because})" if event.looped_because else str(event.plan)
    paragraphs = [
        ("data", [f"{data.name}: {sum(samples):,} samples of {shape}", kind, *_split(samples)]),
        *(("", [notice]) for notice in data.notices),
        ("model", [study.model.source, *_keys(study), f"{event.weights:,} weights"]),
        ("space", list(_ranges(study))),
        (
            "search",
            [
                f"{study.search.trials} trials of up to {study.train.epochs} epochs",
                f"{study.window} in flight",
                study.search.sampler,
                study.search.pruner,
                f"{event.metric} on validation is {event.direction}d",
            ],
        ),
        ("device", [event.device, looped]),
    ]
    if event.done:
        paragraphs.append(
            ("", [f"{event.done} of {study.search.trials} done, {study.search.trials - event.done} to go"])
        )
    text = Text()
    for label, items in paragraphs:
        lines = wrap(items, width - 7).splitlines()
        text.append(f"{label:<7}", style="bold")
        text.append("\n       ".join(lines) + "\n")
    text.right_crop(1)
    return text


def _split(samples: list[int]) -> list[str]:
    return [f"{count:,} {name}" for count, name in zip(samples, ("train", "validation", "test"), strict=True)]


def _keys(study: Study) -> list[str]:
    return [f"{key} {short(value)}" for key, value in study.model.keys.items()]


def _ranges(study: Study) -> Iterator[str]:
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
        self._metric = ""

    def open(self, event: Opened) -> None:
        self._metric = event.metric

    def note(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def update(self, progress: Progress) -> None:
        if time.monotonic() - self._shown >= LINE_SECONDS:
            self._shown = time.monotonic()
            self._console.print(_status(progress, self._metric), soft_wrap=True)

    def close(self, event: Ended) -> None:
        if self._metric:
            self._console.print(_status(event.progress, self._metric), soft_wrap=True)


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
        self._metric = ""

    def open(self, event: Opened) -> None:
        self._metric = event.metric
        total = event.study.search.trials
        self._task = self._bar.add_task("", total=total, completed=event.done, done=f"{event.done}/{total}", left="")
        self._live.start()

    def note(self, text: str) -> None:
        self._live.console.print(text)

    def update(self, progress: Progress) -> None:
        ended = _ended(progress)
        left = _left(progress)
        self._bar.update(self._task, completed=ended, done=f"{ended}/{progress.total}", left=left)
        self._live.update(Group(self._bar, Text(", ".join(_standing(progress, self._metric)), overflow="ellipsis")))

    def close(self, event: Ended) -> None:
        if self._metric:
            self.update(event.progress)
            self._live.stop()


class _Status(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(str(task.fields["status"]), no_wrap=True, overflow="ellipsis")


def _ended(progress: Progress) -> int:
    return sum(count for state, count in progress.counts.items() if state.ended)


def _status(progress: Progress, metric: str) -> str:
    """Where the search is, in one line."""
    left = _left(progress)
    return ", ".join(
        [f"{_ended(progress)} of {progress.total} done", *_standing(progress, metric), *([left] if left else [])]
    )


def _standing(progress: Progress, metric: str) -> list[str]:
    """The most important first, since a narrow terminal cuts the end off."""
    parts = []
    if progress.best is not None:
        parts.append(f"best {metric} {progress.best.value:.4f} on validation (trial {progress.best.number})")
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
