"""Who stops early: pure decisions with their reason."""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from tunecli.trial import Measurement, State, Trial, better, derive_seed


class Pruner(Protocol):
    """What is known of all trials, and the decisions that follow from it; rebuilt from their curves at any time.

    All values of a tick are recorded before any trial is decided, and all are decided before any is told to have ended,
    so the order inside a tick decides nothing.
    """

    def record(self, measurement: Measurement) -> None:
        """What a trial reached counts from now on."""

    def end(self, trial: Trial) -> None:
        """A trial has ended, as its state says."""

    def reason_to_prune(self, measurement: Measurement) -> str | None:
        """Why the trial stops here, or None where it goes on. Its value must have been recorded, and be no failure."""


def make_pruner(
    name: str, options: Mapping[str, float], epochs: int, direction: str, study_seed: int, trials: Iterable[Trial]
) -> Pruner | None:
    """The pruner of this name as it stands after `trials`; None for "none". `options` are its keys of [search]."""
    pruner = _make(name, options, epochs, direction, study_seed)
    if pruner is not None:
        for trial in trials:
            for measurement in trial.curve:
                pruner.record(measurement)
            if trial.state.ended:
                pruner.end(trial)
    return pruner


def _make(name: str, options: Mapping[str, float], epochs: int, direction: str, study_seed: int) -> Pruner | None:
    if name in ("asha", "hyperband"):
        min_ticks, factor = int(options["min_ticks"]), int(options["reduction_factor"])
        if name == "asha":
            return Asha(rungs(min_ticks, factor, epochs), factor, direction)
        return Hyperband(min_ticks, factor, epochs, direction, study_seed)
    patience = int(options["patience"]) if "patience" in options else None
    percentile: Percentile | None = None
    if name in ("median", "percentile"):
        startup_trials, min_ticks = int(options["startup_trials"]), int(options["min_ticks"])
        percentile = Percentile(options.get("percentile", 50.0), startup_trials, min_ticks, direction)
    return percentile if patience is None else Patient(percentile, patience, direction)


def rungs(min_ticks: int, reduction_factor: int, epochs: int) -> tuple[int, ...]:
    """The fidelities at which a trial has to be among the best to go on: min_ticks times powers of the factor."""
    found, fidelity = [], min_ticks
    while fidelity < epochs:
        found.append(fidelity)
        fidelity *= reduction_factor
    return tuple(found)


