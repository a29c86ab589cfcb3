"""The data that scikit-learn ships: digits, breast_cancer, wine, iris and diabetes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from tunecli.data.raw import Pixels, Table


def read(name: str) -> Table | Pixels:
    """One of BUNDLED, as columns of numbers. Pixels of digits go from 0..16 to 0..1, whatever the split."""
    if name == "digits":
        return _digits()
    import pandas as pd
    from sklearn import datasets

    bunch: Any = getattr(datasets, f"load_{name}")()
    frame = pd.DataFrame(bunch.data, columns=[str(feature) for feature in bunch.feature_names])
    classes = tuple(str(label) for label in bunch.target_names) if "target_names" in bunch else None
    return Table(name, frame, pd.Series(bunch.target, name="target"), None, classes)


def _digits() -> Pixels:
    """What scikit-learn's `load_digits` returns, without its import: a newcomer's first search begins with them."""
    found = find_spec("sklearn")
    assert found is not None
    assert found.origin is not None
    values = np.loadtxt(Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    names = tuple(f"pixel_{row}_{column}" for row in range(8) for column in range(8))
    digits = tuple(str(digit) for digit in range(10))
    return Pixels("digits", names, values[:, :-1], 16.0, values[:, -1].astype(np.int64), digits)
