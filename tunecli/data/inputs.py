"""New inputs for a model that is trained already: a table matched by column name, or what a user's function returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from tunecli.data import TABLE_SUFFIXES, prepare, table, user
from tunecli.data.samples import Features, Inputs, Samples
from tunecli.errors import DataError
from tunecli.source import is_function, source_file

NAMED = 5
"""How many columns or values a notice names before it only counts."""


@dataclass(frozen=True, slots=True, eq=False)
class NewInputs:
    """Samples without targets. `batch(low, high)` prepares some of the `rows`, in order: (high - low, *feature), or a
    tuple or a dict of such.

    `notices` say what was found on the way and how it was helped: columns missing, values never seen in training.
    """

    rows: int
    batch: Callable[[int, int], Inputs]
    notices: tuple[str, ...] = ()


def read(source: str, *, base: Path, preprocessing: Mapping[str, Any], features: Features) -> NewInputs:
    """What `source` holds, prepared as a checkpoint's `preprocessing` says, for a model of samples `features`.

    Raises DataError where the source cannot be read or is of another kind, SourceError from a user's function.
    """
    if is_function(source):
        if preprocessing["kind"] == "table":
            raise DataError(
                f"the model was trained on the columns of a table, {source} is a function", hint=f"give {_SUFFIXES}"
            )
        return _of_function(source, base, features)
    path = base / source
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise DataError(
            f"cannot predict {source!r}: it is neither a table nor a function",
            hint=f'give {_SUFFIXES}, or "file.py:function", after the name of the study',
        )
    if not path.is_file():
        raise DataError(f"no such file: {path}", hint="give the path of the table to predict")
    if preprocessing["kind"] != "table":
        raise DataError(
            f"the model takes samples of shape {features} as a function returns them, {source} is a table",
            hint='give "file.py:function"',
        )
    return _of_table(path, preprocessing)


_SUFFIXES = f"a {' or '.join(TABLE_SUFFIXES)} file"


def _of_table(path: Path, preprocessing: Mapping[str, Any]) -> NewInputs:
    columns = preprocessing["columns"]
    frame = table.read_frame(path, text=[column["name"] for column in columns if _is_text(column)])
    known = {*(column["name"] for column in columns), preprocessing["target"]["name"]}
    others = [name for name in frame.columns if name not in known]
    notices = table.match(path.name, frame, columns)
    if others:
        notices.append(
            f"{_columns(others)} not used: the model was not trained on {'it' if len(others) == 1 else 'them'}"
        )
    for column in columns:
        if column["name"] in frame.columns:
            notices += _strangers(frame[column["name"]], column)
    present = [column["name"] for column in columns if column["name"] in frame.columns]
    empty = int(frame[present].isna().all(axis=1).sum())
    if empty:
        notices.append(f"{_rows(empty)} no value at all and {'is' if empty == 1 else 'are'} filled in throughout")
    return NewInputs(
        len(frame), lambda low, high: torch.from_numpy(table.encode(frame.iloc[low:high], columns)), tuple(notices)
    )


def _is_text(column: Mapping[str, Any]) -> bool:
    """Whether a category's values are text: "01" is another one than "1". Those of a boolean are not."""
    return "levels" in column and not {"True", "False"}.issuperset(column["levels"])


def _strangers(series: pd.Series[Any], column: Mapping[str, Any]) -> list[str]:
    """A notice about values that training never saw in this column, or that are no numbers where it had numbers."""
    values = series.dropna()
    if "levels" in column:
        strange, what, instead = ~values.astype(str).isin(column["levels"]), "not seen in training", "taken for missing"
    elif column["kind"] == "number":
        strange, what, instead = pd.to_numeric(values, errors="coerce").isna(), "no number", "filled in"
    else:
        return []
    count = int(strange.sum())
    if not count:
        return []
    shown = [repr(str(value)) for value in values[strange].unique()[: NAMED + 1]]
    more = ", ..." if len(shown) > NAMED else ""
    return [
        f"column {column['name']!r}: {_rows(count)} a value that is {what} "
        f"({', '.join(shown[:NAMED])}{more}), {instead}"
    ]


def _rows(count: int) -> str:
    return f"{count:,} row{' holds' if count == 1 else 's hold'}"


def _columns(names: Sequence[str]) -> str:
    """One column by its name, several counted and the first of them named."""
    if len(names) == 1:
        return f"column {names[0]!r} is"
    shown = ", ".join(repr(name) for name in names[:NAMED])
    return f"{len(names)} columns ({shown}{', ...' if len(names) > NAMED else ''}) are"


def _of_function(source: str, base: Path, features: Features) -> NewInputs:
    inputs = prepare.as_inputs(user.read_inputs(source, base))
    prepare.check_finite(inputs, source_file(source, base).stem, "prediction")
    found = Samples(inputs, torch.zeros(len(inputs)))
    if found.features != features:
        raise DataError(
            f"{source} returned samples of shape {found.features}, the model was trained on {features}",
            hint="return the inputs as the study's own data function does",
        )
    return NewInputs(len(found), lambda low, high: found.take(slice(low, high)).inputs)
