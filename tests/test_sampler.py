"""One contract for every sampler: a proposal is a pure function of the recorded trials and the trial's number."""

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from statistics import mean
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import examples
from tunecli.given import shown
from tunecli.points import all_points, key
from tunecli.sampler import Proposer, learned, make_proposer, says
from tunecli.space import EXHAUSTIVE, SAMPLERS, Space, build_space
from tunecli.trial import Hparams, Measurement, State, Trial, derive_seed

EPOCHS, WINDOW, TRIALS = 3, 5, 40

SPACES: dict[str, dict[str, Any]] = {
    "default": {},
    "conditional, with choices of the model": {
        "optimizer": ["sgd", "adam", "adamw"],
        "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
        "batch_size": [16, 64, "full"],
        "l1": 0,
        "nesterov": [True, False],
        "model": {
            "hidden": [[8], [64], [8, 8]],
            "width": {"low": 1, "high": 64, "log": True},
            "dropout": {"low": 0.0, "high": 0.5},
            "norm": [True, False],
        },
    },
    "one optimizer": {"optimizer": "rmsprop", "learning_rate": [0.1, 0.01], "batch_size": {"low": 1, "high": 64}},
}

FINITE: dict[str, Any] = {
    "optimizer": ["sgd", "adam"],
    "learning_rate": [1e-3, 1e-2, 1e-1],
    "momentum": [0.0, 0.9],
    "beta1": 0.9,
    "beta2": 0.999,
    "batch_size": {"low": 1, "high": 4},
    "l1": 0,
    "l2": 0,
}
"""3 rates times 4 sizes, with two momenta for sgd alone: 36 points."""

SAMPLING = tuple(name for name in SAMPLERS if name not in EXHAUSTIVE)
sampler = pytest.mark.parametrize("sampler", SAMPLERS)
sampling = pytest.mark.parametrize("sampler", SAMPLING)


def trials_for(sampler: str) -> int:
    """gp takes up to a second for a proposal."""
    return 30 if sampler == "gp" else TRIALS


def space_for(sampler: str, keys: dict[str, Any] | None = None) -> Space:
    """A space of these keys, or a finite one for the samplers that need it."""
    return build_space(FINITE if sampler in EXHAUSTIVE else keys or {})


def fresh(space: Space, name: str, seed: int = 0) -> Proposer:
    return make_proposer(space, name, "minimize", seed, WINDOW)


def loss(hparams: Hparams) -> float:
    """A valley in the logarithms of the rates, its floor lower for some optimizers."""
    floor = {"sgd": 0.2, "adam": 0.0, "adamw": 0.1}.get(str(hparams["optimizer"]), 0.5)
    optima = {"learning_rate": 2.5e-3, "l1": 1e-7, "l2": 1e-3}
    return floor + sum(
        math.log10(float(hparams[name]) / best) ** 2  # type: ignore[arg-type]
        for name, best in optima.items()
        if hparams[name]
    )


def measurement(number: int, fidelity: int, metric: float, failure: str | None = None) -> Measurement:
    return Measurement(number, fidelity, metric, metric, metric, 0.0, 0.0, failure)


def outcome(trial: Trial, fidelity: int, tick: int) -> Trial:
    """The trial one tick later: some are pruned, some fail, always the same ones."""
    fate = derive_seed(0, trial.number, "fate") % 8
    value = loss(trial.hparams) * (1 + 1 / fidelity)
    if fate == 0 and fidelity == 2:
        curve = (*trial.curve, measurement(trial.number, fidelity, math.nan, "diverged"))
        return replace(trial, curve=curve, state=State.FAILED, end_tick=tick, value=None, best_tick=None)
    trial = replace(trial, curve=(*trial.curve, measurement(trial.number, fidelity, value)))
    trial = replace(trial, value=value, best_tick=fidelity)
    if fate in (1, 2, 3) and fidelity == fate:
        return replace(trial, state=State.PRUNED, end_tick=tick)
    return replace(trial, state=State.COMPLETE, end_tick=tick) if fidelity == EPOCHS else trial


