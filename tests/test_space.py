"""The default space, a study file's changes to it, and the way into Optuna's database and back."""

import re
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna import distributions

from tunecli.errors import SpaceError
from tunecli.space import (
    DEFAULT_OPTIMIZERS,
    HPARAMS,
    OPTIMIZERS,
    Choice,
    Dimension,
    Float,
    Int,
    Range,
    Space,
    build_space,
    distribution_json,
    example,
)
from tunecli.space.parse import parse
from tunecli.trial import Value

_BETAS = {
    "learning_rate_adaptive": Float(1e-5, 1e-1, log=True),
    "beta1": Float(0.8, 0.99),
    "beta2": Float(0.9, 0.9999),
}
DEFAULTS: dict[str, dict[str, Range]] = {
    "sgd": {"learning_rate_sgd": Float(1e-4, 1.0, log=True), "momentum": Float(0.0, 0.99)},
    "adagrad": {"learning_rate_adagrad": Float(1e-3, 1.0, log=True)},
    "rmsprop": {"learning_rate_adaptive": Float(1e-5, 1e-1, log=True), "momentum": Float(0.0, 0.99)},
    "adam": {**_BETAS},
    "adamw": {**_BETAS},
    "nadam": {**_BETAS},
}
MORE: dict[str, dict[str, Range]] = {
    "radam": {**_BETAS},
    "adamax": {**_BETAS},
    "adadelta": {"learning_rate_adadelta": Float(1e-2, 10.0, log=True)},
    "lion": {**_BETAS, "learning_rate_lion": Float(1e-6, 1e-2, log=True)},
    "muon": {"learning_rate_muon": Float(1e-4, 1e-1, log=True), "momentum": Float(0.0, 0.99)},
}
del MORE["lion"]["learning_rate_adaptive"]
DECOUPLED = {"adamw": (1e-4, 0.5), "lion": (1e-3, 1.0), "muon": (1e-4, 0.5)}
"""What each optimizer adds to what every trial has."""


def asked(space: Space, optimizer: str) -> tuple[dict[str, Range], dict[str, Value]]:
    """The names and ranges that a sampler is asked for once it has chosen `optimizer`, and the point that it gives."""
    seen: dict[str, Range] = {}

    def ask(name: str, range_: Range) -> Value:
        seen[name] = range_
        if name == "optimizer":
            return optimizer
        return range_.values[0] if isinstance(range_, Choice) else range_.low

    return seen, space.suggest(ask)


def message(overrides: dict[str, Any]) -> str:
    with pytest.raises(SpaceError) as caught:
        build_space(overrides)
    assert caught.value.hint
    return caught.value.message


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_default_space_asks_for_what_the_optimizer_reads(optimizer: str) -> None:
    l2 = {"l2": Float(1e-8, 1e-2, log=True)}
    if optimizer in DECOUPLED:
        l2 = {f"l2_{optimizer}": Float(*DECOUPLED[optimizer], log=True)}
    space = build_space({} if optimizer in DEFAULT_OPTIMIZERS else {"optimizer": list(OPTIMIZERS)})
    ranges, point = asked(space, optimizer)
    assert ranges == {
        "optimizer": Choice(DEFAULT_OPTIMIZERS if optimizer in DEFAULT_OPTIMIZERS else OPTIMIZERS),
        **(DEFAULTS | MORE)[optimizer],
        "batch_size": Choice((16, 32, 64, 128, 256)),
        "l1": Float(1e-8, 1e-2, log=True),
        **l2,
    }
    hparams = {name.partition("_adaptive")[0].removesuffix(f"_{optimizer}") for name in ranges}
    assert set(point) == hparams, "a point has the names that a user knows"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_range_given_by_the_user_holds_for_every_optimizer_under_the_one_name(optimizer: str) -> None:
    given = {"low": 1e-4, "high": 1.0, "log": True}
    ranges, point = asked(build_space({"learning_rate": given, "l2": {"low": 0, "high": 0.1}}), optimizer)
    assert ranges["learning_rate"] == Float(1e-4, 1.0, log=True)
    assert ranges["l2"] == Float(0.0, 0.1)
    assert [name for name in ranges if name.startswith(("learning_rate", "l2"))] == ["learning_rate", "l2"]
    assert point["learning_rate"] == 1e-4


