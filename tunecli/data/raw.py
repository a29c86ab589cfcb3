"""What a source holds before it is split: columns or tensors, and targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Columns of numbers and categories, still raw, and the target column. `columns` fixes how they are encoded where
    that is no question of the data: the pixels of digits all have one scale. `weights` (N,) is how much each row counts
    in training."""

    name: str
    frame: pd.DataFrame
    target: pd.Series[Any]
    columns: tuple[Mapping[str, Any], ...] | None = None
    classes: tuple[str, ...] | None = None
    """The names of the classes 0, 1, ... where the source has them."""
    weights: np.ndarray[Any, Any] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Arrays:
    """Samples in arrays: one pair to be split, two that are train and test, or three, train, validation and test.

    `weights` are those of each part. They are taken as they are unless they are to be standardized.
    """

    name: str
    parts: tuple[tuple[Tensor | np.ndarray[Any, Any], Tensor | np.ndarray[Any, Any]], ...]
    weights: tuple[np.ndarray[Any, Any], ...] | None = None
    standardize: bool = False


Raw = Table | Arrays
