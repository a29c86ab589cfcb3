"""Raw data -> Data: the task inferred, classes encoded, split, preprocessed, made tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunecli.data import Data, Samples, arrays, stream
from tunecli.data.raw import Pixels, Raw, Stream, Table
from tunecli.data.scaling import UNSCALED, learn
from tunecli.data.split import split_indices
from tunecli.data.targets import as_numbers, encode_classes, infer_task, unit
from tunecli.errors import DataError, did_you_mean

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is asked for of raw data, as `data.load` says it.

    `targets` are "one" a sample; "any", (N, ...), where the loss is the user's own; or "optional", where the step is.
    """

    split: Sequence[float]
    seed: int
    task: str | None = None
    fitted: Mapping[str, Any] | None = None
    features: Sequence[str] | None = None
    embed: bool = False
    target: str | None = None
    targets: str = "one"
    cache: bool = False
    scale_bytes: bool = False
    workers: int | None = None
    stream: bool | None = None
    as_is: bool = False


def prepare(raw: Raw, wishes: Wishes) -> Data:
    """Split and preprocess; what is learned is learned from the training split alone. Raises DataError."""
    if isinstance(raw, Pixels):
        if wishes.features is None and not wishes.fitted and wishes.task != "regression":
            return _prepare_pixels(raw, wishes)
        raw = raw.as_table()
    if isinstance(raw, Table):
        return _prepare_table(_choose(raw, wishes.features), wishes)
    if isinstance(raw, Stream):
        return stream.prepare(raw, wishes.split, wishes.seed, wishes.task, wishes.targets)
    any_targets = wishes.targets != "one"
    data = arrays.prepare(raw, wishes.split, wishes.seed, wishes.task, any_targets=any_targets, stream=wishes.stream)
    if raw.pictures is not None:
        data = arrays.scale_bytes(data)
        return replace(data, preprocessing={"kind": "pictures", **raw.pictures})
    if raw.standardize:
        return arrays.standardize(data, wishes.fitted or {}, _scaling(wishes))
    return arrays.scale_bytes(data) if wishes.scale_bytes else data


def _scaling(wishes: Wishes) -> Callable[[Tensor], Mapping[str, Any]] | None:
    """How the inputs of a file of arrays are scaled, of the training samples; None for inputs as they are."""
    fitted = wishes.fitted or {}
    if fitted.get("kind") == "as_is" or (wishes.as_is and not fitted and not wishes.scale_bytes):
        return None
    if wishes.as_is and not fitted:
        return lambda _: UNSCALED
    return lambda train: learn(train, fitted)


def _choose(raw: Table, features: Sequence[str] | None) -> Table:
    """The table with these columns only. Raises DataError where one of them is none."""
    if features is None:
        return raw
    known = [str(name) for name in raw.frame.columns]
    for name in features:
        if name == raw.target.name:
            raise DataError(f"data.features: {name!r} is the target", hint="a target cannot be a feature, too")
        if name not in known:
            raise DataError(f"data.features: {raw.name} has no column {name!r}", hint=did_you_mean(name, known))
    chosen = [name for name in known if name in features]
    columns = None if raw.columns is None else tuple(own for own in raw.columns if own["name"] in chosen)
    return replace(raw, frame=raw.frame[chosen], columns=columns)


def _prepare_pixels(raw: Pixels, wishes: Wishes) -> Data:
    """What comes of them as a table, and sooner."""
    codes, labels = encode_classes(raw.target, raw.classes)
    parts, notices = split_indices(len(codes), wishes.split, wishes.seed, codes, labels)
    inputs, targets = torch.from_numpy((raw.values / raw.white).astype(np.float32)), torch.from_numpy(codes)
    train, validation, test = (Samples(inputs[part], targets[part]) for part in parts)
    target = {"name": "target", "mean": 0.0, "scale": 1.0}
    preprocessing = {"kind": "table", "columns": raw.columns, "target": target}
    return Data(raw.name, "classification", train, validation, test, labels, preprocessing, notices=notices)


def _prepare_table(raw: Table, wishes: Wishes) -> Data:
    from tunecli.data import table

    values = raw.target.to_numpy()
    task = wishes.task or infer_task(values)
    labels: tuple[str, ...] = ()
    if task == "classification":
        codes, labels = encode_classes(values, raw.classes)
    else:
        codes = as_numbers(raw.target)
    parts, notices = split_indices(len(values), wishes.split, wishes.seed, codes if labels else None, labels)
    columns, told = _columns(raw, parts[0], wishes)
    inputs = torch.from_numpy(table.encode(raw.frame, columns))
    mean, scale = 0.0, 1.0
    if task == "regression":
        mean, scale = unit(str(raw.target.name), codes[parts[0]], wishes.fitted or {})
        codes = table.standardize(codes, mean, scale).astype(np.float32)
    targets = torch.from_numpy(codes)
    weights = None if raw.weights is None else torch.from_numpy(raw.weights.astype(np.float32))
    train, validation, test = (Samples(inputs[part], targets[part], _part(weights, part)) for part in parts)
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


def _part(weights: Tensor | None, part: Array) -> Tensor | None:
    if weights is None:
        return None
    if not bool((weights[part] > 0).any()):
        raise DataError("all weights of a part are zero", hint="each part of the split needs a row that counts")
    return weights[part]


def _columns(raw: Table, train: Array, wishes: Wishes) -> tuple[Sequence[Mapping[str, Any]], list[str]]:
    """The encoding of each column: an earlier one, the source's own, or one learned from the training rows."""
    from tunecli.data import table

    fitted = wishes.fitted
    if fitted and fitted.get("kind") == "table":
        columns = fitted["columns"]
        return columns, table.match(raw.name, raw.frame, columns)
    if raw.columns is not None:
        return raw.columns, []
    columns, told = table.fit(raw.frame.iloc[train], embed=wishes.embed, named=wishes.features or ())
    if not columns:
        raise DataError(f"{raw.name} has no column to learn from", hint="; ".join(told))
    return columns, told
