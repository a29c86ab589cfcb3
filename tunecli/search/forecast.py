"""How long a study will still train: what says whether worker processes repay their start."""

from __future__ import annotations

from collections.abc import Iterable

from tunecli.trial import Measurement, Trial

REPAYS_SECONDS = 20.0
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