def simulate(space: Space, name: str, seed: int = 0, trials: int = TRIALS) -> list[list[Trial]]:
    """A search as the loop runs it: for each number, all trials as they stood when it had been proposed."""
    return go_on(fresh(space, name, seed), [], trials)


def go_on(
    proposer: Proposer, known: list[Trial], trials: int = TRIALS, ahead: int = 0, expected: int = 0
) -> list[list[Trial]]:
    """The same for a search that stands in the middle of a fill, with so many proposals made ahead in each tick, and so
    many expected."""
    known, history = list(known), []
    tick = max((trial.start_tick for trial in known), default=1) - 1
    while True:
        proposer.expect(expected)
        while not proposer.exhausted and len(known) < trials and sum(not trial.state.ended for trial in known) < WINDOW:
            hparams = proposer.propose(len(known), tick + 1)
            known.append(Trial(len(known), State.RUNNING, hparams, start_tick=tick + 1))
            history.append(list(known))
        flight = [trial for trial in known if not trial.state.ended]
        if not flight:
            return [*history, known]
        proposer.expect(expected)
        for number in range(len(known), min(len(known) + ahead, trials)):
            proposer.prepare(number, tick + 2, {})
        tick += 1
        for trial in flight:
            known[trial.number] = outcome(trial, trial.fidelity + 1, tick)
            if known[trial.number].state.ended:
                proposer.end(known[trial.number])


def rebuilt(space: Space, name: str, known: list[Trial], seed: int = 0) -> Proposer:
    proposer = fresh(space, name, seed)
    for trial in known:
        proposer.add(trial)
    return proposer


def proposal(space: Space, name: str, known: list[Trial], like: Trial) -> Hparams:
    """What a proposer that knows the trials below `like` from the record alone proposes in its place."""
    return rebuilt(space, name, known[: like.number]).propose(like.number, like.start_tick)


@sampler
@pytest.mark.parametrize("name", ["default", "conditional, with choices of the model"])
def test_a_rebuilt_proposer_proposes_what_the_live_one_did(sampler: str, name: str) -> None:
    space = space_for(sampler, SPACES[name])
    *history, final = simulate(space, sampler, trials=trials_for(sampler))
    assert len(final) == len(history) == (36 if sampler in EXHAUSTIVE else trials_for(sampler))
    for then in history if sampler != "gp" else history[-3::2]:
        last = then[-1]
        # From the trials as they stood then, and from the trials as they ended long after.
        assert proposal(space, sampler, then, last) == last.hparams
        assert proposal(space, sampler, final, last) == last.hparams


@sampler
@pytest.mark.parametrize("stop", [1, 12, 27])
def test_a_rebuilt_proposer_goes_on_as_the_live_one_did(sampler: str, stop: int) -> None:
    space = space_for(sampler)
    *history, final = simulate(space, sampler, trials=max(trials_for(sampler), stop))
    known = history[stop - 1]
    assert go_on(rebuilt(space, sampler, known), known, max(trials_for(sampler), stop))[-1] == final


@sampler
def test_what_is_made_ahead_changes_no_proposal(sampler: str) -> None:
    """Too few of them in some ticks, and too many in others."""
    space, count = space_for(sampler), trials_for(sampler)
    for ahead in (1, 3) if sampler != "gp" else (2,):
        assert go_on(fresh(space, sampler), [], count, ahead) == simulate(space, sampler, trials=count)


@sampler
@pytest.mark.parametrize("ahead", [0, 2])
def test_how_many_proposals_are_expected_changes_none(sampler: str, ahead: int) -> None:
    """Fewer than come in some ticks, and more in others."""
    space, count = space_for(sampler), trials_for(sampler)
    for expected in (2, 9):
        assert go_on(fresh(space, sampler), [], count, ahead, expected) == simulate(space, sampler, trials=count)


