"""Our TPE against Optuna's: the same draws give the same points, and densities are the same but for rounding."""

import math
import warnings
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.samplers._tpe import parzen_estimator
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator, _ParzenEstimatorParameters
from optuna.samplers._tpe.sampler import default_weights
from scipy import stats

from tests.conftest import examples
from tests.test_sampler import FINITE, SPACES, go_on
from tunecli.sampler import Proposer
from tunecli.sampler.independent import Random
from tunecli.sampler.kernels import column
from tunecli.sampler.model import Model
from tunecli.sampler.parzen import Mixture, draw
from tunecli.sampler.tpe import CANDIDATES, Tpe, grouped
from tunecli.sampler.truncnorm import Truncated, log_mass
from tunecli.space import Choice, Float, Int, Range, build_space, distribution_json
from tunecli.trial import Hparams, State, Trial

WHOLE: dict[str, Any] = {
    "optimizer": "sgd",
    "batch_size": {"low": 1, "high": 300, "log": True},
    "model": {"width": {"low": 3, "high": 9}, "dropout": {"low": 0.0, "high": 0.9}},
}


class StableNumpy:
    """numpy, but that equals stay in the order of trials where they are sorted; numpy's own depends on the machine."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def argsort(values: Any) -> Any:
        return np.argsort(values, kind="stable")


@pytest.fixture(autouse=True)
def _stable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parzen_estimator, "np", StableNumpy())


def proposals(proposer: Proposer, trials: int) -> list[Hparams]:
    return [trial.hparams for trial in go_on(proposer, [], trials)[-1]]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("keys", [*SPACES.values(), FINITE, WHOLE], ids=[*SPACES, "finite", "whole numbers"])
def test_it_proposes_what_optunas_would(keys: dict[str, Any], direction: str) -> None:
    """With pruned and failed trials, and a window in flight; the first ten are random."""
    space = build_space(keys)
    ours, theirs = Tpe(space, direction, 7), Model(space, "tpe", direction, 7, 8)
    assert proposals(ours, 50) == proposals(theirs, 50)


def test_a_space_of_one_point_is_proposed_again_and_again() -> None:
    space = build_space(
        {"optimizer": "sgd", "learning_rate": 0.1, "momentum": [0.9], "batch_size": 8, "l1": 0, "l2": 0}
    )
    assert [own["momentum"] for own in proposals(Tpe(space, "minimize", 7), 30)] == 30 * [0.9]


def test_it_proposes_what_optunas_would_after_hidden_trials() -> None:
    space = build_space({})
    known = go_on(Tpe(space, "minimize", 7), [], 40)[-1]
    found = []
    for proposer in (Tpe(space, "minimize", 7), Model(space, "tpe", "minimize", 7, 8)):
        for trial in known:
            if trial.number % 5 == 1:
                proposer.hide(trial.number)
            else:
                proposer.add(trial)
        found.append([proposer.propose(number, 99) for number in range(40, 44)])
    assert found[0] == found[1]


def test_random_proposes_what_optunas_would() -> None:
    for keys in [*SPACES.values(), FINITE, WHOLE]:
        space = build_space(keys)
        assert proposals(Random(space, 3), 25) == proposals(Model(space, "random", "minimize", 3, 8), 25)


VALUES = [0.5, -1.0, math.inf, -math.inf, 0.5]


def test_infinite_values_and_those_given_by_hand_make_no_difference() -> None:
    space = build_space({})
    byhand: list[dict[str, Any]] = [{"optimizer": "sgd", "learning_rate": 0.5}, {"batch_size": 64}, {"l1": 1e-8}]
    found: list[list[Hparams]] = []
    for proposer in (Tpe(space, "minimize", 0), Model(space, "tpe", "minimize", 0, 8)):
        found.append([])
        for number in range(45):
            tick = 1 + number
            hparams = proposer.propose(number, tick, byhand[number % 9] if number % 9 < 3 else None)
            found[-1].append(hparams)
            value = VALUES[number % 5]
            proposer.end(Trial(number, State.COMPLETE, hparams, tick, tick, value, 1))
    assert found[0] == found[1]


RANGES: dict[str, Range] = {
    "plain": Float(-2.0, 3.0),
    "log": Float(1e-6, 10.0, log=True),
    "whole": Int(2, 40),
    "whole log": Int(1, 3000, log=True),
    "choice": Choice(("a", "b", "c")),
}


def internal_values(range_: Range, count: int, random: np.random.RandomState) -> Any:
    """Some of them at the ends, and some alike."""
    if isinstance(range_, Choice):
        return random.randint(len(range_.values), size=count).astype(float)
    low, high = (math.log(range_.low), math.log(range_.high)) if range_.log else (range_.low, range_.high)
    values = np.append(random.uniform(low, high, count), [low, high])[random.randint(count + 2, size=count)]
    values = np.clip(np.exp(values) if range_.log else values, range_.low, range_.high)
    return np.round(values) if isinstance(range_, Int) else values


@examples(30)
@given(
    names=st.lists(st.sampled_from(sorted(RANGES)), min_size=1, max_size=5, unique=True),
    count=st.sampled_from([0, 1, 2, 3, 24, 25, 26, 98, 99, 100, 180]),
    seed=st.integers(0, 2**32 - 2),
)
def test_a_mixture_is_optunas(names: list[str], count: int, seed: int) -> None:
    compare(names, count, seed)


def test_a_mixture_of_thousands_is_optunas() -> None:
    """Where both take other functions, made for many numbers."""
    compare(sorted(RANGES), 2500, 0)


def compare(names: list[str], count: int, seed: int) -> None:
    random = np.random.RandomState(seed)
    observed = {name: internal_values(RANGES[name], count, random) for name in names}
    distributions = {name: optuna.distributions.json_to_distribution(distribution_json(RANGES[name])) for name in names}
    theirs = _ParzenEstimator(
        observed, distributions, _ParzenEstimatorParameters(1.0, True, False, default_weights, True)
    )
    columns = [column(RANGES[name]) for name in names]
    for own, name in zip(columns, names, strict=True):
        # Every other trial is another mixture's.
        for number, value in enumerate(observed[name]):
            own.add(2 * number, value)
            own.add(2 * number + 1, observed[name][-1 - number])
    ours, others = (Mixture(columns, np.arange(2 * count) % 2 == part) for part in (0, 1))
    shares = [np.random.RandomState(own).random_sample((1 + len(names), CANDIDATES)) for own in (seed, seed + 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Beside what is drawn for another proposal, and from the other mixture.
        beside = np.concatenate(shares, axis=1)
        drawn, _ = draw([ours, others], [beside, beside[:, ::-1]], CANDIDATES)
        points = drawn.some(slice(CANDIDATES))
        densities = ours.log_densities(points)
    samples = theirs.sample(np.random.RandomState(seed), CANDIDATES)
    assert np.array_equal(points.internal, np.stack([samples[name] for name in names], axis=1))
    np.testing.assert_allclose(densities, theirs.log_pdf(samples), rtol=1e-9, atol=1e-9)


@examples(60)
@given(
    st.floats(0, 1 - 1e-12),
    st.floats(0, 1),
    st.floats(1e-4, 10),
)
def test_a_quantile_is_scipys(share: float, mu: float, sigma: float) -> None:
    """Up to where the logarithm of a share, which Optuna computes with too, no longer tells it from one."""
    a, b = (0 - mu) / sigma, (1 - mu) / sigma
    mus, sigmas, low, high, q = (np.array([own]) for own in (mu, sigma, 0.0, 1.0, share))
    found = Truncated.between(mus, sigmas, low, high).quantile(q, np.array([0]))
    mass = log_mass(np.array([a]), np.array([b]), 500)
    assert found == pytest.approx(stats.truncnorm.ppf(share, a, b) * sigma + mu, abs=1e-9)
    assert mass == pytest.approx(np.log(stats.norm.cdf(b) - stats.norm.cdf(a)), rel=1e-7, abs=1e-12)


def test_hparams_that_the_same_trials_have_are_one_group() -> None:
    common = {"optimizer", "l1"}
    patterns = [common | {"lr_sgd", "momentum"}, common | {"lr_adam", "beta1"}, common | {"lr_adam", "momentum"}]
    assert grouped([frozenset(own) for own in patterns]) == [
        ("l1", "optimizer"),
        ("momentum",),
        ("lr_sgd",),
        ("lr_adam",),
        ("beta1",),
    ]
