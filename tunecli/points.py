"""Particular points of a space: the first to try, one given by hand, one tried before, and all of a finite one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tunecli.errors import SpaceError
from tunecli.space import DEFAULT_SETTINGS, Choice, Dimension, Float, Int, Range, Space, When, check_value, nearest
from tunecli.trial import Hparams, Trial, Value

MAX_POINTS = 100_000
"""The most points that a sampler which tries them all will list; many more than a search could try."""

Key = frozenset[tuple[str, float]]


def key(space: Space, hparams: Hparams) -> Key:
    """What two trials have in common that try the same point."""
    return frozenset((name, internal) for name, (_, internal) in space.encode(hparams).items())


# The first to try

_TORCH: dict[str, Value] = {
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "momentum": 0.0,
    "dampening": 0.0,
    "nesterov": False,
    "beta1": 0.9,
    "beta2": 0.999,
    "batch_size": 32,
    "l1": 0.0,
    "l2": 0.0,
}
_OF_OPTIMIZER: dict[tuple[Value, str], Value] = {
    ("adagrad", "learning_rate"): 1e-2,
    ("rmsprop", "learning_rate"): 1e-2,
    ("nadam", "learning_rate"): 2e-3,
    ("adamax", "learning_rate"): 2e-3,
    ("adadelta", "learning_rate"): 1.0,
    ("adamw", "l2"): 1e-2,
    ("muon", "momentum"): 0.95,
}
"""What torch.optim takes if nobody says; a DataLoader of examples has batches of 32."""


def first_point(space: Space) -> dict[str, Value]:
    """torch's defaults, each moved to the nearest value of the space: what a person would try first.

    A choice that torch has no default for takes its first value, a range its middle.
    """
    hparam_of = {dimension.name: dimension.hparam for dimension in space.dimensions}
    optimizer = next(iter(space.values_of("optimizer")), None)

    def ask(name: str, range_: Range) -> Value:
        nonlocal optimizer
        hparam = hparam_of[name]
        value = _nearest(
            range_, _OF_OPTIMIZER.get((optimizer or "", hparam), _TORCH.get(hparam, DEFAULT_SETTINGS.get(hparam)))
        )
        if hparam == "optimizer":
            optimizer = value
        return value

    return space.suggest(ask)


def _nearest(range_: Range, wanted: Value | None) -> Value:
    if isinstance(range_, Choice):
        if wanted in range_.values:
            return range_.values[range_.values.index(wanted)]
        numbers = [own for own in range_.values if isinstance(own, int | float) and not isinstance(own, bool)]
        if numbers and isinstance(wanted, int | float) and not isinstance(wanted, bool):
            return min(numbers, key=lambda own: abs(own - wanted))
        return range_.values[0]
    if isinstance(wanted, int | float):
        return type(range_.low)(min(max(wanted, range_.low), range_.high))
    return at(range_, 0.5)


def at(range_: Range, share: float) -> Value:
    """The value that lies at `share`, in [0, 1), of a range: evenly, by the logarithm where it has one, whole numbers
    and choices with equal shares. Equals Optuna's transform of a point of the unit cube."""
    if isinstance(range_, Choice):
        return range_.values[int(share * len(range_.values))]
    half = 0.5 if isinstance(range_, Int) else 0.0
    low, high = range_.low - half, range_.high + half
    if range_.log:
        low, high = math.log(low), math.log(high)
    value = low + share * (high - low)
    value = math.exp(value) if range_.log else value
    if isinstance(range_, Int):
        value = round(value) if range_.log else range_.low + math.floor(value - range_.low + 0.5)
    return type(range_.low)(min(max(value, range_.low), range_.high))


# One given by hand


