"""What is laid over a study file, `--set` and options, and where a question differs from the one that was begun."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from tunecli.errors import UsageError
from tunecli.space import DEFAULT_SETTINGS
from tunecli.study.sections import PRUNER_KEYS, StudyFile


def option(key: str, value: Any) -> str:
    """How a value that was not in the file was typed: search.sampler is --sampler."""
    return f"--{key.rpartition('.')[2]} {value}"


def changed(document: Mapping[str, Any], changes: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A copy of the document with other values by dotted key."""
    found = copy.deepcopy(dict(document))
    for key, value in changes:
        _put(found, key, value)
    return found


def differences(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, str]:
    """Where a question is another than the one that a study was asked before: a line for each key."""
    free = {
        "base",
        "data.stream",
        "data.as_is",
        "data.workers",
        "search.trials",
        "search.keep",
        "search.window",
        "search.trial_timeout",
        "search.max_failures",
        "finetune.layers",
        "finetune.epochs",
        "name",
    }
    # What an earlier version of tunecli did not state was what is its default now.
    before, now = _defaults() | _leaves(stored), _defaults() | _leaves(asked)

    def shown(leaves: Mapping[str, Any], key: str) -> str:
        unset = "none" if key.startswith("data.") else "default"
        return json.dumps(leaves[key]) if key in leaves else unset

    return {
        key: f"{key}: {shown(before, key)} -> {shown(now, key)}"
        for key in sorted(before.keys() | now.keys())
        # Compared as values, so that 0 and 0.0 ask the same question.
        if key not in free
        and (key not in before or key not in now or before[key] != now[key])
        and not _follows(key, before, now)
    }


def _follows(key: str, *sides: Mapping[str, Any]) -> bool:
    """Whether a pruner's key is on each side that one's default: then it changed with the pruner, by nobody's hand."""
    section, _, name = key.partition(".")
    if section != "search" or len({side.get("search.pruner") for side in sides}) == 1:
        return False
    own = [PRUNER_KEYS.get(str(side.get("search.pruner")), {}) for side in sides]
    return any(name in keys for keys in own) and all(
        side.get(key) == keys.get(name) for side, keys in zip(sides, own, strict=True)
    )


def back(stored: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    """The options by which one or two keys are again what they were; None where it takes more than plain values."""
    before = _defaults() | _leaves(stored)
    found = []
    for key in keys:
        value = before.get(key)
        text = json.dumps(value) if isinstance(value, bool | int | float) else str(value)
        plain = re.fullmatch(r"[\w.:/+-]+", text) and parse_override(f"{key}={text}")[1] == value
        if value is None or not plain or len(keys) > 2:
            return None
        if key in _OPTIONS:
            found.append(option(key, text))
        elif key.partition(".")[0] in ("data", "model", "train"):
            found.append(f"--set {key}={text}")
        else:
            return None
    return " ".join(found) or None


_OPTIONS = ("seed", "search.window", "data.target")
"""Keys that cannot change and have an option of `search`, which goes before `--set`."""


def _defaults() -> dict[str, Any]:
    sections = {name: field.annotation for name, field in StudyFile.model_fields.items()}
    return {f"train.{name}": value for name, value in DEFAULT_SETTINGS.items()} | {
        f"{section}.{key}": field.default
        for section, own in sections.items()
        if isinstance(own, type) and issubclass(own, BaseModel)
        for key, field in own.model_fields.items()
        if not field.is_required() and field.default is not None
    }


def joins(key: str) -> bool:
    """Whether a study goes on where this key of its question has changed: what the trials so far are worth still holds.

    Where trials are looked for, who proposes them and who stops them early may change. What a value means may not: the
    data, the split, the model, [train], the seed that all of them draw from. Nor the window, by which results count.
    """
    return key.startswith("space.") or (key.startswith("search.") and key != "search.window")


def _put(document: dict[str, Any], dotted: str, value: Any) -> None:
    *folders, key = dotted.split(".")
    table: Any = document
    for folder in folders:
        table = table.setdefault(folder, {})
        if not isinstance(table, dict):
            raise UsageError(f"{dotted!r} cannot be set: {folder!r} is a value, not a table")
    table[key] = value


def parse_override(override: str) -> tuple[str, Any]:
    """KEY=VALUE of `--set`. The value is TOML; bare words are text, so that nobody has to quote twice for the shell."""
    key, equals, text = (part.strip() for part in override.partition("="))
    if not equals or not key:
        raise UsageError(f"--set takes KEY=VALUE, got {override!r}", hint="for example --set train.epochs=5")
    try:
        return key, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        pass
    if text.startswith("[") and text.endswith("]"):
        return key, [parse_override(f"item={item}")[1] for item in text[1:-1].split(",") if item.strip()]
    return key, text


def _leaves(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= _leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
