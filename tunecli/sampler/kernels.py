"""The kernels of one hparam: what each trial had of it, made wide; and the prior, which covers the whole range.

They are those of Optuna's `_ParzenEstimator` as TPESampler has it by default. What does not change from one proposal
to the next is kept, for there may be thousands of trials: their order, and by what each kernel is divided.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunecli.sampler.truncnorm import LOG_ROOT_2PI, MANY, ROOT_2, Array, log_mass
from tunecli.space import Choice, Float, Int, Range

Rows = NDArray[np.intp]
"""Numbers of trials, ascending, and `PRIOR` last. Kernels are in this order."""

PRIOR = -1
"""The prior has the last place of what is kept by trial."""

Mask = NDArray[np.bool_]
"""By trial, whether it is one of those that are asked for."""


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
        self._middle, self._width = 0.5 * (self.low + self.high), self.high - self.low

    def inward(self, internal: Array) -> Array:
        return np.log(internal) if self.log else internal

    def centred(self, points: Array) -> Array:
        """Points, `inward` ones, from -0.5 at the lower end to 0.5 at the upper one."""
        return (points - self._middle) / self._width

    def outward(self, points: Array) -> Array:
        points = np.exp(points) if self.log else points
        low, high = self.range.low, self.range.high
        return np.clip(low + np.round(points - low), low, high) if self.whole else points

    def factors(self, mu: float, sigma: float) -> tuple[float, float, float]:
        """What the logarithm of a kernel's density is, as a polynomial in `centred` points: by what their square, they
        themselves and one are multiplied. Of whole numbers it is what the logarithm of a bin's mass is less by."""
        mu, width = (mu - self._middle) / self._width, sigma / self._width
        above, below = (0.5 - mu) / (width * ROOT_2), (0.5 + mu) / (width * ROOT_2)
        constant = -math.log(0.5 * (math.erf(above) + math.erf(below)))
        if self.whole:
            return 0.0, 0.0, constant
        precision = 0.5 / (width * width)
        return -precision, 2 * mu * precision, constant - mu * mu * precision - math.log(sigma) - LOG_ROOT_2PI


@dataclass(frozen=True, slots=True)
class NumberKernels:
    """Truncated normal distributions, and the `factors` of their densities."""

    scale: Scale
    mus: Array
    sigmas: Array
    factors: Array

    def cut(self, points: Array) -> Array:
        """What is added where points lie outside of the range, by rounding alone, and then for some kernels only."""
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
        mass = log_mass((left - mus) / sigmas, (right - mus) / sigmas, MANY)
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
        return np.log(self.table).T.take(internal.astype(np.intp), axis=0)


Kernels = NumberKernels | ChoiceKernels


MU, SIGMA = 0, 1
"""What comes before the factors of a kernel."""


class Numbers:
    """What trials had of a range of numbers."""

    def __init__(self, range_: Float | Int) -> None:
        self._scale = Scale(range_)
        low, high = self._scale.prior
        mu, sigma = 0.5 * (low + high), high - low
        # By trial: where its kernel lies; how wide it was when it was last asked for, and its factors then.
        self._kernels = np.array([(mu, sigma, *self._scale.factors(mu, sigma))]).T.copy()
        self._added: list[tuple[int, float]] = []
        # Trials by their place in the range, of equals the earlier first. (Optuna's order of equals is its machine's.)
        self._order = np.empty(0, np.intp)

    def add(self, number: int, internal: float) -> None:
        """A trial of a higher number than those before it."""
        self._added.append((number, internal))

    def forget(self, number: int) -> None:
        """There are no trials from this number on."""
        self._added = [own for own in self._added if own[0] < number]
        self._order = self._order[self._order < number]
        self._kernels[SIGMA, number:PRIOR] = np.nan

    def kernels(self, mask: Mask, rows: Rows) -> NumberKernels:
        """Those of the trials of `mask`, which are `rows`."""
        if self._added:
            self._take_in()
        order = self._order[mask.take(self._order)]
        mus = self._kernels[MU].take(order)
        sigmas = bandwidths(mus, *self._scale.prior)
        # Few have got another neighbour.
        stale = (self._kernels[SIGMA].take(order) != sigmas).nonzero()[0]
        if len(stale):
            changed = [
                (sigma, *self._scale.factors(mu, sigma))
                for mu, sigma in zip(mus[stale].tolist(), sigmas[stale].tolist(), strict=True)
            ]
            self._kernels[SIGMA:, order[stale]] = np.array(changed).T
        found = self._kernels.take(rows, axis=1)
        return NumberKernels(self._scale, found[MU], found[SIGMA], found[SIGMA + 1 :])

    def _take_in(self) -> None:
        """Sort what was added in among the others."""
        numbers = np.array([number for number, _ in self._added])
        mus = self._scale.inward(np.array([internal for _, internal in self._added], float))
        self._added.clear()
        if numbers[-1] >= self._kernels.shape[1] - 1:
            room = np.full((len(self._kernels), numbers[-1] + 64), np.nan)  # NaN equals no width
            self._kernels = np.concatenate((self._kernels[:, :PRIOR], room, self._kernels[:, PRIOR:]), axis=1)
        self._kernels[MU, numbers] = mus
        order = np.concatenate((self._order, numbers))
        self._order = order[self._kernels[MU, order].argsort(kind="stable")]  # in no time, where nearly all of it is


def bandwidths(sorted_mus: Array, low: float, high: float) -> Array:
    """How wide each kernel is: as the larger gap to a neighbour, within limits; the outermost have one neighbour."""
    count = len(sorted_mus)
    edges = np.empty(count + 2)
    edges[0], edges[1:-1], edges[-1] = low, sorted_mus, high
    gaps = edges[1:] - edges[:-1]
    sigmas: Array = np.maximum(gaps[:-1], gaps[1:])
    if count >= 2:
        sigmas[0], sigmas[-1] = gaps[1], gaps[-2]
    np.maximum(sigmas, (high - low) / min(100.0, 2.0 + count), out=sigmas)
    return np.minimum(sigmas, high - low, out=sigmas)


class Choices:
    """What trials had of a list of choices."""

    def __init__(self, range_: Choice) -> None:
        self._count = len(range_.values)
        self._seen = np.array([self._count])

    def add(self, number: int, internal: float) -> None:
        if number >= len(self._seen) - 1:
            room = np.zeros(number + 64, np.intp)
            self._seen = np.concatenate((self._seen[:PRIOR], room, self._seen[PRIOR:]))
        self._seen[number] = int(internal)

    def forget(self, number: int) -> None:
        """What trials from this number on had is never asked for."""

    def kernels(self, mask: Mask, rows: Rows) -> ChoiceKernels:
        """Those of the trials of `mask`, which are `rows`."""
        table = np.full((self._count + 1, self._count), 1.0 / len(rows))
        table.flat[:: self._count + 1] += 1  # its diagonal
        table /= table.sum(axis=1, keepdims=True)
        return ChoiceKernels(self._seen.take(rows), table)


Column = Numbers | Choices


def column(range_: Range) -> Column:
    """Before the first trial."""
    return Choices(range_) if isinstance(range_, Choice) else Numbers(range_)
