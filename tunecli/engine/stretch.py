"""A stretch of an epoch: some micro-steps of a block laid out, which samples each row reads and what they count.

An epoch is laid out a stretch at a time, so that what is laid out takes no more memory where there are more samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from tunecli.data import Samples, Split
from tunecli.engine.batches import Batches, epoch_order

LAID_OUT = 1 << 20
"""So many samples a stretch names at most, over all rows: 8 MiB."""

LEAST_STEPS = 64

Order = Callable[[int, int], Tensor]
"""The samples at the places from one number to another of a run's order of one epoch."""


def order_of(train: Split, seed: int) -> Order:
    """The order in which a run reads the samples in one epoch."""
    if isinstance(train, Samples) and train.chunked is not None:
        return train.chunked.order(seed)
    whole = epoch_order(seed, len(train))
    return lambda low, high: whole[low:high]


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """Micro-steps from `low` on, S of them, of a block of B rows whose first K train.

    `index` (S, B, m) are the samples, `present` (S, B, m) what each counts, 0 where it only fills; `active` (S, B)
    says which rows train, and `real` (S, B) how many samples do not only fill. `ends` (S, K) counts the batches
    that are complete, `sizes` (S, K) what each step's batch has.
    """

    low: int
    index: Tensor
    present: Tensor
    active: Tensor
    real: Tensor
    ends: Tensor
    sizes: Tensor

    @property
    def high(self) -> int:
        return self.low + len(self.index)


def stretch_of(step: int, rows: int, micro: int) -> tuple[int, int]:
    """From where to where the stretch goes that a micro-step of `rows` rows is in, if the epoch is that long.

    A power of two: what is computed by vectors (a schedule's factors) is then cut where whole vectors end, and has the
    same bits in stretches of any length.
    """
    steps = max(LEAST_STEPS, 1 << max(LAID_OUT // (rows * micro), 1).bit_length() - 1)
    low = step // steps * steps
    return low, low + steps


def lay_out(
    low: int, high: int, batches: Sequence[Batches], orders: Sequence[Order], rows: int, weights: Tensor | None
) -> Stretch:
    """The micro-steps from `low` to `high` of K runs in a block of so many `rows`; `weights` (N,) of the samples."""
    steps, micro = high - low, batches[0].micro
    index = torch.zeros(steps, rows, micro, dtype=torch.int64)
    present = torch.zeros(steps, rows, micro)
    active = torch.zeros(steps, rows, dtype=torch.bool)
    lengths = torch.zeros(steps, rows, dtype=torch.int64)
    ends = torch.zeros(steps, len(batches), dtype=torch.int64)
    sizes = torch.zeros(steps, len(batches), dtype=torch.float64)
    for own, rows_of in neighbours(batches):  # rows with one batch size differ in their orders alone
        taken = min(high, own.steps) - low
        if taken <= 0:
            continue
        places, real = own.places(low, low + taken)
        index[:taken, rows_of] = _ordered(places, orders[rows_of])
        present[:taken, rows_of] = real[:, None].to(present)
        active[:taken, rows_of] = True
        lengths[:taken, rows_of] = real.sum(1, keepdim=True).long()
        ends[:taken, rows_of] = own.ends[low : low + taken, None].long()
        sizes[:taken, rows_of] = own.samples[low : low + taken, None].double()
        if weights is not None:
            present[:taken, rows_of] *= weights[index[:taken, rows_of]]
            for row in range(rows_of.start, rows_of.stop):
                sizes[:taken, row] = _weight_sums(own, orders[row], low, low + taken, weights)
    return Stretch(low, index, present, active, lengths, ends, sizes)


def neighbours(batches: Sequence[Batches]) -> Iterator[tuple[Batches, slice]]:
    """The micro-steps that neighbouring rows share, and which rows these are."""
    for _, shared in groupby(range(len(batches)), lambda row: id(batches[row])):
        first, *others = shared
        yield batches[first], slice(first, first + 1 + len(others))


def _ordered(places: Tensor, orders: Sequence[Order]) -> Tensor:
    """The samples at rising places (S, m) in each of R orders, (S, R, m)."""
    first, last = int(places[0, 0]), int(places[-1, -1])
    found = torch.stack([order(first, last + 1) for order in orders])
    at = (places - first).flatten().expand(len(orders), -1)
    return found.gather(1, at).view(-1, *places.shape).transpose(0, 1)


def _weight_sums(batches: Batches, order: Order, low: int, high: int, weights: Tensor) -> Tensor:
    """(S,) for each micro-step what its batch weighs, also what of it lies before `low` or from `high` on."""
    ended = batches.ends[:low].nonzero()
    begin = int(ended[-1]) + 1 if len(ended) else 0  # of the batch that is open at `low`
    end = high + int(batches.ends[high - 1 :].nonzero()[0])  # of the one that is open at `high`
    places, real = batches.places(begin, end)
    index = _ordered(places, [order])[:, 0]
    ends = batches.ends[begin:end]
    batch = ends.cumsum(0) - ends.long()  # (S,) the number of each step's batch
    sums = torch.zeros(end - begin, dtype=torch.float64)
    sums.index_add_(0, batch, (weights[index] * real).double().sum(1))
    return sums[batch][low - begin : high - begin]
