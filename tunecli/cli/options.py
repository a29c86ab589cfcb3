"""What several commands share: arguments, options, and the consoles that they print to."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tunecli.report.console import VisibleConsole
    from tunecli.report.summary import Summary
    from tunecli.store import Record

StudyArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="STUDY",
        help="A study file, a name, a table (.csv, .tsv, .parquet, .npz), a folder of pictures, or "
        "script.py:objective. Default: the latest.",
    ),
]
HomeOption = Annotated[Path, typer.Option("--home", metavar="DIR", help="Where results lie.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the study file, e.g. train.epochs=5."),
]
DeviceOption = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:1.")]
HOME = Path("studies")


class Direction(StrEnum):
    MINIMIZE = "minimize"
    MAXIMIZE = "maximize"


class TextOrJson(StrEnum):
    TEXT = "text"
    JSON = "json"


class Format(StrEnum):
    TEXT = "text"
    JSON = "json"
    CSV = "csv"
    MARKDOWN = "markdown"


def output_console() -> VisibleConsole:
    from tunecli.report.console import VisibleConsole

    return VisibleConsole()


def read_summary(folder: Path) -> Summary:
    from tunecli.report.summary import summarize
    from tunecli.store import read

    record = read(folder / "study.db")
    summary = summarize(
        study=record.name,
        metric=record.metric,
        direction=record.direction,
        asked=int(record.document["search"]["trials"]),
        epochs=None if record.of_program else int(record.document["train"]["epochs"]),
        trials=record.trials,
        exhausted=_exhausted(record),
        importance=record.importance,
    )
    summary = replace(summary, changes=_changes(record))
    if summary.best is None or record.command is None:
        return summary
    return replace(summary, command=shlex.join(record.command.filled(summary.best.hparams)))


def _changes(record: Record) -> list[tuple[int, list[str]]]:
    """The first trial after each change of the question, and what changed, a line a key; more trials are no change."""
    from tunecli.study.overrides import differences

    asked = [*(own.document for own in record.earlier), record.document]
    found = [list(differences(before, now).values()) for before, now in pairwise(asked)]
    return [(own.until, lines) for own, lines in zip(record.earlier, found, strict=True) if lines]


def _exhausted(record: Record) -> int | None:
    """How many points the space has, where a sampler that tries them all has done so."""
    from tunecli.points import all_points
    from tunecli.sampler import points_left

    if record.of_program or not all(trial.state.ended for trial in record.trials):
        return None
    left = points_left(record.document["search"]["sampler"], record.space, record.shown())
    return len(all_points(record.space)) if left == 0 else None


def typed_command() -> str:
    """The command that was typed, for the user to type again; what was set up once need not be."""
    return shlex.join(["tunecli", *(argument for argument in sys.argv[1:] if argument != "--fresh")])


def home_option(home: Path) -> str:
    return "" if home == HOME else f" --home {shlex.quote(str(home))}"
