"""A block of a lane: neighbouring rows, trained through an epoch and evaluated at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from tunecli.alarm import Overdue, limited, overdue
from tunecli.data.randomness import seeded
from tunecli.engine.batches import ROUND
from tunecli.engine.compiler import is_compiled
from tunecli.engine.device import is_out_of_memory, out_of_memory
from tunecli.engine.epoch import Epoch
from tunecli.engine.gradients import Gradient, Looped, Shape
from tunecli.engine.rowwise import Rowwise, Steps
from tunecli.engine.scoring import Scoring
from tunecli.engine.shortage import GRADIENTS, STATE, Shortage, fits_alone
from tunecli.engine.snapshot import Partial
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
        self._epoch = Epoch(lane, slots, self._state, self._gradient, self._way)
        self._step = 0
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

    def _loss_shape(self) -> Shape:
        """What shapes the loss, (B,) each; an empty row has what the first row has. A step shapes its own."""
        loss = self._lane.task.loss
        if not isinstance(loss, Loss):
            return {}
        shapes = [loss.shape(slot.settings) for slot in self.slots]
        shapes += shapes[:1] * (len(self._gradient) - len(self.slots))
        columns = {name: [own[name] for own in shapes] for name in shapes[0]}
        return {name: torch.tensor(own, dtype=torch.float64).to(self._gradient.memory) for name, own in columns.items()}

    def begin(self) -> None:
        """Begin the next epoch: draw its order of samples for every row and lay out its first steps."""
        height, device = len(self._gradient), self._gradient.memory.device
        self._loss = torch.zeros(height, dtype=torch.float64, device=device)
        self._norm = torch.zeros(height, dtype=torch.float64, device=device)
        # What a user's step counts: in the batch so far, and in the epoch.
        self._count = torch.zeros(height, dtype=torch.float64, device=device)
        self._counted = torch.zeros(height, dtype=torch.float64, device=device)
        self._step, self._seconds = self._epoch.begin(), 0.0
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

    def _join(self) -> None:
        """Rows that start at this step take up what they had; what a row computed before is not its own."""
        for row in [row for row in self._joining if self._epoch.starts[row] == self._step]:
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
        step = min(self._step, self._epoch.batches[row].steps)
        seconds = self._seconds_before[row] + self._seconds / len(self.slots)
        return Partial(step, self._gradient.row(row), tuple(sums), seconds)

    def begin_steps(self) -> None:
        """Have other threads begin with the coming steps, where C trains them and that is worth it; `train` and
        `settle` end them."""
        native, timed = self._epoch.native, self._lane.task.trial_seconds is not None
        if native is None or native.busy or timed or self._joining or self._shortage.error is not None:
            return
        steps = native.until - (self._step - self._epoch.low)
        if steps > 0 and native.is_shared(steps):
            self._begin_steps(native, late=False)

    @property
    def elsewhere(self) -> bool:
        """Whether other threads train it."""
        return self._epoch.native is not None and self._epoch.native.elsewhere

    @property
    def taken(self) -> bool:
        """Whether they need no help any more."""
        return self._epoch.native is None or self._epoch.native.taken

    def settle(self) -> None:
        """Wait for the steps that have begun."""
        if self._epoch.native is not None and self._epoch.native.busy:
            self._step += self._epoch.native.end()
            self._seconds += time.monotonic() - self._began

    def train(self, deadline: float) -> bool:
        """Go on with this tick, by one micro-step at least; False where the deadline came first."""
        began = now = self._began if self._epoch.native is not None and self._epoch.native.busy else time.monotonic()
        if self._shortage.error is not None:
            raise self._shortage.error
        short = None
        try:
            with limited(self._seconds_left()):
                while self._step < self._epoch.steps:
                    if self._step == self._epoch.high:
                        self._epoch.lay_out(self._step)
                    self._advance(late=now >= deadline)
                    if self._joining:
                        self._join()
                    now = time.monotonic()
                    if now >= deadline:
                        break
        except (Exception, SystemExit, Overdue) as error:
            if self._epoch.native is not None:
                self._epoch.native.end()  # what fails is over
            self._failure, now = self._reason(error), time.monotonic()
            short = out_of_memory(error) if is_out_of_memory(error) else None
        self._seconds += now - began
        # What the step had computed so far is gone by now.
        if short is not None and len(self._gradient) > 1 and self._fit_alone():
            self._run_short("block_rows", len(self._gradient), short)
        return self._step >= self._epoch.steps or self._failure is not None

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
        native = None if self._joining else self._epoch.native_at(self._step)
        if native is None:
            self._micro_step(self._step)
            self._step += 1
            return
        if not native.busy:
            self._begin_steps(native, late=late)
        self._step += native.end()

    def _begin_steps(self, native: Steps, *, late: bool) -> None:
        compiled = self._epoch.updates.compiled
        assert compiled is not None
        low = self._step - self._epoch.low
        high = min(low + (1 if late else native.at_once), native.until)
        native.begin(low, high, compiled, self._loss, self._norm, over=self._used_up)
        self._used_up, self._began = False, time.monotonic()

    def _micro_step(self, step: int) -> None:
        epoch, place = self._epoch, step - self._epoch.low
        present = epoch.present[place]  # (B, m)
        if self._lane.micro is None:
            present = present[0, : epoch.batches[0].lengths[step]]
        read = next(epoch.read)
        looped = self._way if isinstance(self._way, Looped) else None
        if isinstance(self._way, Rowwise):
            self._way.draw_by(epoch.keys(place))
        told: dict[str, Any] = {"real": epoch.real[place]}
        if looped is not None:
            told = {"leave": epoch.updates.reads_elsewhere(place)}
        self._shortage.writing = GRADIENTS
        with self._randomness(step):
            losses, counts = self._way.add_gradient(read, present, epoch.share[place], over=self._used_up, **told)
        self._shortage.writing = STATE
        # A row that has finished its epoch, or is empty, computes along and adds nothing, not even a NaN.
        self._loss += torch.where(epoch.active[place], losses, 0.0)
        if counts is not None:
            self._count += counts
            self._counted += counts
        left = looped.take_left() if looped is not None else None
        self._used_up = epoch.updates.apply(place, self._norm, self._count if counts is not None else None, left)
        self._shortage.writing = None

    def _fit_alone(self) -> bool:
        """Whether the rows could be computed one by one."""
        epoch, place, one = self._epoch, self._step - self._epoch.low, slice(0, 1)
        if self._shortage.writing == STATE or place >= len(epoch.index):
            return True  # what they read and compute was there
        shape = {name: column[one] for name, column in self._loss_shape().items()}
        index, present, keys = epoch.index[place, one], epoch.present[place, one], epoch.keys(place)
        own_keys = None if keys is None else keys[one]
        return fits_alone(self._lane, self._state.weights[one], shape, index, present, own_keys)

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
        batches = self._epoch.batches[row]
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
        for slot, batches in zip(self.slots, self._epoch.batches, strict=True):
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
