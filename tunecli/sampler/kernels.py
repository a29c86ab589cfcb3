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
        self._middle, self.width = 0.5 * (self.low + self.high), self.high - self.low

    def inward(self, internal: Array) -> Array:
        return np.log(internal) if self.log else internal

    def centred(self, points: Array) -> Array:
        """Points, `inward` ones, from -0.5 at the lower end to 0.5 at the upper one."""
        return (points - self._middle) / self.width

    def log_norms(self, mus: Array, sigmas: Array) -> Array:
        """What the logarithms of the truncated kernels are less by than those of their bells, bins or densities."""
        log_norms = log_mass((self.low - mus) / sigmas, (self.high - mus) / sigmas)
        return log_norms if self.whole else log_norms + (np.log(sigmas) + LOG_ROOT_2PI)

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

    def quadratic(self) -> tuple[Array, Array, Array]:
        """The logarithm of each bell as a polynomial in `centred` points: what their squares, they themselves and one
        are multiplied by."""
        mus, sigmas = self.scale.centred(self.mus), self.sigmas / self.scale.width
        precisions = 0.5 / np.square(sigmas)
        linear = 2.0 * mus * precisions
        return -precisions, linear, -0.5 * mus * linear

    def cut(self, points: Array) -> Array | None:
        """What is added where points lie outside of the range, by rounding alone, and then for some kernels only."""
        if points.min() >= self.scale.low and points.max() <= self.scale.high:
            return None
        added = np.zeros((len(points), len(self.mus)))
        for place in np.flatnonzero((points < self.scale.low) | (points > self.scale.high)):
            z, a, b = ((edge - self.mus) / self.sigmas for edge in (points[place], self.scale.low, self.scale.high))
            added[place, (z < a) | (z > b)] = -np.inf
        return added

    def log_bins(self, internal: Array) -> Array:
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

    def choose(self, kernels: NDArray[np.intp], shares: Array) -> Array:
        """The choice at each share, in [0, 1), of its kernel."""
        cumulated = np.cumsum(self.table[self.seen[kernels]], axis=-1)
        cumulated[:, -1] = 1.0
        return (cumulated < shares[:, None]).sum(axis=-1).astype(float)  # type: ignore[no-any-return]

    def log_shares(self, internal: Array) -> Array:
        """The logarithm of the share of each of these choices, by what a kernel has seen: (choices, seen)."""
        return np.log(self.table.T[internal.astype(np.intp)])


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
        low, high = self._scale.prior
        self._prior_mu, self._prior_sigma = np.array([0.5 * (low + high)]), np.array([high - low])
        self._prior_log_norm = self._scale.log_norms(self._prior_mu, self._prior_sigma)

    def add(self, number: int, internal: float) -> None:
        """A trial of a higher number than those before it."""
        self._added.append((number, internal))

    def forget(self, number: int) -> None:
        """There are no trials from this number on."""
        self._added = [own for own in self._added if own[0] < number]
        self._order = self._order[self._order < number]
        self._sigma[number:] = np.nan

    def kernels(self, rows: Rows) -> NumberKernels:
        self._take_in()
        low, high = self._scale.prior
        mus = self._mu[rows]
        if len(rows) < FEW:
            order = rows[np.argsort(mus, kind="stable")]
        else:
            among = np.zeros(len(self._mu), np.bool_)
            among[rows] = True
            order = self._order[among[self._order]]
        self._widen(order, bandwidths(self._mu[order], low, high))
        return NumberKernels(
            self._scale,
            np.concatenate((mus, self._prior_mu)),
            np.concatenate((self._sigma[rows], self._prior_sigma)),
            np.concatenate((self._log_norm[rows], self._prior_log_norm)),
        )

    def _widen(self, rows: Rows, sigmas: Array) -> None:
        """Give trials these widths; their norms are computed anew only where a width has changed."""
        stale = np.flatnonzero(self._sigma[rows] != sigmas)
        if len(stale):
            changed, sigma = rows[stale], sigmas[stale]
            self._sigma[changed], self._log_norm[changed] = sigma, self._scale.log_norms(self._mu[changed], sigma)

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
    count = len(sorted_mus)
    edges = np.empty(count + 2)
    edges[0], edges[1:-1], edges[-1] = low, sorted_mus, high
    gaps = edges[1:] - edges[:-1]
    sigmas: Array = np.maximum(gaps[:-1], gaps[1:])
    if count >= 2:
        sigmas[0], sigmas[-1] = gaps[1], gaps[-2]
    return sigmas.clip((high - low) / min(100.0, 2.0 + count), high - low)


class Choices:
    """What trials had of a list of choices."""

    def __init__(self, range_: Choice) -> None:
        self._count = len(range_.values)
        self._seen = np.empty(0, np.intp)

    def add(self, number: int, internal: float) -> None:
        if number >= len(self._seen):
            self._seen = np.append(self._seen, np.zeros(number + 64, np.intp))
        self._seen[number] = int(internal)

    def forget(self, number: int) -> None:
        """What trials from this number on had is never asked for."""

    def kernels(self, rows: Rows) -> ChoiceKernels:
        count = self._count
        table = np.full((count + 1, count), 1.0 / (len(rows) + 1))
        table[np.arange(count), np.arange(count)] += 1
        table /= table.sum(axis=1, keepdims=True)
        return ChoiceKernels(np.concatenate((self._seen[rows], [count])), table)


Column = Numbers | Choices


def column(range_: Range) -> Column:
    """Before the first trial."""
    return Choices(range_) if isinstance(range_, Choice) else Numbers(range_)
