"""Columns of dates -> numbers: a date as its parts and as the days since the first.

A column holds dates where it comes as such (Parquet), or where each value that is not missing is written as ISO 8601
has it: 2024-02-29, with a time after a T or a space, seconds, and an offset or Z if there are any. Offsets go to UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

ISO = r"\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?:Z|[+-]\d{2}:?\d{2})?)?"

PERIODS = {"month": 12, "weekday": 7, "hour": 24}
"""Parts that begin again: each becomes a sine and a cosine, so that December is next to January."""

DAY = pd.Timedelta(days=1)

Array = np.ndarray[Any, Any]


def are_dates(text: pd.Series[Any]) -> bool:
    """Whether each text that is not missing is a date of the calendar, written as ISO 8601 has it."""
    values = text.dropna()
    return bool(len(values) and values.str.fullmatch(ISO).all() and as_dates(values).notna().all())


def fit(name: str, series: pd.Series[Any]) -> dict[str, Any] | None:
    """The parts that vary: year, month, day, weekday, hour, and the days since the first date. None where none does."""
    moments = as_dates(series)
    present = moments.dropna()
    if present.nunique() <= 1:
        return None
    origin = present.min()
    column: dict[str, Any] = {"name": name, "kind": "date", "origin": origin.isoformat()}
    parts = {part: values for part, values in _parts(present, origin).items() if len(np.unique(values)) > 1}
    units = {
        part: {} if part in PERIODS else {"mean": float(values.mean()), "scale": float(values.std())}
        for part, values in parts.items()
    }
    return {**column, "parts": units, "missing": bool(moments.isna().any())}


def encode(series: pd.Series[Any], column: Mapping[str, Any]) -> Array:
    """(N, parts): what is missing, or no date, has zeros, and a one in the last column if there is one for that."""
    moments = as_dates(series)
    is_missing = moments.isna().to_numpy()
    found = _parts(moments.fillna(pd.Timestamp(column["origin"])), pd.Timestamp(column["origin"]))
    encoded: list[Array] = []
    for part, unit in column["parts"].items():
        values = found[part]
        if part in PERIODS:
            angle = 2 * np.pi * values / PERIODS[part]
            encoded += [np.sin(angle), np.cos(angle)]
        else:
            encoded.append((values - unit["mean"]) / unit["scale"])
    parts = [np.where(is_missing, 0.0, values) for values in encoded]
    return np.stack([*parts, is_missing] if column["missing"] else parts, axis=1)


def _parts(moments: pd.Series[Any], origin: pd.Timestamp) -> dict[str, Array]:
    part = moments.dt
    return {
        "year": part.year.to_numpy(dtype=np.float64),
        "month": part.month.to_numpy(dtype=np.float64),
        "day": part.day.to_numpy(dtype=np.float64),
        "weekday": part.day_of_week.to_numpy(dtype=np.float64),
        "hour": part.hour.to_numpy(dtype=np.float64),
        "elapsed": ((moments - origin) / DAY).to_numpy(dtype=np.float64),
    }


def as_dates(series: pd.Series[Any]) -> pd.Series[Any]:
    """As UTC, NaT for what is missing or no date."""
    if not pd.api.types.is_datetime64_any_dtype(series):
        text = series.astype("object").map(lambda value: value if isinstance(value, str) else None)
        series = text.where(text.str.fullmatch(ISO).fillna(False).astype(bool)) if text.notna().any() else text
    return pd.to_datetime(series, format="ISO8601", utc=True, errors="coerce")
