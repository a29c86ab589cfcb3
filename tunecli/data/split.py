"""Which samples are train, validation and test: the same for one seed on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from sklearn.model_selection import train_test_split

from tunecli.errors import DataError
from tunecli.trial import derive_seed

PARTS = ("train", "validation", "test")

Array = np.ndarray[Any, Any]


def split_indices(
    samples: int, split: Sequence[float], seed: int, codes: Array | None, labels: Sequence[str] = ()
) -> tuple[tuple[Array, ...], tuple[str, ...]]:
    """Which samples are train, validation and test, in rising order, stratified by class where that is possible.

    Two shares split into train and validation alone. `codes` are the samples' class numbers, None for regression, and
    `labels` the names of the classes. The same for one seed on every machine (scikit-learn's splitter over NumPy's
    frozen RandomState). Notices say where it is not stratified, and why.
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
    if codes is None:
        return _split(samples, held_out, seed, None), ()
    classes, counts = np.unique(codes, return_counts=True)
    rare = int(counts.argmin())
    reason = f"class {labels[classes[rare]]!r} has {counts[rare]} of {samples} samples"
    smallest = min(sizes)
    if smallest < len(classes):
        reason = f"a part of {smallest} samples cannot hold {len(classes)} classes"
    elif counts[rare] >= len(sizes):
        # A class that two parts have used up is an error of scikit-learn's, too.
        with suppress(ValueError):
            return _split(samples, held_out, seed, codes), ()
    return _split(samples, held_out, seed, None), (f"the split is not stratified: {reason}",)


def _split(samples: int, held_out: Sequence[int], seed: int, codes: Array | None) -> tuple[Array, ...]:
    """Parts cut off from the end: test first, then validation; the rest trains."""
    drawn = derive_seed(seed, 0, "split") % 2**32
    rest, parts = np.arange(samples), []
    for size in reversed(held_out):
        stratify = None if codes is None else codes[rest]
        rest, part = train_test_split(rest, test_size=size, random_state=drawn, stratify=stratify)
        parts.append(np.sort(part))
    return np.sort(rest), *reversed(parts)
