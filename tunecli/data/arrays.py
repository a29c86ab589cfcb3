"""Arrays and tensors -> Data: shapes and targets checked, split, and standardized where they come from a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from tunecli.data import Data, Samples, each, held, tensors
from tunecli.data.mapped import Mapped, Stored, as_tensor, streams
from tunecli.data.order import Chunked
from tunecli.data.raw import Arrays
from tunecli.data.samples import Inputs
from tunecli.data.scaling import BYTES, KEPT_RAW, Scaling
from tunecli.data.split import PARTS, split_indices
from tunecli.data.targets import infer_own_task, own_classes, own_numbers, unit
from tunecli.errors import DataError
from tunecli.trial import derive_seed

Array = np.ndarray[Any, Any]


def prepare(
    raw: Arrays, split: Sequence[float], seed: int, task: str | None, *, any_targets: bool, stream: bool | None = None
) -> Data:
    """Samples as they are, split where they do not come in three parts. Raises DataError.

    With `any_targets` they may be (N, ...), and are left as they are where they are no task's: the task is "own" then.
    Inputs that are memory-mapped stay in their files as `stream` says, or where they are large (`mapped.streams`).
    """
    mapped = streams(stream, in_files(raw.parts))
    if stream and not in_files(raw.parts):
        raise DataError(
            f"data.stream = true needs inputs that are memory-mapped, those of {raw.name} are not",
            hint='return np.load("inputs.npy", mmap_mode="r"), or leave data.stream out',
        )
    read = partial(as_inputs, mapped=mapped)
    pairs = [(each(read, inputs), _targets(targets, any_targets)) for inputs, targets in raw.parts]
    every = [targets for _, targets in pairs]
    for name, targets in zip(("train", "test") if len(every) == 2 else PARTS, every, strict=False):
        if len(targets) == 0:
            where = f" for {name}" if len(every) > 1 else ""
            raise DataError(f"{raw.name} returned no samples{where}", hint="each part needs at least one sample")
    notices: tuple[str, ...] = (_stays(raw),) if mapped else ()
    task, encoded, labels = _encode_any(every, task) if any_targets else _encode(every, task)
    weights = [None] * len(pairs) if raw.weights is None else [torch.from_numpy(own).float() for own in raw.weights]
    samples = [
        Samples(inputs, targets, own, raw.target_at, chunked=_chunked(inputs, raw.name, seed) if mapped else None)
        for (inputs, _), targets, own in zip(pairs, encoded, weights, strict=True)
    ]
    if len(samples) < len(PARTS):
        whole, *tested = samples
        shares = split if not tested else split[:2]
        codes = whole.targets.flatten().numpy() if labels else None
        parts, told = split_indices(len(whole), shares, seed, codes, labels)
        notices += told
        samples = [*(whole.part(torch.from_numpy(part)) for part in parts), *tested]
    for name, part in zip(PARTS, samples, strict=True):
        if part.features != samples[0].features:
            raise DataError(
                f"{raw.name}: samples for {name} have shape {part.features}, for training {samples[0].features}",
                hint="all three parts go through one model",
            )
        if mapped and _kinds(part.inputs) != _kinds(samples[0].inputs):
            raise DataError(f"{raw.name}: the parts hold numbers of different types", hint="save them all as one type")
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


def in_files(parts: Sequence[tuple[Any, Any]]) -> int:
    """The bytes of inputs that are memory-mapped; 0 where some are not."""
    found: list[int] = []
    for inputs, _ in parts:
        leaves = inputs.values() if isinstance(inputs, dict) else inputs if isinstance(inputs, tuple) else (inputs,)
        stored = [Stored.of(own) if isinstance(own, np.ndarray) else None for own in leaves]
        found += [0 if own is None else own.size for own in stored]
    return sum(found) if all(found) else 0


def _stays(raw: Arrays) -> str:
    size = in_files(raw.parts) / 2**20
    told = f"{size:,.0f} MiB" if size < 1024 else f"{size / 1024:,.1f} GiB"
    return f"{raw.name}: inputs of {told} stay in their file, read in chunks that each trial shuffles"


def _chunked(inputs: Inputs, name: str, seed: int) -> Chunked:
    leaves = [cast(Mapped, part) for _, part in tensors(inputs)]
    if len({len(part) for part in leaves}) > 1:
        raise DataError(f"{name}: its inputs have different lengths", hint="each sample has one of each input")
    return Chunked.of(len(leaves[0]), sum(part.sample_bytes for part in leaves), derive_seed(seed, 0, "pieces"))


def _kinds(inputs: Inputs) -> list[torch.dtype]:
    return [part.dtype for _, part in tensors(inputs)]


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
        if not part.is_floating_point():
            continue
        chunks = part.chunks() if isinstance(part, Mapped) else (part,)
        count = sum(_not_finite(own) for own in chunks)
        if count:
            of = "1 sample" if count == 1 else f"{count} samples"
            raise DataError(
                f"{source} returned a NaN or an infinity in the inputs of {of} for {purpose}",
                hint="fill them in or drop these samples",
            )


def _not_finite(part: Tensor) -> int:
    """How many samples hold a NaN or an infinity."""
    finite = torch.isfinite(part)
    return 0 if bool(finite.all()) else int((~finite).flatten(1).any(1).sum())


def standardize(data: Data, fitted: Mapping[str, Any], how: Callable[[Tensor], Mapping[str, Any]] | None) -> Data:
    """Inputs as float32 by the mean and the scale that `how` tells of the training samples, None for them as they are;
    a regression target standardized, as that of a table is.

    Inputs of few bytes stay as they are until samples are taken. `fitted` is an earlier preprocessing, whose target is
    used instead.
    """
    parts = [held(part, "standardizing") for part in (data.train, data.validation, data.test)]
    learned = None if how is None else how(cast(Tensor, parts[0].inputs))
    scaling = None if learned is None else Scaling.of(learned)
    raw = scaling is None or data.streamed or all(cast(Tensor, part.inputs).dtype in KEPT_RAW for part in parts)
    target: dict[str, Any] = {"name": "targets", "mean": 0.0, "scale": 1.0}
    if data.task == "regression":
        target["mean"], target["scale"] = unit("targets", parts[0].targets.double().numpy(), fitted)

    def standardized(part: Samples) -> Samples:
        targets = part.targets
        if data.task == "regression":
            targets = ((targets.double() - target["mean"]) / target["scale"]).float()
        if raw:
            return replace(part, targets=targets, scaling=scaling)
        assert scaling is not None
        return replace(part, inputs=scaling(cast(Tensor, part.inputs)), targets=targets)

    train, validation, test = (standardized(part) for part in parts)
    return replace(
        data,
        train=train,
        validation=validation,
        test=test,
        preprocessing={"kind": "as_is" if learned is None else "array", **(learned or {}), "target": target},
        target_scale=target["scale"],
    )


def scale_bytes(data: Data) -> Data:
    """Pictures of bytes with their 0 to 255 made 0 to 1 when samples are taken; other inputs as they are."""
    parts = [held(part, "scaling") for part in (data.train, data.validation, data.test)]
    if any(isinstance(part.inputs, tuple | dict) or _kinds(part.inputs) != [torch.uint8] for part in parts):
        return data
    train, validation, test = (replace(part, scaling=Scaling.of(BYTES)) for part in parts)
    return replace(data, train=train, validation=validation, test=test, preprocessing={"kind": "bytes"})


def as_inputs(values: Tensor | Array, mapped: bool = False) -> Tensor:
    """As they are, or, where they are to stay in their file, what stands in their place until samples are taken."""
    if isinstance(values, Tensor):
        return values.detach()
    if values.dtype.kind not in "iufb":
        raise DataError(f"inputs must be numbers, got {values.dtype}", hint="turn text and dates into numbers first")
    stored = Stored.of(values) if mapped else None
    return as_tensor(values) if stored is None else cast(Tensor, Mapped([(stored, None)]))


def _targets(values: Tensor | Array, any_shape: bool) -> Tensor | Array:
    if values.ndim == 2 and values.shape[1] == 1 and not any_shape:
        values = values[:, 0]
    if values.ndim != 1 and not any_shape:
        raise DataError(
            f"targets must be (samples,) or (samples, 1), got {tuple(values.shape)}",
            hint="each sample has one target, a class its number, targets.argmax(1); a loss of your own reads others",
        )
    if isinstance(values, Tensor):
        return values.detach().cpu()
    return as_tensor(values) if values.dtype.kind in "iuf" else values
