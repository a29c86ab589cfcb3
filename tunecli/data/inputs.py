"""New inputs for a model that is trained already: a table matched by column name, or what a user's function returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from tunecli.data import COLUMN_SUFFIXES, PICTURE_SUFFIXES, TABLE_SUFFIXES, arrays, holds_arrays, npz, table, user
from tunecli.data.read import read_frame
from tunecli.data.samples import Features, Inputs, Samples, each, tensors
from tunecli.data.scaling import BYTES, Scaling
from tunecli.errors import DataError
from tunecli.source import is_function

NAMED = 5
"""How many columns or values a notice names before it only counts."""


@dataclass(frozen=True, slots=True, eq=False)
class NewInputs:
    """Samples without targets. `batch(low, high)` prepares some of the `rows`, in order: (high - low, *feature), or a
    tuple or a dict of such.

    `names` are those of the files where each row is one. `notices` say what was found on the way and how it was helped:
    columns missing, values never seen in training.
    """

    rows: int
    batch: Callable[[int, int], Inputs]
    notices: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


def read(source: str, *, base: Path, preprocessing: Mapping[str, Any], features: Features) -> NewInputs:
    """What `source` holds, prepared as a checkpoint's `preprocessing` says, for a model of samples `features`.

    Raises DataError where the source cannot be read or is of another kind, SourceError from a user's function.
    """
    path = base / source
    suffix = path.suffix.lower()
    if is_function(source):
        given = _FUNCTION
    elif suffix in PICTURE_SUFFIXES or (path.is_dir() and not holds_arrays(path)):
        given = _PICTURES
    elif path.is_dir():
        given = _ARRAYS
    elif suffix in TABLE_SUFFIXES:
        given = _TABLE if suffix in COLUMN_SUFFIXES else _ARRAYS
    else:
        raise DataError(
            f"cannot predict {source!r}: it is no file to read", hint=f"the model takes {takes(preprocessing)}"
        )
    if given is not _FUNCTION and not path.exists():
        raise DataError(f"no such file: {path}", hint=f"the model takes {takes(preprocessing)}")
    expected = _OF_KIND.get(preprocessing["kind"], _FUNCTION)
    by_column = given is _FUNCTION and expected is _TABLE and _are_numbers(preprocessing["columns"])
    if given is not expected and not by_column:
        raise DataError(
            f"the model takes {expected}, and {source} is none", hint=f"give {expected} like the one it was trained on"
        )
    if given is _PICTURES:
        return _of_pictures(path, preprocessing)
    if by_column:
        return _by_column(source, base, preprocessing)
    return _of_table(path, preprocessing) if given is _TABLE else _of_arrays(source, base, preprocessing, features)


_TABLE = f"a table ({', '.join(COLUMN_SUFFIXES)})"
_ARRAYS = "arrays (.npz)"
_PICTURES = "a picture or a folder of them"
_FUNCTION = "inputs from a function of yours (file.py:function)"
_OF_KIND = {"table": _TABLE, "array": _ARRAYS, "as_is": _ARRAYS, "pictures": _PICTURES}


def takes(preprocessing: Mapping[str, Any]) -> str:
    """What a model reads whose checkpoint has this `preprocessing`, in words."""
    found = _OF_KIND.get(preprocessing["kind"], _FUNCTION)
    if found is not _TABLE:
        return found
    columns = preprocessing["columns"]
    shown = [repr(column["name"]) for column in columns[:NAMED]]
    others = f", or a file.py:function that returns {len(columns)} numbers a row" if _are_numbers(columns) else ""
    return f"{_TABLE} with the columns {', '.join(shown)}{', ...' if len(columns) > NAMED else ''}{others}"


def _of_arrays(source: str, base: Path, preprocessing: Mapping[str, Any], features: Features) -> NewInputs:
    raw: Any = user.read_inputs(source, base) if is_function(source) else npz.read_inputs(base / source)
    # What is memory-mapped, and so may be larger than memory, stays in its file.
    inputs = each(partial(arrays.as_inputs, mapped=True), raw)
    arrays.check_finite(inputs, Path(source).name, "prediction")
    found = Samples(inputs, torch.zeros(len(next(iter(tensors(inputs)))[1])))
    if found.features != features:
        raise DataError(
            f"{source} holds samples of shape {found.features}, the model was trained on {features}",
            hint="give samples of the same features",
        )
    if preprocessing["kind"] == "bytes":
        kinds = {part.dtype for _, part in tensors(inputs)}
        if kinds != {torch.uint8}:
            raise DataError(
                f"{source} holds {', '.join(sorted(map(str, kinds)))}, the model was trained on bytes (uint8)",
                hint="give pictures with numbers from 0 to 255, as it was trained on",
            )
    if preprocessing["kind"] in ("array", "bytes"):
        found = replace(found, scaling=Scaling.of(BYTES if preprocessing["kind"] == "bytes" else preprocessing))
    return NewInputs(len(found), lambda low, high: found.take(slice(low, high)).inputs)


def _of_pictures(path: Path, preprocessing: Mapping[str, Any]) -> NewInputs:
    from tunecli.data import images

    files, notices = images.pictures_in(path)
    form = images.Form.of(preprocessing)
    notices += images.check_form(files, form)
    scaling = Scaling.of(BYTES)
    names = tuple(str(file.relative_to(path)) if path.is_dir() else file.name for file in files)

    def batch(low: int, high: int) -> Inputs:
        return scaling(torch.from_numpy(images.decode(files[low:high], form)))

    return NewInputs(len(files), batch, tuple(notices), names)


def _are_numbers(columns: Sequence[Mapping[str, Any]]) -> bool:
    return all(column["kind"] == "number" for column in columns)


def _by_column(source: str, base: Path, preprocessing: Mapping[str, Any]) -> NewInputs:
    """The rows of numbers that a function returns, for a model of a table of numbers: its columns, in order."""
    found, names = user.read_inputs(source, base), [column["name"] for column in preprocessing["columns"]]
    if isinstance(found, tuple | dict) or found.ndim != 2 or found.shape[1] != len(names):
        shape = (
            f"samples of shape {tuple(found.shape[1:])}" if not isinstance(found, tuple | dict) else "several inputs"
        )
        raise DataError(
            f"{source} holds {shape}, the model was trained on a table of {len(names)} columns",
            hint="give a number for each column, in its order, or a table",
        )
    return _of_frame(source, pd.DataFrame(np.asarray(found), columns=names), preprocessing)


def _of_table(path: Path, preprocessing: Mapping[str, Any]) -> NewInputs:
    return _of_frame(path.name, read_frame(path, text=table.written(preprocessing["columns"])), preprocessing)


def _of_frame(name: str, frame: pd.DataFrame, preprocessing: Mapping[str, Any]) -> NewInputs:
    columns = preprocessing["columns"]
    known = {*(column["name"] for column in columns), preprocessing["target"]["name"]}
    others = [name for name in frame.columns if name not in known]
    notices = table.match(name, frame, columns)
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


def _strangers(series: pd.Series[Any], column: Mapping[str, Any]) -> list[str]:
    """A notice about values that training never saw in this column, or that are of another kind than it had."""
    strange, what = table.unknown(series, column)
    count = int(strange.sum())
    if not count:
        return []
    shown = [repr(str(value)) for value in series[strange].unique()[: NAMED + 1]]
    more = ", ..." if len(shown) > NAMED else ""
    return [
        f"column {column['name']!r}: {_rows(count)} a value that is {what} "
        f"({', '.join(shown[:NAMED])}{more}), {'filled in' if column['kind'] == 'number' else 'taken for missing'}"
    ]


def _rows(count: int) -> str:
    return f"{count:,} row{' holds' if count == 1 else 's hold'}"


def _columns(names: Sequence[str]) -> str:
    """One column by its name, several counted and the first of them named."""
    if len(names) == 1:
        return f"column {names[0]!r} is"
    shown = ", ".join(repr(name) for name in names[:NAMED])
    return f"{len(names)} columns ({shown}{', ...' if len(names) > NAMED else ''}) are"
