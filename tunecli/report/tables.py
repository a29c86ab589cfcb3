"""A summary drawn for a person, in whatever width there is."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tunecli.output import broken
from tunecli.report.advice import advice
from tunecli.report.summary import (
    Summary,
    against_divergence,
    curve_bars,
    failures,
    short,
    short_hparams,
    short_seconds,
    value_so_far,
    wrap,
)
from tunecli.trial import Importance, State, Trial

_MAIN = ("optimizer", "learning_rate", "batch_size")
LEAST_OTHERS = 16
"""Columns that other hparams take at least; a narrower terminal does without them."""

FEW = 5
"""Fewer best trials may have a value in common by chance."""

_COLOURS = {State.COMPLETE: "green", State.PRUNED: "yellow", State.FAILED: "red", State.RUNNING: "cyan"}


def draw(summary: Summary, top: int, console: Console) -> None:
    """Print a study: how far it is, the best trials with their hparams, and how they learned."""
    console.print(Group(*_parts(summary, top, console.width)))


def draw_best(summary: Summary, console: Console) -> None:
    """Print the best trial alone: what a search has to show for itself."""
    if summary.best is not None:
        console.print(_best(summary, summary.best, console.width))


def draw_tried(summary: Summary, tried: Iterable[Trial], console: Console) -> None:
    """Print what these trials, asked for by hand, came to; the best one is told already."""
    for trial in tried:
        if trial is not summary.best:
            console.print(_tried(summary, trial, console.width))


def _tried(summary: Summary, trial: Trial, width: int) -> Text:
    value = value_so_far(trial)
    reached = "" if value is None else f", {summary.metric} {value:.4f}{_after(summary, trial)}"
    text = Text.assemble(
        ("Tried: ", "bold"), f"trial {trial.number}{reached}, ", (trial.state, _COLOURS.get(trial.state, ""))
    )
    if trial.reason is not None:
        text.append("".join(f"\n  {line}" for line in broken(trial.reason, width - 2).splitlines()))
    for line in wrap(short_hparams(trial.hparams), width - 2).splitlines():
        text.append(f"\n  {line}")
    return text


def _parts(summary: Summary, top: int, width: int) -> Iterator[RenderableType]:
    yield _heading(summary)
    yield _counts(summary, width)
    for number, lines in summary.changes:
        yield Text(wrap([f"From trial {number} on: {lines[0]}", *lines[1:]], width))
    if summary.exhausted is not None:
        yield Text(f"All {summary.exhausted:,} points of the space were tried.")
    shown = summary.ranked[:top]
    if summary.best is None:
        yet = " yet" if summary.ended < summary.asked else ""
        yield Text(f"\nNo trial is complete{yet}, so none is the best.", style="yellow")
        yield from _failures(summary, width)
        if (said := against_divergence(summary)) is not None:
            yield Text(f"\n{broken(said, width)}", style="yellow")
        return
    yield Text("")
    yield _best(summary, summary.best, width)
    yield Text(f"\nTop {len(shown)} of {len(summary.ranked)} complete trials", style="bold")
    yield _table(summary, shown, width)
    if any(trial.curve for trial in shown):
        yield Text(f"\nLearning curves: {summary.what}, {summary.unit} by {summary.unit}", style="bold")
        yield _curves(summary, [trial for trial in shown if trial.curve], width)
    yield from _importance(summary, width)
    yield from _failures(summary, width)
    sentences = advice(summary)
    if sentences:
        yield Text.assemble("\n", ("Worth a try", "bold"), f", with tunecli search {summary.study}")
    for sentence in sentences:
        yield Text(_set_in(broken(sentence, width - 4), 2, 4))


def _importance(summary: Summary, width: int) -> Iterator[RenderableType]:
    found, reason = summary.importance, summary.unexplained_because
    if found is None or reason is not None:
        yield Text(f"\n{broken(f'No importance of hparams: {reason}', width)}", style="dim")
        return
    yield Text("\nImportance of hparams", style="bold")
    best = f"best {found.best:,}" if found.best else "best tenth"
    yield Text(broken(f"What sets the {best} of {found.trials:,} complete and pruned trials apart, PED-ANOVA:", width))
    if 0 < found.best < FEW:
        yield Text("(of so few it is a hint at most, more trials tell)", style="yellow")
    few = {name: count for name, count in found.among_best.items() if count < found.best}
    longest = max(8, min(40, width - (52 if few else 40)))
    yield _shares(found, [name for name in found.shares if name not in few], longest)
    if few:
        # What one optimizer alone reads may set one of the best apart, and says nothing of the others.
        yield Text("and hparams that not every trial has:", style="dim")
        having = {name: _having(count, found.best) for name, count in few.items()}
        yield _shares(found, [name for name in found.shares if name in few], longest, having)


def _shares(found: Importance, names: Sequence[str], width: int, having: Mapping[str, Text] | None = None) -> Table:
    """A bar for each of these hparams, from the largest on, at most so wide."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    table.add_column(no_wrap=True, min_width=max(map(len, found.shares)))
    table.add_column(justify="right", no_wrap=True, min_width=len("25%"))
    for _ in range(1 if having is None else 2):
        table.add_column(no_wrap=True)
    largest = max(found.shares.values())
    for name in names:
        share = found.shares[name]
        bar = Text("█" * round(share / largest * width), style="cyan")
        table.add_row(name, f"{share:.0%}", bar, *([] if having is None else [having[name]]))
    return table


def _having(count: int, of: int) -> Text:
    """How many of the best trials have an hparam, where not all do."""
    return Text(f"{count or 'none'} of the {of:,} {'has' if count < 2 else 'have'} it", style="dim")


