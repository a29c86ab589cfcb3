"""The live study: its trials as they stand, every change of them written, and the pruner that decides about them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import Any

from tunecli.pruner import Pruner
from tunecli.search.events import Failed, Progress, Tally
from tunecli.store import Store
from tunecli.trial import Hparams, Measurement, State, Trial, better


class Ledger:
    """What every search keeps, whatever trains its trials. `tick` is the study's last one."""

    def __init__(
        self, store: Store, pruner: Pruner | None, direction: str, asked: int, trials: Iterable[Trial] = ()
    ) -> None:
        self.store, self.pruner, self.direction = store, pruner, direction
        self.trials = list(trials)
        self.tick = max((trial.last_tick for trial in self.trials), default=0)
        self._waiting = deque(trial for trial in self.trials if trial.state is State.WAITING)
        self._flight = {trial.number: None for trial in self.trials if trial.state is State.RUNNING}
        self._tally = Tally(self.trials, direction)
        self._asked, self._ended_now, self._began = asked, 0, time.monotonic()
        self._failures = _failures_in_a_row(self.trials)
        self._untold: list[Failed] = []

    @property
    def in_flight(self) -> list[Trial]:
        return [self.trials[number] for number in self._flight]

    @property
    def done(self) -> int:
        return self._tally.ended

    @property
    def missing(self) -> int:
        """How many trials have still to be started."""
        return max(self._asked - len(self.trials), 0) + len(self._waiting)

    def is_hopeless(self, most: int) -> bool:
        """Whether the last `most` trials to end have all failed."""
        return self.bears(most) <= 0

    def bears(self, most: int) -> int:
        """How many more trials may fail one after another until it is hopeless."""
        return most - self._failures

    def hope_again(self, most: int) -> None:
        """An earlier search ended as hopeless: whoever starts it again has mended something."""
        if self.is_hopeless(most):
            self._failures = 0

    def enqueue(self, given: Hparams) -> None:
        """A trial waits, the next in number, with these hparams fixed by hand."""
        trial = Trial(len(self.trials), State.WAITING, given, start_tick=0, given=given)
        self.trials.append(trial)
        self._waiting.append(trial)
        self._tally.change(trial, None)
        self.store.enqueue(trial)

    def next(self) -> tuple[int, Hparams]:
        """The number of the trial to start now, and what was given of its hparams: first those that wait."""
        return (self._waiting[0].number, self._waiting[0].given) if self._waiting else (len(self.trials), {})

    def upcoming(self, count: int) -> list[tuple[int, Hparams]]:
        """The numbers of the trials to start next, so many at most, each with what was given of its hparams."""
        waiting = [(trial.number, trial.given) for trial in islice(self._waiting, count)]
        new = range(len(self.trials), min(len(self.trials) + count - len(waiting), self._asked))
        return [*waiting, *((number, {}) for number in new)]

    def start(self, trial: Trial) -> None:
        """The next trial is in flight."""
        if self._waiting:
            self._waiting.popleft()
            self.trials[trial.number] = trial
            self._tally.change(trial, State.WAITING)
        else:
            self.trials.append(trial)
            self._tally.change(trial, None)
        self._flight[trial.number] = None
        self.store.start(trial)

    def record(self, measured: list[Measurement]) -> None:
        """What a tick showed: all its values, before any of them is decided about."""
        self.store.record(measured)
        for own in measured:
            self.trials[own.trial] = extended(self.trials[own.trial], own, self.direction)
            if self.pruner is not None:
                self.pruner.record(own)

    def reason_to_prune(self, own: Measurement) -> str | None:
        return self.pruner.reason_to_prune(own) if self.pruner is not None and own.failure is None else None

    def end(self, trial: Trial) -> None:
        """A trial has ended as it stands here; call it once all of its tick are decided."""
        self._tally.change(trial, self.trials[trial.number].state)
        self.trials[trial.number] = trial
        del self._flight[trial.number]
        if self.pruner is not None:
            self.pruner.end(trial)
        self._ended_now += 1
        self._failures = self._failures + 1 if trial.state is State.FAILED else 0
        if trial.state is State.FAILED:
            self._untold.append(Failed(trial.number, trial.reason or "unknown"))
        self.store.end(trial)

    def newly_failed(self) -> list[Failed]:
        """The trials that have failed since this was asked last."""
        untold, self._untold = self._untold, []
        return untold

    def progress(self) -> Progress:
        seconds = time.monotonic() - self._began
        return self._tally.progress(self._asked, self.tick, self._ended_now, seconds)


def _failures_in_a_row(trials: Iterable[Trial]) -> int:
    """How many of the trials that ended last have failed."""
    ended = sorted((trial for trial in trials if trial.state.ended), key=lambda own: (own.end_tick or 0, own.number))
    last = [trial.state is State.FAILED for trial in reversed(ended)]
    return last.index(False) if False in last else len(last)


def failed(trial: Trial, reason: str) -> Trial:
    """The trial as one that failed: it has no value."""
    return replace(trial, state=State.FAILED, value=None, best_tick=None, reason=reason)


def extended(trial: Trial, own: Measurement, direction: str) -> Trial:
    """The trial with one more tick seen."""
    seen: dict[str, Any] = {"curve": (*trial.curve, own), "seconds": trial.seconds + own.seconds}
    if own.failure is None and (trial.value is None or better(own.metric, trial.value, direction)):
        seen |= {"value": own.metric, "best_tick": own.fidelity}
    return replace(trial, **seen)
