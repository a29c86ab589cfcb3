"""What a study file's [space] says of one hparam: a range, a choice or a value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunecli.errors import SpaceError
from tunecli.space.hparams import HPARAMS, BatchSize, Flag, Name, Optimizer, Whole, check_value
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
        raise SpaceError(message) from error


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
