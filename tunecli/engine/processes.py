"""An engine made of engines: one in each of some worker processes.

Which worker trains a run never changes what comes of it. So a run goes where the least is to do, and those of a worker
that died are trained again, up to where they were: in a new one, or where none can be started any more, by the others
or by this process.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tunecli.engine.child import Child, WorkerDied
from tunecli.engine.messages import Lost
from tunecli.engine.pace import Pace
from tunecli.engine.snapshot import Snapshot
from tunecli.engine.template import Template
from tunecli.engine.traits import Traits
from tunecli.engine.work import Make
from tunecli.engine.worker import Here, Worker
from tunecli.errors import ModelError, OutOfMemory, StorageError, TunecliError
from tunecli.patience import REST_SECONDS
from tunecli.trial import Measurement, Run

if TYPE_CHECKING:
    from tunecli.engine import Engine

MOST_DEATHS = 3
"""So often a run is at work in one tick when its worker dies; after that it has failed."""

MOST_KEPT = 1 << 29
"""Bytes of snapshots that are kept at hand; a run without one is trained again from its start."""

POLL_SECONDS = 0.1


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
        template: Template | None = None,
    ) -> None:
        self._engine, self._make, self._window, self._tell = here, make, window, tell
        self._template = template
        moving = tuple(moving)
        self._here = Here(here, make, moving)
        self._own = Worker(self._here, moving)
        self._waiting = bool(moving)
        self._hiring, self._stillborn = True, 0
        self._ticks: dict[int, int] = {}
        self._deaths: dict[int, tuple[int, int]] = {}
        self._snapshots: dict[int, Snapshot] = {}
        self._resting = False
        self._late: list[Measurement] = []
        self._given_up: list[Measurement] = []
        self._pace = Pace()
        self._hired: dict[Worker, Child] = {}
        try:
            for _ in range(workers):
                self._hire()
        except BaseException:
            self._end_workers()
            raise

    def close(self) -> None:
        self._end_workers()
        self._here.close()

    def _end_workers(self) -> None:
        for child in self._hired.values():
            child.kill()
        self._hired.clear()

    def _hire(self) -> Worker:
        child = Child(self._make, self._template)
        worker = Worker(child)
        self._hired[worker] = child
        return worker

    def traits(self, run: Run) -> Traits:
        return self._engine.traits(run)

    def epoch_updates(self, run: Run) -> int:
        found: int = self._ask(run, "epoch_updates")
        return found

    def start(self, run: Run) -> None:
        for error in self.start_all([run]).values():
            raise error

    def start_all(self, runs: Iterable[Run]) -> dict[int, TunecliError]:
        return self._begin(runs, 0, "start")

    def restore(self, run: Run, snapshot: Snapshot) -> None:
        for error in self._begin([run], snapshot.fidelity, "restore", snapshot).values():
            raise error
        self._keep(run, snapshot)

    def _begin(self, runs: Iterable[Run], ticks: int, method: str, *more: Any) -> dict[int, TunecliError]:
        """Every worker builds the models of its own runs while others build theirs. What `method` raised, by trial."""
        left, failed = list(runs), dict[int, TunecliError]()
        while left:
            asked: dict[Worker, deque[Run]] = {}
            for run in left:
                worker = self._choose(run)
                if run.trial in worker.runs:  # a run of this process, which was to move
                    failed[run.trial] = ModelError("no worker process is left")
                    continue
                worker.begin(method, run, *more)
                worker.runs[run.trial], self._ticks[run.trial] = run, ticks
                asked.setdefault(worker, deque()).append(run)
            left = [run for worker, own in asked.items() for run in self._hear_begun(worker, own, failed)]
        return failed

    def _hear_begun(self, worker: Worker, asked: deque[Run], failed: dict[int, TunecliError]) -> Iterable[Run]:
        """Hear what became of runs that a worker was given; those to be given to another, for it died."""
        try:
            while asked:
                try:
                    worker.answer()
                except TunecliError as error:
                    failed[asked[0].trial] = error
                    del worker.runs[asked[0].trial], self._ticks[asked[0].trial]
                asked.popleft()
        except WorkerDied:
            for run in asked:
                del worker.runs[run.trial], self._ticks[run.trial]
            cause = self._replace(worker)
            often = [run.trial for run in asked if self._often_died(run.trial)]
            died = f"its worker process {cause} while it was started"
            failed |= dict.fromkeys(often, ModelError(died))
        return [run for run in asked if run.trial not in failed]

    def _choose(self, run: Run) -> Worker:
        """A worker that has less than its share to do: the one with most runs of the same optimizer, which are updated
        together; else the one with the least to do."""
        if self._waiting or not self._hired:
            return self._own

        def alike(worker: Worker) -> int:
            return sum(own.hparams["optimizer"] == run.hparams["optimizer"] for own in worker.runs.values())

        share = self._window / len(self._hired) * self._pace.mean() - self._pace.of([run]) / 2
        free = [worker for worker in self._hired if not worker.reviving and self._to_do(worker) <= share]
        return min(free, key=lambda own: (-alike(own), self._to_do(own))) if free else self._freest()

    def _freest(self) -> Worker:
        """The worker that has the least to do, or this process where there is none."""
        return min(
            self._hired,
            key=lambda own: (bool(own.reviving), not own.ready, self._to_do(own)),
            default=self._own,
        )

    def _to_do(self, worker: Worker) -> float:
        return self._pace.of(worker.runs.values())

    def begin(self) -> bool:
        if self._waiting or not self._hired:
            return False
        if not self._late and not self._pending():
            self._begin_tick()
        return not self._own.busy

    def advance(self, deadline: float) -> list[Measurement]:
        self._resting = False
        for worker in self._hired:
            worker.go_on()
        if not self._late and not self._pending():
            self._begin_tick()
        while True:
            try:
                if self._own.busy:
                    self._here.step()
                self._hear_all()
            except OutOfMemory:
                if not self._late:
                    raise
                deadline = 0.0  # what others have shown is told first
            left = deadline - time.monotonic()
            if left <= 0 or not self._pending():
                measured, self._late = self._late, []
                return measured
            said = [child.fileno() for child in self._hired.values()]
            wait(said, 0 if self._own.busy else min(left, POLL_SECONDS))

    def _hear_all(self) -> None:
        for worker in (self._own, *self._hired):
            try:
                self._hear(worker)
            except WorkerDied:
                self._replace(worker)
                break  # others may have been hired, or be gone

    def _pending(self) -> bool:
        """Whether runs have still to finish this tick."""
        return any(worker.pending for worker in (self._own, *self._hired))

    def _begin_tick(self) -> None:
        if self._waiting and self._hired and all(worker.ready for worker in self._hired):
            self._move()
        self._late, self._given_up = self._given_up, []
        for worker in (self._own, *self._hired):
            worker.begin_tick()

    def _move(self) -> None:
        """Give the runs of this process to the workers, but for those whose state cannot be taken out or put in."""
        self._waiting = False
        for run in tuple(self._own.runs.values()):
            snapshot: Snapshot | None = self._own.ask("snapshot", run)
            if snapshot is None:
                continue
            try:
                self.restore(run, snapshot)
            except StorageError:
                raise
            except TunecliError:
                self._deaths.pop(run.trial, None)
                continue  # it trains well where it is
            self._own.free(run)

    def free(self, run: Run) -> None:
        self._ticks.pop(run.trial, None)
        self._deaths.pop(run.trial, None)
        self._snapshots.pop(run.trial, None)
        self._given_up = [own for own in self._given_up if own.trial != run.trial]
        worker = self._worker_of(run)
        if worker is not None:
            worker.free(run)

    def weights(self, run: Run) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self._ask(run, "weights")
        return found

    def _ask(self, run: Run, method: str) -> Any:
        while (worker := self._worker_of(run)) is not None:
            try:
                return worker.ask(method, run)
            except WorkerDied:
                self._replace(worker)
        raise ModelError(f"trial {run.trial} is in no worker process")

    def snapshot(self, run: Run) -> Snapshot | None:
        """As every engine's; the one before, or None, while a run is trained again because its worker died, and while
        its worker is in the middle of a step that is too long to wait for."""
        worker = self._worker_of(run)
        if worker is None or run.trial in worker.reviving or not self._rests(worker):
            return self._snapshots.get(run.trial)
        try:
            found: Snapshot | None = worker.ask("snapshot", run)
        except WorkerDied:  # it is replaced when it is heard
            return self._snapshots.get(run.trial)
        if worker is not self._own:
            self._keep(run, found)
        return found

    def _rests(self, worker: Worker) -> bool:
        """Whether a worker is between two steps. All are asked to come to rest at once, and waited for a while."""
        if not self._resting:
            self._resting = True
            until = time.monotonic() + REST_SECONDS
            coming = {own: child.fileno() for own, child in self._hired.items() if own.ready and own.busy}
            for own in coming:
                own.pause()
            while coming and (left := until - time.monotonic()) > 0:
                wait(coming.values(), left)
                for own in tuple(coming):
                    try:
                        self._hear(own)
                    except (WorkerDied, OutOfMemory):  # which is seen to when they are heard in `advance`
                        del coming[own]
                    else:
                        if own.paused:
                            del coming[own]
        return worker.paused or not worker.busy or worker.failed is not None

    def _keep(self, run: Run, snapshot: Snapshot | None) -> None:
        """Have a snapshot at hand for the day that the run's worker dies."""
        self._snapshots.pop(run.trial, None)
        if snapshot is not None and sum(map(_size, (snapshot, *self._snapshots.values()))) <= MOST_KEPT:
            self._snapshots[run.trial] = snapshot

    def _worker_of(self, run: Run) -> Worker | None:
        """The worker that holds a run; None where it was given up."""
        return next((worker for worker in (self._own, *self._hired) if run.trial in worker.runs), None)

    def _hear(self, worker: Worker) -> None:
        measured = worker.hear()
        for own in measured:
            self._ticks[own.trial] = own.fidelity
            self._pace.learn(worker.runs[own.trial], own.seconds)
        self._late += measured
        if worker.paused and not self._resting:
            # It came to rest when nobody waited for it any more: the next to ask gets what it is now.
            for run in worker.runs.values():
                if run.trial not in worker.reviving:
                    self._keep(run, worker.ask("snapshot", run))
            worker.go_on()

    def _replace(self, worker: Worker) -> str:
        """A worker died: others take its runs over, but for those that are given up. Returns how it ended."""
        with suppress(WorkerDied):
            self._hear(worker)
        child = self._hired.pop(worker)
        cause = worker.fell or child.exit()
        child.kill()
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
        fresh = self._hire_another(worker, cause)
        if worker.failed is None:
            self._tell(_told(cause, len(lost), failed, "another" if self._hired else "this process"))
        if lost:
            (fresh or self._freest()).revive(lost)
        return cause

    def _hire_another(self, worker: Worker, cause: str) -> Worker | None:
        """A worker in the place of one that died; None, which is said once, where none can be had any more."""
        self._stillborn = 0 if worker.ready else self._stillborn + 1
        reason = None
        if worker.failed is not None:
            reason = worker.failed.message
        elif self._stillborn >= MOST_DEATHS:
            reason = f"the last one {cause}"
        elif self._hiring:
            try:
                return self._hire()
            except TunecliError as error:
                reason = error.message
        if self._hiring:
            self._hiring = False
            self._tell(f"no worker process can be started: {reason}")
        if not self._hired:
            self._tell("this process goes on alone")
        return None

    def _often_died(self, trial: int) -> bool:
        return self._deaths.get(trial, (0, 0))[1] >= MOST_DEATHS


def _size(snapshot: Snapshot) -> int:
    return sum(own.numel() * own.element_size() for own in snapshot.tensors.values())


def _failure(trial: int, fidelity: int, cause: str) -> Measurement:
    nan = float("nan")
    reason = f"its worker process {cause}, {MOST_DEATHS} times in this epoch"
    return Measurement(trial, fidelity, nan, nan, nan, nan, 0.0, reason)


def _told(cause: str, lost: int, failed: list[int], where: str) -> str:
    """A worker's end, in a line."""
    parts = [f"a worker process {cause}"]
    if lost:
        parts.append(f"its trial goes on in {where}" if lost == 1 else f"its {lost} trials go on in {where}")
    if failed:
        trials = ", ".join(map(str, failed))
        parts.append(f"{'trial' if len(failed) == 1 else 'trials'} {trials} failed after {MOST_DEATHS} attempts")
    return "; ".join(parts)
