"""Learning-rate schedules: the factor on the learning rate of each update."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def rate_factors(schedules: Sequence[str], numbers: Tensor, totals: Tensor) -> Tensor:
    """(S, K) factors for the updates `numbers` (S, K), counted from 1, of runs with `totals` (K,) updates in all.

    "cosine" falls from 1 to 0 over the whole run (Loshchilov & Hutter 2017, one cycle); update n has the rate that
    torch's CosineAnnealingLR gives after n - 1 steps.
    """
    factors = torch.ones(numbers.shape, dtype=torch.float64)
    cosine = torch.tensor([schedule == "cosine" for schedule in schedules])
    falling = (1 + torch.cos(math.pi * (numbers.double() - 1) / totals.double())) / 2
    return torch.where(cosine, falling, factors)
