"""The only loop that trains: ask, fill slots, advance, record, decide, tell."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace

import torch

from tunecli.engine import Plan
from tunecli.engine.plan import lessened
from tunecli.engine.template import Template
from tunecli.errors import OutOfMemory, StorageError
from tunecli.given import shown
from tunecli.importance import asked_by_hparam, importance
from tunecli.patience import PAUSE_SECONDS, STOP_SECONDS
from tunecli.pruner import make_pruner
from tunecli.sampler import Proposer, make_proposer
from tunecli.search.begin import open_store
from tunecli.search.crew import Crew
from tunecli.search.events import Differed, Ended, Event, Noticed, Opened, Progress
from tunecli.search.flight import Flight, trained_by
from tunecli.search.forecast import Forecast
from tunecli.search.ledger import Ledger, failed
from tunecli.search.ready import make_ready
from tunecli.search.resume import Found
from tunecli.search.shelf import Shelf
from tunecli.snapshots import Snapshots
from tunecli.space import settings_of
from tunecli.stopping import STOPPING, reason_to_stop
from tunecli.study import Study
from tunecli.trial import Hparams, Measurement, Run, State, Trial


class Loop:
    """One search, from where the record ends to where it stops."""

    def __init__(self, found: Found, device: str, workers: int | None, template: Template | None) -> None:
        assert isinstance(found.study, Study)
        record, self.folder = found.record, found.folder
        ready = make_ready(found.study, record, self.folder, device)
        study, device = ready.study, ready.fitted.device
        self.study, self.data, self.fitted = study, ready.data, ready.fitted
        self._settings = study.train.settings
        self.metric, plan = self.fitted.task.metric, self.fitted.plan
        # After the model was tried: one that does not fit must not leave a study that its mending contradicts.
        self.store = open_store(
            found,
            study,
            metric=self.metric.name,
            direction=self.metric.direction,
            plan=plan.as_dict(),
            data_hash=ready.fingerprint,
            torch=torch.__version__,
            device=torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
            **({"compiler": "none"} if plan.lacks_compiler(device) else {}),
        )
        self._told = [] if self.fitted.remark is None else [self.fitted.remark]
        if record is not None and (changes := lessened(Plan(**record.plan), plan)):
            self.store.replan(plan.as_dict())
            self._told += changes
        trials = record.trials if record is not None else ()
        kept = [trials[number] for number in record.kept] if record is not None else []
        self.shelf = Shelf(self.folder, study, self.data, self.metric, kept)
        self.forecast = Forecast(study.train.epochs, trials)
        self._ends_at: float | None = None
        self.proposer = self._make_proposer(trials)
        self.ledger = self._make_ledger(trials, found.queue)
        if self.ledger.missing or self.ledger.in_flight:
            self._told += self.shelf.notices()
        self.store.flush()  # what was asked for by hand must outlive a kill: nobody asks twice
        self.snapshots = Snapshots(self.folder / "snapshots", trained_by(study, self.data, ready.fingerprint, plan))
        self.snapshots.clear(but=[trial.number for trial in self.ledger.in_flight])
        self.crew = Crew(study, self.data, self.fitted, template, self._told.append)
        self.flight = Flight(self.crew, self.snapshots)
        self._may_employ = workers is None
        self.workers = self.crew.useful(workers or 1, self.ledger.missing + len(self.ledger.in_flight))

    def _make_proposer(self, trials: Iterable[Trial]) -> Proposer:
        study = self.study
        proposer = make_proposer(study.space, study.search.sampler, self.metric.direction, study.seed, study.window)
        for trial in trials:
            if trial.state is State.WAITING:
                continue
            if (seen := self._shown(trial)) is not None:
                proposer.add(seen)
            else:
                proposer.hide(trial.number)
        return proposer

    def _make_ledger(self, trials: Iterable[Trial], queue: Iterable[Hparams]) -> Ledger:
        study, direction = self.study, self.metric.direction
        options = study.search.pruner_options
        pruner = make_pruner(study.search.pruner, options, study.train.epochs, direction, study.seed, trials)
        ledger = Ledger(self.store, pruner, direction, study.search.trials, trials)
        for given in queue:
            ledger.enqueue(given)
        return ledger

    def close(self) -> None:
        self.crew.close()
        self.store.close()

    def events(self, timeout_seconds: float | None, stop: Callable[[], bool]) -> Iterator[Event]:
        yield self._opened()
        self.ledger.hope_again(self.study.search.max_failures)
        if self.workers > 1:
            self.crew.employ(self.workers)
        yield from self._noticed()
        yield from self._catch_up(stop)
        how = yield from self._ticks(timeout_seconds, stop)
        yield from self._noticed()
        self.store.flush()
        if how != "stopped":
            yield self._progress()
        self._explain()
        self.store.flush()
        self.shelf.clear_away()
        self.flight.clear_away()
        if how == "done":
            self.snapshots.clear()
        else:
            yield from map(Noticed, self.flight.keep(STOP_SECONDS))
        yield Ended(how, self.ledger.progress())

    def _opened(self) -> Opened:
        fitted = self.fitted
        return Opened(
            study=self.study,
            folder=self.folder,
            data=self.data,
            weights=fitted.weights,
            metric=self.metric.name,
            direction=self.metric.direction,
            device=fitted.device,
            plan=fitted.plan,
            timings=fitted.timings,
            looped_because=fitted.looped_because,
            native=fitted.native,
            done=self.ledger.done,
            in_flight=[trial.fidelity for trial in self.ledger.in_flight],
            workers=self.workers if self.workers > 1 else 0,
            threads=self.crew.threads,
        )

    def _ticks(self, timeout_seconds: float | None, stop: Callable[[], bool]) -> Generator[Event, None, str]:
        """Tick after tick until the search ends; returns how, as `Ended` says it."""
        # What an earlier search had reached already is not paid for twice.
        began = time.monotonic()
        until = math.inf if timeout_seconds is None else began + timeout_seconds
        while not stop():
            if time.monotonic() >= until:
                return "timeout"
            self._fill()
            if self.ledger.is_hopeless(self.study.search.max_failures) and self.ledger.missing > 0:
                return "hopeless"
            if not self.ledger.in_flight:
                break
            others_train = self.flight.begin()
            # While they do, what the tick before showed is written, and the next proposals are made.
            self._commit()
            yield self._progress()
            measured = yield from self._advance(stop, self._upcoming() if others_train else [])
            if measured is None:
                break
            self.ledger.tick += 1
            self._decide(measured)
            self._foresee(began)
            yield from self._keep()
            if self._may_employ:
                self._consider_workers(until - time.monotonic())
        return "stopped" if stop() and (self.ledger.in_flight or self.ledger.missing > 0) else "done"

    def _explain(self) -> None:
        trials = [own for t in self.ledger.trials if t.state.ended and (own := self._shown(t)) is not None]
        asked = {trial.number: asked_by_hparam(self.study.space, trial.hparams) for trial in trials}
        found = importance(trials, asked, self.metric.direction)
        if found is not None:
            self.store.explain(found)

    def _progress(self) -> Progress:
        left = None if self._ends_at is None else max(0.0, self._ends_at - time.monotonic())
        return replace(self.ledger.progress(), left_seconds=left)

    def _foresee(self, began: float) -> None:
        """When the search will have ended: known at the end of a tick, and counted down until the next one's."""
        now = time.monotonic()
        left = self.forecast.remaining(self.ledger.in_flight, self.ledger.missing, now - began)
        self._ends_at = None if left is None else now + left

    def _consider_workers(self, seconds: float) -> None:
        """Have worker processes take over where what is left to train, in so many seconds at most, repays them."""
        left = self.forecast.seconds_left(self.ledger.in_flight, self.ledger.missing)
        workers = self.crew.repaid(min(left, seconds))
        if workers > 0:
            self._may_employ = False
            self.crew.hand_over(workers, [self._run(trial.number, trial.hparams) for trial in self.ledger.in_flight])

    def _upcoming(self) -> list[tuple[int, Hparams]]:
        """The trials that are likely to start after this tick, in the place of those that end in it."""
        return self.ledger.upcoming(self.forecast.ending(self.ledger.in_flight))

    def _advance(
        self, stop: Callable[[], bool], upcoming: Iterable[tuple[int, Hparams]]
    ) -> Generator[Event, None, list[Measurement] | None]:
        """Train every run in flight for one tick; returns the measurements, or None where a signal came first.

        `upcoming` are trials whose hparams this process can find meanwhile.
        """
        upcoming = deque(upcoming)
        self.proposer.expect(len(upcoming))
        while not stop():
            short = None
            try:
                arrived = self.flight.advance(0.0 if upcoming else PAUSE_SECONDS)
            except OutOfMemory as error:
                short = error.with_traceback(None)
            if short is not None:
                self._compute_less(short)
                yield from self._catch_up(stop)
                continue
            if arrived == len(self.ledger.in_flight):  # of which some may have failed while they were trained again
                self.crew.tell_shortage()
                yield from self._noticed()
                return self.flight.end_tick()
            if upcoming:
                number, given = upcoming.popleft()
                self.proposer.prepare(number, self.ledger.tick + 2, given)
                continue
            yield from self._noticed()
            # A long tick: what has begun can be seen by readers meanwhile.
            self.store.commit()
            yield from self._keep()
            yield self._progress()
        return None

    def _keep(self) -> Iterator[Event]:
        """Write snapshots where it is time to: after the commit of the ticks that they go on from."""
        if self.flight.is_due:
            self.store.flush()
            yield from map(Noticed, self.flight.keep())

    def _noticed(self) -> Iterator[Event]:
        """What the engine has told since, and which trials have failed."""
        told, self._told[:] = self._told[:], []
        yield from map(Noticed, told)
        yield from self.ledger.newly_failed()

    def _compute_less(self, error: OutOfMemory) -> None:
        """Have a new engine compute half as much at once, by a plan that is the study's from now on. What was recorded
        stays, and runs go on from where they are. Raises the error where there is nothing to halve.

        The error should have no traceback any more: what did not fit is held by it.
        """
        plan = self.crew.lesser_plan(error)
        self.store.replan(plan.as_dict())
        self.store.flush()
        self.flight.park()
        self.crew.compute_by(plan)

    def _catch_up(self, stop: Callable[[], bool]) -> Iterator[Event]:
        """Train the trials that were in flight forward to where they were recorded, all arriving in the same tick."""
        while True:
            try:
                yield from self._train_forward(stop)
                return
            except OutOfMemory as error:
                short = error.with_traceback(None)
            self._compute_less(short)

    def _train_forward(self, stop: Callable[[], bool]) -> Iterator[Event]:
        missing: dict[int, int] = {}
        for trial in self.ledger.in_flight:
            reached, note = self.flight.find(self._run(trial.number, trial.hparams), trial.fidelity)
            missing[trial.number] = trial.fidelity - reached
            if note is not None:
                yield Noticed(note)
        waiting = sorted(self.ledger.in_flight, key=lambda trial: -missing[trial.number])
        for left in range(max(missing.values(), default=0), 0, -1):
            count = sum(missing[trial.number] == left for trial in waiting)
            self._start(waiting[:count])
            waiting = waiting[count:]
            running = [trial for trial in self.ledger.in_flight if missing[trial.number] >= left]
            while self.flight.advance(PAUSE_SECONDS) < len(running):
                yield from self._noticed()
                yield self._progress()
                if stop():
                    return
            for own in self.flight.end_tick():
                if own.failure is not None:
                    ended = failed(self.ledger.trials[own.trial], own.failure)
                    self._end(ended)
                    self.flight.free(self._run(ended.number, ended.hparams))
                    continue
                stored = self.ledger.trials[own.trial].curve[own.fidelity - 1]
                if stored.metric != own.metric:
                    yield Differed(own.trial, own.fidelity, stored.metric, own.metric)
                elif stored.train_loss != own.train_loss:
                    yield Differed(own.trial, own.fidelity, stored.train_loss, own.train_loss, of="training loss")
            yield self._progress()
            if stop():
                return
        self._start(waiting)

    def _fill(self) -> None:
        """Give every free slot the next trial: one that cannot be started leaves its slot to another."""
        while trials := self._next_trials():
            self._start(trials)

    def _next_trials(self) -> list[Trial]:
        """Begin as many as there are free slots, but none that would not be begun if all before it failed."""
        free = self.study.window - len(self.ledger.in_flight)
        count = min(free, self.ledger.missing, self.ledger.bears(self.study.search.max_failures))
        self.proposer.expect(count)
        return [trial for _ in range(count) if (trial := self._next()) is not None]

    def _next(self) -> Trial | None:
        """Begin the next trial; None where every point of the space has been tried."""
        (number, given), tick = self.ledger.next(), self.ledger.tick + 1
        if self.proposer.exhausted and not given:
            return None
        hparams = self.proposer.propose(number, tick, given)
        trial = Trial(number, State.RUNNING, hparams, start_tick=tick, given=given)
        self.ledger.start(trial)
        return trial

    def _start(self, trials: list[Trial]) -> None:
        """Have trials trained. Those that cannot be end before the tick in which they would have been."""
        errors = self.flight.start(self._run(trial.number, trial.hparams) for trial in trials)
        for trial in trials:
            error = errors.get(trial.number)
            if isinstance(error, StorageError):
                raise error
            if error is not None:
                self._end(failed(trial, error.message))

    def _decide(self, measured: list[Measurement]) -> None:
        self.ledger.record(measured)
        # All are decided before any ends, for what has ended may count in the decisions of the next tick.
        for ended in [ended for own in measured if (ended := self._ending(own)) is not None]:
            self._end(ended)
            self.flight.free(self._run(ended.number, ended.hparams))
        for own in measured:
            self.forecast.see(self.ledger.trials[own.trial])

    def _ending(self, own: Measurement) -> Trial | None:
        """The trial as it ends with this measurement, or None where it goes on."""
        trial = self.ledger.trials[own.trial]
        if own.failure is not None:
            return failed(trial, own.failure)
        if own.fidelity >= self.study.train.epochs:
            return replace(trial, state=State.COMPLETE)
        if any(name in trial.hparams or name in self._settings for name in STOPPING):
            settings = settings_of(self._settings, trial.hparams)
            if (done := reason_to_stop(trial.curve, settings, self.metric.direction)) is not None:
                return replace(trial, state=State.COMPLETE, reason=done)
        reason = self.ledger.reason_to_prune(own)
        return None if reason is None else replace(trial, state=State.PRUNED, reason=reason)

    def _end(self, trial: Trial) -> None:
        trial = replace(trial, end_tick=self.ledger.tick)
        if trial.state is State.COMPLETE and self.shelf.has_room_for(trial):
            run = self._run(trial.number, trial.hparams)
            engine = self.crew.engine
            self.shelf.put(trial, engine.weights(run), engine.epoch_updates(run), self.store)
        self.ledger.end(trial)
        if (seen := self._shown(trial)) is not None:
            self.proposer.end(seen)

    def _shown(self, trial: Trial) -> Trial | None:
        return shown(self.study.space, trial, self._settings)

    def _commit(self) -> None:
        if self.store.commit():
            self.shelf.clear_away()
            self.flight.clear_away()

    def _run(self, number: int, hparams: Hparams) -> Run:
        return Run(number, self.study.seed, hparams, self.study.train.epochs, self._settings)
