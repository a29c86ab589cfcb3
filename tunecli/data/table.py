"""Columns -> numbers: what `fit` learns from the training rows, and `encode`, which does it again with any rows.

A column's encoding is one JSON object, so that a checkpoint holds it; `kind` says which:

- number: missing values become the median, a skewed column is made milder, all are standardized; a column of 0 and 1
  beside it tells what was missing
- boolean: -1 and 1, missing 0; text that says yes and no (true and false, t and f, y and n, on and off) is one, too
- category: a column of 0 and 1 for each level, and one for what was missing
- code: the number of the level, for a model to embed; 0 is missing, unseen, or seen only once
- date: `dates.py`
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tunecli.data import dates
from tunecli.data.scaling import LARGEST
from tunecli.errors import DataError

MAX_LEVELS = 50
"""Categories with more levels than this are embedded, or cut down to the commonest where the model cannot embed."""

SKEWED = 2.0
"""Numbers whose skewness is beyond this, in either direction, are made milder. 2 is that of an exponential: below it,
as in breast_cancer, what is straight in the numbers as they are would be bent."""

BOOLEANS = ({"true", "false"}, {"yes", "no"}, {"t", "f"}, {"y", "n"}, {"on", "off"})
BOOLEAN_WORDS = frozenset().union(*BOOLEANS)
TRUE = frozenset({"true", "yes", "t", "y", "on"})

MIN_COUNTED = 10
"""Fewer rows than this that happen to be in order number nothing."""

IDENTIFIER = re.compile(r"(?i:index|key|(?:.*[_\W])?(?:row_?)?(?:id|uuid|guid))|.*[a-z](?:Id|ID)|Unnamed: \d+")
"""What columns that name the rows are called: id, customer_id, customerId, and those that had no name."""

UNLESS_NAMED = " (it is taken where data.features names it)"

Array = np.ndarray[Any, Any]
Column = Mapping[str, Any]


def fit(
    frame: pd.DataFrame, *, embed: bool = True, named: Collection[str] = ()
) -> tuple[list[dict[str, Any]], list[str]]:
    """How each column is encoded, learned from the training rows, and what a user should be told.

    `embed` says whether the model embeds columns of many levels; their codes come last. Columns that were `named` one
    by one are not taken for identifiers. The frame's index numbers the rows of the whole file.
    """
    columns: list[dict[str, Any]] = []
    notices: list[str] = []
    for name in frame.columns:
        column, told = _fit_column(str(name), frame[name], embed=embed, is_named=name in named)
        if column is None:
            notices.append(f"column {name!r} is left out: {told}")
            continue
        columns.append(column)
        if told:
            notices.append(f"column {name!r} {told}")
    return sorted(columns, key=lambda column: column["kind"] == "code"), notices


def match(name: str, frame: pd.DataFrame, columns: Sequence[Column]) -> list[str]:
    """Which of the columns that a model was trained on are missing, as notices. Raises DataError where all are."""
    missing = [column["name"] for column in columns if column["name"] not in frame.columns]
    if len(missing) == len(columns):
        expected = ", ".join(column["name"] for column in columns[:5])
        raise DataError(
            f"{name} has none of the columns that the checkpoint was trained on",
            hint=f"it expects {expected}{', ...' if len(columns) > 5 else ''}",
        )
    return [f"column {name!r} is missing and filled in" for name in missing]


def written(columns: Sequence[Column]) -> list[str]:
    """The columns that are read as they are written: a 1 that is a level must not become 1.0 beside a missing value."""
    return [column["name"] for column in columns if "levels" in column]


def unknown(series: pd.Series[Any], column: Column) -> tuple[pd.Series[bool], str]:
    """Which values of a column that are not missing all the same count as missing, and what is wrong with them."""
    given = series.notna()
    if "levels" in column:
        what = "not seen in training" if column["kind"] == "category" else "seen in training once at most"
        return given & ~_as_text(series).isin(column["levels"]), what
    if column["kind"] == "boolean":
        return given & ~_as_text(series).str.lower().isin(BOOLEAN_WORDS), "neither yes nor no"
    if column["kind"] == "date":
        return given & dates.as_dates(series).isna(), "no date"
    return given & np.isnan(as_numbers(series)), "no number"


def encode(frame: pd.DataFrame, columns: Sequence[Column]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(N, F) float32 by the columns that `fit` learned. An unseen category and a column that is not there count as
    missing."""
    absent = pd.Series([None] * len(frame), index=frame.index, dtype="object")
    given = dict(frame.items())
    parts = [_ENCODE[column["kind"]](given.get(column["name"], absent), column) for column in columns]
    return np.concatenate([part.reshape(len(frame), -1) for part in parts], axis=1).astype(np.float32)


