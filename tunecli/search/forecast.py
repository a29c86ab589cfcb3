"""What a search expects of its trials: how long it will still train, and how many end next. It changes speed alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from tunecli.trial import Trial

TRAINED_SECONDS = 0.25
"""What has to be trained before it is said what is left to train: the first steps of all are slow."""

SEEN_SECONDS = 1.0
"""What has to pass before it is said when all will have ended: of how far trials come, the first ticks show nothing."""


class Forecast:
    """What a search has seen of its trials, those recorded before it included: at which fidelities they end, of those
    that come there, and how long they train for a tick. It decides where runs are trained, which changes no result."""

    def __init__(self, epochs: int, trials: Iterable[Trial] = ()) -> None:
        self._epochs = epochs
        self._came: Counter[int] = Counter()
        self._ended: Counter[int] = Counter()
        self._seconds, self._ticks = 0.0, 0
        for trial in trials:
            self._came.update(range(1, trial.fidelity + 1))
            self._ended[trial.fidelity] += trial.state.ended

    def see(self, trial: Trial) -> None:
        """A trial has come one tick further, perhaps to its end."""
        self._came[trial.fidelity] += 1
        self._ended[trial.fidelity] += trial.state.ended
        self._seconds, self._ticks = self._seconds + trial.curve[-1].seconds, self._ticks + 1

    def ending(self, in_flight: Iterable[Trial]) -> int:
        """How many are likely to end in the next tick."""
        return math.ceil(sum(self._share(trial.fidelity + 1) for trial in in_flight))

    def seconds_left(self, in_flight: Iterable[Trial], missing: int) -> float:
        """What one process would still train, with so many trials to be started; 0 while too little was seen to say."""
        if self._seconds < TRAINED_SECONDS:
            return 0.0
        return self._seconds / self._ticks * self._ticks_of(in_flight, missing)

    def remaining(self, in_flight: Iterable[Trial], missing: int, seconds: float) -> float | None:
        """How many seconds pass until all have ended, at the pace of the `seconds` in which it saw what it was told of;
        None before any trial has ended: how far they come is not known yet."""
        if not self._ticks or not self._ended.total() or seconds < SEEN_SECONDS:
            return None
        return seconds / self._ticks * self._ticks_of(in_flight, missing)

    def _ticks_of(self, in_flight: Iterable[Trial], missing: int) -> float:
        """How many ticks they still train, those in flight and as many `missing` ones, in all."""
        left = self._ticks_left()
        return missing * left[0] + sum(left[trial.fidelity] for trial in in_flight)

    def _ticks_left(self) -> list[float]:
        """How many ticks trials of each fidelity still train, in the mean (after Kaplan & Meier 1958): those in flight
        count as far as they came, where the mean of those that have ended would forget the long ones."""
        left = [0.0]
        for fidelity in range(self._epochs, 0, -1):
            left.append(1 + (1 - self._share(fidelity)) * left[-1])
        return left[::-1]

    def _share(self, fidelity: int) -> float:
        """How many end at a fidelity, of those that come there; none, as far as is known, where none has come."""
        return 1.0 if fidelity >= self._epochs else self._ended[fidelity] / max(self._came[fidelity], 1)
