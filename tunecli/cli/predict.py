"""tunecli predict."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from tunecli.cli.options import HOME, DeviceOption, HomeOption, StorageOption, find_results
from tunecli.errors import StorageError, UsageError


def predict(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[STUDY] TABLE", help="The table to predict; before it the study, left out for the latest."
        ),
    ],
    trial: Annotated[int | None, typer.Option(min=0, metavar="N", help="Use trial N as it was searched.")] = None,
    finetuned: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Use the fine-tuned model N, whatever it came to.")
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write to FILE instead of stdout.")] = None,
    device: DeviceOption = "auto",
    home: HomeOption = HOME,
    storage: StorageOption = None,
) -> None:
    """Predict the rows of a table with the fine-tuned model, or else with the best trial's.

    CSV, one row an input row, in order: the prediction, then the probability of each class.

    Columns are matched by name. A study of your own data function takes file.py:function in the place of the table.
    """
    if len(arguments) > 2:
        raise UsageError(f"predict takes a study and a table, got {len(arguments)}", hint="tunecli predict --help")
    if trial is not None and finetuned is not None:
        raise UsageError("--trial and --finetuned both name the model to use", hint="give one of them")
    if output is not None and not output.absolute().parent.is_dir():
        raise UsageError(f"cannot write {output}: its folder does not exist", hint="choose another --output")
    from tunecli import live
    from tunecli.predict import as_csv
    from tunecli.predict import predict as predictions_of
    from tunecli.predict import takes as takes_of

    study, source = (None, *arguments) if len(arguments) == 1 else arguments
    assert source is not None
    if study is None and _is_study(source, home):
        takes = takes_of(*find_results(source, home, storage))
        raise UsageError(f"{source} is a study: what is it to predict?", hint=f"its model takes {takes}")
    folder, database = find_results(study, home, storage)
    console, stdout = live.progress_console(), sys.stdout
    with live.own_prints(console):
        predicted = predictions_of(folder, source, trial=trial, finetuned=finetuned, device=device, database=database)
        target = f" {predicted.target}" if predicted.target else ""
        console.say(f"{predicted.study}: predicting{target} with {predicted.model}")
        for notice in predicted.notices:
            console.say(f"note: {notice}")
        # The model is called as they are written.
        if output is None:
            stdout.writelines(as_csv(predicted))
        else:
            _write(output, as_csv(predicted))
            console.say(f"wrote {predicted.samples:,} predictions to {output}")


def _is_study(argument: str, home: Path) -> bool:
    """Whether the one thing typed is no data, but the study that is to predict some."""
    from tunecli.home import is_begun

    return argument.endswith(".toml") or (not Path(argument).exists() and is_begun(home / argument))


def _write(path: Path, lines: Iterable[str]) -> None:
    """All lines or, whatever happens, what was there before."""
    unfinished = path.with_name(f"{path.name}.new")
    try:
        with open(unfinished, "w", encoding="utf-8", newline="") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}", hint="choose another --output") from error
    finally:
        with suppress(OSError):  # where nothing may be written, nothing may be removed
            unfinished.unlink()