def _fit_column(
    name: str, series: pd.Series[Any], *, embed: bool, is_named: bool
) -> tuple[dict[str, Any] | None, str | None]:
    """The encoding of a column, or None, and why it is None or else what is to be told of it."""
    if pd.api.types.is_datetime64_any_dtype(series):
        dated = dates.fit(name, series)
        return dated, None if dated else _how_empty(series)
    if pd.api.types.is_numeric_dtype(series) and not pd.api.types.is_bool_dtype(series):
        return _fit_number(name, series, is_named=is_named)
    values = series.dropna()
    strange = next((type(value).__name__ for value in values if not isinstance(value, str | bool | int | float)), None)
    if strange is not None:
        return None, f"it holds {strange} values"
    text = _as_text(series)
    if text.nunique() <= 1:
        return None, _how_empty(text)
    if set(text.dropna().str.lower().unique()) in BOOLEANS:
        return {"name": name, "kind": "boolean"}, None
    if dates.are_dates(text):
        return dates.fit(name, text), None
    return _fit_text(name, text, embed=embed, is_named=is_named)


def _how_empty(values: pd.Series[Any]) -> str:
    return "empty" if values.isna().all() else "one value only"


def _fit_number(name: str, series: pd.Series[Any], *, is_named: bool) -> tuple[dict[str, Any] | None, str | None]:
    numbers = as_numbers(series)
    is_missing = np.isnan(numbers)
    present = numbers[~is_missing]
    distinct = len(np.unique(present))
    if distinct <= 1:
        return None, "one value only" if distinct else "empty"
    whole = bool(np.all(np.floor(present) == present))
    if whole and distinct == len(numbers) >= MIN_COUNTED and not is_named:
        if np.ptp(numbers - series.index.to_numpy(dtype=np.float64)) == 0:
            # Such as `DataFrame.to_csv` writes beside the data; in a sorted file it would give the target away.
            return None, "it numbers the rows"
        if IDENTIFIER.fullmatch(name):
            return None, f"it names the rows, each has its own number{UNLESS_NAMED}"
    fill = float(np.median(present))
    column = {"name": name, "kind": "number", "fill": fill, "milder": _milder(present)}
    column["missing"] = bool(is_missing.any())
    shaped = _shaped(np.where(is_missing, fill, numbers), column)
    return {**column, "mean": float(shaped.mean()), "scale": float(shaped.std()) or 1.0}, None


def _milder(numbers: Array) -> dict[str, float] | None:
    """How a skewed column is made milder: (x - center) / spread by the quartiles, then Yeo and Johnson's power
    (Biometrika 2000), the likeliest one. None for what is not skewed, or tells a few levels only."""
    from scipy import stats
    from sklearn.preprocessing import PowerTransformer

    low, center, high = (float(quantile) for quantile in np.quantile(numbers, [0.25, 0.5, 0.75]))
    spread = high - low or float(numbers.std()) or 1.0
    # By their quartiles first: far from 1 the power would find nothing to bend, or overflow.
    scaled = (numbers - center) / spread
    if len(np.unique(numbers)) <= 10 or not abs(stats.skew(scaled)) > SKEWED:
        return None
    with np.errstate(all="ignore"):
        try:
            power = float(PowerTransformer(standardize=False).fit(scaled[:, None]).lambdas_[0])
        except ValueError:  # no power is the likeliest
            return None
        bent = stats.yeojohnson(scaled, power)
    if not (np.isfinite(bent).all() and abs(stats.skew(bent)) < abs(stats.skew(scaled))):
        return None
    return {"center": center, "spread": spread, "power": power}


