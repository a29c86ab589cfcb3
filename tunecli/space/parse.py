"""What a study file's [space] says of one hparam: a range, a choice or a value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunecli.errors import SpaceError
from tunecli.space.hparams import HPARAMS, OPTIMIZERS, BatchSize, Flag, Name, Number, Optimizer, Whole, check_value
from tunecli.space.ranges import Choice, Float, Int, Range
from tunecli.trial import Value


def parse(name: str, raw: Any, default: Mapping[str, Any]) -> Range | Value:
    """A table `{low, high, log}` is a range, whose missing bounds are those of `default`; a list is a choice.

    Raises SpaceError, its message beginning with the name.
    """
    try:
        if isinstance(raw, Mapping):
            return _parse_range(name, raw, default)
        if isinstance(raw, list | tuple):
            values = tuple(check_value(name, item) for item in raw)
            return values[0] if len(values) == 1 else Choice(values)
        return check_value(name, raw)
    except SpaceError as error:
        message = error.message if error.message.startswith(name) else f"{name}: {error.message}"
        raise SpaceError(message, hint=error.hint) from error


def example(name: str) -> str:
    """How a range, a choice and a value of an hparam, or of a model's key, are written."""
    kind = HPARAMS[name].kind if name in HPARAMS else None
    if isinstance(kind, Name | Optimizer):
        known = kind.known if isinstance(kind, Name) else OPTIMIZERS
        return f'{name} = ["{known[0]}", "{known[1]}"] or "{known[0]}"'
    if isinstance(kind, Flag):
        return f"{name} = [true, false] or true"
    if isinstance(kind, BatchSize):
        return f'{name} = {{ low = 8, high = 256 }}, [16, 32, "full"] or 32'
    if isinstance(kind, Number) and kind.high == 1:
        return f"{name} = {{ low = 0.1, high = 0.9 }}, [0.5, 0.9] or 0.9"
    if isinstance(kind, Number) and kind.low < 1e-4:
        return f"{name} = {{ low = 1e-4, high = 1e-1, log = true }}, [1e-3, 1e-2] or 1e-3"
    return f"{name} = {{ low = 1, high = 16 }}, [4, 8] or 4"


def _parse_range(name: str, raw: Mapping[str, Any], default: Mapping[str, Any]) -> Range:
    unknown = sorted(set(raw) - {"low", "high", "log"})
    if unknown:
        raise SpaceError(f"unknown key {unknown[0]!r} in a range, which has low, high and log")
    if "low" not in raw or "high" not in raw:
        raw = {**default, **raw}
    missing = [key for key in ("low", "high") if key not in raw]
    if missing:
        raise SpaceError(f"a range needs {missing[0]!r}")
    low, high, log = raw["low"], raw["high"], raw.get("log", False)
    if not isinstance(log, bool):
        raise SpaceError(f"log must be true or false, got {log!r}")
    for key, bound in (("low", low), ("high", high)):
        if isinstance(bound, bool) or not isinstance(bound, int | float):
            raise SpaceError(f"{key} must be a number, got {bound!r}")
    kind = HPARAMS[name].kind if name in HPARAMS else None
    if isinstance(kind, Optimizer | Name | Flag):
        raise SpaceError(f"a choice is a list, got a range from {low!r} to {high!r}")
    if isinstance(kind, BatchSize | Whole) or (kind is None and isinstance(low, int) and isinstance(high, int)):
        if not (isinstance(low, int) and isinstance(high, int)):
            raise SpaceError(f"a range of whole numbers needs whole bounds, got {low!r} to {high!r}")
        check_value(name, low)
        return Int(low, high, log)
    check_value(name, low)
    check_value(name, high)
    return Float(float(low), float(high), log)
