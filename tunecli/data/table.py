"""Tables: a CSV file -> columns, and columns -> numbers.

Numbers are imputed with the median and standardized, categories one-hot encoded with a column of their own for what was
missing; all of it is learned from the training split and kept as JSON.
"""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tunecli.data.raw import Table
from tunecli.errors import DataError, did_you_mean

MAX_CATEGORIES = 50
"""A text column with more different values than this tells samples apart rather than describing them."""

LARGEST = float(np.finfo(np.float32).max)
"""What training can hold; a number beyond it, infinities included, counts as missing."""


def read(path: Path, target: str | None) -> Table:
    """A CSV file as a table. Raises DataError with what is wrong in the file."""
    if target is None:
        raise DataError(f"which column of {path.name} is to be predicted?", hint="give target in [data], or --target")
    frame = read_frame(path)
    if len(frame.columns) == 1 and any(mark in frame.columns[0] for mark in ";\t|"):
        raise DataError(
            f"{path.name} has one column only, {frame.columns[0]!r}", hint="a .csv file separates its columns by commas"
        )
    if target not in frame.columns:
        raise DataError(f"{path.name} has no column {target!r}", hint=did_you_mean(target, list(frame.columns)))
    if len(frame.columns) == 1:
        raise DataError(f"{path.name} has no column beside {target!r}", hint="learning needs at least one more")
    if len(frame) == 0:
        raise DataError(f"{path.name} has a header and no rows", hint="each line below the header is a sample")
    empty = int(frame[target].isna().sum())
    if empty:
        first = int(frame.index[frame[target].isna()][0]) + 2
        raise DataError(
            f"{path.name}: the target {target!r} is missing in {empty} of {len(frame)} rows, first in line {first}",
            hint="fill these targets in or drop the rows",
        )
    return Table(path.stem, frame.drop(columns=target), frame[target])


def read_frame(path: Path, text: Collection[str] = ()) -> pd.DataFrame:
    """The file as columns with names of their own: what pandas would guess at in a crooked file is refused.

    The columns in `text` are read as they are written, whatever they look like. Raises DataError.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            header = pd.read_csv(path, header=None, nrows=1, dtype=str, index_col=False)
            # Rows longer than the header would else make the first column an index and shift all others.
            kinds = {name: str for name in header.iloc[0].dropna() if name.strip() in text}
            frame = pd.read_csv(path, index_col=False, low_memory=False, dtype=kinds)
    except pd.errors.EmptyDataError as error:
        raise DataError(f"{path} is empty", hint="a .csv file has a header and a line for each sample") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8, first in line {_undecodable(path)}", hint="save it as UTF-8") from error
    except pd.errors.ParserWarning as error:
        raise DataError(f"{path}: the rows have more fields than the header", hint="name each column once") from error
    except (pd.errors.ParserError, ValueError, OSError) as error:
        text = " ".join(str(error).split()).removeprefix("Error tokenizing data. C error: ")
        raise DataError(
            f"{path} cannot be read: {text}", hint="each row has as many fields as the header, separated by commas"
        ) from error
    names = [str(name).strip() for name in header.iloc[0].dropna()]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{path.name} has {names.count(name)} columns {name!r}", hint="give each its own name")
    short = _short_line(path, len(frame.columns)) if frame.iloc[:, -1].isna().any() else None
    if short is not None:
        raise DataError(
            f"{path} cannot be read: fewer fields than in the header in line {short}",
            hint="each row has as many fields as the header, separated by commas",
        )
    frame.columns = [str(column).strip() for column in frame.columns]
    return frame


def _short_line(path: Path, fields: int) -> int | None:
    """The first line with fewer fields than the header: pandas would fill it up with missing values."""
    with path.open(newline="", encoding="utf-8-sig") as file, suppress(csv.Error):
        reader = csv.reader(file)
        return next((reader.line_num for row in reader if len(row) < fields and "".join(row).strip()), None)
    return None


def _undecodable(path: Path) -> int:
    """The first line that is not UTF-8."""
    data = path.read_bytes()
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return data.count(b"\n", 0, error.start) + 1
    return 1


def fit(frame: pd.DataFrame) -> tuple[list[dict[str, Any]], list[str]]:
    """How each column is encoded, learned from the training rows, and what a user should be told."""
    columns: list[dict[str, Any]] = []
    notices: list[str] = []
    for name in frame.columns:
        series = frame[name]
        is_number = pd.api.types.is_numeric_dtype(series) and not pd.api.types.is_bool_dtype(series)
        if is_number:
            series = series.where(series.abs() <= LARGEST)
        values = series.dropna()
        distinct = values.nunique()
        if distinct <= 1:
            notices.append(f"column {name!r} is left out: {'empty' if distinct == 0 else 'one value only'}")
        elif name.startswith("Unnamed: ") and is_number and (values.diff().dropna() > 0).all():
            # What `DataFrame.to_csv` writes beside the data; in a sorted file it would give the target away.
            notices.append(f"column {name!r} is left out: it numbers the rows")
        elif is_number:
            fill = float(np.median(values.to_numpy(dtype=np.float64)))
            filled = series.to_numpy(dtype=np.float64, na_value=fill)
            scale = float(filled.std())
            columns.append(
                {"name": name, "kind": "number", "fill": fill, "mean": float(filled.mean()), "scale": scale or 1.0}
            )
        elif distinct > MAX_CATEGORIES:
            notices.append(f"column {name!r} is left out: {distinct} different values")
        else:
            levels = sorted({str(value) for value in values})
            columns.append({"name": name, "kind": "category", "levels": levels, "missing": bool(series.isna().any())})
    return columns, notices


def match(name: str, frame: pd.DataFrame, columns: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which of the columns that a model was trained on are missing, as notices. Raises DataError where all are."""
    missing = [column["name"] for column in columns if column["name"] not in frame.columns]
    if len(missing) == len(columns):
        expected = ", ".join(column["name"] for column in columns[:5])
        raise DataError(
            f"{name} has none of the columns that the checkpoint was trained on",
            hint=f"it expects {expected}{', ...' if len(columns) > 5 else ''}",
        )
    return [f"column {name!r} is missing and filled in" for name in missing]


def encode(frame: pd.DataFrame, columns: Sequence[Mapping[str, Any]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(N, F) float32 by the columns that `fit` learned. Unseen categories and a missing column count as missing."""
    parts: list[np.ndarray[Any, Any]] = []
    for column in columns:
        series = frame[column["name"]] if column["name"] in frame.columns else pd.Series([None] * len(frame))
        if column["kind"] == "number":
            numbers = pd.to_numeric(series, errors="coerce").to_numpy(dtype=np.float64, na_value=math.nan)
            numbers = np.where(np.abs(numbers) <= LARGEST, numbers, column["fill"])
            standardized = (numbers - column["mean"]) / column["scale"]
            parts.append(np.clip(standardized, -LARGEST, LARGEST)[:, None])
        else:
            text = series.astype("object").map(lambda value: None if pd.isna(value) else str(value)).to_numpy()
            known = [text == level for level in column["levels"]]
            if column["missing"]:
                known.append(~np.any(known, axis=0))
            parts.append(np.stack(known, axis=1))
    return np.concatenate(parts, axis=1).astype(np.float32)
