"""The kernels of one hparam: what each trial had of it, made wide; and the prior, which covers the whole range.

They are those of Optuna's `_ParzenEstimator` as TPESampler has it by default. What does not change from one proposal
to the next is kept, for there may be thousands of trials: their order, and by what each kernel is divided.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunecli.sampler.truncnorm import LOG_ROOT_2PI, Array, log_mass
from tunecli.space import Choice, Float, Int, Range

Rows = NDArray[np.intp]
"""Numbers of trials, ascending. Kernels are in this order, the prior last."""


FEW = 200
"""Fewer trials than these are sorted faster than picked out of those that are sorted."""


class Scale:
    """Numbers as kernels see them: by the logarithm where the range has one; a whole number is a bin as wide as 1."""

    def __init__(self, range_: Float | Int) -> None:
        self.range, self.log, self.whole = range_, range_.log, isinstance(range_, Int)
        half = 0.5 if self.whole else 0.0
        low, high = range_.low - half, range_.high + half
        self.low, self.high = (math.log(low), math.log(high)) if self.log else (low, high)
        # The same, but numpy's logarithm and the one above may differ in the last bit: Optuna has both, each in its
        # place.
        self.prior = (float(np.log(low)), float(np.log(high))) if self.log else (low, high)

    def inward(self, internal: Array) -> Array:
        return np.log(internal) if self.log else internal

    def outward(self, points: Array) -> Array:
        points = np.exp(points) if self.log else points
        low, high = self.range.low, self.range.high
        return np.clip(low + np.round(points - low), low, high) if self.whole else points


@dataclass(frozen=True, slots=True)
class NumberKernels:
    """Truncated normal distributions. `log_norms` is what the logarithm of each is less by than that of its bell."""

    scale: Scale
    mus: Array
    sigmas: Array
    log_norms: Array

    def multiply(self, log_densities: Array, internal: Array) -> None:
        """Take the bells at these points into account; `log_densities` is (points, kernels)."""
        if self.scale.whole:
            log_densities += self._log_bins(internal)
            return
        points = self.scale.inward(internal)
        z = points[:, None] - self.mus
        z *= math.sqrt(0.5) / self.sigmas
        np.square(z, out=z)
        log_densities -= z
        for place in np.flatnonzero((points < self.scale.low) | (points > self.scale.high)):
            # By rounding alone, and then of some kernels only.
            z, a, b = ((edge - self.mus) / self.sigmas for edge in (points[place], self.scale.low, self.scale.high))
            log_densities[place, (z < a) | (z > b)] = -np.inf

    def _log_bins(self, internal: Array) -> Array:
        """The mass of each bin in each bell. Whole numbers are often the same, and so then are their kernels."""
        bins, bin_of = np.unique(internal, return_inverse=True)
        order = np.lexsort((self.sigmas, self.mus))
        mus, sigmas = self.mus[order], self.sigmas[order]
        first = np.append(True, (mus[1:] != mus[:-1]) | (sigmas[1:] != sigmas[:-1]))
        kernel_of = np.empty(len(order), np.intp)
        kernel_of[order] = np.cumsum(first) - 1
        mus, sigmas = mus[first], sigmas[first]
        left, right = (self.scale.inward(bins + half)[:, None] for half in (-0.5, 0.5))
        mass = log_mass((left - mus) / sigmas, (right - mus) / sigmas)
        return mass[np.ix_(bin_of, kernel_of)]


@dataclass(frozen=True, slots=True)
class ChoiceKernels:
    """Kernel k gives the choices the shares `table[seen[k]]`: most to its trial's, all alike in the prior."""

    seen: NDArray[np.intp]
    table: Array

    log_norms = 0.0

    def choose(self, kernels: NDArray[np.intp], shares: Array) -> Array:
        """The choice at each share, in [0, 1), of its kernel."""
        cumulated = np.cumsum(self.table[self.seen[kernels]], axis=-1)
        cumulated[:, -1] = 1.0
        return (cumulated < shares[:, None]).sum(axis=-1).astype(float)  # type: ignore[no-any-return]

    def multiply(self, log_densities: Array, internal: Array) -> None:
        log_table = np.log(self.table)
        for choice in np.unique(internal):
            log_densities[internal == choice] += log_table[:, int(choice)][self.seen]


