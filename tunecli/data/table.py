"""Tables: a CSV file -> columns, and columns -> numbers.

Numbers are imputed with the median and standardized, categories one-hot encoded with a column of their own for what was
missing; all of it is learned from the training split and kept as JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tunecli.data.raw import Table
from tunecli.errors import DataError, did_you_mean

MAX_CATEGORIES = 50
"""A text column with more different values than this tells samples apart rather than describing them."""


def read(path: Path, target: str | None) -> Table:
    """A CSV file as a table. Raises DataError with what is wrong in the file."""
    if target is None:
        raise DataError(f"which column of {path.name} is to be predicted?", hint="give target in [data], or --target")
    try:
        frame = pd.read_csv(path)
    except pd.errors.EmptyDataError as error:
        raise DataError(f"{path} is empty") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
    except (pd.errors.ParserError, ValueError, OSError) as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    frame.columns = [str(column).strip() for column in frame.columns]
    if target not in frame.columns:
        raise DataError(f"{path.name} has no column {target!r}", hint=did_you_mean(target, list(frame.columns)))
    if len(frame.columns) == 1:
        raise DataError(f"{path.name} has no column beside {target!r}")
    if len(frame) == 0:
        raise DataError(f"{path.name} has a header and no rows")
    empty = int(frame[target].isna().sum())
    if empty:
        first = int(frame.index[frame[target].isna()][0]) + 2
        raise DataError(
            f"{path.name}: the target {target!r} is missing in {empty} of {len(frame)} rows, first in line {first}",
            hint="fill these targets in or drop the rows",
        )
    return Table(path.stem, frame.drop(columns=target), frame[target])


def fit(frame: pd.DataFrame) -> tuple[list[dict[str, Any]], list[str]]:
    """How each column is encoded, learned from the training rows, and what a user should be told."""
    columns: list[dict[str, Any]] = []
    notices: list[str] = []
    for name in frame.columns:
        series = frame[name]
        values = series.dropna()
        distinct = values.nunique()
        if distinct <= 1:
            notices.append(f"column {name!r} is left out: {'empty' if distinct == 0 else 'one value only'}")
        elif pd.api.types.is_numeric_dtype(series) and not pd.api.types.is_bool_dtype(series):
            numbers = values.to_numpy(dtype=np.float64)
            numbers = numbers[np.isfinite(numbers)]
            fill = float(np.median(numbers))
            filled = series.to_numpy(dtype=np.float64, na_value=fill)
            filled = np.where(np.isfinite(filled), filled, fill)
            scale = float(filled.std())
            columns.append(
                {"name": name, "kind": "number", "fill": fill, "mean": float(filled.mean()), "scale": scale or 1.0}
            )
        elif distinct > MAX_CATEGORIES:
            notices.append(f"column {name!r} is left out: {distinct} different values")
        else:
            levels = sorted({str(value) for value in values})
            columns.append(
                {"name": name, "kind": "category", "levels": levels, "missing": bool(series.isna().any())}
            )
    return columns, notices


def encode(frame: pd.DataFrame, columns: Sequence[Mapping[str, Any]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(N, F) float32 by the columns that `fit` learned. Unseen categories and a missing column count as missing."""
    parts: list[np.ndarray[Any, Any]] = []
    for column in columns:
        series = frame[column["name"]] if column["name"] in frame.columns else pd.Series([None] * len(frame))
        if column["kind"] == "number":
            numbers = pd.to_numeric(series, errors="coerce").to_numpy(dtype=np.float64, na_value=math.nan)
            numbers = np.where(np.isfinite(numbers), numbers, column["fill"])
            parts.append(((numbers - column["mean"]) / column["scale"])[:, None])
        else:
            text = series.astype("object").map(lambda value: None if pd.isna(value) else str(value)).to_numpy()
            known = [text == level for level in column["levels"]]
            if column["missing"]:
                known.append(~np.any(known, axis=0))
            parts.append(np.stack(known, axis=1))
    return np.concatenate(parts, axis=1).astype(np.float32)
