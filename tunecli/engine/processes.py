"""An engine made of engines: one in each of some worker processes.

Which worker trains a run never changes what comes of it. So a run goes where the least is to do, and those of a worker
that died are trained again in a new one, up to where they were.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tunecli.data import Data
from tunecli.engine.local import LocalEngine
from tunecli.engine.own import load_optimizer
from tunecli.engine.plan import Plan
from tunecli.engine.snapshot import Snapshot
from tunecli.engine.task import Task, make_task
from tunecli.engine.traits import Traits
from tunecli.engine.worker import Announce, Lost, Make, Worker, WorkerDied
from tunecli.errors import ModelError, OutOfMemory, StorageError, TunecliError
from tunecli.study import Study
from tunecli.trial import Measurement, Run

if TYPE_CHECKING:
    from tunecli.engine import Engine

MOST_DEATHS = 3
"""So often a run is at work in one tick when its worker dies; after that it has failed."""

MOST_KEPT = 1 << 29
"""Bytes of snapshots that are kept at hand; a run without one is trained again from its start."""

POLL_SECONDS = 0.1


def engine_of(study: Study, data: Data, task: Task, plan: Plan, device: str) -> Make:
    """What makes the engine of a study in a worker, where the samples lie in memory that all processes share.

    `task` is this process's: functions of a user's own cannot be sent, so a worker loads them itself.
    """
    sent = _Sent(study, replace(data, test=data.validation), tuple(task.optimizers), torch.get_default_dtype())
    return partial(_make_engine, sent, plan, device)


@dataclass(frozen=True, slots=True)
class _Sent:
    """What a task is made from. A user's code may have set the default type of numbers."""

    study: Study
    data: Data
    optimizers: tuple[str, ...]
    dtype: torch.dtype


def _make_engine(sent: _Sent, plan: Plan, device: str, announce: Announce) -> LocalEngine:
    torch.set_default_dtype(sent.dtype)
    own = {source: load_optimizer(source, sent.study.base) for source in sent.optimizers}
    task = replace(make_task(sent.study, sent.data), optimizers=own)
    return LocalEngine(task, plan, device, announce)


