"""Arrays and tensors -> Data: shapes and targets checked, split, and standardized where they come from a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from tunecli.data import Data, Samples, each, held, tensors
from tunecli.data.raw import Arrays
from tunecli.data.samples import Inputs
from tunecli.data.scaling import BYTES, KEPT_RAW, Scaling, learn
from tunecli.data.split import PARTS, split_indices
from tunecli.data.targets import infer_own_task, own_classes, own_numbers, unit
from tunecli.errors import DataError

Array = np.ndarray[Any, Any]


def prepare(raw: Arrays, split: Sequence[float], seed: int, task: str | None, *, any_targets: bool) -> Data:
    """Samples as they are, split where they do not come in three parts. Raises DataError.

    With `any_targets` they may be (N, ...), and are left as they are where they are no task's: the task is "own" then.
    """
    pairs = [(each(as_inputs, inputs), _targets(targets, any_targets)) for inputs, targets in raw.parts]
    every = [targets for _, targets in pairs]
    for name, targets in zip(("train", "test") if len(every) == 2 else PARTS, every, strict=False):
        if len(targets) == 0:
            where = f" for {name}" if len(every) > 1 else ""
            raise DataError(f"{raw.name} returned no samples{where}", hint="each part needs at least one sample")
    notices: tuple[str, ...] = ()
    task, encoded, labels = _encode_any(every, task) if any_targets else _encode(every, task)
    weights = [None] * len(pairs) if raw.weights is None else [torch.from_numpy(own).float() for own in raw.weights]
    samples = [
        Samples(inputs, targets, own, raw.target_at)
        for (inputs, _), targets, own in zip(pairs, encoded, weights, strict=True)
    ]
    if len(samples) < len(PARTS):
        whole, *tested = samples
        shares = split if not tested else split[:2]
        codes = whole.targets.flatten().numpy() if labels else None
        parts, notices = split_indices(len(whole), shares, seed, codes, labels)
        samples = [*(whole.take(torch.from_numpy(part)) for part in parts), *tested]
    for name, part in zip(PARTS, samples, strict=True):
        if part.features != samples[0].features:
            raise DataError(
                f"{raw.name}: samples for {name} have shape {part.features}, for training {samples[0].features}",
                hint="all three parts go through one model",
            )
        check_finite(part.inputs, raw.name, name)
    train, validation, test = samples
    return Data(
        raw.name,
        task,
        train,
        validation,
        test,
        labels,
        preprocessing={"kind": "none"},
        notices=(*raw.notices, *notices),
    )


def _encode(every: Sequence[Tensor | Array], task: str | None) -> tuple[str, list[Tensor], tuple[str, ...]]:
    """The task, the targets of each part as it needs them, and the labels of classes."""
    task = task or infer_own_task(every)
    if task == "classification":
        return task, *own_classes(every)
    return task, [own_numbers(targets) for targets in every], ()


def _encode_any(every: Sequence[Tensor | Array], task: str | None) -> tuple[str, list[Tensor], tuple[str, ...]]:
    """The same for targets that a user's own loss or step reads: they keep their shape, and need be no task's."""
    if all(targets.shape[1:] in ((), (1,)) for targets in every):
        try:
            found, encoded, labels = _encode([targets.reshape(len(targets)) for targets in every], task)
            return found, [own.reshape(old.shape) for own, old in zip(encoded, every, strict=True)], labels
        except DataError:
            if task is not None:
                raise
    elif task is not None:
        raise DataError(f"task = {task!r} in [data] needs one target a sample", hint="leave it out")
    for targets in every:
        if not isinstance(targets, Tensor):
            raise DataError(f"targets must be numbers, got {targets.dtype}", hint="number the labels")
    return "own", [targets for targets in every if isinstance(targets, Tensor)], ()


def check_finite(inputs: Inputs, source: str, purpose: str) -> None:
    """Raises DataError where inputs hold what no model can read."""
    for _, part in tensors(inputs):
        if part.is_floating_point() and not bool(torch.isfinite(part).all()):
            count = int((~torch.isfinite(part)).flatten(1).any(1).sum())
            raise DataError(
                f"{source} returned a NaN or an infinity in the inputs of {count} samples for {purpose}",
                hint="fill them in or drop these samples",
            )


def standardize(data: Data, fitted: Mapping[str, Any]) -> Data:
    """Inputs as float32 and standardized by the training samples: flat ones feature by feature, others as a whole.

    Bytes are pictures, whose 0 to 255 become 0 to 1 whatever the samples. Inputs of few bytes stay as they are until
    samples are taken. A regression target is standardized as that of a table is. `fitted` is an earlier preprocessing
    to be used instead.
    """
    parts = [held(part, "standardizing") for part in (data.train, data.validation, data.test)]
    learned = learn(cast(Tensor, parts[0].inputs), fitted)
    scaling = Scaling.of(learned)
    raw = all(cast(Tensor, part.inputs).dtype in KEPT_RAW for part in parts)
    target: dict[str, Any] = {"name": "targets", "mean": 0.0, "scale": 1.0}
    if data.task == "regression":
        target["mean"], target["scale"] = unit("targets", parts[0].targets.double().numpy(), fitted)

    def standardized(part: Samples) -> Samples:
        targets = part.targets
        if data.task == "regression":
            targets = ((targets.double() - target["mean"]) / target["scale"]).float()
        if raw:
            return replace(part, targets=targets, scaling=scaling)
        return replace(part, inputs=scaling(cast(Tensor, part.inputs)), targets=targets)

    train, validation, test = (standardized(part) for part in parts)
    return replace(
        data,
        train=train,
        validation=validation,
        test=test,
        preprocessing={"kind": "array", **learned, "target": target},
        target_scale=target["scale"],
    )


def scale_bytes(data: Data) -> Data:
    """Pictures of bytes with their 0 to 255 made 0 to 1 when samples are taken; other inputs as they are."""
    parts = [held(part, "scaling") for part in (data.train, data.validation, data.test)]
    if not all(isinstance(part.inputs, Tensor) and part.inputs.dtype == torch.uint8 for part in parts):
        return data
    train, validation, test = (replace(part, scaling=Scaling.of(BYTES)) for part in parts)
    return replace(data, train=train, validation=validation, test=test, preprocessing={"kind": "bytes"})


def as_inputs(values: Tensor | Array) -> Tensor:
    """As they are, except that float64 from NumPy becomes torch's default float32, as in every training script."""
    if isinstance(values, Tensor):
        return values.detach()
    if values.dtype.kind not in "iufb":
        raise DataError(f"inputs must be numbers, got {values.dtype}", hint="turn text and dates into numbers first")
    return _tensor(values)


def _targets(values: Tensor | Array, any_shape: bool) -> Tensor | Array:
    if values.ndim == 2 and values.shape[1] == 1 and not any_shape:
        values = values[:, 0]
    if values.ndim != 1 and not any_shape:
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