def _heading(summary: Summary) -> Text:
    goal = "higher is better" if summary.direction == "maximize" else "lower is better"
    return Text.assemble((summary.study, "bold"), f"  {summary.what}, {goal}")


def _counts(summary: Summary, width: int) -> Text:
    text = Text(f"{summary.ended} of {max(summary.asked, summary.ended)} trials: ")
    counted = [(state, count) for state, count in summary.counts.items() if count]
    for place, (state, count) in enumerate(counted):
        text.append(", " if place else "")
        text.append(f"{count} {state}", style=_COLOURS.get(state, ""))
    without = ", without a C compiler" if summary.environment.get("compiler") == "none" else ""
    trained = f"{duration(summary.seconds)} of training{without}"
    text.append(f"; {trained}" if len(text) + len(trained) + 2 <= width else f";\n  {trained}")
    return text


def _best(summary: Summary, best: Trial, width: int) -> Text:
    reached = wrap(
        f"trial {best.number}, {summary.metric} {best.value:.4f}{_after(summary, best)}".split(", "), width - 6
    )
    which, comma, rest = reached.replace("\n", "\n  ").partition(",")
    text = Text.assemble(("Best: ", "bold"), (which, "bold green"), comma, rest)
    if summary.ties > 1:
        text.append(f"\n  {summary.ties} trials tie, the lowest number goes first")
    for line in wrap(short_hparams(best.hparams), width - 2).splitlines():
        text.append(f"\n  {line}")
    if summary.outside:
        outside = wrap([f"outside of today's space: {summary.outside[0]}", *summary.outside[1:]], width - 2)
        text.append("".join(f"\n  {line}" for line in outside.splitlines()), style="yellow")
    if summary.command is not None:
        text.append("".join(f"\n  {line}" for line in _shell_lines(summary.command, width - 4)), style="dim")
    return text


def _shell_lines(command: str, width: int) -> list[str]:
    """A command over several lines, broken between its words, for a shell to read as one."""
    lines: list[str] = []
    for word in map(shlex.quote, shlex.split(command)):
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(f"  {word}" if lines else word)
    return [*(f"{line} \\" for line in lines[:-1]), lines[-1]]


def _after(summary: Summary, best: Trial) -> str:
    """When the best trial reached its value."""
    if summary.epochs is not None:
        return f" on {summary.split}, after epoch {best.best_tick} of {summary.epochs}"
    return f", after {best.fidelity} report{'' if best.fidelity == 1 else 's'}" if best.fidelity else ""


def _table(summary: Summary, shown: tuple[Trial, ...], width: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    main = [name for name in _MAIN if any(name in trial.hparams for trial in shown)]
    numbers = ["trial", summary.metric, f"{summary.unit}s", "seconds"]
    heads = [*numbers, *({"learning_rate": "rate", "batch_size": "batch"}.get(name, name) for name in main)]
    rows = [
        [
            str(trial.number),
            f"{trial.value:.4f}",
            str(trial.fidelity),
            short_seconds(trial.seconds),
            *(short(trial.hparams.get(name, "")) for name in main),
        ]
        for trial in shown
    ]
    for head in heads:
        table.add_column(head, justify="right" if head in numbers else "left", overflow="fold")
    # What these columns leave, two spaces before each column but the first: wrapped here, by hparam, not by word.
    left = width - sum(max(map(len, column)) + 2 for column in zip(heads, *rows, strict=True))
    if left >= LEAST_OTHERS:
        table.add_column("other hparams", overflow="fold", ratio=1)
    for trial, cells in zip(shown, rows, strict=True):
        style = "green" if summary.best is not None and trial.value == summary.best.value else ""
        others = wrap(short_hparams(trial.hparams, leave_out=main), left)
        last = [Text(others, style="dim")] if left >= LEAST_OTHERS else []
        table.add_row(cells[0], Text(cells[1], style=style), *map(Text, cells[2:]), *last)
    return table


def _curves(summary: Summary, shown: Sequence[Trial], width: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    # Named, for the table above shows the best of them.
    for head in ("trial", "first", "", "last"):
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    for trial in shown:
        values = [measurement.metric for measurement in trial.curve]
        bars = curve_bars(values, max(8, min(40, width - 40)), summary.direction)
        table.add_row(f"{trial.number}", f"{values[0]:.4f}", Text(bars, style="cyan"), f"{values[-1]:.4f}")
    return table


def _failures(summary: Summary, width: int) -> Iterator[Text]:
    found = failures(summary)
    if found:
        printed = "; what each printed is in logs/ of the study's folder" if summary.epochs is None else ""
        yield Text.assemble("\n", ("Failed", "bold"), (printed, "dim"))
    for reason, trials in found:
        named = ", ".join(str(trial.number) for trial in trials[:8]) + (", ..." if len(trials) > 8 else "")
        text = f"{len(trials)} x {reason} (trial{'s' * (len(trials) > 1)} {named})"
        yield Text(_set_in(broken(text, width - 6), 2, 6))
        if trials[0].hparams:
            first, *more = short_hparams(trials[0].hparams)
            had = wrap([f"trial {trials[0].number} had {first}", *more], width - 6)
            yield Text(_set_in(had, 6, 6), style="dim")


def _set_in(text: str, first: int, rest: int) -> str:
    """Its first line so many columns to the right, the rest so many."""
    lines = [line.lstrip() for line in text.splitlines()]
    return "\n".join(" " * (rest if place else first) + line for place, line in enumerate(lines))


def duration(seconds: float) -> str:
    """A length of time in the two units that matter."""
    if 0 < seconds < 0.0995:
        return f"{max(1, round(seconds * 1000))} ms"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
