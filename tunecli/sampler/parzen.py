"""Parzen estimators: mixtures of kernels, one for each of some trials, and of a prior.

A mixture is that of Optuna's `_ParzenEstimator` as TPESampler has it by default (Bergstra et al. 2011, Falkner et al.
2018, Watanabe 2023): the same uniform numbers give the same points to the last bit, and densities are the same but for
rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from tunecli.sampler.kernels import PRIOR, ChoiceKernels, Column, Mask, NumberKernels
from tunecli.sampler.truncnorm import Array, Places, Truncated

FULL_WEIGHT = 25
"""So many of the latest trials weigh the same; the older a trial before them, the less it weighs."""


UNSEEN = -700.0
"""What is so far below the highest does not count in a sum, and an exponential that underflows is slow."""


AT_ONCE = 1024
"""So many kernels have terms that stay in the cache of a core."""

_LAST = np.array([PRIOR])


@dataclass(frozen=True, slots=True)
class Points:
    """Points of some columns, (points, columns), in Optuna's internal values, and the powers of their real numbers by
    which the factors of kernels are multiplied, (points, factors). `strays` are the columns in which some are outside
    of their range by rounding."""

    internal: Array
    powers: Array
    strays: frozenset[int]

    def some(self, which: slice) -> Points:
        return Points(self.internal[which], self.powers[which], self.strays)


class Mixture:
    """The estimator of these trials over these columns."""

    def __init__(self, columns: Sequence[Column], mask: Mask) -> None:
        rows = np.concatenate((mask.nonzero()[0], _LAST))
        self._count = len(rows) - 1
        self._kernels = [own.kernels(mask, rows) for own in columns]
        self._choices = [(place, own) for place, own in enumerate(self._kernels) if isinstance(own, ChoiceKernels)]
        self.numbers = [(place, own) for place, own in enumerate(self._kernels) if isinstance(own, NumberKernels)]

    @cached_property
    def _cumulated(self) -> Array:
        """The weights up to each kernel."""
        cumulated = weights(self._count).cumsum()
        cumulated /= cumulated[-1]
        return cumulated

    def begin(self, shares: Array) -> tuple[Array, Places]:
        """Points, their choices drawn, and the kernels that their numbers are to be drawn from."""
        chosen = self._cumulated.searchsorted(shares[0], side="right")
        points = np.empty((len(chosen), len(self._kernels)))
        for row, (place, own) in enumerate(self._choices, start=1):
            points[:, place] = own.choose(chosen, shares[row])
        return points, chosen

    def finish(self, points: Array, numbers: Array) -> Points:
        """The points with these numbers."""
        powers = np.ones((len(points), 3 * len(self.numbers) + 1))
        strays = set()
        for row, (place, own) in enumerate(self.numbers):
            points[:, place] = own.scale.outward(numbers[row])
            if not own.scale.whole:
                inward = own.scale.inward(points[:, place])
                powers[:, 3 * row + 1] = centred = own.scale.centred(inward)
                np.square(centred, out=powers[:, 3 * row])
                if inward.min() < own.scale.low or inward.max() > own.scale.high:
                    strays.add(place)
        return Points(points, powers, frozenset(strays))

    def log_densities(self, points: Points) -> Array:
        """The logarithm of the density at each point."""
        factors = np.concatenate((*(own.factors for _, own in self.numbers), log_weights(self._count)))
        shares, added = [], []
        for place, own in enumerate(self._kernels):
            internal = points.internal[:, place]
            if isinstance(own, ChoiceKernels):
                shares.append((own.log_shares(internal), own.seen))
            elif own.scale.whole:
                added.append(own.log_bins(internal))
            elif place in points.strays:
                added.append(own.cut(own.scale.inward(internal)))
        sums = []
        for begin in range(0, factors.shape[1], AT_ONCE):
            some = slice(begin, begin + AT_ONCE)
            terms = points.powers @ factors[:, some]  # (points, kernels)
            for log_shares, seen in shares:
                terms += log_shares.take(seen[some], axis=1)
            for whole in added:
                terms += whole[:, some]
            sums.append(log_sums(terms))
        return sums[0] if len(sums) == 1 else np.logaddexp.reduce(sums)


def draw(mixtures: Sequence[Mixture], shares: Sequence[Array], each: int) -> list[Points]:
    """Points of each mixture, one for each column of its `shares`, which are uniform numbers in [0, 1): all have as
    many, `each` of them a proposal's.

    The first row of shares decides about the kernels, then comes one for each choice, and then one for each number.
    """
    begun = [own.begin(rows) for own, rows in zip(mixtures, shares, strict=True)]
    counts = [len(own.numbers) for own in mixtures]
    numbers = [kernels for own in mixtures for _, kernels in own.numbers]
    if not numbers:
        return [own.finish(points, shares[0][:0]) for own, (points, _) in zip(mixtures, begun, strict=True)]
    sizes = np.array([len(own.mus) for own in numbers])
    bells = Truncated.between(
        np.concatenate([own.mus for own in numbers]),
        np.concatenate([own.sigmas for own in numbers]),
        np.repeat([own.scale.low for own in numbers], sizes),
        np.repeat([own.scale.high for own in numbers], sizes),
    )
    mixture = np.repeat(np.arange(len(mixtures)), counts)
    chosen: Places = np.stack([kernels for _, kernels in begun])[mixture] + (sizes.cumsum() - sizes)[:, None]
    q = np.concatenate([rows[len(rows) - count :] for rows, count in zip(shares, counts, strict=True)])
    # Numbers that one proposal has of one mixture are found together.
    proposal = np.arange(q.shape[1]) // each
    found = bells.at(chosen).quantile(q, mixture[:, None] * q.shape[1] + proposal)
    rest = np.split(found, np.cumsum(counts)[:-1])
    return [own.finish(points, rows) for own, (points, _), rows in zip(mixtures, begun, rest, strict=True)]


def log_sums(terms: Array) -> Array:
    """The logarithm of the sum of each row's exponentials; `terms` are used up."""
    highest = terms.max(axis=1, keepdims=True)
    highest[highest == -np.inf] = 0.0
    terms -= highest
    np.maximum(terms, UNSEEN, out=terms)
    return np.log(np.exp(terms, out=terms).sum(axis=1)) + highest[:, 0]  # type: ignore[no-any-return]


@lru_cache(64)
def weights(count: int) -> Array:
    """The weights of so many observations, from the oldest on, and of the prior, which add up to 1."""
    own = np.ones(count + 1)
    if (old := count - FULL_WEIGHT) > 0:
        # numpy's `linspace`, but for what it takes longer for.
        own[:old] = np.arange(old) * ((1.0 - 1.0 / count) / max(old - 1, 1)) + 1.0 / count
        if old > 1:
            own[old - 1] = 1.0
    own /= own.sum()
    return own


@lru_cache(64)
def log_weights(count: int) -> Array:
    """Their logarithms, (1, count + 1)."""
    return np.log(weights(count))[None]
