"""How long a study will still train: what says whether worker processes repay their start."""

from __future__ import annotations

from collections.abc import Iterable

from tunecli.trial import Measurement, Trial

REPAYS_SECONDS = 20.0
"""What one process must have left to train for workers to be started: each takes two seconds of a core to begin."""


class Forecast:
    """What a search has seen of its pace. It decides where runs are trained, which changes no result."""

    def __init__(self) -> None:
        self._seconds, self._ticks = 0.0, 0
        self._ended, self._fidelity = 0, 0

    def see(self, measured: Iterable[Measurement]) -> None:
        for own in measured:
            self._seconds, self._ticks = self._seconds + own.seconds, self._ticks + 1

    def end(self, trial: Trial) -> None:
        self._ended, self._fidelity = self._ended + 1, self._fidelity + trial.fidelity

    def seconds_left(self, in_flight: Iterable[Trial], missing: int) -> float:
        """What is left for one process, if trials end as early as those so far; where none has, in their first tick."""
        if not self._ticks:
            return 0.0
        length = self._fidelity / self._ended if self._ended else 1.0
        ticks = missing * length + sum(max(length - trial.fidelity, 1.0) for trial in in_flight)
        return self._seconds / self._ticks * ticks