@sampling
def test_what_is_made_ahead_is_made_anew_where_more_is_known_or_given(sampler: str) -> None:
    space = space_for(sampler)
    known = simulate(space, sampler, trials=25)[-1]
    expected = rebuilt(space, sampler, known).propose(25, 60)
    given: Hparams = {"optimizer": "adam"}
    live = rebuilt(space, sampler, known[:-1])
    late = replace(known[-1], state=State.RUNNING, end_tick=None, curve=(), value=None)
    live.add(late)
    live.prepare(25, 60, {})
    live.prepare(26, 60, given)
    live.end(known[-1])  # a replay could not start it, say
    live.prepare(25, 60, given)
    assert live.propose(25, 60) == expected
    assert live.propose(26, 60, given)["optimizer"] == "adam"


def changed(trial: Trial, value: float) -> Trial:
    """The same trial with another result: complete instead of pruned or failed, and the reverse."""
    state = State.PRUNED if trial.state is State.COMPLETE else State.COMPLETE
    curve = tuple(measurement(trial.number, own.fidelity, value) for own in trial.curve)
    return replace(trial, state=state, value=value, best_tick=1, curve=curve)


@sampler
def test_results_count_from_one_full_tick_after_their_end_on(sampler: str) -> None:
    """What ended in tick e is seen by trials that start in tick e + 2, so proposals can be made while a tick runs."""
    space = space_for(sampler)
    final = simulate(space, sampler, trials=trials_for(sampler))[-1]
    matters = []
    for like in final if sampler != "gp" else final[-4:]:
        below = final[: like.number]
        hidden = [t if t.end_tick is None or t.end_tick + 2 <= like.start_tick else changed(t, -9.0) for t in below]
        assert proposal(space, sampler, hidden, like) == like.hparams
        seen = [
            t if t.end_tick is None or t.end_tick + 2 > like.start_tick else changed(t, -loss(t.hparams)) for t in below
        ]
        matters.append(proposal(space, sampler, seen, like) != like.hparams)
    # TPE begins with ten random trials, gp and nsga2 with more; the others never look at a result.
    learns = {"tpe": TRIALS // 2, "gp": 2, "nsga2": TRIALS // 4}
    assert sum(matters) > learns[sampler] if sampler in learns else not any(matters)


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_the_first_that_is_learned_is_the_first_that_is_not_random(sampler: str) -> None:
    final, random = (simulate(build_space({}), name, trials=30)[-1] for name in (sampler, "random"))
    same = [ours.hparams == theirs.hparams for ours, theirs in zip(final, random, strict=True)]
    count = learned(sampler, final)
    assert count is not None
    assert 0 < count < 20
    assert same == [True] * (30 - count) + [False] * count
    assert learned(sampler, final[: 30 - count]) == learned(sampler, []) == 0
    assert learned("random", random) is learned("qmc", final) is None


def test_a_result_is_seen_in_the_first_tick_in_which_it_counts() -> None:
    space = build_space({})
    final = simulate(space, "tpe")[-1]
    last_to_count = []
    for like in final[15:]:
        newest = [t for t in final[: like.number] if t.end_tick == like.start_tick - 2]
        known = [changed(t, -loss(t.hparams)) if t in newest else t for t in final[: like.number]]
        last_to_count.append(proposal(space, "tpe", known, like) != like.hparams)
    assert any(last_to_count)


def test_trials_in_flight_matter_to_tpe_by_their_hparams() -> None:
    """A window of trials must not crowd into one place."""
    space = build_space({"optimizer": "sgd"})
    *history, _ = simulate(space, "tpe")
    matters = []
    for then in history[15:]:
        moved = [t if t.state.ended else replace(t, hparams={**t.hparams, "learning_rate": 1e-4}) for t in then]
        matters.append(proposal(space, "tpe", moved, then[-1]) != then[-1].hparams)
    assert any(matters)


# What the table of the default space in design.md says.
RATES = {"sgd": (1e-4, 1.0), "adagrad": (1e-3, 1.0)}
BETAS = ("adam", "adamw", "nadam")


def check_default(hparams: Hparams) -> None:
    optimizer = hparams["optimizer"]
    expected = ["optimizer", "learning_rate"]
    expected += ["momentum"] if optimizer in ("sgd", "rmsprop") else []
    expected += ["beta1", "beta2"] if optimizer in BETAS else []
    assert list(hparams) == [*expected, "batch_size", "l1", "l2"]
    assert optimizer in ("sgd", "adagrad", "rmsprop", "adam", "adamw", "nadam")
    assert hparams["batch_size"] in (16, 32, 64, 128, 256)
    bounds = {
        "learning_rate": RATES.get(str(optimizer), (1e-5, 1e-1)),
        "momentum": (0.0, 0.99),
        "beta1": (0.8, 0.99),
        "beta2": (0.9, 0.9999),
        "l1": (1e-8, 1e-2),
        "l2": (1e-4, 0.5) if optimizer == "adamw" else (1e-8, 1e-2),
    }
    for name, (low, high) in bounds.items():
        value = hparams.get(name, low)
        assert isinstance(value, float)
        assert low <= value <= high, name


def check_conditional(hparams: Hparams) -> None:
    optimizer = hparams["optimizer"]
    expected = {"optimizer", "learning_rate", "batch_size", "l1", "l2"}
    expected |= {"model.hidden", "model.width", "model.dropout", "model.norm"}
    expected |= {"momentum", "nesterov"} if optimizer == "sgd" else {"beta1", "beta2"}
    assert set(hparams) == expected
    assert optimizer in ("sgd", "adam", "adamw")
    assert 1e-4 <= float(hparams["learning_rate"]) <= 1e-1  # type: ignore[arg-type]
    assert hparams["batch_size"] in (16, 64, "full")
    assert hparams["l1"] == 0
    assert hparams["model.hidden"] in ((8,), (64,), (8, 8))
    assert type(hparams["model.width"]) is int
    assert 1 <= hparams["model.width"] <= 64
    assert 0 <= float(hparams["model.dropout"]) <= 0.5  # type: ignore[arg-type]
    assert type(hparams["model.norm"]) is bool
    assert type(hparams.get("nesterov", True)) is bool


def check_one_optimizer(hparams: Hparams) -> None:
    assert list(hparams) == ["optimizer", "learning_rate", "momentum", "batch_size", "l1", "l2"]
    assert hparams["optimizer"] == "rmsprop"
    assert hparams["learning_rate"] in (0.1, 0.01)
    assert type(hparams["batch_size"]) is int
    assert 1 <= hparams["batch_size"] <= 64


CHECKS = dict(zip(SPACES, (check_default, check_conditional, check_one_optimizer), strict=True))


@sampling
@pytest.mark.parametrize("name", SPACES)
def test_every_proposal_lies_in_the_space_and_has_only_what_applies(sampler: str, name: str) -> None:
    space, check = build_space(SPACES[name]), CHECKS[name]
    final = simulate(space, sampler, trials=trials_for(sampler))[-1]
    for trial in final:
        check(trial.hparams)
        internal = {key: value for key, (_, value) in space.encode(trial.hparams).items()}
        assert space.decode(internal) == trial.hparams
    for hparam in space.searched():
        assert len({trial.hparams.get(hparam) for trial in final}) > 1, f"{hparam} never varies"


@sampling
def test_what_is_fixed_stays_where_it_applies(sampler: str) -> None:
    keys = {"learning_rate": 0.125, "momentum": 0.5, "batch_size": "full", "l2": 0.0, "model": {"hidden": [[4, 4]]}}
    space = build_space(keys)
    for trial in simulate(space, sampler, trials=25)[-1]:
        assert trial.hparams["learning_rate"] == 0.125
        assert trial.hparams["batch_size"] == "full"
        assert trial.hparams["l2"] == 0
        assert trial.hparams["model.hidden"] == (4, 4)
        assert trial.hparams.get("momentum") == (0.5 if trial.hparams["optimizer"] in ("sgd", "rmsprop") else None)


@sampling
def test_a_space_with_nothing_to_search_is_proposed_as_it_is(sampler: str) -> None:
    fixed = {"optimizer": "adagrad", "learning_rate": 0.1, "batch_size": 8, "l1": 0.0, "l2": 0.0}
    assert [dict(trial.hparams) for trial in simulate(build_space(fixed), sampler, trials=12)[-1]] == [fixed] * 12


@sampler
def test_a_seed_gives_one_search_and_another_seed_another(sampler: str) -> None:
    space = space_for(sampler)
    runs = {seed: simulate(space, sampler, seed, trials_for(sampler))[-1] for seed in (0, 1)}
    assert simulate(space, sampler, 0, trials_for(sampler))[-1] == runs[0]
    differ = [one.hparams != other.hparams for one, other in zip(*runs.values(), strict=True)]
    # The order of brute_force is that of the space.
    assert not any(differ) if sampler == "brute_force" else sum(differ) > 30 if sampler == "grid" else all(differ)


def test_numbers_differ_from_each_other() -> None:
    """Each proposal has a sampler of its own, which must not draw the same first number each time."""
    final = simulate(build_space({"optimizer": "sgd"}), "random")[-1]
    assert len({trial.hparams["learning_rate"] for trial in final}) == TRIALS


def test_both_directions_are_followed() -> None:
    """To maximize a value is to minimize its negative."""
    space = build_space({})

    def search(direction: str, sign: float) -> list[Hparams]:
        proposer = make_proposer(space, "tpe", direction, 0, WINDOW)
        found: list[Hparams] = []
        for number in range(25):
            found.append(proposer.propose(number, 1 + 2 * number))
            value = sign * loss(found[-1])
            curve = (measurement(number, 1, value),)
            at = 1 + 2 * number
            proposer.end(Trial(number, State.COMPLETE, found[-1], at, at, value, 1, curve=curve))
        return found

    assert search("minimize", 1.0) == search("maximize", -1.0)
    assert search("minimize", 1.0) != search("maximize", 1.0)


def test_tpe_does_better_than_random() -> None:
    def values(name: str) -> list[list[float]]:
        searches = [simulate(build_space({}), name, seed, trials=60)[-1] for seed in range(4)]
        return [[loss(trial.hparams) for trial in trials] for trials in searches]

    tpe, random = values("tpe"), values("random")
    assert mean(min(found) for found in tpe) < mean(min(found) for found in random)
    assert mean(mean(found[30:]) for found in tpe) < 0.5 * mean(mean(found[30:]) for found in random)


# Samplers that try every point


@pytest.mark.parametrize("name", EXHAUSTIVE)
@pytest.mark.parametrize("seed", range(3))
def test_every_point_is_tried_once_whatever_is_in_flight(name: str, seed: int) -> None:
    space = build_space(FINITE)
    final = simulate(space, name, seed)[-1]
    tried = Counter(key(space, trial.hparams) for trial in final)
    assert len(tried) == len(final) == 36
    assert tried.keys() == {key(space, point) for point in all_points(space)}
    assert rebuilt(space, name, final, seed).exhausted
    assert not rebuilt(space, name, final[:-1], seed).exhausted


@pytest.mark.parametrize("name", EXHAUSTIVE)
def test_what_was_tried_by_hand_is_not_tried_again(name: str) -> None:
    space = build_space(FINITE)
    proposer = fresh(space, name)
    byhand = {"optimizer": "sgd", "batch_size": 2}
    found = [proposer.propose(number, number + 1, byhand) for number in range(6)]
    assert all(hparams.items() >= byhand.items() for hparams in found)
    while not proposer.exhausted:
        found.append(proposer.propose(len(found), len(found) + 1))
    assert len({key(space, hparams) for hparams in found}) == len(found) == 36


def test_points_are_counted_by_condition() -> None:
    assert len(all_points(build_space(FINITE))) == 2 * 3 * 4 + 3 * 4


# Sequences and generations


UNCONDITIONAL: dict[str, Any] = {
    "optimizer": "sgd",
    "learning_rate": {"low": 1e-4, "high": 1.0, "log": True},
    "momentum": {"low": 0.0, "high": 0.9},
    "batch_size": {"low": 1, "high": 300, "log": True},
    "l1": 0,
    "l2": [0.0, 1e-3, 1e-2],
    "model": {"width": {"low": 3, "high": 9}, "hidden": [[8], [64], [8, 8]]},
}


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("seed", [0, 11])
def test_qmc_is_optunas_sequence_where_every_trial_reads_all(seed: int) -> None:
    space = build_space(UNCONDITIONAL)
    ours = fresh(space, "qmc", seed)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    theirs = optuna.create_study(
        sampler=optuna.samplers.QMCSampler(scramble=True, seed=seed, warn_independent_sampling=False)
    )
    # Its space is that of its first trial, which is no part of its sequence.
    distributions = {
        name: optuna.distributions.json_to_distribution(json_of(space, name))
        for name in sorted(d.name for d in space.dimensions)
        if json_of(space, name)
    }
    theirs.tell(theirs.ask(distributions), 0.0)
    for number in range(64):
        mine = space.encode(ours.propose(number, 1))
        trial = theirs.ask(distributions)
        for name, (_, internal) in mine.items():
            assert internal == pytest.approx(distributions[name].to_internal_repr(trial.params[name]), rel=1e-12)


def json_of(space: Space, name: str) -> str:
    from tunecli.space import distribution_json

    range_ = next(d.range for d in space.dimensions if d.name == name)
    return distribution_json(range_) if hasattr(range_, "distribution") else ""


def test_qmc_spreads_conditional_hparams_evenly_too() -> None:
    space = build_space({})
    points = [fresh(space, "qmc").propose(number, 1) for number in range(256)]
    assert all(36 <= count <= 50 for count in Counter(point["optimizer"] for point in points).values())
    rates = sorted(math.log10(float(point["learning_rate"])) for point in points if point["optimizer"] == "sgd")  # type: ignore[arg-type]
    assert all(-4 <= rate <= 0 for rate in rates)
    # By chance alone a gap of half a decade among 43 of four is rare; evenly laid points have none.
    assert max(b - a for a, b in pairwise(rates)) < 0.4


def test_nsga2_breeds_from_the_best_of_the_generation_before() -> None:
    space = build_space(
        {"optimizer": "sgd", "learning_rate": {"low": 1e-4, "high": 1.0, "log": True}, "l1": 0, "l2": 0}
    )
    final = simulate(space, "nsga2", trials=120)[-1]
    assert mean(loss(t.hparams) for t in final[90:]) < 0.7 * mean(loss(t.hparams) for t in final[:20])


def test_gp_does_better_than_random() -> None:
    space = build_space({"optimizer": "sgd", "momentum": 0, "batch_size": 32, "l1": 0, "l2": 0})
    gp, random = (simulate(space, name, trials=44)[-1] for name in ("gp", "random"))
    assert mean(loss(t.hparams) for t in gp[32:]) < 0.5 * mean(loss(t.hparams) for t in random[32:])


# Given by hand


@sampling
@examples(10)
@given(rate=st.floats(1e-3, 1e-1), size=st.sampled_from([16, 256]), prefix=st.integers(0, 12))
def test_what_is_given_stays_and_the_rest_is_sampled(sampler: str, rate: float, size: int, prefix: int) -> None:
    space = build_space({})
    known = simulate(space, sampler, trials=prefix)[-1]
    like = known[-1].start_tick if known else 1
    by_hand = {"learning_rate": rate, "batch_size": size}
    hparams = rebuilt(space, sampler, known).propose(prefix, like, by_hand)
    assert (hparams["learning_rate"], hparams["batch_size"]) == (rate, size)
    check_default(hparams)
    assert rebuilt(space, sampler, known).propose(prefix, like, by_hand) == hparams


def test_each_sampler_says_what_it_models() -> None:
    assert {name: says(name, space_for(name), 8) for name in SAMPLERS} == {
        "tpe": "tpe models all hparams, those that trials share jointly, after 10 random trials have ended",
        "random": "random draws every hparam by itself",
        "grid": "grid tries every point of the space once, 36 in all, in random order",
        "brute_force": "brute_force tries every point of the space once, 36 in all, one after another",
        "qmc": "qmc gives every hparam a coordinate of one scrambled Sobol sequence",
        "gp": "gp models optimizer, batch_size, l1 jointly, once 10 trials are complete; random draws learning_rate, "
        "momentum, beta1, beta2, l2, whose range not every trial has",
        "nsga2": "nsga2 crosses optimizer, batch_size, l1, in generations of 8; random draws learning_rate, momentum, "
        "beta1, beta2, l2, whose range not every trial has",
    }
    assert says("gp", build_space(UNCONDITIONAL), 8).endswith("once 10 trials are complete")


# A space that has changed


def test_tpe_follows_an_optimum_out_of_the_old_range() -> None:
    """The range was too low; widened, at least half of the next 60 proposals lie outside the old one."""
    old, wide = (
        build_space({"optimizer": "adam", "learning_rate": {"low": 1e-5, "high": high, "log": True}})
        for high in (1e-3, 1.0)
    )

    def rate(trial: Trial) -> float:
        return float(trial.hparams["learning_rate"])  # type: ignore[arg-type]

    def tried(proposer: Proposer, known: list[Trial], trials: int) -> list[Trial]:
        for tick in range(len(known) + 1, trials + 1):
            hparams = proposer.propose(len(known), tick)
            trial = Trial(len(known), State.RUNNING, hparams, start_tick=tick)
            value = math.log10(rate(trial) / 0.1) ** 2  # best at 0.1
            curve = (measurement(trial.number, 1, value),)
            known.append(replace(trial, state=State.COMPLETE, end_tick=tick, value=value, best_tick=1, curve=curve))
            proposer.end(known[-1])
        return known

    known = tried(fresh(old, "tpe"), [], 60)
    assert max(map(rate, known)) <= 1e-3
    seen = [own for trial in known if (own := shown(wide, trial, {})) is not None]
    assert len(seen) == 60
    after = tried(rebuilt(wide, "tpe", seen), known, 120)[60:]
    assert sum(rate(trial) > 1e-3 for trial in after) >= 30


@sampler
def test_a_hidden_trial_keeps_its_number_and_teaches_nothing(sampler: str) -> None:
    """Whatever the hidden ones were, the next proposal is the same, and a point of the space."""
    space = space_for(sampler)
    final = simulate(space, sampler, trials=24)[-1]
    others = [*final[:12], *(changed(trial, -9.0) for trial in final[12:])]
    proposals = []
    for trials in (final, others):
        proposer = fresh(space, sampler)
        for trial in trials:
            if trial.number < 12:
                proposer.add(trial)
            else:
                proposer.hide(trial.number)
        proposals.append(proposer.propose(len(trials), 99))
    assert proposals[0] == proposals[1]
    assert shown(space, Trial(24, State.RUNNING, proposals[0], start_tick=99), {}) is not None


def test_a_trial_of_another_space_is_seen_as_this_one_has_it() -> None:
    def trial(**hparams: Any) -> Trial:
        return Trial(0, State.COMPLETE, hparams, start_tick=1)

    fixed = {"optimizer": "sgd", "momentum": 0, "l1": 0, "l2": 0}
    space = build_space({**fixed, "learning_rate": {"low": 0.1, "high": 1.0}, "batch_size": [64, "full"]})
    had = {"optimizer": "sgd", "learning_rate": 0.5, "momentum": 0.0, "batch_size": "full", "l1": 0.0, "l2": 0.0}
    assert shown(space, trial(**had), {}) == trial(**had)
    for other in ({"learning_rate": 0.05}, {"batch_size": 32}, {"l1": 1e-4}, {"optimizer": "adam"}):
        assert shown(space, trial(**{**had, **other}), {}) is None
    # What was not asked for had its default, or what [train] said.
    more = build_space({**fixed, "batch_size": "full", "nesterov": [True, False], "warmup": {"low": 0.0, "high": 0.5}})
    seen = shown(more, trial(**had), {})
    assert seen is not None
    assert seen.hparams.items() >= {"nesterov": False, "warmup": 0.0}.items()
    assert shown(more, trial(**had), {"warmup": 0.25}).hparams["warmup"] == 0.25  # type: ignore[union-attr]
    assert shown(more, trial(**had), {"warmup": 0.75}) is None
    # What a model's key was by default, the model alone knows.
    assert shown(build_space({"model": {"hidden": [[8], [16]]}}), trial(**had), {}) is None
