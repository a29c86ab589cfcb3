"""What a search expects of its trials: how long it will still train, and how many end next. It changes speed alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from tunecli.trial import Measurement, Trial

REPAYS_SECONDS = 12.0
"""What one process must have left to train for workers to be started: each takes two seconds of a core to begin."""


class Forecast:
    """What a search has seen of its pace. It decides where runs are trained, which changes no result."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._seconds, self._ticks = 0.0, 0
        self._ended, self._fidelity = 0, 0

    def see(self, measured: Iterable[Measurement]) -> None:
        for own in measured:
            self._seconds, self._ticks = self._seconds + own.seconds, self._ticks + 1

    def end(self, trial: Trial) -> None:
        self._ended, self._fidelity = self._ended + 1, self._fidelity + trial.fidelity

    def seconds_left(self, in_flight: Iterable[Trial], missing: int) -> float:
        """What is left for one process, if trials end as early as those so far, and one in flight at the earliest when
        it has come as far again; where none has ended, the others get as far as the furthest is."""
        if not self._ticks:
            return 0.0
        reached = [trial.fidelity for trial in in_flight]
        length = self._fidelity / self._ended if self._ended else max(reached, default=1)
        going_on = sum(min(max(length - own, own, 1), self._epochs - own) for own in reached)
        return self._seconds / self._ticks * (missing * length + going_on)


class Ends:
    """At which fidelities trials have ended so far, of those that came there."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._came: Counter[int] = Counter()
        self._ended: Counter[int] = Counter()

    def see(self, trial: Trial) -> None:
        """A trial has come one tick further, perhaps to its end."""
        self._came[trial.fidelity] += 1
        self._ended[trial.fidelity] += trial.state.ended

    def next(self, in_flight: Iterable[Trial]) -> int:
        """How many are likely to end in the next tick."""
        return math.ceil(sum(self._share(trial.fidelity + 1) for trial in in_flight))

    def _share(self, fidelity: int) -> float:
        return 1.0 if fidelity >= self._epochs else self._ended[fidelity] / max(self._came[fidelity], 1)
