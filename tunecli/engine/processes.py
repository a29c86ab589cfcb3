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
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tunecli.engine.child import WorkerDied
from tunecli.engine.messages import Lost
from tunecli.engine.pace import Pace
from tunecli.engine.snapshot import Snapshot
from tunecli.engine.staff import MOST_DEATHS, Deaths, Staff
from tunecli.engine.template import Template
from tunecli.engine.work import Make
from tunecli.engine.worker import Here, Worker
from tunecli.errors import ModelError, OutOfMemory, StorageError, TunecliError
from tunecli.patience import REST_SECONDS
from tunecli.trial import Measurement, Run

if TYPE_CHECKING:
    from tunecli.engine import Engine

MOST_KEPT = 1 << 29
"""Bytes of snapshots that are kept at hand; a run without one is trained again from its start."""

POLL_SECONDS = 0.1


class Processes:
    """An Engine whose slots live in worker processes. See `tunecli.engine.Engine`.

    `here` is an engine of the same task and plan in this process, for when there is no worker. `make` makes one in a
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
        self._window, self._tell = window, tell
        moving = tuple(moving)
        self._here = Here(here, make, moving)
        self._own = Worker(self._here, moving)
        self._waiting = bool(moving)
        self._ticks: dict[int, int] = {}
        self._deaths = Deaths()
        self._snapshots: dict[int, Snapshot] = {}
        self._resting = False
        self._late: list[Measurement] = []
        self._given_up: list[Measurement] = []
        self._pace = Pace()
        self._hired = Staff(make, template, tell)
        try:
            for _ in range(workers):
                self._hired.hire()
        except BaseException:
            self._hired.close()
            raise

    def close(self) -> None:
        self._hired.close()
        self._here.close()

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
            often = [run.trial for run in asked if self._deaths.too_many(run.trial)]
            died = f"its worker process {cause} while it was started"
            failed |= dict.fromkeys(often, ModelError(died))
        return [run for run in asked if run.trial not in failed]

    def _choose(self, run: Run) -> Worker:
        """Who gets a run that is to be started."""
        if self._waiting or not self._hired:
            return self._own
        return self._pace.choose(run, tuple(self._hired), self._window)

    def _freest(self) -> Worker:
        """The worker that has the least to do, or this process where there is none."""
        return self._pace.freest(self._hired) if self._hired else self._own

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
            self._hired.wait(self._hired, 0 if self._own.busy else min(left, POLL_SECONDS))

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
                self._deaths.forget(run.trial)
                continue  # it trains well where it is
            self._own.free(run)

    def free(self, run: Run) -> None:
        self._ticks.pop(run.trial, None)
        self._deaths.forget(run.trial)
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
            coming = [own for own in self._hired if own.ready and own.busy]
            for own in coming:
                own.pause()
            while coming and (left := until - time.monotonic()) > 0:
                self._hired.wait(coming, left)
                for own in tuple(coming):
                    try:
                        self._take_in(own)
                    except (WorkerDied, OutOfMemory):  # which is seen to when they are heard in `advance`
                        coming.remove(own)
                    else:
                        if own.paused:
                            coming.remove(own)
        return worker.paused or not worker.busy or worker.failed is not None

    def _keep(self, run: Run, snapshot: Snapshot | None) -> None:
        """Have a snapshot at hand for the day that the run's worker dies."""
        self._snapshots.pop(run.trial, None)
        if snapshot is not None and sum(map(_size, (snapshot, *self._snapshots.values()))) <= MOST_KEPT:
            self._snapshots[run.trial] = snapshot

    def _worker_of(self, run: Run) -> Worker | None:
        """The worker that holds a run; None where it was given up."""
        return next((worker for worker in (self._own, *self._hired) if run.trial in worker.runs), None)

    def _take_in(self, worker: Worker) -> None:
        """What a worker has measured since. Raises WorkerDied, and what its engine raised."""
        measured = worker.hear()
        for own in measured:
            self._ticks[own.trial] = own.fidelity
            self._pace.learn(worker.runs[own.trial], own.seconds)
        self._late += measured

    def _hear(self, worker: Worker) -> None:
        self._take_in(worker)
        if worker.paused:
            # It came to rest when nobody waited for it any more: the next to ask gets what it is now.
            for run in worker.runs.values():
                if run.trial not in worker.reviving:
                    self._keep(run, worker.ask("snapshot", run))
            worker.go_on()

    def _replace(self, worker: Worker) -> str:
        """A worker died: others take its runs over, but for those that are given up. Returns how it ended."""
        with suppress(WorkerDied):
            self._take_in(worker)
        cause = self._hired.dismiss(worker)
        self._deaths.count(worker.at_work, self._ticks)
        failed = [trial for trial in worker.runs if self._deaths.too_many(trial)]
        for trial in failed:
            failure = _failure(trial, self._ticks[trial] + 1, cause)
            # What has shown this tick already fails in the next.
            (self._late if trial in worker.pending else self._given_up).append(failure)
        lost = [
            Lost(run, self._ticks[trial], trial in worker.pending, self._snapshots.get(trial))
            for trial, run in worker.runs.items()
            if trial not in failed
        ]
        fresh = self._hired.replace(worker, cause)
        if worker.failed is None:
            self._tell(_told(cause, len(lost), failed, "another" if self._hired else "this process"))
        if lost:
            (fresh or self._freest()).revive(lost)
        return cause


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
