"""tunecli init."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunecli.cli.options import output_console
from tunecli.errors import DataError, InputError, StorageError, UsageError

if TYPE_CHECKING:
    from tunecli.study import Study


def init(
    source: Annotated[
        str, typer.Argument(metavar="DATA", help="A table, your own file.py:function, or bundled data such as iris.")
    ],
    target: Annotated[str | None, typer.Option(metavar="COL", help="The column of a table to predict.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="data.KEY=VALUE", help="Say more of the data, e.g. data.size=[64,64]."),
    ] = None,
) -> None:
    """Look at data and write a study file for them, in the folder that you are in.

    The file is named after the data, commented, and ready for `tunecli search`. None is ever overwritten.
    """
    study = _study_of(source, target, settings or [])
    path = Path(f"{study.name}.toml")
    _refuse_existing(path)
    from tunecli import live
    from tunecli.report.found import draw_found
    from tunecli.study import load_data
    from tunecli.study.draft import draft

    console = live.progress_console()
    with live.own_prints(console):
        data = load_data(study)
    _write(path, draft(study, data, path.name))
    draw_found(data, output_console())
    console.say(f"wrote {path}\nnext:\n  tunecli search {path}")


def _study_of(source: str, target: str | None, settings: list[str]) -> Study:
    """The study of these data with everything else left to its default, its paths relative to this folder."""
    from tunecli.data import BUNDLED, check_source
    from tunecli.source import is_function, which_function
    from tunecli.study import default_document, make_study, table_name

    other = next((own for own in settings if not own.startswith("data.")), None)
    if other is not None:
        raise UsageError(f"--set {other}: init takes keys of [data] alone", hint="write it into the file afterwards")
    file, colon, function = source.rpartition(":") if is_function(source) else (source, "", "")
    if Path(file).suffix and not Path(file).exists():
        raise DataError(f"no such file: {file}", hint="give the path of a table, or of a file of your own functions")
    if Path(file).suffix == ".py" and not colon:
        which = which_function(Path(file), "load")
        raise DataError(f"{source} is a script: which function of it?", hint=f"tunecli init {which}")
    check_source(source, Path.cwd())
    if target is not None and (colon or source in BUNDLED):
        raise UsageError(f"--target names a column of a table, {source} is none", hint="leave it out")
    if source not in BUNDLED:
        source = Path(os.path.relpath(file)).as_posix() + colon + function
    document = default_document(source, Path(file))
    return make_study(
        document, Path.cwd(), table_name(Path(file).absolute()), settings, {"data.target": target}, where=source
    )


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise InputError(
            f"{path} is there already, and is left as it is",
            hint=f"tunecli search {path} searches it; to draft it anew, rename or delete it first",
        )


def _write(path: Path, text: str) -> None:
    """Write a file that was not there; one that came up meanwhile is left alone."""
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        _refuse_existing(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}", hint="go to a folder that is yours") from error
