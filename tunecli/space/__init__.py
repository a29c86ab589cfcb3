"""The search space: hyperparameters, their ranges, and when each applies.

A `Space` is a list of dimensions in the order in which they are asked for. `suggest` walks it with any `ask` function:
a sampler's, or a look-up in stored values, which is why writing and reading a trial can never disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from tunecli.errors import SpaceError
from tunecli.space.hparams import (
    DEFAULT_OPTIMIZERS,
    DEFAULT_SETTINGS,
    EXHAUSTIVE,
    HPARAMS,
    OPTIMIZERS,
    PRUNERS,
    SAMPLERS,
    SCHEDULES,
    WITH_BETAS,
    WITH_MOMENTUM,
    YOURS,
    When,
    check_value,
    elsewhere,
    fault,
    nearest,
    parse_settings,
    parse_value,
    settings_of,
    when,
)
from tunecli.space.parse import example, parse
from tunecli.space.ranges import Choice, Float, Int, Range, distribution_json, external_value
from tunecli.trial import Hparams, Value

__all__ = [
    "DEFAULT_OPTIMIZERS",
    "DEFAULT_SETTINGS",
    "EXHAUSTIVE",
    "HPARAMS",
    "OPTIMIZERS",
    "PRUNERS",
    "SAMPLERS",
    "SCHEDULES",
    "Choice",
    "Dimension",
    "Float",
    "Int",
    "Range",
    "Space",
    "When",
    "build_space",
    "check_value",
    "distribution_json",
    "example",
    "external_value",
    "nearest",
    "parse_settings",
    "parse_value",
    "placeholder_space",
    "settings_of",
]


@dataclass(frozen=True, slots=True)
class Dimension:
    """One hyperparameter under one name of Optuna's.

    `hparam` is the name a user knows and `name` the one in the database: the learning rates of sgd and of adam have
    other ranges, hence other names. A plain value as `range` fixes the hparam. It applies `when` the trial's other
    hparams say so (None: always).
    """

    name: str
    hparam: str
    range: Range | Value
    when: When | None = None

    def applies(self, hparams: Hparams) -> bool:
        """Whether a trial with these hparams, of dimensions before this one, reads it."""
        return self.when is None or self.when.holds(hparams)


@dataclass(frozen=True, slots=True)
class Space:
    dimensions: tuple[Dimension, ...]

    def suggest(self, ask: Callable[[str, Range], Value]) -> dict[str, Value]:
        """One point of the space: `ask(name, range)` for each dimension that applies and is not fixed, in order."""
        hparams: dict[str, Value] = {}
        for dimension in self.dimensions:
            if not dimension.applies(hparams):
                continue
            value = dimension.range
            hparams[dimension.hparam] = ask(dimension.name, value) if isinstance(value, Range) else value
        return hparams

    def encode(self, hparams: Hparams) -> dict[str, tuple[Range, float]]:
        """What the database keeps of a point: name -> (range, Optuna's internal representation). Fixed ones are not."""
        return {
            dimension.name: (dimension.range, dimension.range.internal(hparams[dimension.hparam]))
            for dimension in self.dimensions
            if isinstance(dimension.range, Range) and dimension.applies(hparams)
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

    @property
    def hparams(self) -> frozenset[str]:
        """The names of all hparams that a trial may have."""
        return frozenset(dimension.hparam for dimension in self.dimensions)

    def values_of(self, hparam: str) -> tuple[Value, ...]:
        """Every value that a choice or a fixed hparam can take; empty for a range or an unknown name."""
        for dimension in self.dimensions:
            if dimension.hparam == hparam:
                if isinstance(dimension.range, Choice):
                    return dimension.range.values
                return () if isinstance(dimension.range, Range) else (dimension.range,)
        return ()


def _by_optimizer(hparam: str, *ranges: tuple[str, float, float, tuple[str, ...]]) -> tuple[Dimension, ...]:
    """A log range, and a name of Optuna's, for each family of optimizers."""
    return tuple(
        Dimension(name, hparam, Float(low, high, log=True), when("optimizer", *optimizers))
        for name, low, high, optimizers in ranges
    )


_DEFAULTS: tuple[Dimension, ...] = (
    Dimension("optimizer", "optimizer", Choice(DEFAULT_OPTIMIZERS)),
    *_by_optimizer(
        "learning_rate",
        ("learning_rate_sgd", 1e-4, 1.0, ("sgd",)),
        ("learning_rate_adagrad", 1e-3, 1.0, ("adagrad",)),
        ("learning_rate_adaptive", 1e-5, 1e-1, ("rmsprop", "adam", "adamw", "nadam", "radam", "adamax")),
        ("learning_rate_adadelta", 1e-2, 10.0, ("adadelta",)),
        ("learning_rate_lion", 1e-6, 1e-2, ("lion",)),
        ("learning_rate_muon", 1e-4, 1e-1, ("muon",)),
        ("learning_rate_own", 1e-5, 1.0, (YOURS,)),
    ),
    # An optimizer of the user's own gets the next three where [space] names them: it need not take them.
    Dimension("momentum", "momentum", Float(0.0, 0.99), WITH_MOMENTUM.without(YOURS)),
    Dimension("beta1", "beta1", Float(0.8, 0.99), WITH_BETAS.without(YOURS)),
    Dimension("beta2", "beta2", Float(0.9, 0.9999), WITH_BETAS.without(YOURS)),
    Dimension("batch_size", "batch_size", Choice((16, 32, 64, 128, 256))),
    Dimension("l1", "l1", Float(1e-8, 1e-2, log=True)),
    *_by_optimizer(
        "l2",
        ("l2", 1e-8, 1e-2, (*(own for own in OPTIMIZERS if own not in ("adamw", "lion", "muon")), YOURS)),
        ("l2_adamw", 1e-4, 0.5, ("adamw",)),
        ("l2_lion", 1e-3, 1.0, ("lion",)),
        ("l2_muon", 1e-4, 0.5, ("muon",)),
    ),
)


def build_space(overrides: Mapping[str, Any], train: Mapping[str, Any] = MappingProxyType({})) -> Space:
    """The default space with a study file's [space] laid over it.

    A list is a choice, a table `{low, high, log}` a range, anything else fixes the hparam. A range given by the user
    holds for every optimizer, under the one name. What a study file's [train] says decides which hparams are read
    where no trial decides it. Raises SpaceError with every fault, a line each.
    """
    faults: list[str] = []
    given: dict[str, Range | Value] = {}
    defaults, flat = _read_by_some(_DEFAULTS), _flatten(overrides)
    # The optimizers first: what a range leaves open is taken from the default ranges of these.
    for name in sorted(flat, key=lambda name: name != "optimizer"):
        try:
            if not name.startswith("model.") and name not in HPARAMS:
                raise SpaceError(f"unknown hyperparameter {name!r}", hint=nearest(name))
            given[name] = parse(name, flat[name], _default_bounds(name, defaults))
            if name == "optimizer":
                defaults = _read_by_some((_own(name, given[name]), *_DEFAULTS[1:]))
        except SpaceError as error:
            faults.append(fault(error))
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
    more = [name for name in HPARAMS if name in given] + sorted(name for name in given if name.startswith("model."))
    dimensions += [_own(name, given[name]) for name in more if name not in known]
    return Space(_read_by_some(dimensions, train))


def _read_by_some(
    dimensions: Iterable[Dimension], train: Mapping[str, Any] = MappingProxyType({})
) -> tuple[Dimension, ...]:
    """The dimensions that some trial reads: others would only mislead a reader of the space."""
    space = Space(tuple(dimensions))
    yours = [value for value in space.values_of("optimizer") if value not in OPTIMIZERS]
    named = [d if d.when is None else replace(d, when=d.when.naming(yours)) for d in space.dimensions]
    fixed = {**DEFAULT_SETTINGS, **train}
    found: list[Dimension] = []
    for own in named:
        if own.when is None or any(own.when.holds({own.when.hparam: v}) for v in space.values_of(own.when.hparam)):
            found.append(own)
        elif own.when.hparam not in space.hparams and own.when.holds(fixed):
            found.append(replace(own, when=None))
    return tuple(found)


def placeholder_space(names: Iterable[str], overrides: Mapping[str, Any]) -> Space:
    """The space of a command's placeholders, in their order. They are only words: no condition, no rule of ours.

    What `overrides` does not state has the default range of the hparam of that name, over the optimizers that are
    searched by default. Raises SpaceError with every fault, a line each.
    """
    names, dimensions, faults, defaults = list(names), [], [], _read_by_some(_DEFAULTS)
    hint = f"its placeholders: {', '.join(f'{{{name}}}' for name in names)}"
    for name in names:
        try:
            # In braces, so that no rule of an hparam of ours applies.
            if name in overrides:
                own = parse(f"{{{name}}}", overrides[name], _default_bounds(name, defaults))
            else:
                own = _default_range(name, defaults)
            dimensions.append(Dimension(name, name, own))
        except SpaceError as error:
            faults.append(error.message)
            hint = error.hint or "a range is {low=1e-4, high=1e-1, log=true}, [a, b] or a value"
    faults += [f"the command has no placeholder {{{name}}}" for name in overrides if name not in names]
    if not names:
        faults, hint = ["the command has no placeholder to search"], "name what is searched: --lr {learning_rate}"
    if faults:
        raise SpaceError("\n".join(faults), hint=hint)
    return Space(tuple(dimensions))


def _default_range(name: str, defaults: Iterable[Dimension]) -> Range:
    own = [d.range for d in defaults if d.hparam == name and isinstance(d.range, Range)]
    if not own:
        near = get_close_matches(name, {d.hparam for d in defaults}, n=1, cutoff=0.8)
        ours = elsewhere(name) or next(iter(near), None)
        call = f", or call it {{{ours}}}" if ours is not None else ""
        raise SpaceError(f"{{{name}}} has no default range", hint=f"--set 'space.{name}={{low=0.0, high=1.0}}'{call}")
    return Float(**_default_bounds(name, defaults)) if isinstance(own[0], Float) else own[0]


def _own(hparam: str, value: Range | Value) -> Dimension:
    return Dimension(hparam, hparam, value, HPARAMS[hparam].when if hparam in HPARAMS else None)


def _flatten(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`[space.model] hidden = ...` and `model.hidden = ...` are the same TOML; both become the name `model.hidden`."""
    flat = {key: value for key, value in overrides.items() if key != "model"}
    return flat | {f"model.{key}": value for key, value in overrides.get("model", {}).items()}


def _default_bounds(name: str, defaults: Iterable[Dimension]) -> dict[str, Any]:
    """What a range that states one bound alone takes for the rest: the default range, over all optimizers."""
    own = [d.range for d in defaults if d.hparam == name and isinstance(d.range, Float)]
    if not own:
        return {}
    return {"low": min(r.low for r in own), "high": max(r.high for r in own), "log": own[0].log}
