"""Each pruner against Optuna's, and Asha against its definition where trials run side by side."""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import examples
from tunecli.pruner import Asha, Hyperband, Pruner, make_pruner, rungs
from tunecli.space import PRUNERS
from tunecli.study.sections import PRUNER_KEYS
from tunecli.trial import Measurement, State, Trial

pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),  # numpy between two infinities
]

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


def ends_of_ours(pruner: Pruner, epochs: int, curves: list[list[float]]) -> list[int]:
    """The fidelity at which each trial ends, one trial after another."""
    ends = []
    for number, curve in enumerate(curves):
        seen: list[Measurement] = []
        for fidelity, metric in enumerate(curve, start=1):
            own = measurement(number, fidelity, metric)
            seen.append(own)
            pruner.record(own)
            if own.failure is not None:
                state = State.FAILED
            elif fidelity == epochs:
                state = State.COMPLETE
            elif pruner.reason_to_prune(own) is not None:
                state = State.PRUNED
            else:
                continue
            pruner.end(Trial(number, state, {}, start_tick=1, curve=tuple(seen)))
            ends.append(fidelity)
            break
    return ends


def ends_of_optuna(
    pruner: optuna.pruners.BasePruner, epochs: int, direction: str, curves: list[list[float]]
) -> list[int]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction=direction, pruner=pruner, storage=optuna.storages.InMemoryStorage())
    ends = []
    for curve in curves:
        trial = study.ask()
        for fidelity, metric in enumerate(curve, start=1):
            trial.report(metric, fidelity)
            if math.isnan(metric):
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            elif fidelity == epochs:
                study.tell(trial, metric)
            elif trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                continue
            ends.append(fidelity)
            break
    return ends


@examples(150)
@given(searches())
def test_a_window_of_one_prunes_as_optuna_does(drawn: tuple[int, int, int, str, list[list[float]]]) -> None:
    min_ticks, factor, epochs, direction, curves = drawn
    ours = Asha(rungs(min_ticks, factor, epochs), factor, direction)
    theirs = optuna.pruners.SuccessiveHalvingPruner(min_resource=min_ticks, reduction_factor=factor)
    assert ends_of_ours(ours, epochs, curves) == ends_of_optuna(theirs, epochs, direction, curves)