def _shaped(numbers: Array, column: Column) -> Array:
    if column["milder"] is None:
        return numbers
    from scipy import stats

    milder = column["milder"]
    with np.errstate(all="ignore"):
        bent = stats.yeojohnson((numbers - milder["center"]) / milder["spread"], milder["power"])
    finite: Array = np.nan_to_num(np.asarray(bent), posinf=LARGEST, neginf=-LARGEST)
    return finite


def _fit_text(
    name: str, text: pd.Series[Any], *, embed: bool, is_named: bool
) -> tuple[dict[str, Any] | None, str | None]:
    counts = text.value_counts()
    distinct, rows = len(counts), int(counts.sum())
    if distinct == rows and text.dropna().str.contains(" ").mean() > 0.5:
        words = f"its {rows} texts all differ: names, or free text"
        return None, f'{words}, which a function of your own can make numbers of (data.source = "own.py:load")'
    if distinct == rows:
        return None, f"it names the rows, its {rows} values all differ"
    if distinct > max(MAX_LEVELS, rows / 2) and not is_named:
        return None, f"most of its {distinct} different values occur once{UNLESS_NAMED}"
    missing = bool(text.isna().any())
    if distinct <= MAX_LEVELS:
        told = _stray_text(counts)
        return {"name": name, "kind": "category", "levels": sorted(counts.index), "missing": missing}, told
    if embed:
        # What occurs once says nothing of its own, and so the code of what was never seen is learned from it.
        return {"name": name, "kind": "code", "levels": sorted(counts.index[counts > 1])}, _stray_text(counts)
    commonest = sorted(sorted(counts.index), key=lambda level: -int(counts[level]))[:MAX_LEVELS]
    told = f"has {distinct} categories: the {MAX_LEVELS} commonest are told apart"
    return {"name": name, "kind": "category", "levels": sorted(commonest), "missing": True}, told


def _stray_text(counts: pd.Series[Any]) -> str | None:
    """A column of numbers that a few words made a column of text."""
    is_text = pd.to_numeric(pd.Series(counts.index), errors="coerce").isna().to_numpy()
    stray = counts[is_text]
    if len(stray) == 0 or stray.sum() > counts.sum() / 2:
        return None
    return f"counts as categories: it holds text, such as {stray.index[0]!r}, among numbers"


def as_numbers(series: pd.Series[Any]) -> Array:
    """float64, NaN for what is no number or too large to train on."""
    numbers = pd.to_numeric(series, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    return np.where(np.abs(numbers) <= LARGEST, numbers, np.nan)


def _as_text(series: pd.Series[Any]) -> pd.Series[Any]:
    return series.astype("object").map(lambda value: None if pd.isna(value) else str(value))


def standardize(numbers: Array, mean: float, scale: float) -> Array:
    with np.errstate(over="ignore"):
        return np.clip((numbers - mean) / scale, -LARGEST, LARGEST)


def _encode_number(series: pd.Series[Any], column: Column) -> Array:
    numbers = as_numbers(series)
    is_missing = np.isnan(numbers)
    shaped = _shaped(np.where(is_missing, column["fill"], numbers), column)
    parts = [standardize(shaped, column["mean"], column["scale"])]
    return np.stack([*parts, is_missing] if column["missing"] else parts, axis=1)


def _encode_boolean(series: pd.Series[Any], column: Column) -> Array:
    text = _as_text(series).str.lower()
    known = text.isin(BOOLEAN_WORDS).to_numpy()
    return np.where(known, np.where(text.isin(TRUE), 1.0, -1.0), 0.0)


def _encode_category(series: pd.Series[Any], column: Column) -> Array:
    text = _as_text(series).to_numpy()
    known = [text == level for level in column["levels"]]
    if column["missing"]:
        known.append(~np.any(known, axis=0))
    return np.stack(known, axis=1)


def _encode_code(series: pd.Series[Any], column: Column) -> Array:
    numbers = {level: number for number, level in enumerate(column["levels"], start=1)}
    return np.array([numbers.get(value, 0) for value in _as_text(series)], dtype=np.float64)


_ENCODE: dict[str, Callable[[pd.Series[Any], Column], Array]] = {
    "number": _encode_number,
    "boolean": _encode_boolean,
    "category": _encode_category,
    "code": _encode_code,
    "date": dates.encode,
}
