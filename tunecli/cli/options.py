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

from tunecli.errors import InputError, UsageError
from tunecli.output import say, without_password

if TYPE_CHECKING:
    from tunecli.report.console import VisibleConsole
    from tunecli.report.summary import Summary
    from tunecli.storage import Address, Database
    from tunecli.store import Record
    from tunecli.trial import Trial

StudyArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="STUDY",
        help="A study file, a name, a table (.csv, .tsv, .parquet, .npz), a folder of pictures, or "
        "script.py:objective. Default: the latest.",
    ),
]


def _folder(home: Path) -> Path:
    if ":/" in str(home):
        raise UsageError(f"--home takes a folder, got {home}", hint="a database is named with --storage")
    if home.exists() and not home.is_dir():
        raise InputError(f"{home} is no folder", hint="give the folder of the studies with --home")
    return home


HomeOption = Annotated[Path, typer.Option("--home", metavar="DIR", help="Where results lie.", callback=_folder)]
StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage", metavar="URL", help="Where trials are kept: postgresql://USER@HOST/DB or sqlite:///FILE."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the study file, e.g. train.epochs=5."),
]
DeviceOption = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:1.")]
HOME = Path("studies")


class Stopped(Exception):
    """A signal ended the command, which has said so and what goes on with it."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


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


def address_of(storage: str | None) -> Address | None:
    """The database that `--storage` names. Raises UsageError."""
    from tunecli.storage import read_address

    if storage is None:
        return None
    address = read_address(storage)
    if address.secrets:
        say("note: others see a password in a command line (ps); PGPASSWORD or ~/.pgpass keep it", sys.stderr)
    return address


def find_results(study: str | None, home: Path, storage: str | None) -> tuple[Path, Database]:
    """Where a study's checkpoints lie, and its trials. Raises InputError where there are none, or not here."""
    from tunecli.home import find_database, find_folder, is_begun

    address = address_of(storage)
    folder = find_folder(study, home, address)
    if not is_begun(folder):
        raise InputError(
            f"no study {folder.name!r} in {home}, where its checkpoints would lie",
            hint="name the home of its search with --home, or copy its folder here",
        )
    return folder, find_database(folder, address)


def read_summary(database: Database) -> Summary:
    from tunecli.report.summary import summarize
    from tunecli.sampler import learned
    from tunecli.store import read

    record = read(database)
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
    summary = replace(
        summary,
        changes=_changes(record),
        outside=_outside(record, summary.best),
        search=record.document["search"],
        learned=None if record.of_program else learned(record.document["search"]["sampler"], record.trials),
        environment=record.environment,
    )
    if summary.best is None or record.command is None:
        return summary
    return replace(summary, command=shlex.join(record.command.filled(summary.best.hparams)))


def _changes(record: Record) -> list[tuple[int, list[str]]]:
    """The first trial after each change of the question, and what changed, a line a key; more trials are no change."""
    from tunecli.study.overrides import differences

    asked = [*(own.document for own in record.earlier), record.document]
    found = [list(differences(before, now).values()) for before, now in pairwise(asked)]
    return [(own.until, lines) for own, lines in zip(record.earlier, found, strict=True) if lines]


def _outside(record: Record, best: Trial | None) -> list[str]:
    """The hparams of the best trial that today's space does not hold, where it was another one once."""
    from tunecli.given import no_values

    if best is None or not record.earlier or record.of_program:
        return []
    known = {dimension.hparam for dimension in record.space.dimensions}
    return [name for name in no_values(record.space, best.hparams) if name in known]


def _exhausted(record: Record) -> int | None:
    """How many points the space has, where a sampler that tries them all has done so."""
    from tunecli.points import all_points
    from tunecli.sampler import points_left

    if record.of_program or not all(trial.state.ended for trial in record.trials):
        return None
    left = points_left(record.document["search"]["sampler"], record.space, record.shown())
    return len(all_points(record.space)) if left == 0 else None


def typed_command(*, anew: bool = False) -> str:
    """The command that was typed, for the user to type again, less a password; what was set up once need not be, but
    where nothing was yet (`anew`)."""
    return shlex.join(["tunecli", *(without_password(own) for own in sys.argv[1:] if anew or own != "--fresh")])


def home_option(home: Path) -> str:
    return "" if home == HOME else f" --home {shlex.quote(str(home))}"
