"""The engine of this process: lanes of slots, worked off in blocks."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from tunecli.data import Samples, each
from tunecli.engine.batches import batch_length, epoch_updates, longest_batch, micro_length
from tunecli.engine.block import Block
from tunecli.engine.device import is_out_of_memory, keep_memory, out_of_memory
from tunecli.engine.forward import as_matrix, as_outputs, call, evaluating, forward_in_bfloat16
from tunecli.engine.functions import Step
from tunecli.engine.gradients import Layout, sample_losses
from tunecli.engine.lane import Lane, Slot
from tunecli.engine.misfit import are_probabilities, check_tables, check_unwritten, misfit
from tunecli.engine.plan import NATIVE_WEIGHTS, Plan
from tunecli.engine.rowwise.native import MOST_NUMBERS, SHAPES, WHOLE
from tunecli.engine.rules import RULES
from tunecli.engine.snapshot import Snapshot, put_snapshot, take_snapshot
from tunecli.engine.task import Task
from tunecli.engine.traits import Traits, bears_channels_last, step_traits, traits
from tunecli.errors import ModelError, OutOfMemory, TunecliError
from tunecli.metrics import Loss
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
            self._traits[shape] = _try_model(task, run, self._device, self._plan)
        found, optimizer = self._traits[shape], str(run.hparams["optimizer"])
        if optimizer not in RULES and found.looped_because is None:
            return _looped(found, f"{optimizer} steps a module, not a block")
        if found.native and found.mixes_samples:
            if _IN_HALF in shape:
                return _looped(found, "BatchNorm in half precision mixes the samples of a batch")
            return _by_batch(found, run.hparams["batch_size"], len(self._train))
        return found


_IN_HALF = ("precision", "bf16")
"""Among a shape where forward is computed in half precision."""


def _shape(task: Task, run: Run) -> Shape:
    """What a model is built from, its loss included, how it is computed, and what else its loss is told: runs of one
    shape share a lane."""
    built = tuple(sorted(own for own in run.hparams.items() if own[0].startswith("model.") or own[0] == "loss"))
    half = (_IN_HALF,) if settings_of(run.settings, run.hparams)["precision"] == "bf16" else ()
    return (*built, *half, *((name, True) for name in _told(task, run)))


def _told(task: Task, run: Run) -> dict[str, float]:
    """What the loss of a run is told beside outputs and targets."""
    return {} if isinstance(task.loss, Step) else task.loss.shape(settings_of(run.settings, run.hparams))


_ITEMS_ARE_READ = "the items of its Dataset are read one by one, data.cache = true trains many trials at once"


def _looped(found: Traits, because: str) -> Traits:
    return replace(found, way="looped", looped_because=because, native=False)


def _by_batch(found: Traits, batch_size: Value, samples: int) -> Traits:
    """What a model allows that reads its batches of so many samples whole."""
    if batch_length(batch_size, samples) == 1:
        return _looped(found, "a batch of one sample has no statistics")
    if longest_batch(batch_size, samples) * found.numbers > MOST_NUMBERS:
        return _looped(found, "so large a batch is computed whole")
    return found


def _try_model(task: Task, run: Run, device: torch.device, plan: Plan) -> Traits:
    count = max(2, min(8, len(task.train)) // 2 * 2)
    samples = task.train.to(device).take(slice(0, count))
    inputs = each(lambda own: own.clone() if isinstance(own, Tensor) else own, samples.inputs)  # or texts
    module = task.build(run).to(device)
    twin = task.build(Run(run.trial, run.study_seed + 1, run.hparams, run.epochs)).to(device)
    remark = None
    try:
        found = step_traits(module, samples, task.loss) if isinstance(task.loss, Step) else None
        if found is None or task.metric.function is not None:
            with torch.no_grad(), evaluating(module):
                outputs = as_outputs(call(module, samples.inputs), count)
            _check_outputs(task, outputs, samples.targets)
            if (
                task.classes
                and not (isinstance(task.loss, Step) or task.loss.own)
                and are_probabilities(module, outputs)
            ):
                remark = (
                    f"the model gives probabilities, and {task.loss.name} takes logits: leave its last activation out"
                )
        if found is None:
            assert isinstance(task.loss, Loss)
            may = plan.compiled and isinstance(task.train, Samples) and len(task.train) >= WHOLE
            weights = sum(own.numel() for own in module.parameters() if own.requires_grad)
            may = may and _told(task, run).keys() <= SHAPES and weights <= NATIVE_WEIGHTS
            more = task.train.take(slice(0, WHOLE)).to(device) if may else None
            found = traits(module, twin, samples, task.loss, plan.way, more)
        check_unwritten(samples, inputs)
        check_tables(module, samples, (task.train, task.validation))
        if not isinstance(task.train, Samples) and found.looped_because is None:
            found = _looped(found, _ITEMS_ARE_READ)
        if found.way == "looped":
            losses = partial(_losses, task, module, samples)
            found = replace(found, channels_last=bears_channels_last(module, losses))
        return replace(found, remark=remark)
    except TunecliError:
        raise
    except (Exception, SystemExit) as error:
        raise misfit(module, samples, error) from error


def _losses(task: Task, module: nn.Module, samples: Samples) -> Tensor:
    """What a model's training sums up, (N,) or, by a step of the user's own, ()."""
    if isinstance(task.loss, Step):
        return task.loss(module, samples.batch())[0]
    return sample_losses(task.loss, as_outputs(call(module, samples.inputs), len(samples)), samples.targets)


def _check_outputs(task: Task, found: Tensor, targets: Tensor) -> None:
    if task.metric.own:
        task.metric_of(found[None], targets)
    if isinstance(task.loss, Step) or task.loss.own:
        return
    outputs, needed = as_matrix(found).shape[1], task.loss.outputs(task.classes)
    fits = outputs >= needed if not task.loss.one_output else outputs == 1
    if not fits:
        what = f"{task.classes} classes" if task.classes else "one target"
        raise ModelError(
            f"the model gives {outputs} output{'s' if outputs != 1 else ''} a sample, "
            f"the data have {what} and {task.loss.name} needs {needed}",
            hint='give it two, or one and train.loss = "binary_cross_entropy"'
            if task.classes == 2 and outputs == 1
            else "change the model's last layer",
        )
