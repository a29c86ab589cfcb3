"""The importance of hparams against Optuna's own account, and where conditions make it more than that."""

import math
import random
import warnings
from typing import Any

import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from tunecli.importance import asked_by_hparam, importance
from tunecli.sampler import make_proposer
from tunecli.space import Space, build_space
from tunecli.trial import Importance, State, Trial

PLAIN = {
    "optimizer": "sgd",
    "learning_rate": {"low": 1e-4, "high": 1.0, "log": True},
    "momentum": {"low": 0.0, "high": 0.9},
    "batch_size": [16, 32, 64],
    "l2": 0,
}


def drawn(space: Space, count: int) -> list[dict[str, Any]]:
    proposer = make_proposer(space, "random", "minimize", 0, 8)
    return [dict(proposer.propose(number, 1)) for number in range(count)]


def trial(number: int, hparams: dict[str, Any], value: float | None, state: State = State.COMPLETE) -> Trial:
    return Trial(number, state, hparams, 1, 1, value, 1)


def explained(space: Space, trials: list[Trial], direction: str = "minimize") -> Importance:
    found = importance(trials, {own.number: asked_by_hparam(space, own.hparams) for own in trials}, direction)
    assert found is not None
    return found


RANGES: dict[str, BaseDistribution] = {
    "plain": FloatDistribution(-2.0, 3.0),
    "log": FloatDistribution(1e-6, 10.0, log=True),
    "stepped": FloatDistribution(0.0, 1.0, step=0.25),
    "whole": IntDistribution(2, 400),
    "few": IntDistribution(1, 4),
    "by tens": IntDistribution(0, 200, step=10),
    "whole log": IntDistribution(1, 3000, log=True),
    "two": IntDistribution(1, 2, log=True),
    "choice": CategoricalDistribution(["a", "b", "c"]),
    "single": CategoricalDistribution(["a"]),
    "fixed": IntDistribution(3, 3),
}


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("count", [20, 90, 400])
def test_it_is_optunas_over_every_kind_of_range(count: int, direction: str) -> None:
    """Some hparams are read by some trials only, and equal values are many."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    theirs = optuna.create_study(direction=direction, sampler=optuna.samplers.RandomSampler(seed=count))
    asked: dict[int, dict[str, tuple[str, float]]] = {}
    for _ in range(count):
        number = len(asked)
        ranges = {
            name: own for place, (name, own) in enumerate(RANGES.items()) if name == "log" or number % (place + 2)
        }
        point = theirs.ask(ranges)
        value = round(abs(math.log10(point.params["log"]) + 2) + point.params.get("plain", 0.5) ** 2, 1)
        theirs.tell(point, value)
        asked[number] = {
            name: (distribution_to_json(own), own.to_internal_repr(point.params[name])) for name, own in ranges.items()
        }
    found = importance([trial(own.number, {}, own.value) for own in theirs.trials], asked, direction)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = optuna.importance.get_param_importances(theirs)
    assert found is not None
    assert found.shares == pytest.approx(expected, rel=1e-9)


def test_the_most_important_comes_first() -> None:
    space = build_space(PLAIN)
    trials = [
        trial(n, point, abs(math.log10(point["learning_rate"]) + 2) + point["momentum"] / 4)
        for n, point in enumerate(drawn(space, 80))
    ]
    found = explained(space, trials)
    assert found.trials == 80
    assert sum(found.shares.values()) == pytest.approx(1)
    assert next(iter(found.shares)) == "learning_rate"
    assert list(found.shares.values()) == sorted(found.shares.values(), reverse=True)


def test_one_hparam_with_a_range_for_each_optimizer_is_one() -> None:
    space = build_space({})
    points = drawn(space, 200)
    trials = [trial(n, p, abs(math.log10(p["learning_rate"]) + 2.5)) for n, p in enumerate(points)]
    shares = explained(space, trials).shares
    assert set(shares) == set(space.searched())
    assert next(iter(shares)) == "learning_rate"
    # What has nothing to do with it has little share, above all what few trials read.
    assert shares["learning_rate"] > 0.5
    assert shares["momentum"] < 0.1


def test_how_many_of_the_best_have_an_hparam_is_counted() -> None:
    """At 3 best trials one of them with a momentum may give it the largest share."""
    space = build_space({})
    points = drawn(space, 30)
    trials = [trial(number, point, float(number)) for number, point in enumerate(points)]
    found = explained(space, trials)
    assert found.best == 3
    assert found.among_best == {name: sum(name in point for point in points[:3]) for name in found.shares}
    assert found.among_best["learning_rate"] == 3
    assert found.among_best["momentum"] < 3


def test_pruned_trials_count_failed_and_infinite_ones_do_not() -> None:
    space = build_space(PLAIN)
    points = drawn(space, 40)
    trials = [trial(n, p, p["momentum"], State.PRUNED if n % 2 else State.COMPLETE) for n, p in enumerate(points[:30])]
    others = [trial(30, points[30], None, State.FAILED), trial(31, points[31], math.inf)]
    assert explained(space, [*trials, *others]) == explained(space, trials)
    assert explained(space, trials).trials == 30
    assert next(iter(explained(space, trials).shares)) == "momentum"


def test_too_few_or_equal_trials_explain_nothing() -> None:
    space = build_space(PLAIN)
    points = drawn(space, 25)
    trials = [trial(n, point, 0.5) for n, point in enumerate(points)]
    assert explained(space, trials) == Importance(25, {}, best=25)
    asked = {own.number: asked_by_hparam(space, own.hparams) for own in trials}
    assert importance(trials[:19], asked, "minimize") is None
    assert importance([], {}, "minimize") is None


def test_the_order_of_trials_changes_nothing() -> None:
    space = build_space({})
    trials = [trial(n, p, float(n * 7 % 31)) for n, p in enumerate(drawn(space, 60))]
    shuffled = random.Random(0).sample(trials, len(trials))
    assert explained(space, shuffled).shares == pytest.approx(explained(space, trials).shares)
