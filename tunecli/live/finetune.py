"""The view while a checkpoint is trained on, and what came of it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from rich.constrain import Constrain
from rich.live import Live
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from tunecli.finetune import Event, Finetuned, Notice
from tunecli.live.terminal import ECHOED, LINE_SECONDS
from tunecli.report.console import VisibleConsole
from tunecli.report.formats import strict_json
from tunecli.report.summary import wrap
from tunecli.trial import better


def show_finetune(events: Iterable[Event], console: VisibleConsole) -> Finetuned | None:
    """Show fine-tuning until it ends; None where a signal ended it."""
    shown = 0.0
    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[status]}", markup=False),
        expand=True,
    )
    narrower = Constrain(bar, console.width - ECHOED)
    seen = Live(narrower, console=console, transient=True, redirect_stdout=False)
    tasks: dict[str, TaskID] = {}
    with seen if console.is_terminal else nullcontext():
        for event in events:
            if isinstance(event, Finetuned):
                return event
            if isinstance(event, Notice):
                console.say(f"note: {event.text}")
                continue
            text = f"epoch {event.epoch} of {event.epochs}, training loss {event.train_loss:.4f}"
            if console.is_terminal:
                if event.of not in tasks:
                    tasks[event.of] = bar.add_task(f"{event.of:<12}", total=event.epochs, status="")
                bar.update(tasks[event.of], completed=event.epoch, status=text)
            elif event.epoch == event.epochs or time.monotonic() - shown >= LINE_SECONDS:
                shown = time.monotonic()
                console.say(f"{event.of}: {text}")
    return None


def say_interrupted(again: str, console: VisibleConsole) -> None:
    console.say(
        "stopped: what was trained is kept; the model is written, and the test split read, once training from scratch "
        f"is done too\nto go on:\n  {again}"
    )


def say_done_already(anew: str, console: VisibleConsole) -> None:
    console.say(f"this was done already: nothing is trained or read again; to train it anew:\n  {anew}")


def print_finetuned(result: Finetuned, console: VisibleConsole, instead: str | None = None) -> None:
    """What fine-tuning came to, the most important first; `instead` is the model that `predict` takes where it is not
    this one, which became worse."""
    name, moved = result.metric, result.after - result.before
    change = f"{'rose' if moved > 0 else 'fell'} by {abs(moved):.4f}" if moved else "stayed the same"
    kept = "" if instead is None else f": predict stays with {instead}"
    style = "yellow" if not result.used else "bold green" if moved else "bold"
    console.print(
        Text(f"{name} {change} on the test split of {result.data}{kept}", style=style),
        soft_wrap=not console.is_terminal,
    )
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
    if better(result.scratch, result.after, result.direction):
        gap = abs(result.scratch - result.after)
        console.say(
            f"from scratch came out better, by {gap:.4f}: starting from {result.start} did not help; "
            f"it is compared with, and not kept{_bolder(result)}"
        )
    trained = "all layers" if len(result.trained) > 4 else ", ".join(result.trained)
    head = ", with a new head for its classes" if result.new_head else ""
    course = "falling to 0 (cosine)" if result.schedule == "cosine" else f"({result.schedule})"
    epochs = f"{result.epochs} epoch{'s' if result.epochs > 1 else ''}"
    items = [
        f"trained {trained}{head}: {epochs} on {result.samples:,} samples",
        f"learning rate {result.learning_rate:.3g} {course}",
        f"from scratch {result.scratch_learning_rate:.3g}, the trial's own",
    ]
    console.print(wrap(items, console.width - 2).replace("\n", "\n  "), soft_wrap=True)
    unused = "" if result.used else " (not in use)"
    console.say(f"checkpoint: {result.checkpoint}{unused}")
    if result.saved is not None:
        console.say(f"state dict: {result.saved}")


def _bolder(result: Finetuned) -> str:
    """By what the fine-tuning may come to what training from scratch came to, where its learning rate was smaller."""
    if result.learning_rate >= result.scratch_learning_rate:
        return ""
    return f"; --set learning_rate={result.scratch_learning_rate:.3g}, its own, may bring the fine-tuning there"


def finetune_json(result: Finetuned) -> str:
    """The result as one JSON document."""
    document = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(result).items()}
    return strict_json({**document, "split": "test"})


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
