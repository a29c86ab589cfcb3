"""Values that are no sampler's: given by hand, read from a database."""

from typing import Any

import pytest
from hypothesis import given

from tests.conftest import examples
from tests.test_points import spaces
from tunecli.errors import SpaceError
from tunecli.given import decode_given, encode_given, given_point
from tunecli.points import first_point
from tunecli.space import build_space

SPACE = {"optimizer": ["sgd", "adam"], "l1": 0, "batch_size": [16, 64, "full"], "model": {"hidden": [[8], [8, 8]]}}


def test_values_by_hand_take_the_types_of_the_space() -> None:
    space = build_space(SPACE)
    raw = {"learning_rate": 0.01, "batch_size": 64, "l1": 0, "model.hidden": [8, 8]}
    found = given_point(space, raw)
    assert found == {"learning_rate": 0.01, "batch_size": 64, "l1": 0.0, "model.hidden": (8, 8)}
    assert given_point(space, {"optimizer": "sgd", "learning_rate": 1, "momentum": 0})["learning_rate"] == 1.0
    assert encode_given(space, found) == {
        "learning_rate_sgd": 0.01,
        "learning_rate_adaptive": 0.01,
        "batch_size": 64,
        "model.hidden": "[8, 8]",
    }


@pytest.mark.parametrize(
    ("raw", "message", "hint"),
    [
        ({"lr": 1}, "this study has no hyperparameter 'lr'", "it is called 'learning_rate' here"),
        ({"learning_rat": 1}, "this study has no hyperparameter 'learning_rat'", "did you mean 'learning_rate'?"),
        (
            {"learning_rate": "fast"},
            "learning_rate: expected a number, got 'fast'",
            "it is 0.0001 to 1 or 1e-05 to 0.1 in",
        ),
        ({"optimizer": "adm"}, "optimizer: unknown optimizer 'adm'", "did you mean 'adam'?"),
        (
            {"l1": 0},
            "l1 is fixed in this study, so there is nothing to try",
            "name what is searched: optimizer, learning",
        ),
        (
            {"optimizer": "nadam"},
            "optimizer is one of sgd, adam in this study, got nadam",
            "--set space.optimizer=... changes",
        ),
        (
            {"batch_size": 17},
            "batch_size is one of 16, 64, full in this study, got 17",
            "--set space.batch_size=... changes",
        ),
        ({"model.hidden": [8, 8, 8]}, "model.hidden is one of", "--set space.model.hidden=... changes"),
        ({"l1": 0.5}, "l1 is fixed at 0.0 in this study, got 0.5", "--set space.l1=... changes"),
        (
            {"learning_rate": 0.5},
            "learning_rate is 1e-05 to 0.1 where optimizer is adam, got 0.5",
            "name the optimizer as well: optimizer=...,learning_rate=0.5",
        ),
        ({"momentum": 0.5}, "momentum is read only where optimizer is sgd", "name the optimizer as well"),
        ({"optimizer": "adam", "momentum": 0.5}, "momentum is read only where optimizer is", "leave it out, or choose"),
        ({"optimizer": "adam", "learning_rate": 7}, "learning_rate is 1e-05 to 0.1 in this study, got 7", None),
    ],
)
def test_what_is_no_point_of_the_space_is_refused(raw: dict[str, Any], message: str, hint: str | None) -> None:
    with pytest.raises(SpaceError) as caught:
        given_point(build_space(SPACE), raw)
    assert caught.value.message.startswith(message)
    assert hint is None or (caught.value.hint or "").startswith(hint)


@examples(150)
@given(spaces())
def test_a_point_of_the_space_given_by_hand_is_taken_and_read_back(keys: dict[str, Any]) -> None:
    space = build_space(keys)
    searched = {name: value for name, value in first_point(space).items() if name in space.searched()}
    assert given_point(space, searched) == searched
    assert decode_given(space, encode_given(space, searched)) == searched