def test_a_list_is_a_choice_and_a_plain_value_fixes() -> None:
    space = build_space({"optimizer": ["sgd", "adam"], "batch_size": [1, "full"], "momentum": 0.9, "l1": 0, "l2": [0]})
    ranges, point = asked(space, "sgd")
    assert ranges["optimizer"] == Choice(("sgd", "adam"))
    assert ranges["batch_size"] == Choice((1, "full"))
    assert not {"momentum", "l1", "l2"} & set(ranges), "what is fixed is not asked for"
    assert (point["momentum"], point["l1"], point["l2"]) == (0.9, 0.0, 0.0)
    assert "momentum" not in asked(space, "adam")[1], "nor given to an optimizer that does not read it"


YOURS = "own.py:Mine"


def test_an_optimizer_of_the_users_own_has_ranges_for_what_every_optimizer_has() -> None:
    space = build_space({"optimizer": ["sgd", YOURS]})
    ranges, _ = asked(space, YOURS)
    assert ranges == {
        "optimizer": Choice(("sgd", YOURS)),
        "learning_rate_own": Float(1e-5, 1.0, log=True),
        "batch_size": Choice((16, 32, 64, 128, 256)),
        "l1": Float(1e-8, 1e-2, log=True),
        "l2": Float(1e-8, 1e-2, log=True),
    }
    assert "momentum" in asked(space, "sgd")[0]


def test_an_optimizer_of_the_users_own_reads_momentum_and_betas_where_the_study_names_them() -> None:
    space = build_space({"optimizer": ["sgd", YOURS], "momentum": {"low": 0.5, "high": 0.9}, "beta1": 0.8})
    ranges, point = asked(space, YOURS)
    assert ranges["momentum"] == Float(0.5, 0.9)
    assert point["beta1"] == 0.8
    assert "beta1" not in asked(space, "sgd")[1]


def test_a_fixed_optimizer_leaves_only_what_it_reads() -> None:
    space = build_space({"optimizer": "adagrad"})
    assert space.searched() == ("learning_rate", "batch_size", "l1", "l2")
    assert asked(space, "")[1]["optimizer"] == "adagrad"


def test_hparams_without_a_default_range_can_be_added() -> None:
    space = build_space({"nesterov": [True, False], "dampening": 0.5})
    ranges, point = asked(space, "sgd")
    assert ranges["nesterov"] == Choice((True, False))
    assert point["dampening"] == 0.5
    assert not {"nesterov", "dampening"} & set(asked(space, "rmsprop")[1])


def test_keys_of_the_model_can_be_searched() -> None:
    keys = {"hidden": [[64], [128], [64, 64]], "layers": {"low": 1, "high": 4}, "dropout": {"low": 0, "high": 0.5}}
    space = build_space({"model": keys})
    ranges, point = asked(space, "adam")
    assert ranges["model.hidden"] == Choice(((64,), (128,), (64, 64)))
    assert ranges["model.layers"] == Int(1, 4)
    assert ranges["model.dropout"] == Float(0.0, 0.5)
    assert point["model.hidden"] == (64,)
    assert build_space({f"model.{key}": value for key, value in keys.items()}) == space, "quoted keys are the same"


