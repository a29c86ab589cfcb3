"""Asha against Optuna's SuccessiveHalvingPruner, and against the definition where trials run side by side."""

import math
import random
from collections.abc import Iterable, Sequence

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunecli.pruner import Asha, rungs
from tunecli.trial import Measurement, State, Trial

DIRECTIONS = ("minimize", "maximize")
METRICS = st.one_of(
    st.sampled_from([0.0, 0.5, 1.0, -1.0, math.inf, -math.inf]),  # ties
    st.floats(allow_nan=False).map(lambda metric: metric + 0.0),
    st.just(math.nan),
)
"""NaN stands for a run that diverged. No metric is -0.0, which equals 0.0 but is printed otherwise."""


@st.composite
def searches(draw: st.DrawFn) -> tuple[int, int, int, str, list[list[float]]]:
    """(min_ticks, reduction_factor, epochs, direction, a full curve for each trial)"""
    epochs = draw(st.integers(1, 10))
    curve = st.lists(METRICS, min_size=epochs, max_size=epochs)
    return (
        draw(st.integers(1, 3)),
        draw(st.integers(2, 4)),
        epochs,
        draw(st.sampled_from(DIRECTIONS)),
        draw(st.lists(curve, min_size=1, max_size=14)),
    )


def measurement(trial: int, fidelity: int, metric: float) -> Measurement:
    failure = "diverged: validation metric is nan" if math.isnan(metric) else None
    return Measurement(trial, fidelity, 0.0, 0.0, metric, 0.0, 0.0, failure)


def trial_of(number: int, measurements: Iterable[Measurement]) -> Trial:
    return Trial(number, State.RUNNING, {}, start_tick=1, curve=tuple(measurements))


def ends_of_asha(min_ticks: int, factor: int, epochs: int, direction: str, curves: list[list[float]]) -> list[int]:
    """The fidelity at which each trial ends, one trial after another."""
    asha = Asha(rungs(min_ticks, factor, epochs), factor, direction, [])
    ends = []
    for number, curve in enumerate(curves):
        for fidelity, metric in enumerate(curve, start=1):
            own = measurement(number, fidelity, metric)
            asha.record(own)
            if own.failure is not None or asha.reason_to_prune(own) is not None or fidelity == epochs:
                ends.append(fidelity)
                break
    return ends


def ends_of_optuna(min_ticks: int, factor: int, epochs: int, direction: str, curves: list[list[float]]) -> list[int]:
    pruner = optuna.pruners.SuccessiveHalvingPruner(
        min_resource=min_ticks, reduction_factor=factor, min_early_stopping_rate=0
    )
    study = optuna.create_study(direction=direction, pruner=pruner, storage=optuna.storages.InMemoryStorage())
    ends = []
    for curve in curves:
        trial = study.ask()
        for fidelity, metric in enumerate(curve, start=1):
            trial.report(metric, fidelity)
            pruned = fidelity < epochs and trial.should_prune()
            if math.isnan(metric) or pruned or fidelity == epochs:
                state = optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.FAIL
                study.tell(trial, state=state)
                ends.append(fidelity)
                break
    return ends


@settings(max_examples=150, deadline=None)
@given(searches())
def test_a_window_of_one_prunes_as_optuna_does(drawn: tuple[int, int, int, str, list[list[float]]]) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    assert ends_of_asha(*drawn) == ends_of_optuna(*drawn)


def by_definition(value: float, reached: Sequence[float], factor: int, direction: str) -> bool:
    """Whether a trial goes on: its value is no worse than the best 1/factor of those at the rung, at least one."""
    ranked = sorted(reached, reverse=direction == "maximize")
    last = ranked[max(1, len(ranked) // factor) - 1]
    return value >= last if direction == "maximize" else value <= last


@settings(max_examples=60, deadline=None)
@given(searches(), st.integers(2, 6), st.randoms(use_true_random=False))
def test_side_by_side_trials_are_pruned_as_defined_in_whatever_order_a_tick_arrives(
    drawn: tuple[int, int, int, str, list[list[float]]], window: int, order: random.Random
) -> None:
    min_ticks, factor, epochs, direction, curves = drawn
    fidelities = rungs(min_ticks, factor, epochs)
    asha = Asha(fidelities, factor, direction, [])
    reached: dict[int, list[float]] = {fidelity: [] for fidelity in fidelities}
    seen: dict[int, list[Measurement]] = {}
    flight: list[int] = []
    waiting = list(range(len(curves)))
    while flight or waiting:
        while waiting and len(flight) < window:
            flight.append(waiting.pop(0))
        tick = [measurement(n, len(seen.get(n, ())) + 1, curves[n][len(seen.get(n, ()))]) for n in flight]
        for own in tick:
            seen.setdefault(own.trial, []).append(own)
            if own.fidelity in reached and own.failure is None:
                reached[own.fidelity].append(own.metric)
        for own in order.sample(tick, len(tick)):
            asha.record(own)
        # What is rebuilt from the curves alone, in any order, decides the same as what was there all along.
        rebuilt = Asha(
            fidelities, factor, direction, [trial_of(n, seen[n]) for n in order.sample(sorted(seen), len(seen))]
        )
        for own in order.sample(tick, len(tick)):
            reason = asha.reason_to_prune(own) if own.failure is None else None
            if own.failure is None:
                assert reason == rebuilt.reason_to_prune(own)
                at_rung = own.fidelity in reached
                goes_on = not at_rung or by_definition(own.metric, reached[own.fidelity], factor, direction)
                assert (reason is None) == goes_on
            if own.failure is not None or reason is not None or own.fidelity == epochs:
                flight.remove(own.trial)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_failed_measurements_do_not_compete(direction: str) -> None:
    asha = Asha([1], 2, direction, [])
    for number in range(6):
        asha.record(measurement(number, 1, math.nan))
    # Had the six competed, three of eight would go on and the worse one with them.
    good, bad = measurement(6, 1, 1.0), measurement(7, 1, 2.0)
    if direction == "maximize":
        good, bad = bad, good
    asha.record(good)
    asha.record(bad)
    assert asha.reason_to_prune(good) is None
    assert asha.reason_to_prune(bad) is not None


def test_rungs_lie_below_the_last_epoch() -> None:
    assert rungs(1, 4, 30) == (1, 4, 16)
    assert rungs(2, 3, 54) == (2, 6, 18)
    assert rungs(1, 2, 1) == ()


@pytest.mark.parametrize(
    ("direction", "values", "own", "threshold"),
    [("maximize", [0.9, 0.8, 0.7, 0.65], "0.65", "0.8"), ("minimize", [-0.5, 0.25, 0.75, 1.5], "1.5", "0.25")],
)
def test_the_reason_names_the_rung_the_value_and_what_it_missed(
    direction: str, values: list[float], own: str, threshold: str
) -> None:
    asha = Asha([3], 2, direction, [])
    measured = [measurement(number, 3, value) for number, value in enumerate(values)]
    for one in measured:
        asha.record(one)
    reason = asha.reason_to_prune(measured[-1])
    assert reason == f"rung 3: {own} is not among the best 1/2 of 4, which begin at {threshold}"
    assert asha.reason_to_prune(measurement(9, 2, values[-1])) is None, "2 is no rung"
