"""Values that are no sampler's, as a space has them: given by hand, read from a database, tried in another space."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from tunecli.errors import SpaceError
from tunecli.points import paths
from tunecli.space import DEFAULT_SETTINGS, Choice, Dimension, Int, Range, Space, When, check_value, nearest
from tunecli.trial import Trial, Value


def given_point(space: Space, raw: Mapping[str, Any]) -> dict[str, Value]:
    """Values given by hand, which a trial is to have; what they leave out is the sampler's.

    Raises SpaceError where they are no part of a point of the space, or of one only if the sampler is lucky.
    """
    for name in raw:
        if name not in space.hparams:
            raise SpaceError(f"this study has no hyperparameter {name!r}", hint=nearest(name, space.hparams))
    given: dict[str, Value] = {}
    for name, value in raw.items():
        try:
            given[name] = check_value(name, value)
        except SpaceError as error:
            rule = " or ".join(dict.fromkeys(_rule(d.range) for d in space.dimensions if d.hparam == name))
            raise SpaceError(f"{name}: {error.message}", hint=error.hint or f"it is {rule} in this study") from error
    ways = list(paths(space, lambda d: _fitting(d, given[d.hparam]) if d.hparam in given else None))
    for name, value in given.items():
        read = [way[name] for way in ways if name in way]
        misfits = [dimension for dimension in read if _fitting(dimension, value) is None]
        if misfits:
            raise _misfit(name, raw[name], misfits, space, len(misfits) == len(read))
        if len(read) < len(ways):
            raise _unread(name, space, bool(read))
    if not searched_part(space, given):
        fixed = f"{', '.join(given)} {'is' if len(given) == 1 else 'are'} fixed in this study"
        hint = f"name what is searched: {', '.join(space.searched())}"
        raise SpaceError(f"{fixed}, so there is nothing to try", hint=hint)
    return {name: next(_fitting(way[name], value) for way in ways) for name, value in given.items()}  # type: ignore[misc]


def searched_part(space: Space, given: Mapping[str, Value]) -> dict[str, Value]:
    """What the sampler would choose otherwise."""
    searched = space.searched()
    return {name: value for name, value in given.items() if name in searched}


def trial_of(space: Space, given: Mapping[str, Value], trials: Iterable[Trial]) -> Trial | None:
    """The first trial that was given just this, or that has come to have this point; None where none has."""
    wanted = searched_part(space, given)
    return next((own for own in trials if wanted in (own.given, searched_part(space, own.hparams))), None)


def _fitting(dimension: Dimension, value: Value) -> Value | None:
    """The value as the dimension has it, or None where it has not."""
    range_ = dimension.range
    if isinstance(range_, Choice):
        return value if any(own == value and type(own) is type(value) for own in range_.values) else None
    if not isinstance(range_, Range):
        return value if value == range_ else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not range_.low <= value <= range_.high:
        return None
    return None if isinstance(range_, Int) and value != int(value) else type(range_.low)(value)


def _misfit(name: str, value: Any, misfits: list[Dimension], space: Space, always: bool) -> SpaceError:
    rule, where = _rule(misfits[0].range), misfits[0].when
    hint = f"--set space.{name}=... changes what this study searches"
    if where is None or (always and all(own is misfits[0] for own in misfits)):
        return SpaceError(f"{name} is {rule} in this study, got {value}", hint=hint)
    if not always:
        hint = f"name the {where.hparam} as well: {where.hparam}=...,{name}={value}"
    return SpaceError(f"{name} is {rule} where {_said(where, space)}, got {value}", hint=hint)


def _rule(range_: Range | Value) -> str:
    if isinstance(range_, Choice):
        return f"one of {', '.join(map(str, range_.values))}"
    return f"{range_.low:g} to {range_.high:g}" if isinstance(range_, Range) else f"fixed at {range_}"


def _said(where: When, space: Space) -> str:
    """A condition in words, as far as it can hold in this space."""
    names = [str(value) for value in space.values_of(where.hparam) if value in where.values]
    return f"{where.hparam} is {', '.join(names)}"


def _unread(name: str, space: Space, sometimes: bool) -> SpaceError:
    where = next(d.when for d in space.dimensions if d.hparam == name and d.when is not None)
    hint = f"name the {where.hparam} as well" if sometimes else f"leave it out, or choose another {where.hparam}"
    return SpaceError(f"{name} is read only where {_said(where, space)}", hint=hint)


def encode_given(space: Space, given: Mapping[str, Value]) -> dict[str, Any]:
    """The values by Optuna's names and as Optuna shows them, for each dimension that could have them."""
    ranges = {d.name: d.range for d in space.dimensions if isinstance(d.range, Range)}
    return {name: _label(ranges[name], value) for name, value in fitting(space, given).items()}


def fitting(space: Space, given: Mapping[str, Value]) -> dict[str, Value]:
    """The values by Optuna's names, for each dimension that could have them."""
    return {
        dimension.name: value
        for dimension in space.dimensions
        if isinstance(dimension.range, Range)
        and dimension.hparam in given
        and (value := _fitting(dimension, given[dimension.hparam])) is not None
    }


def decode_given(space: Space, labels: Mapping[str, Any]) -> dict[str, Value]:
    """The inverse of `encode_given`; what the space does not have is left out."""
    found: dict[str, Value] = {}
    for dimension in space.dimensions:
        range_ = dimension.range
        if dimension.name not in labels or not isinstance(range_, Range):
            continue
        label = labels[dimension.name]
        own = [value for value in range_.values if _label(range_, value) == label] if isinstance(range_, Choice) else []
        value = own[0] if own else _fitting(dimension, label)
        if value is not None:
            found[dimension.hparam] = value
    return found


def no_values(space: Space, given: Mapping[str, Any]) -> dict[str, str]:
    """Those of the values, by a hparam's name or Optuna's, that no trial of the space can have: name -> why not."""
    found: dict[str, str] = {}
    for name, value in given.items():
        own = [d for d in space.dimensions if name in (d.hparam, d.name)]
        if not any(_fitting(d, value) is not None for d in own) and not decode_given(space, {name: value}):
            rules = " or ".join(dict.fromkeys(_rule(d.range) for d in own))
            found[name] = f"{name} is {rules} in this study" if own else "this study has no such hyperparameter"
    return found


def _label(range_: Range, value: Value) -> Any:
    if isinstance(range_, Choice):
        return range_.distribution()["attributes"]["choices"][int(range_.internal(value))]
    return value


_UNASKED: dict[str, Value] = {**DEFAULT_SETTINGS, "dampening": 0.0, "nesterov": False}
"""What a trial trained with whose space did not ask."""


def shown(space: Space, trial: Trial, train: Mapping[str, Any]) -> Trial | None:
    """The trial as this space has it, for whoever learns from it; None where the space does not hold its point.

    An hparam that was not asked for then had the value of `train`, the keys of [train], or the default.
    """
    had = {**_UNASKED, **{name: own for name, own in train.items() if name in DEFAULT_SETTINGS}, **trial.hparams}
    point: dict[str, Value] = {}
    for dimension in space.dimensions:
        if not dimension.applies(point):
            continue
        value = _fitting(dimension, had[dimension.hparam]) if dimension.hparam in had else None
        if value is None:
            return None
        point[dimension.hparam] = value
    return replace(trial, hparams=point)