def test_values_of_says_what_a_choice_can_be() -> None:
    space = build_space({"batch_size": [1, 16, "full"], "momentum": 0.5})
    assert space.values_of("batch_size") == (1, 16, "full")
    assert space.values_of("momentum") == (0.5,)
    assert space.values_of("beta1") == space.values_of("nonsense") == ()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"learnig_rate": 0.1}, "unknown hyperparameter 'learnig_rate': did you mean 'learning_rate'?"),
        ({"optimizer": "adm"}, "optimizer: unknown optimizer 'adm': did you mean 'adam'?"),
        ({"optimizer": ["sgd", 3]}, "optimizer: unknown optimizer 3: known: adadelta, adagrad, adam"),
        ({"optimizer": {"low": 0, "high": 1}}, "optimizer: a choice is a list, got a range from 0 to 1"),
        ({"batch_size": 0}, 'batch_size: a batch size is a whole number above zero or "full", got 0'),
        ({"batch_size": [16, "ful"]}, "a whole number above zero or \"full\", got 'ful'"),
        ({"batch_size": {"low": 1.5, "high": 8}}, "a range of whole numbers needs whole bounds, got 1.5 to 8"),
        ({"batch_size": {"low": 0, "high": 8}}, "a whole number above zero"),
        ({"learning_rate": "0.1"}, "learning_rate: expected a number, got '0.1'"),
        ({"learning_rate": float("nan")}, "learning_rate: must be at least 0 and below inf, got nan"),
        ({"momentum": 1.0}, "momentum: must be at least 0 and below 1, got 1.0"),
        ({"dampening": 1.5}, "dampening: must be at least 0 and at most 1, got 1.5"),
        ({"beta2": [0.9, -0.1]}, "beta2: must be at least 0 and below 1, got -0.1"),
        ({"nesterov": 1}, "nesterov is true or false, got 1"),
        ({"momentum": []}, "momentum: a list of choices must not be empty"),
        ({"batch_size": [16, 32, 16]}, "batch_size: a list of choices must not name 16 twice"),
        ({"l1": {"low": 1.0, "high": 0.1}}, "l1: a range must have low below high, got 1 to 0.1"),
        ({"l1": {"low": 0, "high": 0.1, "log": True}}, "l1: a log range must stay above zero, got 0 to 0.1"),
        ({"model": {"width": {"low": 1.0, "high": float("inf")}}}, "a range must be finite, got 1 to inf"),
        ({"model": {"width": {"low": 4}}}, "model.width: a range needs 'high'"),
        ({"l1": {"low": 0, "hihg": 1, "high": 1}}, "unknown key 'hihg' in a range, which has low, high and log"),
        ({"l1": {"low": 0, "high": 1, "log": "yes"}}, "log must be true or false, got 'yes'"),
        ({"l1": {"low": True, "high": 2}}, "low must be a number, got True"),
        ({"model": {"hidden": [[64, [32]]]}}, "expected a number, a text or a list of them, got [64, [32]]"),
        ({"model": {"hidden": [None, 3]}}, "expected a number, a text or a list of them, got None"),
        ({"model": {"x": [float("nan"), 1.0]}}, "model.x: a list of choices must not hold nan"),
        ({"model": {"x": [1, True]}}, "must not name True twice, first as 1"),
        ({"model": {"x": [[64], "[64]"]}}, "must not name '[64]' twice, first as (64,)"),
    ],
)
def test_a_fault_gives_the_rule_and_the_value_got(overrides: dict[str, Any], expected: str) -> None:
    assert expected in message(overrides)


@pytest.mark.parametrize("name", [*HPARAMS, "model.width"])
def test_an_example_of_an_hparam_can_be_written_in_a_study_file(name: str) -> None:
    written, _, text = example(name).partition(" = ")
    assert written == name
    forms = [form for part in re.split(r"(?<=[}\]]), ", text) for form in part.split(" or ")]
    assert len(forms) >= 2
    for form in forms:
        parse(name, tomllib.loads(f"value = {form}")["value"], {})


def test_all_faults_are_reported_at_once() -> None:
    overrides = {"lr": 1, "momentum": 2, "batch_size": 0, "l1": 0, "model": {"hidden": []}}
    lines = message(overrides).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "unknown hyperparameter 'lr'",
        "momentum",
        "batch_size",
        "model.hidden",
    ]


finite = st.floats(-1e6, 1e6)
floats = st.builds(
    lambda low, span, log: Float(abs(low) + 1e-6 if log else low, abs(low) + 1 + span, log),
    finite,
    st.floats(0.1, 1e6),
    st.booleans(),
)
ints = st.builds(
    lambda low, span, log: Int(abs(low) + 1 if log else low, abs(low) + 1 + span, log),
    st.integers(-(2**31), 2**31),
    st.integers(1, 2**31),
    st.booleans(),
)
scalars = st.booleans() | st.integers(-(2**40), 2**40) | finite | st.text(max_size=8)
choices = st.builds(
    lambda values: Choice(tuple(values)),
    st.lists(
        scalars | st.lists(st.integers(1, 512), max_size=3).map(tuple), min_size=1, max_size=6, unique_by=lambda v: v
    ),
)
ranges = floats | ints | choices


