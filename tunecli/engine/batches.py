"""One epoch of one run as micro-batches: which samples each step reads, and where a batch is complete."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from tunecli.trial import Value

ROUND = 16
"""Micro-batches are filled up to a multiple of this, so that every row of a block starts on a whole vector."""


@dataclass(frozen=True, slots=True, eq=False)
class Batches:
    """S micro-steps of up to m = `micro` samples, one after the other in the run's own order of the samples.

    `lows` (S,) says where in the order each begins, `lengths` (S,) how many samples it has, `ends` (S,) where a batch
    is complete and `samples` (S,) how many that batch has; there are `count` batches.
    """

    micro: int
    lows: Tensor
    lengths: tuple[int, ...]
    ends: Tensor
    samples: Tensor
    count: int

    @property
    def steps(self) -> int:
        return len(self.lengths)

    def places(self, low: int, high: int) -> tuple[Tensor, Tensor]:
        """The places in the order that micro-steps `low` to `high` read, (S, m), and 1 where they are real, (S, m).

        Where a micro-batch is short its last sample is repeated.
        """
        offsets = torch.arange(self.micro)
        lengths = torch.tensor(self.lengths[low:high])[:, None]
        return self.lows[low:high, None] + offsets.minimum(lengths - 1), (offsets < lengths).float()


def batch_length(batch_size: Value, samples: int) -> int:
    """The samples of a full batch; "full" is all of them, and no batch has more than there are."""
    return min(batch_size, samples) if isinstance(batch_size, int) else samples


def micro_length(batch_size: Value, samples: int, cap: int | None, *, whole: bool = False) -> int:
    """m, the samples that a micro-step reads: the batch, cut at the plan's cap, rounded up to fill vectors.

    A `whole` batch, which a lone last sample may join, is as many times what is computed at once as it takes.
    """
    length = batch_length(batch_size, samples)
    if cap is None or not whole:
        return length if cap is None else min(cap, -(-length // ROUND) * ROUND)
    longest = longest_batch(batch_size, samples)
    times = -(-longest // cap)
    return times * -(-longest // (times * ROUND)) * ROUND


def longest_batch(batch_size: Value, samples: int) -> int:
    """The samples of the longest batch, where a lone last sample joins the batch before."""
    return epoch_batches(samples, batch_length(batch_size, samples), None, join_lone=True).micro


def length_at_once(micro: int, cap: int | None) -> int:
    """How many samples of such a micro-step are computed at once, up to the cap; all where there is none."""
    return micro if cap is None else micro // -(-micro // cap)


@lru_cache(maxsize=256)
def epoch_batches(samples: int, batch: int, micro: int | None, *, join_lone: bool = False) -> Batches:
    """The micro-steps of one epoch over `samples` samples in batches of `batch`, the last short one included.

    `micro` None reads whole batches. With `join_lone` a last batch of one sample joins the one before it.
    """
    bounds = [*range(0, samples, batch), samples]
    if join_lone and len(bounds) > 2 and bounds[-1] - bounds[-2] == 1:
        del bounds[-2]
    micro = micro or max(high - low for low, high in pairwise(bounds))
    starts: list[tuple[int, int, bool, int]] = []
    for begin, end in pairwise(bounds):
        for low in range(begin, end, micro):
            high = min(low + micro, end)
            starts.append((low, high, high == end, end - begin))
    return Batches(
        micro=micro,
        lows=torch.tensor([start[0] for start in starts]),
        lengths=tuple(start[1] - start[0] for start in starts),
        ends=torch.tensor([start[2] for start in starts]),
        samples=torch.tensor([start[3] for start in starts]),
        count=len(bounds) - 1,
    )


def epoch_updates(batch_size: Value, samples: int, *, join_lone: bool) -> int:
    """How many batches an epoch has, an update each."""
    return epoch_batches(samples, batch_length(batch_size, samples), None, join_lone=join_lone).count


def epoch_order(seed: int, samples: int) -> Tensor:
    """The order (samples,) in which a run reads its samples in one epoch; drawn on the CPU, the same everywhere."""
    return torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
