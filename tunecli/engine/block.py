"""A block of a lane: neighbouring rows, trained through an epoch and evaluated at once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from tunecli.alarm import Overdue, limited, overdue
from tunecli.data import Samples
from tunecli.data.randomness import seeded
from tunecli.engine.batches import ROUND, Batches, batch_length, epoch_batches
from tunecli.engine.compiler import is_compiled
from tunecli.engine.device import is_out_of_memory, out_of_memory
from tunecli.engine.gradients import Gradient, Looped, Shape
from tunecli.engine.plan import EVALUATION_SAMPLES
from tunecli.engine.rowwise import LaidOut, Rowwise, Steps, sample_keys
from tunecli.engine.schedule import rate_factors
from tunecli.engine.scoring import Scoring
from tunecli.engine.shortage import GRADIENTS, STATE, Shortage, fits_alone
from tunecli.engine.snapshot import Partial
from tunecli.engine.stretch import lay_out, neighbours, order_of, stretch_of
from tunecli.engine.update import Coming, Trained, Updates
from tunecli.errors import OutOfMemory, TunecliError
from tunecli.metrics import Loss
from tunecli.source import describe
from tunecli.trial import Measurement

if TYPE_CHECKING:
    from tunecli.engine.lane import Lane, Slot


class Block:
    """A fixed number of neighbouring rows, computed at once. Rows beyond its slots are empty and never updated."""

    def __init__(self, lane: Lane, slots: list[Slot], rows: slice) -> None:
        self._lane, self.slots, self._rows = lane, slots, rows
        self._state = lane.state.part(rows)
        memory = lane.gradient[rows]
        apart = lane.compiled and is_compiled(memory.dtype, memory.device)
        self._gradient = Gradient(lane.layout, memory, apart=apart)
        shape = self._loss_shape()
        # Labels are smoothed in training alone: what is compared on validation is one loss for all.
        self._scored_by = {name: column for name, column in shape.items() if name != "label_smoothing"}
        self._way = self._make_way(shape)
        self._batches = [self._epoch_batches(slot) for slot in slots]
        # A run restored in the middle of a tick joins its block at the micro-step where it was.
        self._starts = [slot.partial.step if slot.partial is not None else 0 for slot in slots]
        self._steps = max(batches.steps for batches in self._batches)
        self._updates: Updates | None = None
        self._step = self._low = self._high = 0
        self._joining: dict[int, Partial] = {}
        self._shortage = Shortage()

    @property
    def trials(self) -> tuple[int, ...]:
        return tuple(slot.run.trial for slot in self.slots)

    def _make_way(self, shape: Shape) -> Rowwise | Looped:
        lane, weights = self._lane, self._state.weights
        if lane.recorded is not None:
            return Rowwise(lane.recorded, weights, self._gradient, shape, lane.statistics[self._rows])
        module, weighted = self.slots[0].module, lane.weights is not None
        return Looped(module, lane.layout, weights, self._gradient, lane.task.loss, weighted, shape)

    def _make_updates(self, low: int, high: int) -> Updates:
        due = torch.zeros(high - low, len(self.slots), dtype=torch.bool)
        last = torch.zeros_like(due)
        for batches, rows in neighbours(self._batches):
            end = min(batches.steps, high)
            if low < end:
                due[: end - low, rows] = batches.ends[low:end, None]
                last[end - 1 - low, rows] = end == batches.steps
        for row, start in enumerate(self._starts):
            due[: max(start - low, 0), row] = False
        trained = [Trained(slot.rule, slot.hparams) for slot in self.slots]
        return Updates(self._state, self._gradient, trained, due, last)

    def _loss_shape(self) -> Shape:
        """What shapes the loss, (B,) each; an empty row has what the first row has. A step shapes its own."""
        loss = self._lane.task.loss
        if not isinstance(loss, Loss):
            return {}
        shapes = [loss.shape(slot.settings) for slot in self.slots]
        shapes += shapes[:1] * (len(self._gradient) - len(self.slots))
        columns = {name: [own[name] for own in shapes] for name in shapes[0]}
        return {name: torch.tensor(own, dtype=torch.float64).to(self._gradient.memory) for name, own in columns.items()}

    def _epoch_batches(self, slot: Slot) -> Batches:
        samples = len(self._lane.train)
        batch = batch_length(slot.run.hparams["batch_size"], samples)
        # A norm over the batch cannot be taken of a single sample.
        micro, join = self._lane.micro, self._lane.mixes_samples
        train = self._lane.train
        in_parts = self._lane.task.step is not None or not isinstance(train, Samples) or train.chunked is not None
        if micro is None and in_parts and not join and batch > EVALUATION_SAMPLES:
            micro = EVALUATION_SAMPLES  # less memory than a whole batch, and the sum is the same
        return epoch_batches(samples, batch, micro, join_lone=join)

    def begin(self) -> None:
        """Draw this epoch's order of samples for every row and lay out its first steps."""
        device, train = self._gradient.memory.device, self._lane.train
        # The items of a Dataset draw what they draw for this run, epoch and item; such a block has one row.
        seed = partial(self.slots[0].run.seed, "item", self.slots[0].ticks)
        self._train = train if isinstance(train, Samples) else train.drawn_by(seed)
        self._orders = [order_of(train, slot.run.seed("order", slot.ticks)) for slot in self.slots]
        height = len(self._gradient)
        seeds = [slot.run.seed("forward", slot.ticks) & 0xFFFFFFFF for slot in self.slots]
        self._seeds = torch.tensor(seeds + [0] * (height - len(seeds)), device=device)
        self._loss = torch.zeros(height, dtype=torch.float64, device=device)
        self._norm = torch.zeros(height, dtype=torch.float64, device=device)
        # What a user's step counts: in the batch so far, and in the epoch.
        self._count = torch.zeros(height, dtype=torch.float64, device=device)
        self._counted = torch.zeros(height, dtype=torch.float64, device=device)
        self._step, self._seconds = min(self._starts), 0.0
        self._lay_out()
        self._failure: str | None = None
        self._scoring: Scoring | None = None
        self._gradient.memory.zero_()
        self._used_up = False
        self._joining = {}
        self._seconds_before = [0.0] * len(self.slots)
        for row, slot in enumerate(self.slots):
            if slot.partial is not None:
                self._joining[row], slot.partial = slot.partial, None
        self._join()

    def _lay_out(self) -> None:
        """Lay out the stretch of this epoch that the coming step is in."""
        gradient = self._gradient.memory
        low, high = stretch_of(self._step, len(gradient), self._batches[0].micro)
        high = min(high, self._steps)
        found = lay_out(low, high, self._batches, self._orders, len(gradient), self._lane.weights)
        self._index, self._active = found.index.to(gradient.device), found.active.to(gradient.device)
        self._present, self._real = found.present.to(gradient), found.real
        for row, start in enumerate(self._starts):
            if start > low:
                self._real[: start - low, row] = 0  # until it joins its statistics must not go on
        if self._updates is None or (low, high) != (self._low, self._high):
            self._updates = self._make_updates(low, high)
        self._low, self._high = low, high
        self._share = self._shares(found.sizes).to(gradient)
        self._updates.begin(self._coming(found.ends))
        coming = self._index[self._step - low :]
        lengths = self._batches[0].lengths[self._step : high]
        self._read = self._train.stream(_lone(coming, lengths) if self._lane.micro is None else coming)
        self._native = self._native_steps()

    def _native_steps(self) -> Steps | None:
        """The steps that are laid out as C trains them, where it can."""
        lane, way = self._lane, self._way
        if not isinstance(way, Rowwise) or not isinstance(self._train, Samples):
            return None
        if self._updates is None or self._updates.compiled is None:
            return None
        keys = sample_keys(self._seeds, self._index) if lane.stochastic else None
        told = LaidOut(self._index, self._present, self._share, self._active, self._real, keys)
        return way.steps(self._train, told)

    def _shares(self, sizes: Tensor) -> Tensor:
        """What a sample's gradient is divided by, inverted, (S, B), from what the batches count (S, K).

        A user's step says so afterwards. A batch that counts nothing has no gradient, and none is divided by zero.
        """
        shares = torch.ones(len(sizes), len(self._gradient), dtype=torch.float64)
        if self._lane.task.step is None:
            shares[:, : sizes.shape[1]] = torch.where(sizes > 0, 1 / sizes, 1.0)
        return shares

    def _join(self) -> None:
        """Rows that start at this step take up what they had; what a row computed before is not its own."""
        for row in [row for row in self._joining if self._starts[row] == self._step]:
            partial = self._joining.pop(row)
            self._gradient.put(row, partial.gradient)
            sums = torch.tensor(partial.sums, dtype=torch.float64)
            self._loss[row], self._norm[row], self._count[row], self._counted[row] = sums
            self._seconds_before[row] = partial.seconds

    def partial(self, slot: Slot) -> Partial | None:
        """Where a run stands in this block's tick; None before its first step and after its evaluation."""
        row = self.slots.index(slot)
        if self._step == 0 or row in self._joining:
            return self._joining.get(row)
        if self._used_up:
            self._gradient.memory.zero_()
            self._used_up = False
        sums = torch.stack([self._loss[row], self._norm[row], self._count[row], self._counted[row]]).tolist()
        step = min(self._step, self._batches[row].steps)
        seconds = self._seconds_before[row] + self._seconds / len(self.slots)
        return Partial(step, self._gradient.row(row), tuple(sums), seconds)

    def _coming(self, ends: Tensor) -> Coming:
        """The updates of this stretch, from where batches end (S, K)."""
        slots = self.slots
        earlier = {batches: int(batches.ends[: self._low].sum()) for batches in dict.fromkeys(self._batches)}
        before = [slot.updates + earlier[batches] for slot, batches in zip(slots, self._batches, strict=True)]
        numbers = torch.tensor(before) + ends.cumsum(0)  # (S, K)
        epoch = torch.tensor([batches.count for batches in self._batches])
        totals = torch.tensor([slot.run.epochs for slot in slots]) * epoch
        scales = [slot.plateau.scale for slot in slots]
        rates = rate_factors([slot.settings for slot in slots], numbers, totals, epoch, scales)
        return Coming(numbers, rates)

    def begin_steps(self) -> None:
        """Have other threads begin with the coming steps, where C trains them and that is worth it; `train` and
        `settle` end them."""
        native, timed = self._native, self._lane.task.trial_seconds is not None
        if native is None or native.busy or timed or self._joining or self._shortage.error is not None:
            return
        if native.is_shared(self._high - self._step):
            self._begin_steps(late=False)

    @property
    def elsewhere(self) -> bool:
        """Whether other threads train it."""
        return self._native is not None and self._native.elsewhere

    @property
    def taken(self) -> bool:
        """Whether they need no help any more."""
        return self._native is None or self._native.taken

    def settle(self) -> None:
        """Wait for the steps that have begun."""
        if self._native is not None and self._native.busy:
            self._step += self._native.end()
            self._seconds += time.monotonic() - self._began

    def train(self, deadline: float) -> bool:
        """Go on with this tick, by one micro-step at least; False where the deadline came first."""
        began = now = self._began if self._native is not None and self._native.busy else time.monotonic()
        if self._shortage.error is not None:
            raise self._shortage.error
        short = None
        try:
            with limited(self._seconds_left()):
                while self._step < self._steps:
                    if self._step == self._high:
                        self._lay_out()
                    self._advance(late=now >= deadline)
                    if self._joining:
                        self._join()
                    now = time.monotonic()
                    if now >= deadline:
                        break
        except (Exception, SystemExit, Overdue) as error:
            if self._native is not None:
                self._native.end()  # what fails is over
            self._failure, now = self._reason(error), time.monotonic()
            short = out_of_memory(error) if is_out_of_memory(error) else None
        self._seconds += now - began
        # What the step had computed so far is gone by now.
        if short is not None and len(self._gradient) > 1 and self._fit_alone():
            self._run_short("block_rows", len(self._gradient), short)
        return self._step >= self._steps or self._failure is not None

    def _seconds_left(self) -> float | None:
        """How long these rows may still take; what is computed at once counts for each by its share."""
        limit = self._lane.task.trial_seconds
        if limit is None:
            return None
        least = min(slot.seconds + before for slot, before in zip(self.slots, self._seconds_before, strict=True))
        return (limit - least) * len(self.slots) - self._seconds

    def _reason(self, error: BaseException) -> str:
        """Why a run failed that met this. Rows that share a program have no error of their own."""
        if isinstance(error, Overdue):
            return overdue(self._lane.task.trial_seconds)
        found = error.message if isinstance(error, TunecliError) else f"the model raised {describe(error)}"
        if is_out_of_memory(error):
            return f"{out_of_memory(error)}: a smaller batch_size or model needs less"
        return found if len(self.slots) == 1 else f"{found}, as {len(self.slots)} trials were computed at once"

    def _advance(self, *, late: bool) -> None:
        """Take the next step, or as many as one call of C may train; one where it is `late`, or rows are to join."""
        if self._native is None or self._joining:
            self._micro_step(self._step)
            self._step += 1
            return
        if not self._native.busy:
            self._begin_steps(late=late)
        self._step += self._native.end()

    def _begin_steps(self, *, late: bool) -> None:
        assert self._native is not None
        assert self._updates is not None
        assert self._updates.compiled is not None
        low = self._step - self._low
        high = min(low + (1 if late else self._native.at_once), len(self._index))
        self._native.begin(low, high, self._updates.compiled, self._loss, self._norm, over=self._used_up)
        self._used_up, self._began = False, time.monotonic()

    def _micro_step(self, step: int) -> None:
        place = step - self._low
        index, present = self._index[place], self._present[place]  # (B, m)
        if self._lane.micro is None:
            present = present[0, : self._batches[0].lengths[step]]
        read = next(self._read)
        if isinstance(self._way, Rowwise) and self._lane.stochastic:
            self._way.draw_by(sample_keys(self._seeds, index))
        assert self._updates is not None
        looped = self._way if isinstance(self._way, Looped) else None
        told: dict[str, Any] = {"real": self._real[place]}
        if looped is not None:
            told = {"leave": self._updates.reads_elsewhere(place)}
        self._shortage.writing = GRADIENTS
        with self._randomness(step):
            losses, counts = self._way.add_gradient(read, present, self._share[place], over=self._used_up, **told)
        self._shortage.writing = STATE
        # A row that has finished its epoch, or is empty, computes along and adds nothing, not even a NaN.
        self._loss += torch.where(self._active[place], losses, 0.0)
        if counts is not None:
            self._count += counts
            self._counted += counts
        left = looped.take_left() if looped is not None else None
        self._used_up = self._updates.apply(place, self._norm, self._count if counts is not None else None, left)
        self._shortage.writing = None

    def _fit_alone(self) -> bool:
        """Whether the rows could be computed one by one."""
        place, one = self._step - self._low, slice(0, 1)
        if self._shortage.writing == STATE or place >= len(self._index):
            return True  # what they read and compute was there
        shape = {name: column[one] for name, column in self._loss_shape().items()}
        index = self._index[place, one]
        keys = sample_keys(self._seeds[one], index) if self._lane.stochastic else None
        return fits_alone(self._lane, self._state.weights[one], shape, index, self._present[place, one], keys)

    def _run_short(self, of: str, at: int, message: str) -> NoReturn:
        """Give up for want of memory, so that less is computed at once. Raises OutOfMemory, again when asked again."""
        self._failure = None
        amid = [self._is_amid(row) for row in range(len(self.slots))]
        self._shortage.give_up(OutOfMemory(message, of=of, at=at), self._gradient, amid)

    def is_torn(self, slot: Slot) -> bool:
        """Whether memory ran out while a step wrote into what the run has: its gradient so far, or its weights."""
        row = self.slots.index(slot)
        return self._shortage.tears(amid=row not in self._joining and self._is_amid(row))

    def _is_amid(self, row: int) -> bool:
        """Whether a row has read a part of a batch."""
        batches = self._batches[row]
        return 0 < self._step < batches.steps and not batches.ends[self._step - 1]

    def _randomness(self, step: int) -> AbstractContextManager[None]:
        """What a forward pass draws comes from its run, epoch and step; a user's step may draw from any generator."""
        if not self._lane.stochastic or self._lane.micro is not None:
            return nullcontext()
        slot = self.slots[0]
        return seeded(slot.run.seed("forward", slot.ticks, step))

    def measure(self, deadline: float) -> list[Measurement] | None:
        """Evaluate the rows on validation, keep the best weights and return a measurement of each slot.

        None where the deadline came first: the next call goes on.
        """
        began = time.monotonic()
        lane = self._lane
        loss = metric = torch.full_like(self._loss, float("nan"))
        failures: dict[int, str] = {}
        short, reading = None, True
        if lane.validation is not None and self._failure is None:
            if self._scoring is None:
                own = self.slots[0].module, len(self.slots), lane.micro is None, lane.evaluated
                self._scoring = Scoring(lane.task, self._way, lane.validation, self._scored_by, *own)
            try:
                with limited(self._seconds_left()), self._averaged():
                    if not self._scoring.read(deadline):
                        self._seconds += time.monotonic() - began
                        return None
                    reading = lane.task.step is not None
                    loss, metric, failures = self._scoring.score()
            except (Exception, SystemExit, Overdue) as error:
                self._failure = self._reason(error)
                short = out_of_memory(error) if is_out_of_memory(error) else None
        self._scoring = None
        if short is not None and reading and lane.evaluated > (1 if len(self._gradient) == 1 else ROUND):
            self._run_short("evaluated", lane.evaluated, short)
        elif short is not None and len(self._gradient) > 1:
            self._run_short("block_rows", len(self._gradient), short)
        train_loss = self._loss / (lane.whole_weight if lane.task.step is None else self._counted)
        # The one point of a tick where the host waits for the device.
        found = torch.stack([train_loss, loss.to(train_loss), metric.to(train_loss), self._norm]).T.tolist()
        for slot, batches in zip(self.slots, self._batches, strict=True):
            slot.ticks += 1
            slot.updates += batches.count
        self._step = 0
        seconds = (self._seconds + time.monotonic() - began) / len(self.slots)
        return [
            lane.see(slot, found[row], seconds + self._seconds_before[row], self._failure or failures.get(row))
            for row, slot in enumerate(self.slots)
        ]

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The rows whose average counts hold it."""
        rows = [row for row, slot in enumerate(self.slots) if slot.averages]
        if not rows or self._state.average is None:
            yield
            return
        trained = self._state.weights[rows]
        self._state.weights[rows] = self._state.average[rows]
        try:
            yield
        finally:
            self._state.weights[rows] = trained


def _lone(index: Tensor, lengths: Sequence[int]) -> Iterator[Tensor]:
    """Which samples each step of a row of its own reads, so many as there are, (m,).

    Knows no block: what holds a block that is done holds the lane's matrices as they were.
    """
    for own, length in zip(index, lengths, strict=True):
        yield own[0, :length]
