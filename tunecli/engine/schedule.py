"""Learning-rate schedules: the factor on the learning rate of each update, as torch.optim.lr_scheduler's.

cosine and one_cycle go on with every update, exponential, step and plateau with every epoch, as torch's users step
them. After a `warmup`, which is a share of all updates, a schedule has the rest to itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunecli.trial import Value, better

Settings = Mapping[str, Value]


def rate_factors(
    settings: Sequence[Settings], numbers: Tensor, totals: Tensor, epoch_updates: Tensor, scales: Sequence[float]
) -> Tensor:
    """(S, K) factors for the updates `numbers` (S, K), counted from 1, of runs with `totals` (K,) updates in all.

    An epoch of a run has `epoch_updates` (K,) updates, and `scales` are what its Plateau has come to. A column depends
    on nothing but its own run.
    """
    factors = torch.ones(numbers.shape, dtype=torch.float64)
    for column, own in enumerate(settings):
        if own["schedule"] == "constant" and not own["warmup"]:
            continue
        total, length = int(totals[column]), int(epoch_updates[column])
        warm = warmup_updates(own, total)
        done = (numbers[:, column] - 1).clamp(min=0).double()
        after = (done - warm).clamp(min=0)
        found = _SCHEDULES[str(own["schedule"])](own, after, max(total - warm, 1), length) * scales[column]
        factors[:, column] = torch.where(done < warm, (done + 1) / max(warm, 1), found)
    return factors


def warmup_updates(settings: Settings, total: int) -> int:
    """W: update n of the first W has n / W of the learning rate (Goyal et al. 2017)."""
    return round(_number(settings, "warmup") * total)


def _number(settings: Settings, name: str) -> float:
    return float(settings[name])  # type: ignore[arg-type]  # a number by the space


def _constant(settings: Settings, done: Tensor, total: int, length: int) -> Tensor:
    return torch.ones_like(done)


def _exponential(settings: Settings, done: Tensor, total: int, length: int) -> Tensor:
    return _powers(_number(settings, "exponential_gamma"), done // length)


def _step(settings: Settings, done: Tensor, total: int, length: int) -> Tensor:
    return _powers(_number(settings, "step_gamma"), done // length // _number(settings, "step_epochs"))


def _cosine(settings: Settings, done: Tensor, total: int, length: int) -> Tensor:
    """From 1 to 0 over the whole run (Loshchilov & Hutter 2017, one cycle)."""
    return (1 + torch.cos(math.pi * done / total)) / 2


def _one_cycle(settings: Settings, done: Tensor, total: int, length: int) -> Tensor:
    """Up from 1 / div_factor to 1, then down to 1 / (div_factor * final_div_factor); no cycle of momentum
    (Smith & Topin 2018)."""
    low = 1 / _number(settings, "one_cycle_div_factor")
    least = low / _number(settings, "one_cycle_final_div_factor")
    top = max(_number(settings, "one_cycle_pct_start") * total - 1, 0.0)
    rising = done / top if top else torch.ones_like(done)
    falling = ((done - top) / max(total - 1 - top, 1)).clamp(max=1)
    return torch.where(done <= top, _annealed(low, 1.0, rising), _annealed(1.0, least, falling))


def _annealed(start: float, end: float, share: Tensor) -> Tensor:
    return end + (start - end) / 2 * (torch.cos(math.pi * share) + 1)


def _powers(base: float, exponents: Tensor) -> Tensor:
    """By numbers: torch's pow rounds by an element's place in its vector."""
    return torch.tensor([base**exponent for exponent in exponents.tolist()], dtype=torch.float64)


_SCHEDULES: dict[str, Callable[[Settings, Tensor, int, int], Tensor]] = {
    "constant": _constant,
    "exponential": _exponential,
    "step": _step,
    "cosine": _cosine,
    "one_cycle": _one_cycle,
    "plateau": _constant,
}


@dataclass(slots=True)
class Plateau:
    """The one schedule with a memory: torch's ReduceLROnPlateau, by the validation metric. `scale` is its factor."""

    scale: float = 1.0
    best: float | None = None
    worse: int = 0

    def see(self, metric: float, direction: str, settings: Settings, learning_rate: float) -> None:
        """One epoch, not of the warmup, has ended; what is better by a ten-thousandth is better."""
        margin = 1 + 1e-4 if direction == "maximize" else 1 - 1e-4
        if self.best is None or better(metric, self.best * margin, direction):
            self.best, self.worse = metric, 0
        else:
            self.worse += 1
        if self.worse > _number(settings, "plateau_patience"):
            rate = learning_rate * self.scale
            factor = _number(settings, "plateau_factor")
            if rate - rate * factor > 1e-8:
                self.scale *= factor
            self.worse = 0
