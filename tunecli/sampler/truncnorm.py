"""The normal distribution between two bounds, by numpy and the standard library.

The formulas and their order are those of Optuna's `_truncnorm` (MIT licence), which follows `scipy.stats.truncnorm`
(BSD licence): the same uniform numbers give the same points, to the last bit.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LOG_ROOT_2PI = math.log(math.sqrt(2 * math.pi))

_ROOT_2 = 2**0.5

MANY = 500
"""From here on scipy is worth its import; its results are the same but for rounding. A proposal's draws are fewer: 24
for each number of a group, of up to 20."""

NEVER = sys.maxsize
"""As `many`: never scipy, so that draws are Optuna's to the last bit."""


def log_mass(a: Array, b: Array, many: int = MANY) -> Array:
    """The logarithm of a standard normal's mass between `a` and `b`, of the same shape."""
    result = np.empty_like(a)
    left, right = b <= 0, a > 0  # the tails, which cancel where they are taken from one
    central = ~(left | right)
    if left.any():
        result[left] = _log_difference(_log_cdf(b[left], many), _log_cdf(a[left], many))
    if right.any():
        result[right] = _log_difference(_log_cdf(-a[right], many), _log_cdf(-b[right], many))
    if central.any():
        result[central] = np.log1p(-_cdf(a[central], many) - _cdf(-b[central], many))
    return result


@dataclass(frozen=True, slots=True)
class Truncated:
    """Standard normal distributions between `a` and `b`, of one shape, `a` below `b`. `log_tail` is the logarithm of
    the mass beyond the end from which it is counted: below `a` where that is left of the middle, else above `b`."""

    a: Array
    log_tail: Array
    log_mass: Array

    @classmethod
    def between(cls, a: Array, b: Array) -> Truncated:
        tail = np.where(a < 0, a, -b)
        return cls(a, _log_cdf(tail.ravel(), NEVER).reshape(a.shape), log_mass(a, b, NEVER))

    def at(self, places: NDArray[np.intp]) -> Truncated:
        """Those at these places of the last axis."""
        return Truncated(self.a[..., places], self.log_tail[..., places], self.log_mass[..., places])

    def quantile(self, q: Array) -> Array:
        """Where the share `q` of the mass lies below, for each a share of its own."""
        left = self.a < 0
        right = ~left
        result = np.empty_like(q)
        if left.any():
            with np.errstate(divide="ignore"):  # a share of zero, which is set below
                log_q = np.log(q[left])
            result[left] = _log_quantile(np.logaddexp(self.log_tail[left], log_q + self.log_mass[left]))
        if right.any():
            log_q = np.log1p(-q[right])
            result[right] = -_log_quantile(np.logaddexp(self.log_tail[right], log_q + self.log_mass[right]))
        result[q == 0] = self.a[q == 0]
        return result


def _log_difference(log_p: Array, log_q: Array) -> Array:
    difference: Array = log_p + np.log1p(-np.exp(log_q - log_p))
    return difference


def _cdf(a: Array, many: int) -> Array:
    if a.size >= many:
        from scipy.special import ndtr

        return ndtr(a)  # type: ignore[no-any-return]
    erf = np.array([math.erf(value) for value in (a / _ROOT_2).tolist()])
    return 0.5 + 0.5 * erf


def _log_cdf(a: Array, many: int = MANY) -> Array:
    if a.size >= many:
        from scipy.special import log_ndtr

        return log_ndtr(a)  # type: ignore[no-any-return]
    return np.array([_log_cdf_of(value) for value in a.tolist()])


def _log_cdf_of(a: float) -> float:
    x = a / _ROOT_2
    if a > 6:
        return -0.5 * math.erfc(x)
    if x >= 1 / _ROOT_2:
        return math.log(1.0 - 0.5 * math.erfc(x))
    if x >= -1 / _ROOT_2:
        return math.log(0.5 + 0.5 * math.erf(x))
    if a > -20:
        return math.log(0.5 * math.erfc(-x))
    # The asymptotic series of the tail (Abramowitz & Stegun 26.2.12).
    leading = -0.5 * a**2 - math.log(-a) - 0.5 * math.log(2 * math.pi)
    total, last, numerator, denominator, term = 1.0, 0.0, 1.0, 1.0, 0
    while abs(last - total) > sys.float_info.epsilon:
        term += 1
        last = total
        denominator *= 1 / a**2
        numerator *= 2 * term - 1
        total += (-1) ** term * numerator * denominator
    return leading + math.log(total)


def _log_quantile(y: Array) -> Array:
    """The x at which the logarithm of the normal distribution function is `y`, by Newton's method."""
    flipped = y > -1e-2  # near the upper end, where 1 - cdf is the number that can be told
    z = y.copy()
    z[flipped] = np.log(-np.expm1(y[flipped]))
    x = np.empty_like(y)
    tail = z < -5
    # The tail's leading term to begin with, and a logistic curve in the middle.
    x[tail] = -np.sqrt(-2.0 * (z[tail] + LOG_ROOT_2PI))
    x[~tail] = -(math.sqrt(3) / math.pi) * np.log(np.expm1(-z[~tail]))
    for _ in range(100):
        log_cdf = _log_cdf(x)
        step = (log_cdf - z) * np.exp(log_cdf - (-0.5 * x**2 - LOG_ROOT_2PI))
        x -= step
        if np.all(np.abs(step) < 1e-8 * np.abs(x)):
            break
    x[flipped] *= -1
    return x
