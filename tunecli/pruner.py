"""Who stops early: pure decisions with their reason."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence

from tunecli.trial import Measurement, Trial


def rungs(min_ticks: int, reduction_factor: int, epochs: int) -> tuple[int, ...]:
    """The fidelities at which a trial has to be among the best to go on: min_ticks times powers of the factor."""
    found, fidelity = [], min_ticks
    while fidelity < epochs:
        found.append(fidelity)
        fidelity *= reduction_factor
    return tuple(found)


class Asha:
    """Asynchronous successive halving (Li et al. 2020), equal to Optuna's SuccessiveHalvingPruner at integer rungs.

    What it knows is what trials reached at each rung, kept sorted; it is rebuilt from their curves at any time. All
    values of a tick are recorded before any is decided, so the order inside a tick decides nothing.
    """

    def __init__(
        self, fidelities: Sequence[int], reduction_factor: int, direction: str, trials: Iterable[Trial]
    ) -> None:
        self._factor = reduction_factor
        # Sorted from the best to the worst; a metric to be maximized is kept negated.
        self._sign = -1.0 if direction == "maximize" else 1.0
        self._reached: dict[int, list[float]] = {fidelity: [] for fidelity in fidelities}
        for trial in trials:
            for measurement in trial.curve:
                self.record(measurement)

    def record(self, measurement: Measurement) -> None:
        """Let what a trial reached at a rung compete; measurements off the rungs and failed ones do not."""
        if measurement.fidelity in self._reached and measurement.failure is None:
            insort(self._reached[measurement.fidelity], self._sign * measurement.metric)

    def reason_to_prune(self, measurement: Measurement) -> str | None:
        """Why the trial stops at this rung, or None where it goes on. Its value must have been recorded."""
        reached = self._reached.get(measurement.fidelity)
        if not reached:
            return None
        # The best of the first few goes on, lest nothing does until there are `factor` of them.
        last = reached[max(len(reached) // self._factor - 1, 0)]
        if self._sign * measurement.metric <= last:
            return None
        return (
            f"rung {measurement.fidelity}: {measurement.metric:.4g} is not among the best "
            f"1/{self._factor} of {len(reached)}, which begin at {self._sign * last:.4g}"
        )
