"""An epoch of a block: which samples its rows read and by what they are updated, laid out a stretch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tunecli.data import Samples
from tunecli.data.samples import each, tensors
from tunecli.engine.batches import Batches, batch_length, epoch_batches
from tunecli.engine.gradients import Gradient, Looped
from tunecli.engine.plan import EVALUATION_SAMPLES
from tunecli.engine.rowwise import LaidOut, Rowwise, Steps, sample_keys
from tunecli.engine.schedule import rate_factors
from tunecli.engine.stretch import lay_out, neighbours, order_of, stretch_of
from tunecli.engine.update import Coming, State, Trained, Updates

if TYPE_CHECKING:
    from tunecli.engine.lane import Lane, Slot


TAKEN = 1 << 24
"""Bytes of inputs that are taken at once for C where they do not lie in memory: 16 MiB."""


class Epoch:
    """The micro-steps of a block of B rows, of which those of the `slots` train; `begin` makes it the next epoch.

    Of the stretch from step `low` to `high`: the samples that are read, `index` (S, B, m); what each counts, `present`
    (S, B, m), 0 where it only fills, and how many do not, `real` (S, B); which rows train, `active` (S, B), and by what
    a sample's gradient is multiplied, `share` (S, B). `updates` come after the steps, and `read` gives the samples of
    each in its turn; `native` is what trains many of them in one call, as `native_at` had it last.

    A run restored in the middle of a tick has the step where it was in `starts`, and trains from there on.
    """

    def __init__(
        self, lane: Lane, slots: Sequence[Slot], state: State, gradient: Gradient, way: Rowwise | Looped
    ) -> None:
        self._lane, self._slots, self._state, self._gradient, self._way = lane, slots, state, gradient, way
        self.batches = [self._batches_of(slot) for slot in slots]
        self.starts = [slot.partial.step if slot.partial is not None else 0 for slot in slots]
        self.steps = max(batches.steps for batches in self.batches)
        self.low = self.high = 0
        self.native: Steps | None = None
        self._updates: Updates | None = None
        self._for_c: tuple[Rowwise, Samples, LaidOut] | None = None

    def _batches_of(self, slot: Slot) -> Batches:
        samples = len(self._lane.train)
        batch = batch_length(slot.run.hparams["batch_size"], samples)
        # A norm over the batch cannot be taken of a single sample.
        micro, join = self._lane.micro, self._lane.mixes_samples
        train = self._lane.train
        in_parts = self._lane.task.step is not None or not isinstance(train, Samples) or train.chunked is not None
        if micro is None and in_parts and not join and batch > EVALUATION_SAMPLES:
            micro = EVALUATION_SAMPLES  # less memory than a whole batch, and the sum is the same
        return epoch_batches(samples, batch, micro, join_lone=join)

    @property
    def updates(self) -> Updates:
        assert self._updates is not None  # from `begin` on
        return self._updates

    def begin(self) -> int:
        """Draw the order of samples for every row and lay out the first steps; the step that comes first."""
        train = self._lane.train
        # The items of a Dataset draw what they draw for this run, epoch and item; such a block has one row.
        seed = partial(self._slots[0].run.seed, "item", self._slots[0].ticks)
        self._train = train if isinstance(train, Samples) else train.drawn_by(seed)
        self._orders = [order_of(train, slot.run.seed("order", slot.ticks)) for slot in self._slots]
        seeds = [slot.run.seed("forward", slot.ticks) & 0xFFFFFFFF for slot in self._slots]
        seeds += [0] * (len(self._gradient) - len(seeds))
        self._seeds = torch.tensor(seeds, device=self._gradient.memory.device)
        first = min(self.starts)
        self.lay_out(first)
        return first

    def lay_out(self, step: int) -> None:
        """Lay out the stretch that a step is in, which is the next one."""
        memory = self._gradient.memory
        low, high = stretch_of(step, len(memory), self.batches[0].micro)
        high = min(high, self.steps)
        found = lay_out(low, high, self.batches, self._orders, len(memory), self._lane.weights)
        self.index, self.active = found.index.to(memory.device), found.active.to(memory.device)
        self.present, self.real = found.present.to(memory), found.real
        for row, start in enumerate(self.starts):
            if start > low:
                self.real[: start - low, row] = 0  # until it joins its statistics must not go on
        if self._updates is None or (low, high) != (self.low, self.high):
            self._updates = self._make_updates(low, high)
        self.low, self.high = low, high
        self.share = self._shares(found.sizes).to(memory)
        self._updates.begin(self._coming(found.ends))
        coming = self.index[step - low :]
        alone = self._lane.micro is None
        self.read = self._train.stream(_lone(coming, self.batches[0].lengths[step:high]) if alone else coming)
        self._for_c = self._told_to_c()
        self.native = None
        if self._for_c is not None:
            way, train, told = self._for_c
            self.native = way.steps(train, told)

    def keys(self, place: int) -> Tensor | None:
        """What the samples of a step draw by (B, m), where something is drawn; `place` counts from `low`."""
        return sample_keys(self._seeds, self.index[place]) if self._lane.stochastic else None

    def _make_updates(self, low: int, high: int) -> Updates:
        due = torch.zeros(high - low, len(self._slots), dtype=torch.bool)
        last = torch.zeros_like(due)
        for batches, rows in neighbours(self.batches):
            end = min(batches.steps, high)
            if low < end:
                due[: end - low, rows] = batches.ends[low:end, None]
                last[end - 1 - low, rows] = end == batches.steps
        for row, start in enumerate(self.starts):
            due[: max(start - low, 0), row] = False
        trained = [Trained(slot.rule, slot.hparams) for slot in self._slots]
        return Updates(self._state, self._gradient, trained, due, last)

    def _shares(self, sizes: Tensor) -> Tensor:
        """What a sample's gradient is divided by, inverted, (S, B), from what the batches count (S, K).

        A user's step says so afterwards. A batch that counts nothing has no gradient, and none is divided by zero.
        """
        shares = torch.ones(len(sizes), len(self._gradient), dtype=torch.float64)
        if self._lane.task.step is None:
            shares[:, : sizes.shape[1]] = torch.where(sizes > 0, 1 / sizes, 1.0)
        return shares

    def _coming(self, ends: Tensor) -> Coming:
        """The updates of this stretch, from where batches end (S, K)."""
        slots = self._slots
        earlier = {batches: int(batches.ends[: self.low].sum()) for batches in dict.fromkeys(self.batches)}
        before = [slot.updates + earlier[batches] for slot, batches in zip(slots, self.batches, strict=True)]
        numbers = torch.tensor(before) + ends.cumsum(0)  # (S, K)
        epoch = torch.tensor([batches.count for batches in self.batches])
        totals = torch.tensor([slot.run.epochs for slot in slots]) * epoch
        scales = [slot.plateau.scale for slot in slots]
        rates = rate_factors([slot.settings for slot in slots], numbers, totals, epoch, scales)
        return Coming(numbers, rates)

    def native_at(self, step: int) -> Steps | None:
        """What trains a step in one call with those after it, where C can. Samples that do not lie in memory as C reads
        them are taken for some steps at once."""
        native, place = self.native, step - self.low
        if self._for_c is not None and (native is None or not (native.busy or place < native.until)):
            self.native = _steps_from(place, *self._for_c)
            self._for_c = None if self.native is None else self._for_c
        return self.native

    def _told_to_c(self) -> tuple[Rowwise, Samples, LaidOut] | None:
        """The steps that are laid out, where C may train them."""
        way, train = self._way, self._train
        if not isinstance(way, Rowwise) or not isinstance(train, Samples) or self.updates.compiled is None:
            return None
        keys = sample_keys(self._seeds, self.index) if self._lane.stochastic else None
        return way, train, LaidOut(self.index, self.present, self.share, self.active, self.real, keys)


def _steps_from(place: int, way: Rowwise, train: Samples, told: LaidOut) -> Steps | None:
    """Some steps from a place on, their samples taken now; None where C does not compute the model."""
    way.draw_by(None if told.keys is None else told.keys[place])
    one = train.take(told.index[place])
    if not way.is_native(one):
        return None
    some = told.index[place : place + max(1, TAKEN // sum(part.nbytes for _, part in tensors(one.inputs)))]
    taken = train.take(some)  # (S', B, m, *feature)
    inputs, targets = each(lambda own: own.flatten(0, 2), taken.inputs), taken.targets.flatten(0, 2)
    told = replace(told, index=torch.arange(len(targets)).view_as(some), first=place)
    return way.steps(Samples(inputs, targets), told)


def _lone(index: Tensor, lengths: Sequence[int]) -> Iterator[Tensor]:
    """Which samples each step of a row of its own reads, so many as there are, (m,).

    Knows no block: what holds a block that is done holds the lane's matrices as they were.
    """
    for own, length in zip(index, lengths, strict=True):
        yield own[0, :length]
