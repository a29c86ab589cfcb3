"""The hyperparameters of training, one table: what each takes, and which trials read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tunecli.errors import SpaceError, did_you_mean
from tunecli.source import is_function
from tunecli.trial import Value

OPTIMIZERS = ("sgd", "adagrad", "rmsprop", "adam", "adamw", "nadam", "radam", "adamax", "adadelta", "lion", "muon")
DEFAULT_OPTIMIZERS = OPTIMIZERS[:6]
YOURS = "file.py:Class"
"""Stands for every optimizer of the user's own where a condition names optimizers."""
SAMPLERS = ("tpe", "random")
PRUNERS = ("asha", "hyperband", "median", "percentile", "patient", "none")

INFINITE = float("inf")


@dataclass(frozen=True, slots=True)
class When:
    """A trial reads an hparam when its `hparam` is one of `values`."""

    hparam: str
    values: frozenset[Value]

    def naming(self, own: Iterable[Value]) -> When:
        """The condition with the user's own optimizers in the place of `YOURS`."""
        return When(self.hparam, (self.values - {YOURS}) | frozenset(own)) if YOURS in self.values else self

    def without(self, value: Value) -> When:
        return When(self.hparam, self.values - {value})

    def holds(self, hparams: Mapping[str, Value]) -> bool:
        return hparams.get(self.hparam) in self.values


def when(hparam: str, *values: Value) -> When:
    return When(hparam, frozenset(values))


@dataclass(frozen=True, slots=True)
class Number:
    """A number from `low` to `high`; `closed` where the highest is allowed."""

    low: float = 0.0
    high: float = INFINITE
    closed: bool = False

    def check(self, value: Any) -> Value:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SpaceError(f"expected a number, got {value!r}")
        if not (self.low <= value < self.high or (self.closed and value == self.high)):
            end = "at most" if self.closed else "below"
            raise SpaceError(f"must be at least {self.low:g} and {end} {self.high:g}, got {value!r}")
        return float(value)


@dataclass(frozen=True, slots=True)
class Flag:
    name: str

    def check(self, value: Any) -> Value:
        if not isinstance(value, bool):
            raise SpaceError(f"{self.name} is true or false, got {value!r}")
        return value


@dataclass(frozen=True, slots=True)
class Optimizer:
    """One of `OPTIMIZERS`, or a user's own class as `file.py:Class`."""

    def check(self, value: Any) -> Value:
        if isinstance(value, str) and is_function(value):
            return value
        if value not in OPTIMIZERS:
            raise SpaceError(f"unknown optimizer {value!r}: {did_you_mean(str(value), OPTIMIZERS)}")
        return str(value)


@dataclass(frozen=True, slots=True)
class BatchSize:
    def check(self, value: Any) -> Value:
        if value != "full" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise SpaceError(f'a batch size is a whole number above zero or "full", got {value!r}')
        return value  # type: ignore[no-any-return]  # checked above


Kind = Number | Flag | Optimizer | BatchSize


@dataclass(frozen=True, slots=True)
class Hparam:
    """What an hparam takes, and when a trial reads it (None: always)."""

    kind: Kind
    when: When | None = None


WITH_MOMENTUM = when("optimizer", "sgd", "rmsprop", "muon", YOURS)
WITH_BETAS = when("optimizer", "adam", "adamw", "nadam", "radam", "adamax", "lion", YOURS)

HPARAMS: dict[str, Hparam] = {
    "optimizer": Hparam(Optimizer()),
    "learning_rate": Hparam(Number()),
    "momentum": Hparam(Number(high=1.0), WITH_MOMENTUM),
    "dampening": Hparam(Number(high=1.0, closed=True), when("optimizer", "sgd")),
    "nesterov": Hparam(Flag("nesterov"), when("optimizer", "sgd")),
    "beta1": Hparam(Number(high=1.0), WITH_BETAS),
    "beta2": Hparam(Number(high=1.0), WITH_BETAS),
    "batch_size": Hparam(BatchSize()),
    "l1": Hparam(Number()),
    "l2": Hparam(Number()),
}
"""Every hparam of training by its name, in the order in which those without a default range are recorded."""

_ELSEWHERE = {
    "lr": "learning_rate",
    "weight_decay": "l2",
    "wd": "l2",
    "bs": "batch_size",
    "nesterov_momentum": "nesterov",
}
"""Other tools' words for ours."""


def check_value(hparam: str, value: Any) -> Value:
    """One value of an hparam or of a model's key, checked; a list becomes a tuple. Raises SpaceError."""
    if hparam in HPARAMS:
        return HPARAMS[hparam].kind.check(value)
    if isinstance(value, list | tuple) and all(isinstance(item, bool | int | float | str) for item in value):
        return tuple(value)
    if not isinstance(value, bool | int | float | str):
        raise SpaceError(f"expected a number, a text or a list of them, got {value!r}")
    return value


def parse_value(hparam: str, raw: Any) -> Value:
    """One value of an hparam, given by hand. Raises SpaceError with the rule and the value got."""
    if hparam not in HPARAMS:
        raise SpaceError(f"unknown hyperparameter {hparam!r}", hint=nearest(hparam))
    try:
        return check_value(hparam, raw)
    except SpaceError as error:
        raise SpaceError(f"{hparam}: {error.message}") from error


def nearest(name: str) -> str | None:
    """A hint for an unknown name; other tools' words for ours are known."""
    if name in _ELSEWHERE:
        return f"it is called {_ELSEWHERE[name]!r} here"
    return did_you_mean(name, [*HPARAMS, "model.KEY"])