@examples(100)
@given(searches(), st.integers(0, 5))
def test_hyperband_prunes_as_optuna_does_in_the_same_brackets(
    drawn: tuple[int, int, int, str, list[list[float]]], seed: int
) -> None:
    min_ticks, factor, epochs, direction, curves = drawn
    ours = Hyperband(min_ticks, factor, epochs, direction, seed)

    class Theirs(optuna.pruners.HyperbandPruner):
        """Optuna draws a bracket from the study's name, which a copy of a study does not share."""

        def _get_bracket_id(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> int:
            return ours.bracket(trial.number)

    theirs = Theirs(min_ticks, epochs, factor)
    assert ends_of_ours(ours, epochs, curves) == ends_of_optuna(theirs, epochs, direction, curves)


def test_hyperband_draws_brackets_with_optunas_odds() -> None:
    theirs = optuna.pruners.HyperbandPruner(min_resource=3, max_resource=30, reduction_factor=3)
    theirs._try_initialization(optuna.create_study(storage=optuna.storages.InMemoryStorage()))
    odds = theirs._trial_allocation_budgets
    drawn = [Hyperband(3, 3, 30, "minimize", 0).bracket(number) for number in range(3000)]
    assert len(odds) == 3
    for bracket, own in enumerate(odds):
        assert drawn.count(bracket) / 3000 == pytest.approx(own / sum(odds), abs=0.03)
    assert [Hyperband(3, 3, 30, "minimize", 1).bracket(number) for number in range(3000)] != drawn


@examples(150)
@given(searches(), st.sampled_from([10.0, 25.0, 50.0, 66.6]), st.integers(0, 4), st.none() | st.integers(0, 3))
def test_percentile_and_median_prune_as_optuna_does(
    drawn: tuple[int, int, int, str, list[list[float]]], percentile: float, startup_trials: int, patience: int | None
) -> None:
    min_ticks, _, epochs, direction, curves = drawn
    options: dict[str, float] = {"percentile": percentile, "startup_trials": startup_trials, "min_ticks": min_ticks}
    theirs: optuna.pruners.BasePruner = optuna.pruners.PercentilePruner(percentile, startup_trials, min_ticks)
    if percentile == 50:
        del options["percentile"]
        theirs = optuna.pruners.MedianPruner(startup_trials, min_ticks)
    if patience is not None:
        options["patience"] = patience
        theirs = optuna.pruners.PatientPruner(theirs, patience)
    ours = make_pruner("median" if percentile == 50 else "percentile", options, epochs, direction, 0, [])
    assert ours is not None
    assert ends_of_ours(ours, epochs, curves) == ends_of_optuna(theirs, epochs, direction, curves)


@examples(100)
@given(searches(), st.integers(0, 3))
def test_patient_prunes_as_optuna_does(drawn: tuple[int, int, int, str, list[list[float]]], patience: int) -> None:
    _, _, epochs, direction, curves = drawn
    ours = make_pruner("patient", {"patience": patience}, epochs, direction, 0, [])
    assert ours is not None
    theirs = optuna.pruners.PatientPruner(None, patience)
    assert ends_of_ours(ours, epochs, curves) == ends_of_optuna(theirs, epochs, direction, curves)


OPTIONS: dict[str, Mapping[str, Any]] = {
    name: {key: 1 if own is None else own for key, own in keys.items()}
    | ({"min_ticks": 1} if "min_ticks" in keys else {})
    for name, keys in PRUNER_KEYS.items()
}


@pytest.mark.parametrize("name", [name for name in PRUNERS if name != "none"])
@examples(25)
@given(searches(), st.integers(1, 5))
def test_every_pruner_rebuilt_from_the_trials_decides_as_the_live_one_in_whatever_order_a_tick_arrives(
    name: str, drawn: tuple[int, int, int, str, list[list[float]]], window: int
) -> None:
    _, _, epochs, direction, curves = drawn

    def fresh(trials: Iterable[Trial]) -> Pruner:
        found = make_pruner(name, OPTIONS[name], epochs, direction, 7, trials)
        assert found is not None
        return found

    live, trials, flight = fresh([]), dict[int, Trial](), list[int]()
    waiting = list(range(len(curves)))
    while flight or waiting:
        while waiting and len(flight) < window:
            flight.append(waiting.pop(0))
        tick = []
        for number in flight:
            seen = trials[number].curve if number in trials else ()
            tick.append(measurement(number, len(seen) + 1, curves[number][len(seen)]))
            trials[number] = trial_of(number, [*seen, tick[-1]])
        for own in tick:
            live.record(own)
        rebuilt = fresh(trials[number] for number in sorted(trials, reverse=True))
        judged = [own for own in tick if own.failure is None and own.fidelity < epochs]
        reasons = {own.trial: live.reason_to_prune(own) for own in judged}
        assert reasons == {own.trial: rebuilt.reason_to_prune(own) for own in reversed(judged)}
        for own in tick:
            if own.failure is not None:
                state = State.FAILED
            elif own.fidelity == epochs:
                state = State.COMPLETE
            elif reasons[own.trial] is not None:
                state = State.PRUNED
            else:
                continue
            trials[own.trial] = Trial(own.trial, state, {}, 1, curve=trials[own.trial].curve)
            live.end(trials[own.trial])
            flight.remove(own.trial)


def by_definition(value: float, reached: Sequence[float], factor: int, direction: str) -> bool:
    """Whether a trial goes on: its value is no worse than the best 1/factor of those at the rung, at least one."""
    ranked = sorted(reached, reverse=direction == "maximize")
    last = ranked[max(1, len(ranked) // factor) - 1]
    return value >= last if direction == "maximize" else value <= last


@examples(60)
@given(searches(), st.integers(2, 6), st.randoms(use_true_random=False))
def test_side_by_side_trials_are_pruned_as_defined_in_whatever_order_a_tick_arrives(
    drawn: tuple[int, int, int, str, list[list[float]]], window: int, order: random.Random
) -> None:
    min_ticks, factor, epochs, direction, curves = drawn
    fidelities = rungs(min_ticks, factor, epochs)
    asha = Asha(fidelities, factor, direction)
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
        known = [trial_of(n, seen[n]) for n in order.sample(sorted(seen), len(seen))]
        options = {"min_ticks": min_ticks, "reduction_factor": factor}
        rebuilt = make_pruner("asha", options, epochs, direction, 0, known)
        assert rebuilt is not None
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
    asha = Asha([1], 2, direction)
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
def test_the_reason_names_the_epoch_the_value_and_what_it_missed(
    direction: str, values: list[float], own: str, threshold: str
) -> None:
    asha = Asha([3], 2, direction)
    measured = [measurement(number, 3, value) for number, value in enumerate(values)]
    for one in measured:
        asha.record(one)
    reason = asha.reason_to_prune(measured[-1])
    assert reason == f"epoch 3: {own} is not among the best 1/2 of 4, which begin at {threshold}"
    assert asha.reason_to_prune(measurement(9, 2, values[-1])) is None, "2 is no rung"


def test_median_and_patient_say_what_was_missed() -> None:
    def complete(number: int, values: list[float]) -> Trial:
        return Trial(
            number, State.COMPLETE, {}, 1, curve=tuple(measurement(number, n, v) for n, v in enumerate(values, 1))
        )

    others = [complete(number, [0.5 + number / 8, 0.75]) for number in range(3)]
    median = make_pruner("median", {"startup_trials": 3, "min_ticks": 1}, 2, "maximize", 0, others)
    assert median is not None
    median.record(measurement(3, 1, 0.5))
    expected = "epoch 1: 0.5, its best so far, is worse than the median of 3 complete trials, 0.625"
    assert median.reason_to_prune(measurement(3, 1, 0.5)) == expected
    patient = make_pruner("patient", {"patience": 1}, 9, "minimize", 0, [])
    assert patient is not None
    for fidelity, metric in enumerate([0.5, 0.25, 0.375, 0.5], start=1):
        assert patient.reason_to_prune(measurement(0, fidelity, metric)) is None
        patient.record(measurement(0, fidelity, metric))
    expected = "epoch 4: 0.375 is the best of its last 2 epochs, 0.25 came before"
    assert patient.reason_to_prune(measurement(0, 4, 0.5)) == expected
