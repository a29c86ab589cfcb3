"""Particular points of a space: the first to try, one at a share of every range, all of a finite one."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import examples
from tunecli.errors import SpaceError
from tunecli.points import all_points, always_read, at, first_point, key
from tunecli.space import OPTIMIZERS, Choice, Float, Int, build_space

RATES = st.floats(1e-7, 10.0)


@st.composite
def spaces(draw: st.DrawFn) -> dict[str, Any]:
    """[space] of a study file: some ranges, some lists, some values."""
    keys: dict[str, Any] = {}
    if draw(st.booleans()):
        keys["optimizer"] = draw(st.lists(st.sampled_from(OPTIMIZERS), min_size=1, max_size=4, unique=True))
    for name in ("learning_rate", "l1", "l2"):
        kind = draw(st.sampled_from(["default", "range", "list", "value"]))
        low, high = sorted(draw(st.lists(RATES, min_size=2, max_size=2, unique=True)))
        if kind == "range":
            keys[name] = {"low": low, "high": high, "log": draw(st.booleans())}
        elif kind != "default":
            keys[name] = [high, low] if kind == "list" else low
    if draw(st.booleans()):
        keys["batch_size"] = draw(
            st.sampled_from(
                [["full"], [1, "full"], [7, 100], {"low": 33, "high": 90}, {"low": 1, "high": 5, "log": True}]
            )
        )
    if draw(st.booleans()):
        keys["nesterov"] = draw(st.sampled_from([[True, False], [False, True], True]))
    if draw(st.booleans()):
        keys["model"] = {"hidden": [[8], [4, 4]], "dropout": {"low": 0.1, "high": 0.5}, "width": {"low": 3, "high": 9}}
    return keys


@examples(150)
@given(spaces())
def test_the_first_point_is_one_of_the_space(keys: dict[str, Any]) -> None:
    space = build_space(keys)
    point = first_point(space)
    assert point == first_point(space)
    encoded = space.encode(point)
    for range_, internal in encoded.values():
        if isinstance(range_, Choice):
            assert range_.external(internal) in range_.values
        else:
            assert range_.low <= internal <= range_.high
    assert space.decode({name: internal for name, (_, internal) in encoded.items()}) == point


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, {"optimizer": "adam", "learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "batch_size": 32, "l1": 1e-8}),
        ({"optimizer": ["sgd", "rmsprop"]}, {"optimizer": "sgd", "learning_rate": 1e-3, "momentum": 0.0}),
        ({"optimizer": ["adagrad"]}, {"optimizer": "adagrad", "learning_rate": 1e-2}),
        ({"optimizer": ["adamw"]}, {"learning_rate": 1e-3, "l2": 1e-2}),
        ({"learning_rate": {"low": 0.1, "high": 1.0}}, {"learning_rate": 0.1}),
        ({"learning_rate": [0.1, 0.01]}, {"learning_rate": 0.01}),
        ({"batch_size": [16, 50, "full"]}, {"batch_size": 16}),
        ({"batch_size": ["full"]}, {"batch_size": "full"}),
        (
            {"model": {"hidden": [[64], [32]], "dropout": {"low": 0.0, "high": 0.5}}},
            {"model.hidden": (64,), "model.dropout": 0.25},
        ),
    ],
)
def test_the_first_point_is_torchs_defaults_as_near_as_the_space_allows(
    keys: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert first_point(build_space(keys)).items() >= expected.items()


def test_all_points_are_distinct_and_only_what_differs_counts() -> None:
    space = build_space(
        {
            "optimizer": ["sgd", "adam"],
            "learning_rate": [0.1, 0.01],
            "momentum": [0.0, 0.9],
            "beta1": 0.9,
            "beta2": [0.99, 0.999],
            "batch_size": {"low": 1, "high": 2},
            "l1": 0,
            "l2": 0,
        }
    )
    points = all_points(space)
    # Two rates, two sizes, and two momenta for sgd or two betas for adam.
    assert len(points) == len({key(space, point) for point in points}) == 2 * 2 * 2 + 2 * 2 * 2
    for point in points:
        assert ("momentum" in point) == (point["optimizer"] == "sgd")
        assert ("beta2" in point) == (point["optimizer"] == "adam")


def test_a_space_without_end_is_refused() -> None:
    with pytest.raises(SpaceError, match="learning_rate, momentum, beta1, beta2, l1, l2 are ranges of real numbers"):
        all_points(build_space({}))
    fixed = {"optimizer": "adagrad", "learning_rate": 0.1, "l1": 0}
    with pytest.raises(SpaceError, match="l2 is a range of real numbers") as caught:
        all_points(build_space(fixed))
    assert caught.value.hint == "list their values, --set space.l2=[...], or fix them"
    with pytest.raises(SpaceError, match="more than 100,000 points"):
        all_points(build_space({**fixed, "l2": 0, "batch_size": {"low": 1, "high": 200_000}}))


def test_shares_of_a_range() -> None:
    assert [at(Choice(("a", "b", "c")), share) for share in (0.0, 0.34, 0.999)] == ["a", "b", "c"]
    assert [at(Int(1, 4), share) for share in (0.0, 0.24, 0.26, 0.99)] == [1, 1, 2, 4]
    assert at(Float(1e-4, 1.0, log=True), 0.5) == pytest.approx(1e-2)
    assert at(Float(-1.0, 3.0), 0.25) == 0.0


def test_what_every_trial_reads_in_one_range() -> None:
    assert always_read(build_space({})) == ("optimizer", "batch_size", "l1")
    everything = ("learning_rate", "momentum", "batch_size", "l1", "l2")
    assert always_read(build_space({"optimizer": "sgd"})) == everything
    shared = build_space({"learning_rate": {"low": 1e-4, "high": 1e-1}, "optimizer": ["adam", "nadam"]})
    assert always_read(shared) == ("optimizer", "learning_rate", "beta1", "beta2", "batch_size", "l1", "l2")
