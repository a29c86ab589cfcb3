"""The importance of hparams against Optuna's own account, and where conditions make it more than that."""

import math
import random
from typing import Any

import optuna
import pytest

from tunecli.importance import asked_by_hparam, importance
from tunecli.sampler import make_proposer
from tunecli.space import Space, build_space, distribution_json
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


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_it_is_optunas_where_all_trials_are_complete_and_read_all(direction: str) -> None:
    space = build_space(PLAIN)
    sign = 1 if direction == "minimize" else -1
    points = drawn(space, 80)
    trials = [
        trial(n, point, sign * (abs(math.log10(point["learning_rate"]) + 2) + point["momentum"] / 4))
        for n, point in enumerate(points)
    ]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    theirs = optuna.create_study(direction=direction)
    for own in trials:
        encoded = space.encode(own.hparams)
        distributions = {
            name: optuna.distributions.json_to_distribution(distribution_json(range_))
            for name, (range_, _) in encoded.items()
        }
        params = {name: distributions[name].to_external_repr(internal) for name, (_, internal) in encoded.items()}
        theirs.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=own.value))
    found = explained(space, trials, direction)
    expected = optuna.importance.get_param_importances(theirs)
    assert found.trials == 80
    assert found.shares == pytest.approx(expected)
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
    assert explained(space, trials) == Importance(25, {})
    asked = {own.number: asked_by_hparam(space, own.hparams) for own in trials}
    assert importance(trials[:19], asked, "minimize") is None
    assert importance([], {}, "minimize") is None


def test_the_order_of_trials_changes_nothing() -> None:
    space = build_space({})
    trials = [trial(n, p, float(n * 7 % 31)) for n, p in enumerate(drawn(space, 60))]
    shuffled = random.Random(0).sample(trials, len(trials))
    assert explained(space, shuffled).shares == pytest.approx(explained(space, trials).shares)
