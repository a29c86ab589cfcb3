"""tunecli ls."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunecli.cli.options import HOME, HomeOption, StorageOption, TextOrJson, address_of, home_option, output_console
from tunecli.errors import InputError, StorageError, TunecliError
from tunecli.trial import State

if TYPE_CHECKING:
    from tunecli.report.studies import Listed
    from tunecli.storage import Address, Database
    from tunecli.store import Overview


def ls(
    home: HomeOption = HOME,
    storage: StorageOption = None,
    everything: Annotated[
        bool, typer.Option("--all", metavar="", help="List those too that were set aside for another (--fresh).")
    ] = False,
    output: Annotated[TextOrJson, typer.Option("--format", help="What goes to stdout.")] = TextOrJson.TEXT,
) -> None:
    """List the studies in the home, the latest first: how far they are, their best trial, and their age.

    With --storage those in that database, wherever they were searched.
    """
    from tunecli import live
    from tunecli.home import is_set_aside, study_folders
    from tunecli.report.formats import strict_json
    from tunecli.report.studies import as_document, draw_studies

    address = address_of(storage)
    folders = study_folders(home) if address is None else []
    hidden = [] if everything else [own for own in folders if is_set_aside(own)]
    shown = [own for own in folders if own not in hidden]
    found = _in_home(home, shown) if address is None else _in_database(address)
    found.sort(key=lambda own: (own.written, own.study), reverse=True)
    if output is TextOrJson.JSON:
        print(strict_json(as_document(found)))
        return
    if found:
        draw_studies(found, datetime.now(UTC), output_console())
    else:
        where: object = address
        if address is None:
            where = home if home == HOME or home.is_dir() else f"{home}, which is not there"
        begins = home_option(home) if address is None else f" --storage {shlex.quote(str(address))}"
        live.progress_console().say(f"no study in {where} yet; tunecli search{begins} begins one")
    if hidden:
        live.progress_console().say(
            f"{len(hidden)} set aside for another: tunecli ls{home_option(home)} --all lists all"
        )


def _in_home(home: Path, folders: Iterable[Path]) -> list[Listed]:
    """The studies in these folders, and the study files that nobody has searched."""
    from tunecli.home import questions

    unreachable: set[str] = set()
    found = [_of_folder(folder, unreachable) for folder in folders]
    begun = {own.study for own in found}
    return found + [own for own in map(_of_file, questions(home)) if own.study not in begun]


def _in_database(address: Address) -> list[Listed]:
    from tunecli.store import studies_in

    return [_of_database(own.study, None, own, datetime.fromtimestamp(0, UTC)) for own in studies_in(address)]


def _of_folder(folder: Path, unreachable: set[str]) -> Listed:
    """The study in a folder. A database that is `unreachable` is not waited for again."""
    from tunecli.home import find_database
    from tunecli.report.studies import Listed

    written = _written(folder / "study.db", folder / "study.toml")
    try:
        database = find_database(folder)
    except TunecliError as error:
        return Listed(folder.name, "unreadable", written, reason=error.message)
    if str(database) in unreachable:
        return Listed(folder.name, "unreadable", written, reason=f"cannot reach {database}")
    try:
        return _of_database(folder.name, folder, database, written)
    except StorageError as error:
        unreachable.add(str(database))
        return Listed(folder.name, "unreadable", written, reason=error.message)


def _of_database(study: str, folder: Path | None, database: Database, written: datetime) -> Listed:
    """Raises StorageError where the database cannot be reached."""
    from tunecli.report.studies import Listed
    from tunecli.storage import Shared
    from tunecli.store import is_held, is_unfinished, overview

    try:
        running = is_held(folder, database)
        if is_unfinished(database):
            return Listed(study, "running" if running else "not begun", written)
        own = overview(database)
    except InputError as error:
        return Listed(study, "unreadable", written, reason=error.message)
    return Listed(
        study=study,
        state="running" if running else _state(own),
        written=own.written if isinstance(database, Shared) else written,
        done=own.ended,
        asked=own.asked,
        metric=own.metric,
        split=own.split,
        direction=own.direction,
        best=own.best,
        value=own.value,
    )


def _state(own: Overview) -> str:
    """Of a study that nobody searches now: one all of whose trials failed is not done, however many there were."""
    if own.ended and own.counts.get(State.FAILED, 0) == own.ended:
        return "failed"
    return "done" if own.ended >= own.asked else "unfinished"


def _of_file(path: Path) -> Listed:
    """A study file without results."""
    from tunecli.report.studies import Listed
    from tunecli.study import read_study

    try:
        study = read_study(path)
    except TunecliError as error:
        return Listed(path.stem, "unreadable", _written(path), reason=error.message.splitlines()[0])
    return Listed(study.name, "not begun", _written(path), asked=study.search.trials)


def _written(*paths: Path) -> datetime:
    return datetime.fromtimestamp(max(path.stat().st_mtime for path in paths if path.exists()), UTC)
