"""The view while a search runs, on stderr: a bar in a terminal, a line every few seconds in a pipe."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from tunecli.finetune import Epoch, Finetuned
from tunecli.report.summary import short
from tunecli.report.tables import duration
from tunecli.search import Differed, Ended, Event, Opened, Progress
from tunecli.space import Choice, Float, Int
from tunecli.study import Study
from tunecli.trial import State

LINE_SECONDS = 5.0
"""How often a search that nobody watches says where it is."""


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
    for event in events:
        if isinstance(event, Opened):
            for line in opening(event):
                console.print(line, soft_wrap=not console.is_terminal)
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
    if not result.used:
        console.print(
            Text(f"{name} fell by {abs(moved):.4f}: the starting checkpoint stays the one in use", style="yellow")
        )
    verb = "rose" if moved > 0 else "fell" if moved < 0 else "stayed"
    change = f"{verb} by {abs(moved):.4f}" if moved else "stayed the same"
    if result.used:
        style = "bold green" if moved else "bold"
        console.print(Text(f"{name} {change} on the test split of {result.data}", style=style))
    console.print(f"  (test, {ordinal(result.reading)} reading)")
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
    table.add_column("")
    table.add_column(f"{name}, test", justify="right")
    table.add_column("updates", justify="right")
    seen = f"{result.updates_before:,}"
    table.add_row(f"before (trial {result.trial})", f"{result.before:.4f}", seen)
    table.add_row("after", f"{result.after:.4f}", f"{seen} + {result.updates:,}")
    table.add_row("from scratch", f"{result.scratch:.4f}", f"{result.updates:,}")
    console.print(table)
    trained = "all layers" if len(result.trained) > 4 else ", ".join(result.trained)
    head = ", with a new head for its classes" if result.new_head else ""
    console.print(
        f"trained {trained}{head}: {result.epochs} epochs on {result.samples:,} samples, "
        f"learning rate {result.learning_rate:.3g} falling to 0 (cosine)",
        soft_wrap=True,
    )
    console.print(f"checkpoint: {result.checkpoint}", soft_wrap=True)
    if result.saved is not None:
        console.print(f"state dict: {result.saved}", soft_wrap=True)


def finetune_json(result: Finetuned) -> str:
    """The result as one JSON document."""
    document = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(result).items()}
    return json.dumps({**document, "split": "test"}, indent=2)


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def opening(event: Opened) -> Iterator[Text]:
    """What is being searched, a few lines."""
    study, data = event.study, event.data
    samples = [len(part) for part in (data.train, data.validation, data.test)]
    shape = " x ".join(str(size) for size in data.features)
    kind = f"{len(data.classes)} classes" if data.classes else "regression"
    split = f"{samples[0]:,} train, {samples[1]:,} validation, {samples[2]:,} test"
    yield _line("data", f"{data.name}: {sum(samples):,} samples of {shape}, {kind} ({split})")
    for notice in data.notices:
        yield _line("", notice, style="yellow")
    keys = "".join(f", {key} {short(value)}" for key, value in study.model.keys.items())
    yield _line("model", f"{study.model.source}{keys}: {event.weights:,} weights")
    yield _line("space", ", ".join(_ranges(study)))
    yield _line(
        "search",
        f"{study.search.trials} trials of up to {study.train.epochs} epochs, {study.window} in flight; "
        f"{study.search.sampler}, {study.search.pruner}; {event.metric} on validation is {event.direction}d",
    )
    looped = f" ({event.looped_because})" if event.looped_because else ""
    plan = f"trials one after another{looped}" if looped else str(event.plan)
    yield _line("device", f"{event.device}, {plan}")
    if event.done:
        yield _line("", f"{event.done} of {study.search.trials} done, {study.search.trials - event.done} to go")


def _ranges(study: Study) -> Iterator[str]:
    seen: dict[str, list[str]] = {}
    for dimension in study.space.dimensions:
        value = dimension.range
        if isinstance(value, Choice):
            text = "|".join(short(choice) for choice in value.values)
        elif isinstance(value, Float | Int):
            text = f"{short(value.low)}..{short(value.high)}"
        else:
            text = f"= {short(value)}"
        seen.setdefault(dimension.hparam, []).append(text)
    for hparam, texts in seen.items():
        yield f"{hparam} {texts[0]}" if len(texts) == 1 else f"{hparam} by optimizer"


def _line(label: str, text: str, style: str = "") -> Text:
    return Text.assemble((f"{label:<7}", "bold"), (text, style))


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
    """For a terminal: one bar."""

    def __init__(self, console: Console) -> None:
        self._bar = Bar(
            TextColumn("{task.fields[done]}"), BarColumn(bar_width=None), _Status(), console=console, expand=True
        )
        self._metric = ""

    def open(self, event: Opened) -> None:
        self._metric = event.metric
        total = event.study.search.trials
        self._task = self._bar.add_task("", total=total, completed=event.done, done=f"{event.done}/{total}", status="")
        self._bar.start()

    def note(self, text: str) -> None:
        self._bar.console.print(text)

    def update(self, progress: Progress) -> None:
        ended = _ended(progress)
        self._bar.update(
            self._task,
            completed=ended,
            done=f"{ended}/{progress.total}",
            status=_status(progress, self._metric, counted=False),
        )

    def close(self, event: Ended) -> None:
        if self._metric:
            self.update(event.progress)
            self._bar.stop()


class _Status(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(str(task.fields["status"]), no_wrap=True, overflow="ellipsis")


def _ended(progress: Progress) -> int:
    return sum(count for state, count in progress.counts.items() if state.ended)


def _status(progress: Progress, metric: str, *, counted: bool = True) -> str:
    """Where the search is: the most important first, since a narrow terminal cuts the end off."""
    parts = [f"{_ended(progress)} of {progress.total} done"] if counted else []
    if progress.best is not None:
        parts.append(f"{metric} {progress.best.value:.4f} (trial {progress.best.number})")
    for state in (State.RUNNING, State.PRUNED, State.FAILED):
        if progress.counts[state]:
            parts.append(f"{progress.counts[state]} {state}")
    rate = progress.ended_now / progress.seconds if progress.seconds > 0 else 0.0
    if rate > 0:
        left = (progress.total - _ended(progress)) / rate
        parts.append(f"{rate:.1f}/s" if rate >= 0.1 else f"{rate * 60:.1f}/min")
        if math.ceil(left) > 0:
            parts.append(f"{duration(math.ceil(left))} left".replace(".0 s", " s"))
    return ", ".join(parts)