class Processes:
    """An Engine whose slots live in worker processes. See `tunecli.engine.Engine`.

    `here` is an engine of the same task and plan in this process: it says what a model allows. `make` makes one in a
    worker, of which each has its share of a `window` of runs. `tell` is given a line for each worker that dies.

    `moving` are runs that `here` trains already: it goes on with them, and with those started meanwhile, until every
    worker is there; then they move between two ticks.
    """

    def __init__(
        self,
        here: Engine,
        make: Make,
        workers: int,
        window: int,
        tell: Callable[[str], None],
        moving: Iterable[Run] = (),
    ) -> None:
        self._here, self._make, self._tell = here, make, tell
        self._share = window / workers
        self._moving = {run.trial: run for run in moving}
        self._waiting = bool(self._moving)
        self._pending_here = 0
        self._ticks: dict[int, int] = {}
        self._deaths: dict[int, tuple[int, int]] = {}
        self._snapshots: dict[int, Snapshot] = {}
        self._late: list[Measurement] = []
        self._given_up: list[Measurement] = []
        self._stillborn = 0
        self._pace = _Pace()
        self._workers: list[Worker] = []
        try:
            self._workers += (Worker(make) for _ in range(workers))
        except BaseException:
            self._end_workers()
            raise

    def close(self) -> None:
        self._end_workers()
        self._here.close()

    def _end_workers(self) -> None:
        for worker in self._workers:
            worker.kill()
        self._workers = []

    def traits(self, run: Run) -> Traits:
        return self._here.traits(run)

    def epoch_updates(self, run: Run) -> int:
        found: int = self._ask(run, "epoch_updates")
        return found

    def start(self, run: Run) -> None:
        if self._waiting:
            self._here.start(run)
            self._moving[run.trial] = run
        else:
            self._begin(run, 0, "start", run)

    def restore(self, run: Run, snapshot: Snapshot) -> None:
        self._begin(run, snapshot.fidelity, "restore", run, snapshot)
        self._keep(run, snapshot)

    def _begin(self, run: Run, ticks: int, *asked: Any) -> None:
        while True:
            worker = self._choose(run)
            try:
                worker.ask(*asked)
            except WorkerDied:
                cause = worker.last_words()
                self._replace(worker)
                if self._often_died(run.trial):
                    raise ModelError(f"its worker process {cause} while it was started") from None
            else:
                worker.runs[run.trial], self._ticks[run.trial] = run, ticks
                return

    def _choose(self, run: Run) -> Worker:
        """A worker that has less than its share to do: the one with most runs of the same optimizer, which are updated
        together; else the one with the least to do."""

        def to_do(worker: Worker) -> float:
            return self._pace.of(worker.runs.values())

        def alike(worker: Worker) -> int:
            return sum(own.hparams["optimizer"] == run.hparams["optimizer"] for own in worker.runs.values())

        share = self._share * self._pace.mean() - self._pace.of([run]) / 2
        free = [worker for worker in self._workers if not worker.reviving and to_do(worker) <= share]
        if free:
            return min(free, key=lambda worker: (-alike(worker), to_do(worker)))
        return min(self._workers, key=lambda worker: (worker.reviving, to_do(worker)))

    def advance(self, deadline: float) -> list[Measurement]:
        if not self._late and not self._busy():
            self._begin_tick()
        while True:
            try:
                if self._pending_here:
                    measured = self._here.advance(deadline)
                    self._pending_here -= len(measured)
                    self._late += measured
                self._hear_all()
            except OutOfMemory:
                if not self._late:
                    raise
                deadline = 0.0  # what others have shown is told first
            left = deadline - time.monotonic()
            if left <= 0 or not self._busy():
                measured, self._late = self._late, []
                return measured
            wait([worker.fileno() for worker in self._workers if worker.pending], min(left, POLL_SECONDS))

    def _hear_all(self) -> None:
        for worker in tuple(self._workers):
            try:
                self._hear(worker)
            except WorkerDied:
                self._replace(worker)
                break  # there may be none left
            except TunecliError as error:
                if not self._waiting:
                    raise
                self._go_on_alone(error.message)
                break

    def _busy(self) -> bool:
        return bool(self._pending_here) or any(worker.pending for worker in self._workers)

    def _begin_tick(self) -> None:
        if self._waiting and self._workers and all(worker.ready for worker in self._workers):
            self._move()
        self._late, self._given_up = self._given_up, []
        self._pending_here = len(self._moving)
        for worker in self._workers:
            worker.begin_tick()

    def _move(self) -> None:
        """Give the runs of this process to the workers, but for those whose state cannot be taken out or put in."""
        self._waiting = False
        for run in tuple(self._moving.values()):
            snapshot = self._here.snapshot(run)
            if snapshot is None:
                continue
            try:
                self.restore(run, snapshot)
            except StorageError:
                raise
            except TunecliError:
                self._deaths.pop(run.trial, None)
                continue  # it trains well where it is
            self._here.free(run)
            del self._moving[run.trial]

    def free(self, run: Run) -> None:
        if self._moving.pop(run.trial, None) is not None:
            self._here.free(run)
            return
        del self._ticks[run.trial]
        self._deaths.pop(run.trial, None)
        self._snapshots.pop(run.trial, None)
        self._given_up = [own for own in self._given_up if own.trial != run.trial]
        worker = self._place(run)
        if worker is not None:
            del worker.runs[run.trial]
            try:
                worker.ask("free", run)
            except WorkerDied:
                self._replace(worker)

    def weights(self, run: Run) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self._ask(run, "weights")
        return found

    def snapshot(self, run: Run) -> Snapshot | None:
        """As every engine's; None, too, while a run is trained again because its worker died."""
        if run.trial in self._moving:
            return self._here.snapshot(run)
        worker = self._place(run)
        if worker is None or worker.reviving:
            return self._snapshots.get(run.trial)
        found: Snapshot | None = self._ask(run, "snapshot")
        self._keep(run, found)
        return found

    def _keep(self, run: Run, snapshot: Snapshot | None) -> None:
        """Have a snapshot at hand for the day that the run's worker dies."""
        self._snapshots.pop(run.trial, None)
        if snapshot is not None and sum(map(_size, (snapshot, *self._snapshots.values()))) <= MOST_KEPT:
            self._snapshots[run.trial] = snapshot

    def _ask(self, run: Run, method: str) -> Any:
        if run.trial in self._moving:
            return getattr(self._here, method)(run)
        while (worker := self._place(run)) is not None:
            try:
                return worker.ask(method, run)
            except WorkerDied:
                self._replace(worker)
        raise ModelError(f"trial {run.trial} is in no worker process")

    def _place(self, run: Run) -> Worker | None:
        """The worker that holds a run; None where it was given up."""
        return next((worker for worker in self._workers if run.trial in worker.runs), None)

    def _hear(self, worker: Worker) -> None:
        measured = worker.hear()
        if worker.ready:
            self._stillborn = 0
        for own in measured:
            self._ticks[own.trial] = own.fidelity
            self._pace.learn(worker.runs[own.trial], own.seconds)
        self._late += measured

    def _replace(self, worker: Worker) -> None:
        """A worker died: another one takes its runs over, but for those that are given up."""
        with suppress(WorkerDied):
            self._hear(worker)
        cause = worker.last_words()
        worker.kill()
        self._stillborn += not worker.ready
        if self._stillborn >= MOST_DEATHS and self._waiting:
            self._go_on_alone(f"the last one {cause}")
            return
        if self._stillborn >= MOST_DEATHS:
            raise StorageError(f"a worker process {cause} at its start", hint="search with --workers 1")
        for trial in worker.at_work:
            before, deaths = self._deaths.get(trial, (-1, 0))
            ticks = self._ticks.get(trial, 0)
            self._deaths[trial] = ticks, deaths + 1 if before == ticks else 1
        failed = [trial for trial in worker.runs if self._often_died(trial)]
        for trial in failed:
            failure = _failure(trial, self._ticks[trial] + 1, cause)
            # What has shown this tick already fails in the next.
            (self._late if trial in worker.pending else self._given_up).append(failure)
        lost = [
            Lost(run, self._ticks[trial], trial in worker.pending, self._snapshots.get(trial))
            for trial, run in worker.runs.items()
            if trial not in failed
        ]
        self._tell(_told(cause, len(lost), failed))
        fresh = Worker(self._make)
        self._workers[self._workers.index(worker)] = fresh
        if lost:
            fresh.revive(lost)

    def _go_on_alone(self, reason: str) -> None:
        """There will be no workers; all runs are still in this process."""
        self._tell(f"worker processes cannot be started, this one goes on alone: {reason}")
        self._end_workers()

    def _often_died(self, trial: int) -> bool:
        return self._deaths.get(trial, (0, 0))[1] >= MOST_DEATHS


