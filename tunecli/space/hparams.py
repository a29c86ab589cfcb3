"""The hyperparameters of training, one table: what each takes, and which trials read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tunecli.errors import SpaceError, did_you_mean
from tunecli.source import is_function
from tunecli.trial import Value

OPTIMIZERS = ("sgd", "adagrad", "rmsprop", "adam", "adamw", "nadam", "radam", "adamax", "adadelta", "lion", "muon")
DEFAULT_OPTIMIZERS = OPTIMIZERS[:6]
LOSSES = ("cross_entropy", "binary_cross_entropy", "focal", "mse", "mae", "huber")
PRECISIONS = ("float32", "bf16")
SCHEDULES = ("constant", "exponential", "step", "cosine", "one_cycle", "plateau")
YOURS = "file.py:Class"
"""Stands for every optimizer of the user's own where a condition names optimizers."""
SAMPLERS = ("tpe", "random", "grid", "brute_force", "qmc", "gp", "nsga2")
EXHAUSTIVE = ("grid", "brute_force")
"""The samplers that try every point of a finite space, each once; then the search ends."""
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
class Whole:
    """A whole number of `low` or more."""

    low: int

    def check(self, value: Any) -> Value:
        if isinstance(value, bool) or not isinstance(value, int) or value < self.low:
            raise SpaceError(f"expected a whole number of at least {self.low}, got {value!r}")
        return value


@dataclass(frozen=True, slots=True)
class Name:
    """One of the names of its kind."""

    kind: str
    known: tuple[str, ...]

    def check(self, value: Any) -> Value:
        if value not in self.known:
            raise SpaceError(f"unknown {self.kind} {value!r}", hint=did_you_mean(str(value), self.known))
        return str(value)


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
            raise SpaceError(f"unknown optimizer {value!r}", hint=did_you_mean(str(value), OPTIMIZERS))
        return str(value)


@dataclass(frozen=True, slots=True)
class BatchSize:
    def check(self, value: Any) -> Value:
        if value != "full" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise SpaceError(f'a batch size is a whole number above zero or "full", got {value!r}')
        return value  # type: ignore[no-any-return]  # checked above


Kind = Number | Whole | Name | Flag | Optimizer | BatchSize


@dataclass(frozen=True, slots=True)
class Hparam:
    """What an hparam takes, and when a trial reads it (None: always).

    One with a `default` is a key of [train] as well, which holds for every trial that does not have it of its own.
    """

    kind: Kind
    when: When | None = None
    default: Value | None = None


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
    # A key of [train] as well, whose default depends on the data.
    "loss": Hparam(Name("loss", LOSSES)),
    "label_smoothing": Hparam(Number(high=1.0), default=0.0),
    "focal_gamma": Hparam(Number(), when("loss", "focal"), default=2.0),
    "huber_delta": Hparam(Number(low=1e-6), when("loss", "huber"), default=1.0),
    "schedule": Hparam(Name("schedule", SCHEDULES), default="constant"),
    "warmup": Hparam(Number(high=1.0), default=0.0),
    "exponential_gamma": Hparam(Number(high=1.0, closed=True), when("schedule", "exponential"), default=0.95),
    "step_gamma": Hparam(Number(high=1.0, closed=True), when("schedule", "step"), default=0.1),
    "step_epochs": Hparam(Whole(1), when("schedule", "step"), default=10),
    "one_cycle_pct_start": Hparam(Number(high=1.0), when("schedule", "one_cycle"), default=0.3),
    "one_cycle_div_factor": Hparam(Number(low=1.0), when("schedule", "one_cycle"), default=25.0),
    "one_cycle_final_div_factor": Hparam(Number(low=1.0), when("schedule", "one_cycle"), default=1e4),
    "plateau_factor": Hparam(Number(high=1.0), when("schedule", "plateau"), default=0.1),
    "plateau_patience": Hparam(Whole(0), when("schedule", "plateau"), default=10),
    "clip_norm": Hparam(Number(), default=0.0),
    "ema_decay": Hparam(Number(high=1.0), default=0.0),
    "patience": Hparam(Whole(0), default=0),
    "loss_tolerance": Hparam(Number(), default=0.0),
    "gradient_tolerance": Hparam(Number(), default=0.0),
    "precision": Hparam(Name("precision", PRECISIONS), default="float32"),
}
"""Every hparam of training by its name, in the order in which those without a default range are recorded."""

DEFAULT_SETTINGS: Mapping[str, Value] = MappingProxyType(
    {name: own.default for name, own in HPARAMS.items() if own.default is not None}
)
"""The hparams that are keys of [train] too, and what training does where neither says."""

_ELSEWHERE = {
    "lr": "learning_rate",
    "weight_decay": "l2",
    "wd": "l2",
    "bs": "batch_size",
    "nesterov_momentum": "nesterov",
    "lr_schedule": "schedule",
    "scheduler": "schedule",
    "lr_scheduler": "schedule",
    "grad_clip": "clip_norm",
    "gradient_clip": "clip_norm",
    "max_grad_norm": "clip_norm",
    "ema": "ema_decay",
    "early_stopping": "patience",
    "gamma": "focal_gamma",
    "delta": "huber_delta",
    "smoothing": "label_smoothing",
    "amp": "precision",
    "dtype": "precision",
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
        raise SpaceError(f"{hparam}: {error.message}", hint=error.hint) from error


def fault(error: SpaceError) -> str:
    """One fault of several in a line, with its own hint."""
    return f"{error.message}: {error.hint}" if error.hint else error.message


def parse_settings(train: Mapping[str, Any]) -> dict[str, Value]:
    """The settings among the keys of [train]. Raises SpaceError with every fault, a line each."""
    found: dict[str, Value] = {}
    faults: list[str] = []
    for name, raw in train.items():
        try:
            found[name] = parse_value(name, raw)
        except SpaceError as error:
            faults.append(fault(error))
    if faults:
        raise SpaceError("\n".join(faults))
    return found


def settings_of(train: Mapping[str, Value], hparams: Mapping[str, Value]) -> dict[str, Value]:
    """What a trial trains with beside its optimizer: its own hparams, else those of [train], else the defaults."""
    return {name: hparams.get(name, train.get(name, default)) for name, default in DEFAULT_SETTINGS.items()}


def elsewhere(name: str) -> str | None:
    """Our word for what another tool calls `name`."""
    return _ELSEWHERE.get(name)


def nearest(name: str, known: Iterable[str] = ()) -> str | None:
    """A hint for an unknown name; other tools' words for ours are known."""
    known = list(known) or [*HPARAMS, "model.KEY"]
    if _ELSEWHERE.get(name) in known:
        return f"it is called {_ELSEWHERE[name]!r} here"
    return did_you_mean(name, known)
