"""Datasets -> Data: what their items are, split, and read into memory where that is asked for and changes nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import Subset, default_collate

from tunecli.data import Data
from tunecli.data.items import Items, Reading, evaluation_seed
from tunecli.data.randomness import seeded
from tunecli.data.raw import Stream, StreamPart
from tunecli.data.samples import LAST, NOWHERE, Samples, target_key
from tunecli.data.split import PARTS, split_indices
from tunecli.data.targets import own_classes
from tunecli.errors import DataError, SourceError
from tunecli.machine import cores

CHUNK = 256
"""Items read at once where all of them are."""

SLOW = 0.001
"""Seconds to read an item that a user is told of: more than most of the models here train for."""

TIMED = 8
"""Items that are read before they are called slow."""

_HINT = "an item is a pair (input, target), a tuple that ends with its target, or a dict with its target in it"


def prepare(raw: Stream, split: Sequence[float], seed: int, task: str | None, targets: str) -> Data:
    """Items as they are, split where they are one set. `targets` as in `Wishes`. Raises DataError, SourceError."""
    for name, part in zip(("train", "test") if len(raw.parts) == 2 else PARTS, raw.parts, strict=False):
        if len(part.dataset) == 0:
            where = f" for {name}" if len(raw.parts) > 1 else ""
            raise DataError(f"{raw.name} returned no samples{where}", hint="each part needs at least one sample")
    drawn = evaluation_seed(seed)
    reading = _reading(raw, raw.parts[0], targets, drawn)
    sample = _sample(reading, raw.parts[0], drawn)
    task = _task(reading, sample, task, targets)
    labels: tuple[str, ...] = ()
    codes: list[Tensor] = []
    if task == "classification" and reading.target_at != NOWHERE:
        codes, labels = own_classes(
            [_all_targets(replace(reading, collate=part.collate), part, drawn) for part in raw.parts]
        )
    notices = raw.notices
    parts = [(part, torch.arange(len(part.dataset))) for part in raw.parts]
    if len(parts) < len(PARTS):
        (whole, _), *tested = parts
        numbers = codes[0].numpy() if labels else None
        indices, told = split_indices(len(whole.dataset), split[:2] if tested else split, seed, numbers, labels)
        parts = [*((whole, torch.from_numpy(index)) for index in indices), *tested]
        notices = (*notices, *told)
    features = Samples(sample.inputs, sample.targets).features if _are_tensors(sample.inputs) else ()
    train, validation, test = (
        _items(replace(reading, collate=part.collate, task=task), part, index, features, drawn) for part, index in parts
    )
    notices = (*notices, *_own_randomness(train), *_slow(train))
    return Data(raw.name, task, train, validation, test, labels, preprocessing={"kind": "none"}, notices=notices)


def _items(reading: Reading, part: StreamPart, index: Tensor, features: Any, drawn: Any) -> Items:
    readers = reading.readers(part.dataset, part.workers)
    return Items(part.dataset, index, reading, features, drawn, readers=readers)


def _reading(raw: Stream, part: StreamPart, targets: str, drawn: Any) -> Reading:
    """Where the targets stand in a batch, seen at the first two items."""
    reading = Reading(raw.source, raw.path, part.collate, NOWHERE, None)
    batch = reading.batch(part.dataset, range(min(2, len(part.dataset))), drawn)
    if targets == "optional":
        return reading
    if isinstance(batch, Mapping):
        key = target_key(batch, raw.target, raw.source, alone=False)
        return replace(reading, target_at=key)
    if isinstance(batch, tuple | list) and len(batch) >= 2:
        return replace(reading, target_at=None if len(batch) == 2 else LAST)
    raise DataError(f"{raw.source} gives items that are a {type(batch).__name__} when collated", hint=_HINT)


def _sample(reading: Reading, part: StreamPart, drawn: Any) -> Samples:
    count = min(2, len(part.dataset))
    return reading.samples(reading.batch(part.dataset, range(count), drawn), count)


def _task(reading: Reading, sample: Samples, task: str | None, targets: str) -> str:
    if reading.target_at == NOWHERE:
        return task or "own"
    shape = tuple(sample.targets.shape[1:])
    if shape not in ((), (1,)):
        if targets == "one":
            raise DataError(
                f"{reading.source} gives targets of shape {shape} a sample", hint="each sample has one target"
            )
        return "own"
    return task or ("regression" if sample.targets.is_floating_point() else "classification")


def _all_targets(reading: Reading, part: StreamPart, drawn: Any) -> Tensor:
    """The class numbers of all items: the Dataset's own list where it has one that agrees, else read item by item."""
    items = _items(reading, part, torch.arange(len(part.dataset)), (), drawn)
    listed, apart = _listed_targets(part.dataset), max(1, len(items) // 8)
    if listed is not None and torch.equal(listed[::apart], items.take(slice(None, None, apart)).targets.flatten()):
        return listed
    chunks = (slice(low, low + CHUNK) for low in range(0, len(items), CHUNK))
    return torch.cat([chunk.targets.flatten() for chunk in items.stream(chunks)])


def _listed_targets(dataset: Any) -> Tensor | None:
    """`targets` as torchvision's Datasets have them."""
    if type(dataset) is Subset:
        whole = _listed_targets(dataset.dataset)
        return None if whole is None else whole[list(dataset.indices)]
    try:
        listed = torch.as_tensor(getattr(dataset, "targets", None))
    except (TypeError, ValueError, RuntimeError):
        return None
    return listed if listed.shape == (len(dataset),) else None


def _are_tensors(inputs: Any) -> bool:
    """Whether it is a tensor, or a tuple or a dict of them: a step may be given anything."""
    parts = inputs.values() if isinstance(inputs, dict) else inputs if isinstance(inputs, tuple) else (inputs,)
    return all(isinstance(part, Tensor) for part in parts)


def _own_randomness(train: Items) -> tuple[str, ...]:
    """A notice where an item differs from one reading to the next with all seeds the same."""
    places = [int(train.index[place]) for place in range(min(4, len(train)))]
    first, second = (train.reading.batch(train.dataset, places, train.seed) for _ in range(2))
    if _equal(first, second):
        return ()
    return (
        f"{train.reading.source}: items differ from reading to reading, so results depend on the order of trials; "
        "draw from the generators of torch, NumPy or Python, which are seeded for each item",
    )


def _slow(train: Items) -> tuple[str, ...]:
    """A notice where training would wait for its items. Whoever asked for readers has them."""
    if train.readers is not None:
        return ()
    seconds = float("inf")  # the least of several: another process may take its turn in the middle of one
    with seeded(0):
        for place in (train.index[:4].tolist() * TIMED)[:TIMED]:
            began = time.monotonic()
            train.dataset[place]
            seconds = min(seconds, time.monotonic() - began)
    if seconds < SLOW:
        return ()
    return (
        f"{train.reading.source}: an item takes {seconds * 1e3:.1f} ms to read; data.workers = {cores()} "
        "reads ahead in processes of their own",
    )


def _equal(first: Any, second: Any) -> bool:
    pairs = list(zip(tree_leaves(first), tree_leaves(second), strict=True))
    return all(
        torch.equal(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else bool(one == other)
        for one, other in pairs
    )


def read_all(source: str, path: Path, part: StreamPart, seed: int) -> Any:
    """All items collated, or a text that says why they cannot be kept. One whose items differ is never kept."""
    if part.collate is not default_collate:
        return "its collate_fn makes batches of its own"
    reading = Reading(source, path, part.collate, NOWHERE, None)
    places = range(len(part.dataset))
    try:
        first, second = (reading.batch(part.dataset, places, evaluation_seed(own)) for own in (seed, seed + 1))
    except SourceError as error:
        if "cannot be collated" in error.message:
            return "its items have different shapes"
        raise
    if not all(isinstance(leaf, Tensor) for leaf in tree_leaves(first)):
        return "its items are not tensors alone"
    return first if _equal(first, second) else "its items differ from one reading to the next"
