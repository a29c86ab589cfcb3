"""The data that scikit-learn ships: digits, breast_cancer, wine, iris and diabetes."""

from __future__ import annotations

from typing import Any

import pandas as pd
from sklearn import datasets

from tunecli.data.raw import Table


def read(name: str) -> Table:
    """One of BUNDLED, as columns of numbers. Pixels of digits go from 0..16 to 0..1, whatever the split."""
    bunch: Any = getattr(datasets, f"load_{name}")()
    names = [str(feature) for feature in bunch.feature_names]
    frame = pd.DataFrame(bunch.data, columns=names)
    classes = tuple(str(label) for label in bunch.target_names) if "target_names" in bunch else None
    columns = None
    if name == "digits":
        pixel = {"kind": "number", "fill": 0.0, "milder": None, "missing": False, "mean": 0.0, "scale": 16.0}
        columns = tuple({"name": own, **pixel} for own in names)
    return Table(name, frame, pd.Series(bunch.target, name="target"), columns, classes)
