"""What a source holds before it is split: columns or tensors, and targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Columns of numbers and categories, still raw, and the target column. `columns` fixes how they are encoded where
    that is no question of the data. `weights` (N,) is how much each row counts in training."""

    name: str
    frame: pd.DataFrame
    target: pd.Series[Any]
    columns: tuple[Mapping[str, Any], ...] | None = None
    classes: tuple[str, ...] | None = None
    """The names of the classes 0, 1, ... where the source has them."""
    weights: np.ndarray[Any, Any] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """A table of pixels, (N, F) from 0 to `white`, all of one scale whatever the split, and class numbers (N,).

    What a newcomer's first search begins with needs nothing of pandas, whose import takes a third of a second.
    """

    name: str
    names: tuple[str, ...]
    values: np.ndarray[Any, Any]
    white: float
    target: np.ndarray[Any, Any]
    classes: tuple[str, ...]

    @property
    def columns(self) -> tuple[Mapping[str, Any], ...]:
        """How the columns are encoded, as `table.py` has it."""
        pixel = {"kind": "number", "fill": 0.0, "milder": None, "missing": False, "mean": 0.0, "scale": self.white}
        return tuple({"name": name, **pixel} for name in self.names)

    def as_table(self) -> Table:
        """For what is asked of single columns."""
        import pandas as pd

        frame = pd.DataFrame(self.values, columns=list(self.names))
        return Table(self.name, frame, pd.Series(self.target, name="target"), self.columns, self.classes)


@dataclass(frozen=True, slots=True, eq=False)
class Arrays:
    """Samples in arrays: one pair to be split, two that are train and test, or three, train, validation and test.

    The inputs of a pair are an array, or a tuple or a dict of them. `weights` are those of each part. They are taken as
    they are unless they are to be standardized. `target_at` as in `Samples`.
    """

    name: str
    parts: tuple[tuple[Any, Tensor | np.ndarray[Any, Any]], ...]
    weights: tuple[np.ndarray[Any, Any], ...] | None = None
    standardize: bool = False
    target_at: str | int | None = None
    notices: tuple[str, ...] = ()
    pictures: Mapping[str, Any] | None = None
    """Of pictures how they were read, for others to be read in the same way."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One set of samples in arrays: inputs as in `Arrays`, targets (N, ...)."""

    inputs: Any
    targets: Tensor | np.ndarray[Any, Any]
    target_at: str | int | None


@dataclass(frozen=True, slots=True, eq=False)
class StreamPart:
    """A Dataset with items and a length, how a list of its items becomes a batch, and how many processes read it."""

    dataset: Any
    collate: Callable[[list[Any]], Any]
    notices: tuple[str, ...] = ()
    workers: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """Datasets to be read item by item: one to be split, or three. `target` is the key of the targets of a dict."""

    name: str
    source: str
    path: Path
    parts: tuple[StreamPart, ...]
    target: str | None = None
    notices: tuple[str, ...] = ()


Raw = Table | Pixels | Arrays | Stream
