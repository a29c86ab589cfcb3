"""Targets: which task they ask for, and labels or quantities -> what a model is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tunecli.data.scaling import LARGEST
from tunecli.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

INFERRED_CLASSES = 20
"""Whole numbers with at most this many different values are taken for classes, with more for a quantity."""

Array = np.ndarray[Any, Any]


# Those of a table


def infer_task(values: Array) -> str:
    """Classification for text, booleans and few whole numbers; regression for the rest."""
    if values.dtype.kind not in "iuf":
        return "classification"
    return "classification" if _are_whole(values) and len(np.unique(values)) <= INFERRED_CLASSES else "regression"


def _are_whole(numbers: Array) -> bool:
    return bool(np.all(np.isfinite(numbers) & (np.floor(numbers) == numbers)))


def encode_classes(values: Array, names: tuple[str, ...] | None = None) -> tuple[Array, tuple[str, ...]]:
    """Class numbers (N,) and the labels in their order, sorted; `names` are those of the classes 0, 1, ...

    Raises DataError where there is one class only, or nearly one a sample.
    """
    if values.dtype.kind == "f" and _are_whole(values) and np.abs(values).max() < 2**53:
        values = values.astype(np.int64)
    distinct, codes = np.unique(values if values.dtype.kind in "iu" else values.astype(str), return_inverse=True)
    labels = tuple(str(label) for label in distinct)
    if names is not None and labels == tuple(str(number) for number in range(len(names))):
        labels = names
    if len(labels) < 2:
        raise DataError(f"the target has one class only, {labels[0]!r}", hint="choose another target column")
    if len(labels) > max(INFERRED_CLASSES, len(codes) / 2):
        raise DataError(
            f"the target has {len(labels)} classes in {len(codes)} samples, such as {labels[0]!r} and {labels[1]!r}",
            hint='choose another target; a quantity is a column of numbers, with task = "regression" in [data]',
        )
    return codes.astype(np.int64), labels


def as_numbers(target: pd.Series[Any]) -> Array:
    """The targets of a regression as float64. Raises DataError for what is no number that can be trained on."""
    try:
        numbers = target.to_numpy(dtype=np.float64)
    except (ValueError, TypeError) as error:
        import pandas as pd

        text = target[pd.to_numeric(target, errors="coerce").isna()]
        raise DataError(
            f"regression needs numbers, the target holds {str((text if len(text) else target).iloc[0])!r}",
            hint='set task = "classification" in [data], or drop the rows without a number',
        ) from error
    if not np.isfinite(numbers).all():
        raise DataError("the target holds a NaN or an infinity", hint="fill these targets in or drop the rows")
    if np.abs(numbers).max() > LARGEST:
        raise DataError(f"the target holds {np.abs(numbers).max():g}, too large to train on", hint="rescale the target")
    return numbers


def unit(name: str, train: Array, fitted: Mapping[str, Any]) -> tuple[float, float]:
    """Mean and scale of a regression target: those that a checkpoint was trained in where it is the same target.

    Targets of any unit meet the same default learning rates; metrics are printed in the target's own.
    """
    earlier = fitted.get("target", {})
    if earlier.get("name") == name:
        return earlier["mean"], earlier["scale"]
    return float(train.mean()), float(train.std()) or 1.0


# A user's own


def infer_own_task(every: Sequence[Tensor | Array]) -> str:
    """Regression for floats; whole numbers and labels are classes. Raises DataError where that can hardly be meant."""
    tensors = [targets for targets in every if isinstance(targets, Tensor)]
    if len(tensors) < len(every):
        return "classification"
    if all(targets.is_floating_point() for targets in tensors):
        return "regression"
    samples, highest = sum(len(targets) for targets in tensors), max(int(targets.long().max()) for targets in tensors)
    if highest >= samples:
        raise DataError(
            f"the targets are whole numbers up to {highest}, which would be more classes than the {samples} samples",
            hint='set task = "regression" in [data], or number the classes from 0',
        )
    return "classification"


def own_classes(every: Sequence[Tensor | Array]) -> tuple[list[Tensor], tuple[str, ...]]:
    """Whole numbers are class numbers already, as everywhere in torch; labels of any other kind are numbered."""
    if all(isinstance(targets, Tensor) and not targets.is_floating_point() for targets in every):
        numbers = [torch.as_tensor(targets).long() for targets in every]
        if min(int(part.min()) for part in numbers) < 0:
            raise DataError("class numbers start at 0", hint="give labels as text, or numbers from 0 on")
        count = max(int(part.max()) for part in numbers) + 1
        if count < 2:
            raise DataError("the targets have one class only", hint="classification needs two")
        return numbers, tuple(str(number) for number in range(count))
    arrays = [np.asarray(targets) for targets in every]
    codes, labels = encode_classes(np.concatenate(arrays))
    parts = np.split(codes, np.cumsum([len(array) for array in arrays])[:-1])
    return [torch.from_numpy(part) for part in parts], labels


def own_numbers(targets: Tensor | Array) -> Tensor:
    if not isinstance(targets, Tensor):
        raise DataError("regression needs numbers as targets", hint='set task = "classification" in [data]')
    numbers = targets.to(torch.get_default_dtype()) if not targets.is_floating_point() else targets
    if not bool(torch.isfinite(numbers).all()):
        raise DataError("the targets hold a NaN or an infinity", hint="drop these samples")
    return numbers