def given_point(space: Space, raw: Mapping[str, Any]) -> dict[str, Value]:
    """Values given by hand, which a trial is to have; what they leave out is the sampler's.

    Raises SpaceError where they are no part of a point of the space, or of one only if the sampler is lucky.
    """
    hparams = {dimension.hparam for dimension in space.dimensions}
    for name in raw:
        if name not in hparams:
            raise SpaceError(f"this study has no hyperparameter {name!r}", hint=nearest(name, hparams))
    given: dict[str, Value] = {}
    for name, value in raw.items():
        try:
            given[name] = check_value(name, value)
        except SpaceError as error:
            rule = " or ".join(dict.fromkeys(_rule(d.range) for d in space.dimensions if d.hparam == name))
            raise SpaceError(f"{name}: {error.message}", hint=error.hint or f"it is {rule} in this study") from error
    paths = list(_paths(space, given))
    for name, value in given.items():
        read = [path[name] for path in paths if name in path]
        misfits = [dimension for dimension in read if _fitting(dimension, value) is None]
        if misfits:
            raise _misfit(name, raw[name], misfits, space, len(misfits) == len(read))
        if len(read) < len(paths):
            raise _unread(name, space, bool(read))
    if not searched_part(space, given):
        fixed = f"{', '.join(given)} {'is' if len(given) == 1 else 'are'} fixed in this study"
        hint = f"name what is searched: {', '.join(space.searched())}"
        raise SpaceError(f"{fixed}, so there is nothing to try", hint=hint)
    return {name: next(_fitting(p[name], value) for p in paths) for name, value in given.items()}  # type: ignore[misc]


def searched_part(space: Space, given: Mapping[str, Value]) -> dict[str, Value]:
    """What the sampler would choose otherwise."""
    searched = space.searched()
    return {name: value for name, value in given.items() if name in searched}


def trial_of(space: Space, given: Mapping[str, Value], trials: Iterable[Trial]) -> Trial | None:
    """The first trial that was given just this, or that has come to have this point; None where none has."""
    wanted = searched_part(space, given)
    return next((own for own in trials if wanted in (own.given, searched_part(space, own.hparams))), None)


def _paths(space: Space, given: Mapping[str, Value]) -> Iterator[dict[str, Dimension]]:
    """Which dimensions a trial with these values can have, one mapping for each way in which conditions may fall."""
    by_name = {dimension.name: dimension for dimension in space.dimensions}
    conditions = {dimension.when.hparam for dimension in space.dimensions if dimension.when is not None}

    def candidates(name: str, range_: Range) -> Sequence[Value]:
        hparam = by_name[name].hparam
        fixed = _fitting(by_name[name], given[hparam]) if hparam in given else None
        if fixed is not None:
            return [fixed]
        return values(range_) if hparam in conditions and not isinstance(range_, Float) else [at(range_, 0.0)]

    for point in _walk(space, candidates):
        yield {d.hparam: d for d in space.dimensions if d.hparam in point and d.applies(point)}


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


# One tried before, perhaps in another space

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


# All of them


def all_points(space: Space) -> list[dict[str, Value]]:
    """Every point of a finite space, each once. Raises SpaceError where it is not finite, or has too many."""
    endless = list(dict.fromkeys(d.hparam for d in space.dimensions if isinstance(d.range, Float)))
    if endless:
        raise SpaceError(
            f"every point can be tried only of lists and whole numbers, and {', '.join(endless)} "
            f"{'is a range' if len(endless) == 1 else 'are ranges'} of real numbers",
            hint=f"list their values, --set space.{endless[0]}=[...], or fix them",
        )
    found: list[dict[str, Value]] = []
    for point in _walk(space, lambda name, range_: values(range_)):
        if len(found) == MAX_POINTS:
            raise SpaceError(f"the space has more than {MAX_POINTS:,} points", hint="list fewer values, or use qmc")
        found.append(point)
    return found


def values(range_: Choice | Int) -> Sequence[Value]:
    """Every value of a finite range."""
    return range_.values if isinstance(range_, Choice) else range(range_.low, range_.high + 1)


def _walk(space: Space, candidates: Callable[[str, Any], Sequence[Value]]) -> Iterator[dict[str, Value]]:
    """Every point that has one of the candidates in each place, the last place turning fastest."""
    path: list[int] = []
    while True:
        sizes: list[int] = []

        def ask(name: str, range_: Range, sizes: list[int] = sizes) -> Value:
            place, own = len(sizes), candidates(name, range_)
            sizes.append(len(own))
            if place == len(path):
                path.append(0)
            return own[path[place]]

        yield space.suggest(ask)
        while path and path[-1] + 1 == sizes[len(path) - 1]:
            path.pop()
        if not path:
            return
        path[-1] += 1


def always_read(space: Space) -> tuple[str, ...]:
    """The searched hparams that every trial has under one name and in one range: what a plain model can compare."""
    paths = list(_paths(space, {}))
    return tuple(
        d.hparam
        for d in space.dimensions
        if isinstance(d.range, Range) and all(path.get(d.hparam) is d for path in paths)
    )
