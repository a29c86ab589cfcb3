"""Raw data -> Data: the task inferred, classes encoded, split, preprocessed, made tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from tunecli.data import Data, Samples, table, tensors
from tunecli.data.raw import Arrays, Raw, Table
from tunecli.data.samples import Inputs
from tunecli.errors import DataError
from tunecli.trial import derive_seed

INFERRED_CLASSES = 20
"""Whole numbers with at most this many different values are taken for classes, with more for a quantity."""

Array = np.ndarray[Any, Any]


def prepare(raw: Raw, *, split: Sequence[float], seed: int, task: str | None, fitted: Mapping[str, Any] | None) -> Data:
    """Split and preprocess; what is learned is learned from the training split alone. Raises DataError."""
    if isinstance(raw, Table):
        return _prepare_table(raw, split, seed, task, fitted)
    return _prepare_arrays(raw, split, seed, task)


def split_indices(
    samples: int, split: Sequence[float], seed: int, codes: Array | None, labels: Sequence[str] = ()
) -> tuple[tuple[Array, Array, Array], tuple[str, ...]]:
    """Which samples are train, validation and test, in rising order, stratified by class where that is possible.

    `codes` are the samples' class numbers, None for regression, and `labels` the names of the classes. The same for one
    seed on every machine (scikit-learn's splitter over NumPy's frozen RandomState).
    """
    total = float(sum(split))
    test = round(samples * split[2] / total)
    validation = round(samples * split[1] / total)
    if min(test, validation, samples - test - validation) < 1:
        raise DataError(
            f"{samples} samples are too few for a split of {':'.join(f'{part:g}' for part in split)}",
            hint="each of train, validation and test needs at least one sample",
        )
    if codes is None:
        return _split(samples, validation, test, seed, None), ()
    classes, counts = np.unique(codes, return_counts=True)
    rare = int(counts.argmin())
    reason = f"class {labels[classes[rare]]!r} has {counts[rare]} of {samples} samples"
    smallest = min(test, validation, samples - test - validation)
    if smallest < len(classes):
        reason = f"a part of {smallest} samples cannot hold {len(classes)} classes"
    elif counts[rare] >= 3:
        # A class that two parts have used up is an error of scikit-learn's, too.
        with suppress(ValueError):
            return _split(samples, validation, test, seed, codes), ()
    return _split(samples, validation, test, seed, None), (f"the split is not stratified: {reason}",)


def _split(samples: int, validation: int, test: int, seed: int, codes: Array | None) -> tuple[Array, Array, Array]:
    drawn = derive_seed(seed, 0, "split") % 2**32
    rest, tested = train_test_split(np.arange(samples), test_size=test, random_state=drawn, stratify=codes)
    trained, validated = train_test_split(
        rest, test_size=validation, random_state=drawn, stratify=None if codes is None else codes[rest]
    )
    return np.sort(trained), np.sort(validated), np.sort(tested)


def infer_task(values: Array) -> str:
    """Classification for text, booleans and few whole numbers; regression for the rest."""
    if values.dtype.kind not in "iuf":
        return "classification"
    return "classification" if _are_whole(values) and len(np.unique(values)) <= INFERRED_CLASSES else "regression"


def _are_whole(numbers: Array) -> bool:
    return bool(np.all(np.isfinite(numbers) & (np.floor(numbers) == numbers)))


def _prepare_table(
    raw: Table, split: Sequence[float], seed: int, task: str | None, fitted: Mapping[str, Any] | None
) -> Data:
    values = raw.target.to_numpy()
    task = task or infer_task(values)
    labels: tuple[str, ...] = ()
    if task == "classification":
        codes, labels = _encode_classes(values, raw.classes)
    else:
        codes = _as_numbers(raw.target)
    parts, notices = split_indices(len(values), split, seed, codes if labels else None, labels)
    columns, told = _columns(raw, parts[0], fitted)
    inputs = torch.from_numpy(table.encode(raw.frame, columns))
    mean, scale = 0.0, 1.0
    if task == "regression":
        # Targets of any unit meet the same default learning rates; metrics are printed in the target's own.
        # The same column met again keeps the unit that a checkpoint was trained in.
        unit = (fitted or {}).get("target", {})
        if unit.get("name") == str(raw.target.name):
            mean, scale = unit["mean"], unit["scale"]
        else:
            mean, scale = float(codes[parts[0]].mean()), float(codes[parts[0]].std()) or 1.0
        standardized = np.clip((codes - mean) / scale, -table.LARGEST, table.LARGEST)
        targets = torch.from_numpy(standardized.astype(np.float32))
    else:
        targets = torch.from_numpy(codes)
    train, validation, test = (Samples(inputs[part], targets[part]) for part in parts)
    target = {"name": str(raw.target.name), "mean": mean, "scale": scale}
    return Data(
        name=raw.name,
        task=task,
        train=train,
        validation=validation,
        test=test,
        classes=labels,
        preprocessing={"kind": "table", "columns": columns, "target": target},
        target_scale=scale,
        notices=(*told, *notices),
    )


def _columns(
    raw: Table, train: Array, fitted: Mapping[str, Any] | None
) -> tuple[Sequence[Mapping[str, Any]], list[str]]:
    """The encoding of each column: an earlier one, the source's own, or one learned from the training rows."""
    if fitted and fitted.get("kind") == "table":
        columns = fitted["columns"]
        return columns, table.match(raw.name, raw.frame, columns)
    if raw.columns is not None:
        return raw.columns, []
    columns, told = table.fit(raw.frame.iloc[train])
    if not columns:
        raise DataError(f"{raw.name} has no column to learn from", hint="; ".join(told))
    return columns, told


