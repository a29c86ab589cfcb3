"""Parzen estimators: mixtures of kernels, one for each of some trials, and of a prior.

A mixture is that of Optuna's `_ParzenEstimator` as TPESampler has it by default (Bergstra et al. 2011, Falkner et al.
2018, Watanabe 2023): the same uniform numbers give the same points to the last bit, and densities are the same but for
rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np

from tunecli.sampler.kernels import ChoiceKernels, Column, NumberKernels, Rows
from tunecli.sampler.truncnorm import Array, Truncated

FULL_WEIGHT = 25
"""So many of the latest trials weigh the same; the older a trial before them, the less it weighs."""


UNSEEN = -700.0
"""What is so far below the highest does not count in a sum, and an exponential that underflows is slow."""


AT_ONCE = 1024
"""So many kernels have terms that stay in the cache of a core."""


class Mixture:
    """The estimator of these trials over these columns. Points are (points, columns), in Optuna's internal values."""

    def __init__(self, columns: Sequence[Column], rows: Rows) -> None:
        self._weights = weights(len(rows))
        self._kernels = [own.kernels(rows) for own in columns]

    @cached_property
    def _numbers(self) -> list[tuple[int, NumberKernels]]:
        return [(place, own) for place, own in enumerate(self._kernels) if isinstance(own, NumberKernels)]

    @cached_property
    def _bells(self) -> tuple[Truncated, Array, Array]:
        """All normal distributions, (numbers, kernels), and what they are shifted and stretched by."""
        mus = np.stack([own.mus for _, own in self._numbers])
        sigmas = np.stack([own.sigmas for _, own in self._numbers])
        low = np.array([[own.scale.low] for _, own in self._numbers])
        high = np.array([[own.scale.high] for _, own in self._numbers])
        return Truncated.between((low - mus) / sigmas, (high - mus) / sigmas), mus, sigmas

    def points(self, shares: Array) -> Array:
        """A point for each column of `shares`, which are uniform numbers in [0, 1).

        The first row decides about the kernels, then comes one for each choice, and then one for each number.
        """
        cumulated = self._weights.cumsum()
        chosen = (cumulated / cumulated[-1]).searchsorted(shares[0], side="right")
        points = np.empty((shares.shape[1], len(self._kernels)))
        rows = iter(shares[1:])
        for place, own in enumerate(self._kernels):
            if isinstance(own, ChoiceKernels):
                points[:, place] = own.choose(chosen, next(rows))
        if self._numbers:
            bells, mus, sigmas = self._bells
            scaled = bells.at(chosen).quantile(np.stack(list(rows))) * sigmas[:, chosen] + mus[:, chosen]
            for (place, own), line in zip(self._numbers, scaled, strict=True):
                points[:, place] = own.scale.outward(line)
        return points

    @cached_property
    def _factors(self) -> Array:
        """What the powers of points are multiplied by, and one: (factors, kernels)."""
        real = [own for _, own in self._numbers if not own.scale.whole]
        factors = np.empty((2 * len(real) + 1, len(self._weights)))
        constant = np.log(self._weights, out=factors[-1])
        for _, own in self._numbers:
            constant -= own.log_norms
        for place, own in enumerate(real):
            factors[2 * place], factors[2 * place + 1], rest = own.quadratic()
            constant += rest
        return factors

    def log_densities(self, points: Array) -> Array:
        """The logarithm of the density at each point."""
        factors = self._factors
        powers = np.ones((len(points), len(factors)))
        shares, added, place = [], [], 0
        for own, internal in zip(self._kernels, points.T, strict=True):
            if isinstance(own, ChoiceKernels):
                shares.append((own.log_shares(internal), own.seen))
            elif own.scale.whole:
                added.append(own.log_bins(internal))
            else:
                inward = own.scale.inward(internal)
                powers[:, place + 1] = centred = own.scale.centred(inward)
                np.square(centred, out=powers[:, place])
                place += 2
                if (cut := own.cut(inward)) is not None:
                    added.append(cut)
        sums = []
        for begin in range(0, factors.shape[1], AT_ONCE):
            some = slice(begin, begin + AT_ONCE)
            terms = powers @ factors[:, some]  # (points, kernels)
            for log_shares, seen in shares:
                terms += log_shares.take(seen[some], axis=1)
            for whole in added:
                terms += whole[:, some]
            sums.append(log_sums(terms))
        return sums[0] if len(sums) == 1 else np.logaddexp.reduce(sums)


def log_sums(terms: Array) -> Array:
    """The logarithm of the sum of each row's exponentials; `terms` are used up."""
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