Kernels = NumberKernels | ChoiceKernels


class Numbers:
    """What trials had of a range of numbers."""

    def __init__(self, range_: Float | Int) -> None:
        self._scale = Scale(range_)
        self._mu = np.empty(0)
        self._added: list[tuple[int, float]] = []
        # Trials by their place in the range, of equals the earlier first. (Optuna's order of equals is its machine's.)
        self._order: Rows = np.empty(0, np.intp)
        # By trial: the width of its kernel when it was last asked for, and the logarithm of its norm.
        self._sigma, self._log_norm = np.empty(0), np.empty(0)

    def add(self, number: int, internal: float) -> None:
        """A trial of a higher number than those before it."""
        self._added.append((number, internal))

    def kernels(self, rows: Rows) -> NumberKernels:
        self._take_in()
        low, high = self._scale.prior
        mus = self._mu[rows]
        if len(rows) < FEW:
            order = np.argsort(mus, kind="stable")
        else:
            place = np.full(len(self._mu), -1, np.intp)
            place[rows] = np.arange(len(rows))
            order = place[self._order]
            order = order[order >= 0]
        sigmas = np.empty(len(rows))
        sigmas[order] = bandwidths(mus[order], low, high)
        mus, sigmas = np.append(mus, 0.5 * (low + high)), np.append(sigmas, high - low)
        return NumberKernels(self._scale, mus, sigmas, self._log_norms(rows, mus, sigmas))

    def _log_norms(self, rows: Rows, mus: Array, sigmas: Array) -> Array:
        """Computed anew only where a width has changed, and for the prior."""
        stale = np.append(self._sigma[rows] != sigmas[:-1], True)
        mu, sigma = mus[stale], sigmas[stale]
        log_norm = log_mass((self._scale.low - mu) / sigma, (self._scale.high - mu) / sigma)
        if not self._scale.whole:
            log_norm += np.log(sigma) + LOG_ROOT_2PI
        changed = rows[stale[:-1]]
        self._sigma[changed], self._log_norm[changed] = sigma[:-1], log_norm[:-1]
        return np.append(self._log_norm[rows], log_norm[-1])

    def _take_in(self) -> None:
        """Sort what was added in among the others."""
        if not self._added:
            return
        numbers = np.array([number for number, _ in self._added])
        mus = self._scale.inward(np.array([internal for _, internal in self._added], float))
        self._added.clear()
        if numbers[-1] >= len(self._mu):
            more = np.full(numbers[-1] + 64, np.nan)  # NaN equals no width
            self._mu, self._sigma, self._log_norm = (
                np.append(own, more) for own in (self._mu, self._sigma, self._log_norm)
            )
        self._mu[numbers] = mus
        order = np.argsort(mus, kind="stable")
        places = self._mu[self._order].searchsorted(mus[order], side="right")
        self._order = np.insert(self._order, places, numbers[order])


def bandwidths(sorted_mus: Array, low: float, high: float) -> Array:
    """How wide each kernel is: as the larger gap to a neighbour, within limits; the outermost have one neighbour."""
    gaps = np.diff(sorted_mus, prepend=low, append=high)
    sigmas = np.maximum(gaps[:-1], gaps[1:])
    if len(sigmas) >= 2:
        sigmas[0], sigmas[-1] = gaps[1], gaps[-2]
    return np.clip(sigmas, (high - low) / min(100.0, 2.0 + len(sigmas)), high - low)


class Choices:
    """What trials had of a list of choices."""

    def __init__(self, range_: Choice) -> None:
        self._count = len(range_.values)
        self._seen = np.empty(0, np.intp)

    def add(self, number: int, internal: float) -> None:
        if number >= len(self._seen):
            self._seen = np.append(self._seen, np.zeros(number + 64, np.intp))
        self._seen[number] = int(internal)

    def kernels(self, rows: Rows) -> ChoiceKernels:
        count = self._count
        table = np.full((count + 1, count), 1.0 / (len(rows) + 1))
        table[np.arange(count), np.arange(count)] += 1
        table /= table.sum(axis=1, keepdims=True)
        return ChoiceKernels(np.append(self._seen[rows], count), table)


Column = Numbers | Choices


def column(range_: Range) -> Column:
    """Before the first trial."""
    return Choices(range_) if isinstance(range_, Choice) else Numbers(range_)
