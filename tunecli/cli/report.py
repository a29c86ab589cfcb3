"""tunecli report."""

from __future__ import annotations

from typing import Annotated

import typer

from tunecli.cli.options import (
    HOME,
    Format,
    HomeOption,
    StorageOption,
    StudyArgument,
    address_of,
    output_console,
    read_summary,
)
from tunecli.output import say


def report(
    study: StudyArgument = None,
    top: Annotated[int, typer.Option(min=1, metavar="N", help="How many trials to show.")] = 5,
    home: HomeOption = HOME,
    storage: StorageOption = None,
    output: Annotated[Format, typer.Option("--format", help="text, json, csv or markdown.")] = Format.TEXT,
) -> None:
    """Explain a study: what won, and how it learned."""
    from tunecli.home import find_database, find_folder
    from tunecli.report import formats, tables
    from tunecli.storage import Shared

    address = address_of(storage)
    folder = find_folder(study, home, address)
    # Whatever lies here: the database has all that is told.
    summary = read_summary(find_database(folder) if address is None else Shared(address, folder.name))
    if output is Format.JSON:
        print(formats.as_json(summary))
    elif output is Format.CSV:
        say(formats.as_csv(summary), end="")
    elif output is Format.MARKDOWN:
        say(formats.as_markdown(summary, top), end="")
    else:
        tables.draw(summary, top, output_console())