def _size(snapshot: Snapshot) -> int:
    return sum(own.numel() * own.element_size() for own in snapshot.tensors.values())


def _failure(trial: int, fidelity: int, cause: str) -> Measurement:
    nan = float("nan")
    reason = f"its worker process {cause}, {MOST_DEATHS} times in this tick"
    return Measurement(trial, fidelity, nan, nan, nan, nan, 0.0, reason)


def _told(cause: str, lost: int, failed: list[int]) -> str:
    """A worker's end, in a line."""
    parts = [f"a worker process {cause}"]
    if lost:
        parts.append("its trial goes on in another" if lost == 1 else f"its {lost} trials go on in another")
    if failed:
        trials = ", ".join(map(str, failed))
        parts.append(f"{'trial' if len(failed) == 1 else 'trials'} {trials} failed after {MOST_DEATHS} attempts")
    return "; ".join(parts)


class _Pace:
    """How long a tick of a run takes: the mean of those like it."""

    def __init__(self) -> None:
        self._seen: dict[Any, tuple[float, float]] = {}

    def learn(self, run: Run, seconds: float) -> None:
        for key in (_kind(run), None):
            count, sum_ = self._seen.get(key, (0.0, 0.0))
            self._seen[key] = count + 1, sum_ + seconds

    def mean(self) -> float:
        count, seconds = self._seen.get(None, (1.0, 1.0))
        return seconds / count

    def of(self, runs: Iterable[Run]) -> float:
        """The expected seconds of a tick of them; before any was seen, their number."""
        return sum(map(self._of, runs))

    def _of(self, run: Run) -> float:
        count, seconds = self._seen.get(_kind(run)) or self._seen.get(None) or (1.0, 1.0)
        return seconds / count


def _kind(run: Run) -> tuple[Any, ...]:
    """What the cost of a run depends on most: how it is batched, and what it is built from."""
    shaped = sorted(own for own in run.hparams.items() if own[0].startswith("model."))
    return run.hparams["batch_size"], run.hparams["optimizer"], *shaped