def _encode_classes(values: Array, names: tuple[str, ...] | None) -> tuple[Array, tuple[str, ...]]:
    if values.dtype.kind == "f" and _are_whole(values) and np.abs(values).max() < 2**53:
        values = values.astype(np.int64)
    distinct, codes = np.unique(values if values.dtype.kind in "iu" else values.astype(str), return_inverse=True)
    labels = tuple(str(label) for label in distinct)
    if names is not None and labels == tuple(str(number) for number in range(len(names))):
        labels = names
    if len(labels) < 2:
        raise DataError(f"the target has one class only, {labels[0]!r}", hint="choose another target column")
    return codes.astype(np.int64), labels


def _as_numbers(target: pd.Series[Any]) -> Array:
    try:
        numbers = target.to_numpy(dtype=np.float64)
    except ValueError as error:
        text = target[pd.to_numeric(target, errors="coerce").isna()]
        raise DataError(
            f"regression needs numbers, the target holds {text.iloc[0]!r}",
            hint='set task = "classification" in [data], or drop the rows without a number',
        ) from error
    if not np.isfinite(numbers).all():
        raise DataError("the target holds a NaN or an infinity", hint="fill these targets in or drop the rows")
    if np.abs(numbers).max() > table.LARGEST:
        raise DataError(f"the target holds {np.abs(numbers).max():g}, too large to train on", hint="rescale the target")
    return numbers


def _prepare_arrays(raw: Arrays, split: Sequence[float], seed: int, task: str | None) -> Data:
    pairs = [(as_inputs(inputs), _targets(targets)) for inputs, targets in raw.parts]
    every = [targets for _, targets in pairs]
    names = ("train", "validation", "test")
    for name, targets in zip(names, every, strict=False):
        if len(targets) == 0:
            where = f" for {name}" if len(every) == len(names) else ""
            raise DataError(f"{raw.name} returned no samples{where}", hint="each part needs at least one sample")
    task = task or _infer_own_task(every)
    notices: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    if task == "classification":
        encoded, labels = _own_classes(every)
    else:
        encoded = [_own_numbers(targets) for targets in every]
    samples = [Samples(inputs, targets) for (inputs, _), targets in zip(pairs, encoded, strict=True)]
    if len(samples) == 1:
        whole = samples[0]
        parts, notices = split_indices(len(whole), split, seed, whole.targets.numpy() if labels else None, labels)
        samples = [whole.take(torch.from_numpy(part)) for part in parts]
    for name, part in zip(names, samples, strict=True):
        if part.features != samples[0].features:
            raise DataError(
                f"{raw.name}: samples for {name} have shape {part.features}, for training {samples[0].features}",
                hint="all three parts go through one model",
            )
        check_finite(part.inputs, raw.name, name)
    train, validation, test = samples
    return Data(raw.name, task, train, validation, test, labels, preprocessing={"kind": "none"}, notices=notices)


def check_finite(inputs: Inputs, source: str, purpose: str) -> None:
    """Raises DataError where inputs hold what no model can read."""
    for _, part in tensors(inputs):
        if part.is_floating_point() and not bool(torch.isfinite(part).all()):
            count = int((~torch.isfinite(part)).flatten(1).any(1).sum())
            raise DataError(
                f"{source} returned a NaN or an infinity in the inputs of {count} samples for {purpose}",
                hint="fill them in or drop these samples",
            )


def _infer_own_task(every: Sequence[Tensor | Array]) -> str:
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


def as_inputs(values: Tensor | Array) -> Tensor:
    """As they are, except that float64 from NumPy becomes torch's default float32, as in every training script."""
    if isinstance(values, Tensor):
        return values.detach()
    if values.dtype.kind not in "iufb":
        raise DataError(f"inputs must be numbers, got {values.dtype}", hint="turn text and dates into numbers first")
    return _tensor(values)


def _targets(values: Tensor | Array) -> Tensor | Array:
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise DataError(
            f"targets must be (samples,) or (samples, 1), got {tuple(values.shape)}", hint="each sample has one target"
        )
    if isinstance(values, Tensor):
        return values.detach().cpu()
    return _tensor(values) if values.dtype.kind in "iuf" else values


def _tensor(values: Array) -> Tensor:
    # torch reads neither foreign byte order nor the read-only arrays that pandas hands out.
    tensor = torch.from_numpy(np.require(values, values.dtype.newbyteorder("="), ["C", "W"]))
    return tensor.to(torch.get_default_dtype()) if values.dtype.kind == "f" else tensor


def _own_classes(every: Sequence[Tensor | Array]) -> tuple[list[Tensor], tuple[str, ...]]:
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
    codes, labels = _encode_classes(np.concatenate(arrays), None)
    parts = np.split(codes, np.cumsum([len(array) for array in arrays])[:-1])
    return [torch.from_numpy(part) for part in parts], labels


def _own_numbers(targets: Tensor | Array) -> Tensor:
    if not isinstance(targets, Tensor):
        raise DataError("regression needs numbers as targets", hint='set task = "classification" in [data]')
    numbers = targets.to(torch.get_default_dtype()) if not targets.is_floating_point() else targets
    if not bool(torch.isfinite(numbers).all()):
        raise DataError("the targets hold a NaN or an infinity", hint="drop these samples")
    return numbers
