"""The digits in two halves: 0 to 4 with all samples, 5 to 9 with few."""

import numpy as np
from sklearn.datasets import load_digits


def low_half():
    return _half(range(5))


def high_half(samples=20, seed=0):
    """`samples` a class to train on, a fifth of them as validation; all others are the test split."""
    pixels, labels = _half(range(5, 10))
    draw = np.random.default_rng(seed)
    parts = {"train": [], "validation": [], "test": []}
    for label in range(5, 10):
        places = draw.permutation(np.flatnonzero(labels == label))
        parts["validation"].append(places[: samples // 5])
        parts["train"].append(places[samples // 5 : samples])
        parts["test"].append(places[samples:])
    return tuple((pixels[np.concatenate(own)], labels[np.concatenate(own)].astype(str)) for own in parts.values())


def _half(digits):
    pixels, labels = load_digits(return_X_y=True)
    own = np.isin(labels, list(digits))
    return (pixels[own] / 16).astype(np.float32), labels[own]
