"""tunecli ls."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunecli.cli.options import HOME, HomeOption, TextOrJson, home_option, output_console
from tunecli.errors import InputError, TunecliError

if TYPE_CHECKING:
    from tunecli.report.studies import Listed


def ls(
    home: HomeOption = HOME,
    output: Annotated[TextOrJson, typer.Option("--format", help="What goes to stdout.")] = TextOrJson.TEXT,
) -> None:
    """List the studies in the home, the latest first: how far they are, their best trial, and their age."""
    from tunecli import live
    from tunecli.home import questions, study_folders
    from tunecli.report.formats import strict_json
    from tunecli.report.studies import as_document, draw_studies

    if home.exists() and not home.is_dir():
        raise InputError(f"{home} is no folder", hint="give the folder of the studies with --home")
    folders = study_folders(home)
    begun = {folder.name for folder in folders}
    found = [_of_folder(folder) for folder in folders]
    found += [own for own in map(_of_file, questions(home)) if own.study not in begun]
    found.sort(key=lambda own: (own.written, own.study), reverse=True)
    if output is TextOrJson.JSON:
        print(strict_json(as_document(found)))
    elif found:
        draw_studies(found, datetime.now(UTC), output_console())
    else:
        console = live.progress_console()
        console.say(f"no study in {home} yet; tunecli search{home_option(home)} begins one")


def _of_folder(folder: Path) -> Listed:
    from tunecli.report.studies import Listed
    from tunecli.store import is_held, is_unfinished, overview

    written = _written(folder / "study.db", folder / "study.toml")
    running = is_held(folder)
    if is_unfinished(folder / "study.db"):
        return Listed(folder.name, "running" if running else "not begun", written)
    try:
        own = overview(folder / "study.db")
    except TunecliError as error:
        return Listed(folder.name, "unreadable", written, reason=error.message)
    state = "running" if running else "done" if own.ended >= own.asked else "unfinished"
    return Listed(
        study=folder.name,
        state=state,
        written=written,
        done=own.ended,
        asked=own.asked,
        metric=own.metric,
        split=own.split,
        direction=own.direction,
        best=own.best,
        value=own.value,
    )


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