def points(range_: Range) -> st.SearchStrategy[Value]:
    if isinstance(range_, Choice):
        return st.sampled_from(range_.values)
    if isinstance(range_, Int):
        return st.integers(range_.low, range_.high)
    return st.floats(range_.low, range_.high)


spaces = st.one_of(
    st.just(build_space({})),
    st.just(build_space({"learning_rate": [0.1, 0.2], "nesterov": [True, False], "batch_size": [1, "full"]})),
    st.lists(ranges, min_size=1, max_size=4).map(
        lambda own: Space(tuple(Dimension(f"model.{n}", f"model.{n}", range_) for n, range_ in enumerate(own)))
    ),
)


@given(data=st.data(), space=spaces)
def test_a_point_comes_back_from_the_database_as_it_was(data: st.DataObject, space: Space) -> None:
    hparams = space.suggest(lambda _, range_: data.draw(points(range_)))
    encoded = space.encode(hparams)
    decoded = space.decode({name: internal for name, (_, internal) in encoded.items()})
    assert decoded == hparams
    assert {name: type(value) for name, value in decoded.items()} == {n: type(v) for n, v in hparams.items()}
    assert list(decoded) == list(hparams), "in the same order"


@given(data=st.data(), range_=ranges)
def test_optuna_reads_a_range_and_its_values_as_its_own(data: st.DataObject, range_: Range) -> None:
    text = distribution_json(range_)
    own = distributions.json_to_distribution(text)
    assert text == distributions.distribution_to_json(own)
    value = data.draw(points(range_))
    internal = range_.internal(value)
    label = own.to_external_repr(internal)
    assert own._contains(internal)
    assert internal == own.to_internal_repr(label)
    if not isinstance(value, tuple):  # a list travels as its JSON text
        assert (label, type(label)) == (value, type(value))


@pytest.mark.parametrize(
    ("range_", "own"),
    [
        (Float(1e-5, 1e-1, log=True), distributions.FloatDistribution(1e-5, 1e-1, log=True)),
        (Float(0.0, 0.99), distributions.FloatDistribution(0, 0.99)),
        (Int(1, 512, log=True), distributions.IntDistribution(1, 512, log=True)),
        (Int(-3, 3), distributions.IntDistribution(-3, 3)),
        (Choice((16, "full", True, 0.5)), distributions.CategoricalDistribution((16, "full", True, 0.5))),
        (Choice(((64,), (64, 32))), distributions.CategoricalDistribution(("[64]", "[64, 32]"))),
    ],
)
def test_a_range_is_written_as_optuna_writes_it(range_: Range, own: distributions.BaseDistribution) -> None:
    assert distribution_json(range_) == distributions.distribution_to_json(own)


def test_a_stored_point_of_another_space_is_refused() -> None:
    space = build_space({"batch_size": [16, 32]})
    internal = {name: 0.0 for name, _ in space.encode(asked(space, "sgd")[1]).items()}
    with pytest.raises(SpaceError, match="momentum"):
        space.decode({name: value for name, value in internal.items() if name != "momentum"})
    with pytest.raises(SpaceError):
        space.decode(internal | {"batch_size": 2.0})


def test_a_range_of_one_bound_takes_the_rest_from_the_default_range() -> None:
    space = build_space({"learning_rate": {"high": 0.1}})
    (rate,) = [d for d in space.dimensions if d.hparam == "learning_rate"]
    assert (rate.name, rate.range) == ("learning_rate", Float(1e-5, 0.1, log=True))


def test_the_order_of_keys_in_a_study_file_does_not_matter() -> None:
    more = {"nesterov": [True, False], "dampening": {"low": 0.0, "high": 0.5}, "model": {"b": [1, 2], "a": [3, 4]}}
    other = {"model": {"a": [3, 4], "b": [1, 2]}, "dampening": {"low": 0.0, "high": 0.5}, "nesterov": [True, False]}
    assert build_space(more) == build_space(other)
