"""The three kinds of range, each written as Optuna writes it into its databases."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tunecli.errors import SpaceError
from tunecli.trial import Value


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


def external_value(distribution: str, internal: float) -> Value:
    """The value that Optuna's internal representation stands for, by its distribution's JSON."""
    document = json.loads(distribution)
    if document["name"] == "CategoricalDistribution":
        return document["attributes"]["choices"][int(internal)]  # type: ignore[no-any-return]  # Optuna's scalars
    return int(internal) if document["name"] == "IntDistribution" else internal
