"""The engine of this process: lanes of slots, worked off in blocks."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

import torch
from torch import Tensor

from tunecli.engine.batches import batch_length, epoch_updates, longest_batch, micro_length
from tunecli.engine.block import Block
from tunecli.engine.device import is_out_of_memory, keep_memory, out_of_memory
from tunecli.engine.forward import forward_in_bfloat16
from tunecli.engine.gradients import Layout
from tunecli.engine.lane import Lane, Slot
from tunecli.engine.plan import Plan
from tunecli.engine.rowwise.native import MOST_NUMBERS
from tunecli.engine.rules import RULES
from tunecli.engine.snapshot import Snapshot, put_snapshot, take_snapshot
from tunecli.engine.task import Task
from tunecli.engine.traits import Traits
from tunecli.engine.tried import told, try_model
from tunecli.errors import OutOfMemory, TunecliError
from tunecli.space import settings_of
from tunecli.trial import Measurement, Run, Value

Shape = tuple[tuple[str, Value], ...]


class LocalEngine:
    """An Engine whose slots live in this process, on one device. See `tunecli.engine.Engine`.

    It announces the trials that it computes, each time before it does: what ends the process can be told by it. Rows
    that C trains are shared by so many `threads`, which changes no bit: it is not of the plan.
    """

    def __init__(
        self,
        task: Task,
        plan: Plan,
        device: str = "cpu",
        announce: Callable[[tuple[int, ...]], None] = lambda trials: None,
        threads: int = 1,
    ) -> None:
        self._task = task
        self._plan = plan
        self._device = torch.device(device)
        self._announce = announce
        self._threads = threads
        self._traits: dict[Shape, Traits] = {}
        self._lanes: dict[tuple[int, Shape], Lane] = {}
        self._slots: dict[int, Slot] = {}
        self._work: deque[Block] = deque()
        self._short: OutOfMemory | None = None
        torch.set_num_threads(plan.threads)
        keep_memory()
        try:
            self._train = task.train.to(self._device)
            self._validation = task.validation.to(self._device) if task.validation is not None else None
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            samples = len(task.train) + (0 if task.validation is None else len(task.validation))
            raise OutOfMemory(
                f"the data do not fit into the memory of {device}: {out_of_memory(error)}, {samples:,} samples",
                hint="let a data function return a Dataset, which is read batch by batch"
                + ("" if self._device.type == "cpu" else "; or --device cpu"),
            ) from error

    def plan_by(self, plan: Plan) -> None:
        """Compute by another plan, before anything has begun; what models allow is not tried anew for it."""
        if (plan.way, plan.compiled) != (self._plan.way, self._plan.compiled):
            self._traits.clear()
        self._plan = plan
        torch.set_num_threads(plan.threads)

    def start(self, run: Run) -> None:
        try:
            self._start(run)
        except (RuntimeError, MemoryError, TunecliError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(f"{out_of_memory(error)}: a smaller model needs less") from error

    def start_all(self, runs: Iterable[Run]) -> dict[int, TunecliError]:
        failed: dict[int, TunecliError] = {}
        for run in runs:
            try:
                self.start(run)
            except TunecliError as error:
                failed[run.trial] = error
        return failed

    def _start(self, run: Run) -> None:
        task = self._task.of(run)
        module = task.build(run).to(self._device)
        module.train()
        found = self.traits(run)
        looped = found.way == "looped"
        # A row of its own has neighbours neither in its block nor in its batch: it reads whole batches.
        cap = None if looped else self._plan.cap
        micro = micro_length(run.hparams["batch_size"], len(self._train), cap, whole=found.mixes_samples)
        shape = _shape(task, run)
        if _IN_HALF in shape:
            forward_in_bfloat16(module, self._device)
        key = 0 if looped else micro, shape
        if key not in self._lanes:
            self._lanes[key] = Lane(
                task=task,
                train=self._train,
                validation=self._validation,
                layout=Layout.of(module, channels_last=looped and found.channels_last),
                way=found.way,
                block_rows=1 if looped else self._plan.block_rows,
                micro=None if looped else micro,
                stochastic=found.stochastic,
                mixes_samples=found.mixes_samples,
                evaluated=self._plan.evaluated,
                compiled=self._plan.compiled,
                native=found.native,
                threads=self._threads,
                cap=cap,
                device=self._device,
            )
        self._slots[run.trial] = self._lanes[key].start(run, module)

    def begin(self) -> bool:
        try:
            if not self._work:
                self._work.extend(self._begin_tick())
        except OutOfMemory as error:
            self._short = error.with_traceback(None)  # which `advance` tells
            return False
        if not self._work or self._threads == 1:
            return False
        self._announce(self._work[0].trials)
        with suppress(MemoryError):  # `advance` goes without other threads
            self._work[0].begin_steps()
        return self._work[0].elsewhere

    def advance(self, deadline: float) -> list[Measurement]:
        if self._short is not None:
            short, self._short = self._short, None
            raise short
        if not self._work:
            self._work.extend(self._begin_tick())
        measured: list[Measurement] = []
        if self._work and self._work[0].elsewhere and not self._work[0].taken and time.monotonic() >= deadline:
            return measured
        while self._work:
            self._announce(self._work[0].trials)
            try:
                found = self._work[0].measure(deadline) if self._work[0].train(deadline) else None
            except OutOfMemory:
                if not measured:
                    raise
                break  # what others have shown is told first
            if found is None:
                break
            self._work.popleft()
            measured += found
            if time.monotonic() >= deadline:
                break
        return measured

    def _begin_tick(self) -> list[Block]:
        try:
            return [block for lane in self._lanes.values() for block in lane.begin_tick()]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            short = out_of_memory(error)
        raise OutOfMemory(
            f"{len(self._slots)} trials in flight do not fit into memory together: {short}",
            hint="begin anew with fewer at a time: --fresh, and a smaller search.window",
            of="block_rows" if self._plan.block_rows > 1 else None,
            at=self._plan.block_rows,
        )

    def close(self) -> None:
        self._settle()
        self._work.clear()
        self._lanes.clear()
        self._slots.clear()
        self._train, self._validation = self._task.train, self._task.validation

    def free(self, run: Run) -> None:
        slot = self._slots.pop(run.trial)
        slot.lane.free(slot)

    def weights(self, run: Run) -> dict[str, Tensor]:
        return self._slots[run.trial].best_weights()

    def snapshot(self, run: Run) -> Snapshot | None:
        self._settle()
        try:
            return take_snapshot(self._slots[run.trial])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    def restore(self, run: Run, snapshot: Snapshot) -> None:
        self.start(run)
        try:
            put_snapshot(self._slots[run.trial], snapshot)
        except (RuntimeError, MemoryError) as error:
            self.free(run)
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(f"{out_of_memory(error)}: a smaller model needs less") from error

    def _settle(self) -> None:
        if self._work:
            self._work[0].settle()

    def epoch_updates(self, run: Run) -> int:
        return epoch_updates(run.hparams["batch_size"], len(self._train), join_lone=self.traits(run).mixes_samples)

    def traits(self, run: Run) -> Traits:
        """What the model of this run allows, tried once a shape. Raises ModelError where it does not fit."""
        task = self._task.of(run)
        shape = _shape(task, run)
        if shape not in self._traits:
            self._traits[shape] = try_model(task, run, self._device, self._plan)
        found, optimizer = self._traits[shape], str(run.hparams["optimizer"])
        if optimizer not in RULES and found.looped_because is None:
            return found.looped(f"{optimizer} steps a module, not a block")
        if found.native and found.mixes_samples:
            return _by_batch(found, run.hparams["batch_size"], len(self._train))
        return found


_IN_HALF = ("precision", "bf16")
"""Among a shape where forward is computed in half precision."""


def _shape(task: Task, run: Run) -> Shape:
    """What a model is built from, its loss included, how it is computed, and what else its loss is told: runs of one
    shape share a lane."""
    built = tuple(sorted(own for own in run.hparams.items() if own[0].startswith("model.") or own[0] == "loss"))
    half = (_IN_HALF,) if settings_of(run.settings, run.hparams)["precision"] == "bf16" else ()
    return (*built, *half, *((name, True) for name in told(task, run)))


def _by_batch(found: Traits, batch_size: Value, samples: int) -> Traits:
    """What a model allows that reads its batches of so many samples whole."""
    if batch_length(batch_size, samples) == 1:
        return found.looped("a batch of one sample has no statistics")
    if longest_batch(batch_size, samples) * found.numbers > MOST_NUMBERS:
        return found.looped("so large a batch is computed whole")
    return found
