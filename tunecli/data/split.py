"""Which samples are train, validation and test: the same for one seed on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tunecli.errors import DataError
from tunecli.trial import derive_seed

PARTS = ("train", "validation", "test")

Array = np.ndarray[Any, Any]


def split_indices(
    samples: int, split: Sequence[float], seed: int, codes: Array | None, labels: Sequence[str] = ()
) -> tuple[tuple[Array, ...], tuple[str, ...]]:
    """Which samples are train, validation and test, in rising order, stratified by class where that is possible.

    Two shares split into train and validation alone. `codes` are the samples' class numbers, None for regression, and
    `labels` the names of the classes. The same for one seed on every machine, by NumPy's frozen RandomState; the split
    is that of scikit-learn's `train_test_split`, whose import takes longest of all before a first tick, but torch's.
    Notices say where it is not stratified, and why.
    """
    total = float(sum(split))
    held_out = [round(samples * share / total) for share in split[1:]]
    sizes = [samples - sum(held_out), *held_out]
    if min(sizes) < 1:
        names = f"{', '.join(PARTS[: len(sizes) - 1])} and {PARTS[len(sizes) - 1]}"
        raise DataError(
            f"{samples} samples are too few for a split of {':'.join(f'{part:g}' for part in split)}",
            hint=f"each of {names} needs at least one sample",
        )
    plain = _split(samples, held_out, seed, None)
    assert plain is not None
    if codes is None:
        return plain, ()
    classes, counts = np.unique(codes, return_counts=True)
    rare = int(counts.argmin())
    reason = f"class {labels[classes[rare]]!r} has {counts[rare]} of {samples} samples"
    smallest = min(sizes)
    if smallest < len(classes):
        reason = f"a part of {smallest} sample{'s' * (smallest != 1)} cannot hold {len(classes)} classes"
    elif counts[rare] >= len(sizes) and (stratified := _split(samples, held_out, seed, codes)) is not None:
        return stratified, ()
    return plain, (f"the split is not stratified: {reason}",)


def _split(samples: int, held_out: Sequence[int], seed: int, codes: Array | None) -> tuple[Array, ...] | None:
    """Parts cut off from the end: test first, then validation; the rest trains. None where the classes do not last."""
    drawn = derive_seed(seed, 0, "split") % 2**32
    rest, parts = np.arange(samples), []
    for size in reversed(held_out):
        random = np.random.RandomState(drawn)
        if codes is None:
            order = random.permutation(len(rest))
            rest, part = rest[order[size:]], rest[order[:size]]
        elif (cut := _stratified(codes[rest], size, random)) is not None:
            rest, part = rest[cut[0]], rest[cut[1]]
        else:
            return None
        parts.append(np.sort(part))
    return np.sort(rest), *reversed(parts)


def _stratified(codes: Array, size: int, random: np.random.RandomState) -> tuple[Array, Array] | None:
    """Places of the samples that stay and of those cut off, each class in its share; None where one is too small."""
    _, class_of, counts = np.unique(codes, return_inverse=True, return_counts=True)
    if counts.min() < 2 or min(size, len(codes) - size) < len(counts):
        return None
    stay = _shares(counts, len(codes) - size, random)
    off = _shares(counts - stay, size, random)
    rest, part = [], []
    for own, staying, going in zip(range(len(counts)), stay, off, strict=True):
        (places,) = np.nonzero(class_of == own)
        shuffled = places[random.permutation(len(places))]
        rest.append(shuffled[:staying])
        part.append(shuffled[staying : staying + going])
    return random.permutation(np.concatenate(rest)), np.concatenate(part)


def _shares(counts: Array, draws: int, random: np.random.RandomState) -> Array:
    """How many of each class are among so many draws: its share, rounded so that they add up; equals by chance."""
    exact = counts / counts.sum() * draws
    whole = np.floor(exact)
    missing = int(draws - whole.sum())
    for remainder in np.unique(exact - whole)[::-1]:
        if missing == 0:
            break
        (equals,) = np.nonzero(exact - np.floor(exact) == remainder)
        taken = random.choice(equals, size=min(len(equals), missing), replace=False)
        whole[taken] += 1
        missing -= len(taken)
    shares: Array = whole.astype(int)
    return shares