class Asha:
    """Asynchronous successive halving (Li et al. 2020), equal to Optuna's SuccessiveHalvingPruner at integer rungs.

    What it knows is what trials reached at each rung, kept sorted.
    """

    def __init__(self, fidelities: Sequence[int], reduction_factor: int, direction: str) -> None:
        self._factor = reduction_factor
        # Sorted from the best to the worst; a metric to be maximized is kept negated.
        self._sign = -1.0 if direction == "maximize" else 1.0
        self._reached: dict[int, list[float]] = {fidelity: [] for fidelity in fidelities}

    def record(self, measurement: Measurement) -> None:
        """Let what a trial reached at a rung compete; measurements off the rungs and failed ones do not."""
        if measurement.fidelity in self._reached and measurement.failure is None:
            insort(self._reached[measurement.fidelity], self._sign * measurement.metric)

    def end(self, trial: Trial) -> None:
        """What a trial reached competes on, however it ended."""

    def reason_to_prune(self, measurement: Measurement) -> str | None:
        reached = self._reached.get(measurement.fidelity)
        if not reached:
            return None
        # The best of the first few goes on, lest nothing does until there are `factor` of them.
        last = reached[max(len(reached) // self._factor - 1, 0)]
        if self._sign * measurement.metric <= last:
            return None
        return (
            f"epoch {measurement.fidelity}: {measurement.metric:.4g} is not among the best "
            f"1/{self._factor} of {len(reached)}, which begin at {self._sign * last:.4g}"
        )


class Hyperband:
    """Hyperband (Li et al. 2018) as Optuna has it: several Asha side by side, which begin to prune ever later.

    A trial's bracket is drawn from the study's seed and its number, with the odds of Optuna's HyperbandPruner, and not
    from the study's name: a copy of a study goes on as the study does.
    """

    def __init__(self, min_ticks: int, reduction_factor: int, epochs: int, direction: str, study_seed: int) -> None:
        self._seed = study_seed
        first = rungs(min_ticks, reduction_factor, epochs + 1)
        self._brackets = [Asha(rungs(at, reduction_factor, epochs), reduction_factor, direction) for at in first]
        # Early brackets have more trials, for theirs are shorter: ceil(brackets * factor^s / (s + 1)) of each total.
        count = len(first)
        self._budgets = [-(-count * reduction_factor**s // (s + 1)) for s in reversed(range(count))]

    def bracket(self, number: int) -> int:
        """The bracket that a trial belongs to; the higher, the later it is judged first."""
        place = derive_seed(self._seed, number, "bracket") % (sum(self._budgets) or 1)
        for bracket, budget in enumerate(self._budgets):
            place -= budget
            if place < 0:
                return bracket
        return 0

    def record(self, measurement: Measurement) -> None:
        if self._brackets:
            self._brackets[self.bracket(measurement.trial)].record(measurement)

    def end(self, trial: Trial) -> None:
        """What a trial reached competes on, however it ended."""

    def reason_to_prune(self, measurement: Measurement) -> str | None:
        if not self._brackets:
            return None
        bracket = self.bracket(measurement.trial)
        reason = self._brackets[bracket].reason_to_prune(measurement)
        return reason and f"bracket {bracket}, {reason}"


class Percentile:
    """A trial's best value so far has to be within the best `percentile` of what complete trials showed at this
    fidelity; the median stopping rule is its 50 (Golovin et al. 2017). Equal to Optuna's PercentilePruner.

    Nothing is pruned before `startup_trials` are complete, nor a trial that is younger than `min_ticks`.
    """

    def __init__(self, percentile: float, startup_trials: int, min_ticks: int, direction: str) -> None:
        self._percentile, self._direction = percentile, direction
        self._startup_trials, self._min_ticks = max(startup_trials, 1), min_ticks
        self._best: dict[int, float] = {}
        self._complete = 0
        self._shown: dict[int, list[float]] = defaultdict(list)
        self._thresholds: dict[int, float] = {}

    def record(self, measurement: Measurement) -> None:
        if measurement.failure is None:
            best = self._best.get(measurement.trial)
            if best is None or better(measurement.metric, best, self._direction):
                self._best[measurement.trial] = measurement.metric

    def end(self, trial: Trial) -> None:
        """From now on a complete trial is one of those that others are compared with."""
        self._best.pop(trial.number, None)
        if trial.state is State.COMPLETE:
            self._complete += 1
            for measurement in trial.curve:
                self._shown[measurement.fidelity].append(measurement.metric)
            self._thresholds.clear()

    def reason_to_prune(self, measurement: Measurement) -> str | None:
        fidelity = measurement.fidelity
        if self._complete < self._startup_trials or fidelity < self._min_ticks or fidelity not in self._shown:
            return None
        threshold, own = self._threshold(fidelity), self._best[measurement.trial]
        if not better(threshold, own, self._direction):
            return None
        among = "the median" if self._percentile == 50 else f"the best {self._percentile:g} %"
        return (
            f"epoch {fidelity}: {own:.4g}, its best so far, is worse than {among} "
            f"of {len(self._shown[fidelity])} complete trials, {threshold:.4g}"
        )

    def _threshold(self, fidelity: int) -> float:
        if fidelity not in self._thresholds:
            rank = 100 - self._percentile if self._direction == "maximize" else self._percentile
            # Between two infinities of one sign there is nothing to interpolate: NaN, with which nothing is pruned.
            with np.errstate(invalid="ignore"):
                self._thresholds[fidelity] = float(np.nanpercentile(np.array(self._shown[fidelity]), rank))
        return self._thresholds[fidelity]


class Patient:
    """A trial goes on while it still improves: it may be pruned once its last `patience` + 1 ticks are worse than what
    it had reached before. Then `wrapped` decides, or without one it is pruned. Equal to Optuna's PatientPruner.
    """

    def __init__(self, wrapped: Pruner | None, patience: int, direction: str) -> None:
        self._wrapped, self._patience = wrapped, patience
        self._best = max if direction == "maximize" else min
        self._direction = direction
        self._curves: dict[int, list[float]] = defaultdict(list)

    def record(self, measurement: Measurement) -> None:
        if measurement.failure is None:
            self._curves[measurement.trial].append(measurement.metric)
        if self._wrapped is not None:
            self._wrapped.record(measurement)

    def end(self, trial: Trial) -> None:
        self._curves.pop(trial.number, None)
        if self._wrapped is not None:
            self._wrapped.end(trial)

    def reason_to_prune(self, measurement: Measurement) -> str | None:
        curve, last = self._curves[measurement.trial], self._patience + 1
        if len(curve) <= last:
            return None
        before, after = self._best(curve[:-last]), self._best(curve[-last:])
        if not better(before, after, self._direction):
            return None
        if self._wrapped is not None:
            return self._wrapped.reason_to_prune(measurement)
        return (
            f"epoch {measurement.fidelity}: {after:.4g} is the best of its last {last} epochs, {before:.4g} came before"
        )
