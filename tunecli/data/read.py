"""Files of rows -> a table: CSV, TSV and Parquet. What pandas would guess at in a crooked file is refused."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tunecli.data.raw import Table
from tunecli.data.scaling import LARGEST
from tunecli.errors import DataError, did_you_mean

SEPARATORS = {".csv": (",", "commas"), ".tsv": ("\t", "tabs")}


def read(path: Path, target: str | None, weight: str | None = None, text: Collection[str] = ()) -> Table:
    """A file as a table with its target, and the weights of its rows where a column holds them. Raises DataError.

    `text` as `read_frame` takes it, but for the target.
    """
    frame = read_frame(path, [name for name in text if name != target])
    if target is None:
        raise DataError(
            f"which column of {path.name} is to be predicted?",
            hint=f"say it with --target COLUMN, or target in [data]; its columns: {_named(list(frame.columns))}",
        )
    for role, name in (("", target), ("weight ", weight)):
        if name is not None and name not in frame.columns:
            hint = did_you_mean(name, list(frame.columns))
            raise DataError(f"{path.name} has no {role}column {name!r}", hint=hint)
    if weight == target:
        raise DataError(f"{path.name}: {target!r} is both target and weight", hint="name two columns")
    features = frame.drop(columns=[target] if weight is None else [target, weight])
    if len(features.columns) == 0:
        beside = f"{target!r}" if weight is None else f"{target!r} and {weight!r}"
        raise DataError(f"{path.name} has no column beside {beside}", hint="learning needs at least one more")
    if len(frame) == 0:
        raise DataError(f"{path.name} has a header and no rows", hint="each line below the header is a sample")
    _refuse_missing(path, "target", frame[target], frame[target].isna())
    weights = None if weight is None else _weights(path, frame[weight])
    return Table(path.stem, features, frame[target], weights=weights)


def _named(names: list[str], most: int = 20) -> str:
    """The names, of many the first ones and the last, which is often what is to be predicted."""
    return ", ".join(names if len(names) <= most else [*names[: most - 1], "...", names[-1]])


def _refuse_missing(path: Path, role: str, series: pd.Series[Any], is_missing: pd.Series[bool]) -> None:
    missing = int(is_missing.sum())
    if missing:
        first = int(is_missing.to_numpy().argmax())
        raise DataError(
            f"{path.name}: the {role} {series.name!r} is missing in {missing} of {len(series)} rows, "
            f"first in {_place(path, first)}",
            hint=f"fill these {role}s in or drop the rows",
        )


def _place(path: Path, row: int) -> str:
    """Where a person finds a row: text files have lines, and the first is the header."""
    return f"line {row + 2}" if path.suffix.lower() in SEPARATORS else f"row {row}, counted from 0"


def _weights(path: Path, series: pd.Series[Any]) -> np.ndarray[Any, Any]:
    _refuse_missing(path, "weight", series, series.isna())
    numbers = pd.to_numeric(series, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = ~((numbers >= 0) & (numbers <= LARGEST))
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"{path.name}: the weight {series.name!r} holds {series.iloc[row]!s} in {_place(path, row)}",
            hint="weights are numbers from 0 on: 2 counts a row twice, 0 not at all",
        )
    return numbers


def read_frame(path: Path, text: Collection[str] = ()) -> pd.DataFrame:
    """The columns of a .csv, .tsv or .parquet file, each with a name of its own. Raises DataError.

    Of a text file, the columns in `text` are read as they are written, whatever they look like.
    """
    suffix = path.suffix.lower()
    frame = _read_parquet(path) if suffix == ".parquet" else _read_text(path, *SEPARATORS[suffix], text)
    frame.columns = [str(column).strip() for column in frame.columns]
    return frame


def _refuse_doubles(path: Path, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{path.name} has {names.count(name)} columns {name!r}", hint="give each its own name")


def _read_parquet(path: Path) -> pd.DataFrame:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        # As a file and not as a data set: a folder's name may say `key=value` without meaning a column.
        table = parquet.ParquetFile(path).read()
        _refuse_doubles(path, [name.strip() for name in table.column_names])
        for place, column in enumerate(table.schema):
            if pa.types.is_decimal(column.type):
                table = table.set_column(place, column.name, table.column(place).cast(pa.float64()))
            elif pa.types.is_date(column.type):
                table = table.set_column(place, column.name, table.column(place).cast(pa.timestamp("ms")))
        frame: pd.DataFrame = table.to_pandas(ignore_metadata=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        text = " ".join(str(error).split())
        raise DataError(f"{path} cannot be read: {text}", hint="it is no Parquet file, or not a whole one") from error
    durations = frame.select_dtypes("timedelta").columns
    return frame.assign(**{name: frame[name].dt.total_seconds() for name in durations})


def _read_text(path: Path, separator: str, separators: str, text: Collection[str]) -> pd.DataFrame:
    as_header = f"each row has as many fields as the header, separated by {separators}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            header = pd.read_csv(path, sep=separator, header=None, nrows=1, dtype=str, index_col=False)
            _refuse_other_separator(path, header.iloc[0], separator, separators)
            # Rows longer than the header would else make the first column an index and shift all others.
            kinds = {name: str for name in header.iloc[0].dropna() if name.strip() in text}
            frame = pd.read_csv(path, sep=separator, index_col=False, low_memory=False, dtype=kinds)
    except pd.errors.EmptyDataError as error:
        hint = f"a {path.suffix} file has a header and a line for each sample"
        raise DataError(f"{path} is empty", hint=hint) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8, first in line {_undecodable(path)}", hint="save it as UTF-8") from error
    except pd.errors.ParserWarning as error:
        raise DataError(f"{path}: the rows have more fields than the header", hint="name each column once") from error
    except (pd.errors.ParserError, ValueError, OSError) as error:
        said = " ".join(str(error).split()).removeprefix("Error tokenizing data. C error: ")
        raise DataError(f"{path} cannot be read: {said}", hint=as_header) from error
    names = [str(name).strip() for name in header.iloc[0].dropna()]
    _refuse_doubles(path, names)
    short = _short_line(path, separator, len(frame.columns)) if frame.iloc[:, -1].isna().any() else None
    if short is not None:
        raise DataError(f"{path} cannot be read: fewer fields than in the header in line {short}", hint=as_header)
    return frame


def _refuse_other_separator(path: Path, header: pd.Series[Any], separator: str, separators: str) -> None:
    """A header that is one name with another separator in it: said before its rows are, which may hold anything."""
    if len(header) == 1 and any(mark in str(header[0]) for mark in ",;\t|" if mark != separator):
        raise DataError(
            f"{path.name} has one column only, {str(header[0]).strip()!r}",
            hint=f"a {path.suffix} file separates its columns by {separators}; save it so, with points in decimals",
        )


def _short_line(path: Path, separator: str, fields: int) -> int | None:
    """The first line with fewer fields than the header: pandas would fill it up with missing values."""
    with path.open(newline="", encoding="utf-8-sig") as file, suppress(csv.Error):
        reader = csv.reader(file, delimiter=separator)
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
