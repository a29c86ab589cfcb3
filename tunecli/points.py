"""Particular points of a space: the first to try, one at a share of every range, and all of a finite one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tunecli.errors import SpaceError
from tunecli.space import DEFAULT_SETTINGS, Choice, Dimension, Float, Int, Range, Space
from tunecli.trial import Hparams, Value

MAX_POINTS = 100_000
"""The most points that a sampler which tries them all will list; many more than a search could try."""

Key = frozenset[tuple[str, float]]


def key(space: Space, hparams: Hparams) -> Key:
    """What two trials have in common that try the same point."""
    return frozenset((name, internal) for name, (_, internal) in space.encode(hparams).items())


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


def paths(space: Space, fixed: Callable[[Dimension], Value | None]) -> Iterator[dict[str, Dimension]]:
    """Which dimensions a trial can have, one mapping by hparam for each way in which conditions may fall, where it has
    those values that are `fixed`."""
    by_name = {dimension.name: dimension for dimension in space.dimensions}
    conditions = {dimension.when.hparam for dimension in space.dimensions if dimension.when is not None}

    def candidates(name: str, range_: Range) -> Sequence[Value]:
        value = fixed(by_name[name])
        if value is not None:
            return [value]
        decides = by_name[name].hparam in conditions
        return values(range_) if decides and not isinstance(range_, Float) else [at(range_, 0.0)]

    for point in _walk(space, candidates):
        yield {d.hparam: d for d in space.dimensions if d.hparam in point and d.applies(point)}


def always_read(space: Space) -> tuple[str, ...]:
    """The searched hparams that every trial has under one name and in one range: what a plain model can compare."""
    ways = list(paths(space, lambda dimension: None))
    return tuple(
        d.hparam for d in space.dimensions if isinstance(d.range, Range) and all(way.get(d.hparam) is d for way in ways)
    )
