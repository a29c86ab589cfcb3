"""Parzen estimators: mixtures of kernels, one for each of some trials, and of a prior.

A mixture is that of Optuna's `_ParzenEstimator` as TPESampler has it by default (Bergstra et al. 2011, Falkner et al.
2018, Watanabe 2023): the same uniform numbers give the same points to the last bit, and densities are the same but for
rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from tunecli.sampler.kernels import ChoiceKernels, Column, NumberKernels, Rows
from tunecli.sampler.truncnorm import Array, quantile

FULL_WEIGHT = 25
"""So many of the latest trials weigh the same; the older a trial before them, the less it weighs."""


UNSEEN = -700.0
"""What is so far below the highest does not count in a sum, and an exponential that underflows is slow."""


class Mixture:
    """The estimator of these trials over these columns. Points are (points, columns), in Optuna's internal values."""

    def __init__(self, columns: Sequence[Column], rows: Rows) -> None:
        self._weights = weights(len(rows))
        self._kernels = [own.kernels(rows) for own in columns]

    def points(self, shares: Array) -> Array:
        """A point for each column of `shares`, which are uniform numbers in [0, 1).

        The first row decides about the kernels, then comes one for each choice, and then one for each number.
        """
        cumulated = self._weights.cumsum()
        chosen = (cumulated / cumulated[-1]).searchsorted(shares[0], side="right")
        points = np.empty((shares.shape[1], len(self._kernels)))
        rows = iter(shares[1:])
        numbers: list[tuple[int, NumberKernels]] = []
        for place, own in enumerate(self._kernels):
            if isinstance(own, ChoiceKernels):
                points[:, place] = own.choose(chosen, next(rows))
            else:
                numbers.append((place, own))
        if numbers:
            mus = np.stack([own.mus[chosen] for _, own in numbers])  # (numbers, points)
            sigmas = np.stack([own.sigmas[chosen] for _, own in numbers])
            low = np.array([[own.scale.low] for _, own in numbers])
            high = np.array([[own.scale.high] for _, own in numbers])
            scaled = quantile(np.stack(list(rows)), (low - mus) / sigmas, (high - mus) / sigmas) * sigmas + mus
            for (place, own), line in zip(numbers, scaled, strict=True):
                points[:, place] = own.scale.outward(line)
        return points

    def log_densities(self, points: Array) -> Array:
        """The logarithm of the density at each point."""
        start = np.log(self._weights)
        for own in self._kernels:
            start = start - own.log_norms
        terms = np.repeat(start[None], len(points), axis=0)  # (points, kernels)
        for own, internal in zip(self._kernels, points.T, strict=True):
            own.multiply(terms, internal)
        highest = terms.max(axis=1, keepdims=True)
        highest[np.isneginf(highest)] = 0.0
        terms -= highest
        np.maximum(terms, UNSEEN, out=terms)
        return np.log(np.exp(terms, out=terms).sum(axis=1)) + highest[:, 0]  # type: ignore[no-any-return]


@lru_cache(16)
def weights(count: int) -> Array:
    """The weights of so many observations, from the oldest on, and of the prior, which add up to 1."""
    own = np.ones(count + 1)
    if count >= FULL_WEIGHT:
        own[: count - FULL_WEIGHT] = np.linspace(1.0 / count, 1.0, num=count - FULL_WEIGHT)
    own /= own.sum()
    return own
