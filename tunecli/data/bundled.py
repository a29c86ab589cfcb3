"""The data that scikit-learn ships: digits, breast_cancer, wine, iris and diabetes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tunecli.data.raw import Table


def read(name: str) -> Table:
    """One of BUNDLED, as columns of numbers. Pixels of digits go from 0..16 to 0..1, whatever the split."""
    if name == "digits":
        return _digits()
    from sklearn import datasets

    bunch: Any = getattr(datasets, f"load_{name}")()
    frame = pd.DataFrame(bunch.data, columns=[str(feature) for feature in bunch.feature_names])
    classes = tuple(str(label) for label in bunch.target_names) if "target_names" in bunch else None
    return Table(name, frame, pd.Series(bunch.target, name="target"), None, classes)


def _digits() -> Table:
    """What scikit-learn's `load_digits` returns, without its import: a newcomer's first search begins with them."""
    found = find_spec("sklearn")
    assert found is not None
    assert found.origin is not None
    values = np.loadtxt(Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    names = [f"pixel_{row}_{column}" for row in range(8) for column in range(8)]
    pixel = {"kind": "number", "fill": 0.0, "milder": None, "missing": False, "mean": 0.0, "scale": 16.0}
    columns = tuple({"name": own, **pixel} for own in names)
    target = pd.Series(values[:, -1].astype(int), name="target")
    frame = pd.DataFrame(values[:, :-1], columns=names)
    return Table("digits", frame, target, columns, tuple(str(digit) for digit in range(10)))
