"""The normal distribution between two bounds, by numpy and the standard library.

The formulas and their order are those of Optuna's `_truncnorm` (MIT licence), which follows `scipy.stats.truncnorm`
(BSD licence): the same uniform numbers give the same points, to the last bit.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from math import erf, erfc, log

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Places = NDArray[np.intp]

LOG_ROOT_2PI = math.log(math.sqrt(2 * math.pi))

ROOT_2 = 2**0.5
_NEAR = 1 / ROOT_2

MANY = 500
"""From here on scipy is worth its import; its results are the same but for rounding."""

NEVER = sys.maxsize
"""As `many`: never scipy, so that draws are Optuna's to the last bit."""


def log_mass(a: Array, b: Array, many: int) -> Array:
    """The logarithm of a standard normal's mass between `a` and `b`, of the same shape."""
    left, right = b <= 0, a > 0  # the tails, which cancel where they are taken from one
    central = ~(left | right)
    result = np.empty_like(a)
    if left.any():
        result[left] = _log_difference(_log_cdf(b[left], many), _log_cdf(a[left], many))
    if right.any():
        result[right] = _log_difference(_log_cdf(-a[right], many), _log_cdf(-b[right], many))
    if central.any():
        result[central] = np.log1p(-_cdf(a[central], many) - _cdf(-b[central], many))
    return result


@dataclass(frozen=True, slots=True)
class Truncated:
    """Normal distributions between two bounds: for each its `mu` and `sigma`, the lower bound of the standard one, the
    logarithm of the mass beyond the end from which its mass is counted, and of its mass, (5, ...). It is counted from
    below where the lower bound is left of the middle, else from above."""

    told: Array

    @classmethod
    def between(cls, mus: Array, sigmas: Array, low: Array, high: Array) -> Truncated:
        """All of one length."""
        a, b = (low - mus) / sigmas, (high - mus) / sigmas
        log_tail = _log_cdf(np.where(a < 0, a, -b), NEVER)
        return cls(np.stack((mus, sigmas, a, log_tail, log_mass(a, b, NEVER))))

    def at(self, places: Places) -> Truncated:
        """Those at these places, of any shape, of all that are of one length."""
        return Truncated(self.told.take(places, axis=-1))

    def quantile(self, q: Array, together: Places) -> Array:
        """Where the share `q` of the mass lies below, for each a share of its own.

        `together` has integers, of the same shape: those with the same one are found together. Newton's method goes on
        until it has come to all of them, and where it ends shows in the last bits.
        """
        mus, sigmas, a, log_tail, log_mass = self.told
        left = a < 0
        right = ~left
        found = np.empty_like(q)
        if left.any():
            with np.errstate(divide="ignore"):  # a share of zero, which is set below
                log_q = np.log(q[left])
            y = np.logaddexp(log_tail[left], log_q + log_mass[left])
            found[left] = _log_quantile(y, together[left])
        if right.any():
            y = np.logaddexp(log_tail[right], np.log1p(-q[right]) + log_mass[right])
            found[right] = -_log_quantile(y, together[right])
        found[q == 0] = a[q == 0]
        found *= sigmas
        found += mus
        return found


def _log_difference(log_p: Array, log_q: Array) -> Array:
    difference: Array = log_p + np.log1p(-np.exp(log_q - log_p))
    return difference


def _cdf(a: Array, many: int) -> Array:
    if a.size >= many:
        from scipy.special import ndtr

        return ndtr(a)  # type: ignore[no-any-return]
    return 0.5 + 0.5 * np.array([erf(x) for x in (a / ROOT_2).tolist()])


def _log_cdf(a: Array, many: int) -> Array:
    if a.size >= many:
        from scipy.special import log_ndtr

        return log_ndtr(a)  # type: ignore[no-any-return]
    # What nearly all need is written here too: a call for each would take as long.
    return np.array(
        [
            log(0.5 + 0.5 * erf(x))
            if -_NEAR <= x < _NEAR
            else log(0.5 * erfc(-x))
            if -14 < x < 0
            else log(1.0 - 0.5 * erfc(x))
            if 0 < x < 4
            else _log_cdf_of(own)
            for own, x in zip(a.tolist(), (a / ROOT_2).tolist(), strict=True)
        ]
    )


def _log_cdf_of(a: float) -> float:
    x = a / ROOT_2
    if a > 6:
        return -0.5 * erfc(x)
    if x >= _NEAR:
        return log(1.0 - 0.5 * erfc(x))
    if x >= -_NEAR:
        return log(0.5 + 0.5 * erf(x))
    if a > -20:
        return log(0.5 * erfc(-x))
    # The asymptotic series of the tail (Abramowitz & Stegun 26.2.12).
    leading = -0.5 * a**2 - log(-a) - 0.5 * log(2 * math.pi)
    total, last, numerator, denominator, term = 1.0, 0.0, 1.0, 1.0, 0
    while abs(last - total) > sys.float_info.epsilon:
        term += 1
        last = total
        denominator *= 1 / a**2
        numerator *= 2 * term - 1
        total += (-1) ** term * numerator * denominator
    return leading + log(total)


def _log_quantile(y: Array, together: Places) -> Array:
    """The x at which the logarithm of the normal distribution function is `y`, by Newton's method."""
    flipped = y > -1e-2  # near the upper end, where 1 - cdf is the number that can be told
    z = y.copy()
    z[flipped] = np.log(-np.expm1(y[flipped]))
    x = np.empty_like(y)
    tail = z < -5
    # The tail's leading term to begin with, and a logistic curve in the middle.
    x[tail] = -np.sqrt(-2.0 * (z[tail] + LOG_ROOT_2PI))
    x[~tail] = -(math.sqrt(3) / math.pi) * np.log(np.expm1(-z[~tail]))
    found, rest = x, np.arange(len(x))
    for _ in range(100):
        log_cdf = _log_cdf(x, NEVER)
        step = (log_cdf - z) * np.exp(log_cdf - (-0.5 * np.square(x) - LOG_ROOT_2PI))
        found[rest] = x = x - step
        near = np.abs(step) < 1e-8 * np.abs(x)
        if near.any():
            on = np.bincount(together, ~near)[together] > 0
            if not on.any():
                break
            rest, x, z, together = rest[on], x[on], z[on], together[on]
    found[flipped] *= -1
    return found
