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
    that is no question of the data: the pixels of digits all have one scale."""

    name: str
    frame: pd.DataFrame
    target: pd.Series[Any]
    columns: tuple[Mapping[str, Any], ...] | None = None
    classes: tuple[str, ...] | None = None
    """The names of the classes 0, 1, ... where the source has them."""


@dataclass(frozen=True, slots=True, eq=False)
class Arrays:
    """A user's own samples, taken as they are: one pair to be split, or three that are train, validation and test."""

    name: str
    parts: tuple[tuple[Tensor | np.ndarray[Any, Any], Tensor | np.ndarray[Any, Any]], ...]


Raw = Table | Arrays
