"""The search space: hyperparameters, their ranges, and when each applies.

A `Space` is a list of dimensions in the order in which they are asked for. `suggest` walks it with any `ask` function:
a sampler's, or a look-up in stored values, which is why writing and reading a trial can never disagree.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tunecli.errors import SpaceError, did_you_mean
from tunecli.trial import Hparams, Value

OPTIMIZERS = ("sgd", "adagrad", "rmsprop", "adam", "adamw", "nadam")
SAMPLERS = ("tpe", "random")
PRUNERS = ("asha", "none")

_ADAPTIVE = frozenset({"rmsprop", "adam", "adamw", "nadam"})
_WITH_MOMENTUM = frozenset({"sgd", "rmsprop"})
_WITH_BETAS = frozenset({"adam", "adamw", "nadam"})


def _check_bounds(low: float, high: float, log: bool) -> None:
    if not low < high:
        raise SpaceError(f"a range must have low below high, got {low:g} to {high:g}")
    if log and low <= 0:
        raise SpaceError(f"a log range must stay above zero, got {low:g} to {high:g}")
    if high == float("inf") or low == float("-inf"):
        raise SpaceError(f"a range must be finite, got {low:g} to {high:g}")


@dataclass(frozen=True, slots=True)
class Float:
    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        _check_bounds(self.low, self.high, self.log)

    def internal(self, value: Value) -> float:
        return float(value)  # type: ignore[arg-type]  # a Float's own value

    def external(self, internal: float) -> Value:
        return internal

    def distribution(self) -> dict[str, Any]:
        return {
            "name": "FloatDistribution",
            "attributes": {"step": None, "low": self.low, "high": self.high, "log": self.log},
        }


@dataclass(frozen=True, slots=True)
class Int:
    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        _check_bounds(self.low, self.high, self.log)

    def internal(self, value: Value) -> float:
        return float(value)  # type: ignore[arg-type]  # an Int's own value

    def external(self, internal: float) -> Value:
        return int(internal)

    def distribution(self) -> dict[str, Any]:
        return {
            "name": "IntDistribution",
            "attributes": {"log": self.log, "step": 1, "low": self.low, "high": self.high},
        }


@dataclass(frozen=True, slots=True)
class Choice:
    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise SpaceError("a list of choices must not be empty")
        labels = self._labels()
        for position, label in enumerate(labels):
            if label != label:
                raise SpaceError("a list of choices must not hold nan, which equals nothing")
            if label in labels[:position]:  # as Optuna compares them: true is 1 is 1.0
                first, value = self.values[labels.index(label)], self.values[position]
                also = "" if repr(first) == repr(value) else f", first as {first!r}"
                raise SpaceError(f"a list of choices must not name {value!r} twice{also}")

    def internal(self, value: Value) -> float:
        return float(next(i for i, own in enumerate(self.values) if own == value and type(own) is type(value)))

    def external(self, internal: float) -> Value:
        return self.values[int(internal)]

    def distribution(self) -> dict[str, Any]:
        return {"name": "CategoricalDistribution", "attributes": {"choices": self._labels()}}

    def _labels(self) -> list[bool | int | float | str]:
        # Optuna's choices are scalars: a list of layer widths travels as its JSON text.
        return [json.dumps(list(value)) if isinstance(value, tuple) else value for value in self.values]


Range = Float | Int | Choice


def distribution_json(range_: Range) -> str:
    """The range as Optuna writes it into its databases."""
    return json.dumps(range_.distribution())


@dataclass(frozen=True, slots=True)
class Dimension:
    """One hyperparameter under one name of Optuna's.

    `hparam` is the name a user knows and `name` the one in the database: the learning rates of sgd and of adam have
    other ranges, hence other names. A plain value as `range` fixes the hparam. It applies when the trial's optimizer
    is in `optimizers` (None: always).
    """

    name: str
    hparam: str
    range: Range | Value
    optimizers: frozenset[str] | None = None

    def applies(self, optimizer: Value | None) -> bool:
        return self.optimizers is None or optimizer in self.optimizers


@dataclass(frozen=True, slots=True)
class Space:
    dimensions: tuple[Dimension, ...]

    def suggest(self, ask: Callable[[str, Range], Value]) -> dict[str, Value]:
        """One point of the space: `ask(name, range)` for each dimension that applies and is not fixed, in order."""
        hparams: dict[str, Value] = {}
        for dimension in self.dimensions:
            if not dimension.applies(hparams.get("optimizer")):
                continue
            value = dimension.range
            hparams[dimension.hparam] = ask(dimension.name, value) if isinstance(value, Range) else value
        return hparams

    def encode(self, hparams: Hparams) -> dict[str, tuple[Range, float]]:
        """What the database keeps of a point: name -> (range, Optuna's internal representation). Fixed ones are not."""
        return {
            dimension.name: (dimension.range, dimension.range.internal(hparams[dimension.hparam]))
            for dimension in self.dimensions
            if isinstance(dimension.range, Range) and dimension.applies(hparams.get("optimizer"))
        }

    def decode(self, internal: Mapping[str, float]) -> dict[str, Value]:
        """The inverse of `encode`; raises SpaceError where a stored point is not one of this space."""
        try:
            return self.suggest(lambda name, range_: range_.external(internal[name]))
        except (KeyError, IndexError) as error:
            raise SpaceError(f"a stored trial lacks {error} of this space") from error

    def searched(self) -> tuple[str, ...]:
        """The hparams that have a range, each once, in order."""
        return tuple(dict.fromkeys(d.hparam for d in self.dimensions if isinstance(d.range, Range)))

    def values_of(self, hparam: str) -> tuple[Value, ...]:
        """Every value that a choice or a fixed hparam can take; empty for a range or an unknown name."""
        for dimension in self.dimensions:
            if dimension.hparam == hparam:
                if isinstance(dimension.range, Choice):
                    return dimension.range.values
                return () if isinstance(dimension.range, Range) else (dimension.range,)
        return ()


_DEFAULTS: tuple[Dimension, ...] = (
    Dimension("optimizer", "optimizer", Choice(OPTIMIZERS)),
    Dimension("learning_rate_sgd", "learning_rate", Float(1e-4, 1.0, log=True), frozenset({"sgd"})),
    Dimension("learning_rate_adagrad", "learning_rate", Float(1e-3, 1.0, log=True), frozenset({"adagrad"})),
    Dimension("learning_rate_adaptive", "learning_rate", Float(1e-5, 1e-1, log=True), _ADAPTIVE),
    Dimension("momentum", "momentum", Float(0.0, 0.99), _WITH_MOMENTUM),
    Dimension("beta1", "beta1", Float(0.8, 0.99), _WITH_BETAS),
    Dimension("beta2", "beta2", Float(0.9, 0.9999), _WITH_BETAS),
    Dimension("batch_size", "batch_size", Choice((16, 32, 64, 128, 256))),
    Dimension("l1", "l1", Float(1e-8, 1e-2, log=True)),
    Dimension("l2", "l2", Float(1e-8, 1e-2, log=True), frozenset(OPTIMIZERS) - {"adamw"}),
    Dimension("l2_adamw", "l2", Float(1e-4, 0.5, log=True), frozenset({"adamw"})),
)

_CONDITIONS: dict[str, frozenset[str] | None] = {
    "learning_rate": None,
    "momentum": _WITH_MOMENTUM,
    "dampening": frozenset({"sgd"}),
    "nesterov": frozenset({"sgd"}),
    "beta1": _WITH_BETAS,
    "beta2": _WITH_BETAS,
    "batch_size": None,
    "l1": None,
    "l2": None,
}
"""Every hparam of training beside the optimizer, and the optimizers that read it."""

# lowest, highest, whether the highest is allowed
_BOUNDS: dict[str, tuple[float, float, bool]] = {
    "learning_rate": (0.0, float("inf"), False),
    "momentum": (0.0, 1.0, False),
    "dampening": (0.0, 1.0, True),
    "beta1": (0.0, 1.0, False),
    "beta2": (0.0, 1.0, False),
    "l1": (0.0, float("inf"), False),
    "l2": (0.0, float("inf"), False),
}


def build_space(overrides: Mapping[str, Any]) -> Space:
    """The default space with a study file's [space] laid over it.

    A list is a choice, a table `{low, high, log}` a range, anything else fixes the hparam. A range given by the user
    holds for every optimizer, under the one name. Raises SpaceError with every fault, a line each.
    """
    faults: list[str] = []
    given: dict[str, Range | Value] = {}
    for name, raw in _flatten(overrides).items():
        try:
            if not name.startswith("model.") and name != "optimizer" and name not in _CONDITIONS:
                hint = _nearest(name)
                raise SpaceError(f"unknown hyperparameter {name!r}: {hint}")
            given[name] = _parse(name, raw)
        except SpaceError as error:
            faults.append(error.message)
    if faults:
        raise SpaceError(
            "\n".join(faults), hint="a range is { low = 1e-4, high = 1e-1, log = true }, [a, b] or a value"
        )

    dimensions: list[Dimension] = []
    for default in _DEFAULTS:
        if default.hparam not in given:
            dimensions.append(default)
        elif all(default.hparam != done.hparam for done in dimensions):
            dimensions.append(_own(default.hparam, given[default.hparam]))
    known = {dimension.hparam for dimension in _DEFAULTS}
    # In an order of their own: the study file's is not the one in which it is recorded, and proposals follow it.
    more = [name for name in _CONDITIONS if name in given] + sorted(name for name in given if name.startswith("model."))
    dimensions += [_own(name, given[name]) for name in more if name not in known]
    optimizers = Space(tuple(dimensions)).values_of("optimizer")
    # A dimension that no optimizer of this study reads would only mislead a reader of the space.
    return Space(tuple(d for d in dimensions if any(d.applies(optimizer) for optimizer in optimizers)))


def parse_value(hparam: str, raw: Any) -> Value:
    """One value of an hparam, given by hand. Raises SpaceError with the rule and the value got."""
    if hparam != "optimizer" and hparam not in _CONDITIONS:
        raise SpaceError(f"unknown hyperparameter {hparam!r}", hint=_nearest(hparam))
    try:
        return _value(hparam, raw)
    except SpaceError as error:
        raise SpaceError(f"{hparam}: {error.message}") from error


def _nearest(name: str) -> str | None:
    """A hint for an unknown name; other tools' words for ours are known."""
    elsewhere = {
        "lr": "learning_rate",
        "weight_decay": "l2",
        "wd": "l2",
        "bs": "batch_size",
        "nesterov_momentum": "nesterov",
    }
    if name in elsewhere:
        return f"it is called {elsewhere[name]!r} here"
    return did_you_mean(name, ["optimizer", *_CONDITIONS, "model.KEY"])


def _own(hparam: str, value: Range | Value) -> Dimension:
    return Dimension(hparam, hparam, value, _CONDITIONS.get(hparam))


def _flatten(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`[space.model] hidden = ...` and `model.hidden = ...` are the same TOML; both become the name `model.hidden`."""
    flat = {key: value for key, value in overrides.items() if key != "model"}
    return flat | {f"model.{key}": value for key, value in overrides.get("model", {}).items()}


def _parse(name: str, raw: Any) -> Range | Value:
    try:
        if isinstance(raw, Mapping):
            return _parse_range(name, raw)
        if isinstance(raw, list | tuple):
            values = tuple(_value(name, item) for item in raw)
            return values[0] if len(values) == 1 else Choice(values)
        return _value(name, raw)
    except SpaceError as error:
        message = error.message if error.message.startswith(name) else f"{name}: {error.message}"
        raise SpaceError(message) from error


def _default_bounds(name: str) -> dict[str, Any]:
    """What a range that states one bound alone takes for the rest: the default range, over all optimizers."""
    own = [d.range for d in _DEFAULTS if d.hparam == name and isinstance(d.range, Float)]
    if not own:
        return {}
    return {"low": min(r.low for r in own), "high": max(r.high for r in own), "log": own[0].log}


def _parse_range(name: str, raw: Mapping[str, Any]) -> Range:
    unknown = sorted(set(raw) - {"low", "high", "log"})
    if unknown:
        raise SpaceError(f"unknown key {unknown[0]!r} in a range, which has low, high and log")
    if "low" not in raw or "high" not in raw:
        raw = _default_bounds(name) | dict(raw)
    missing = [key for key in ("low", "high") if key not in raw]
    if missing:
        raise SpaceError(f"a range needs {missing[0]!r}")
    low, high, log = raw["low"], raw["high"], raw.get("log", False)
    if not isinstance(log, bool):
        raise SpaceError(f"log must be true or false, got {log!r}")
    for key, bound in (("low", low), ("high", high)):
        if isinstance(bound, bool) or not isinstance(bound, int | float):
            raise SpaceError(f"{key} must be a number, got {bound!r}")
    if name in ("optimizer", "nesterov"):
        raise SpaceError(f"a choice is a list, got a range from {low!r} to {high!r}")
    if name == "batch_size" or (name.startswith("model.") and isinstance(low, int) and isinstance(high, int)):
        if not (isinstance(low, int) and isinstance(high, int)):
            raise SpaceError(f"a range of whole numbers needs whole bounds, got {low!r} to {high!r}")
        _value(name, low)
        return Int(low, high, log)
    _value(name, low)
    _value(name, high)
    return Float(float(low), float(high), log)


def _value(name: str, value: Any) -> Value:
    """One value of `name`, checked; a list becomes a tuple."""
    if name == "optimizer":
        if value not in OPTIMIZERS:
            raise SpaceError(f"unknown optimizer {value!r}: {did_you_mean(str(value), OPTIMIZERS)}")
    elif name == "batch_size":
        if value != "full" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise SpaceError(f'a batch size is a whole number above zero or "full", got {value!r}')
    elif name == "nesterov":
        if not isinstance(value, bool):
            raise SpaceError(f"nesterov is true or false, got {value!r}")
    elif name in _BOUNDS:
        low, high, inclusive = _BOUNDS[name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SpaceError(f"expected a number, got {value!r}")
        if not (low <= value < high or (inclusive and value == high)):
            end = "at most" if inclusive else "below"
            raise SpaceError(f"must be at least {low:g} and {end} {high:g}, got {value!r}")
        return float(value)
    if isinstance(value, list | tuple) and all(isinstance(item, bool | int | float | str) for item in value):
        return tuple(value)
    if not isinstance(value, bool | int | float | str):
        raise SpaceError(f"expected a number, a text or a list of them, got {value!r}")
    return value
