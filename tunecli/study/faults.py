"""What is wrong with a study file: every fault, in our words."""

from __future__ import annotations

import copy
import datetime
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tunecli import data, metrics, models
from tunecli.errors import SpaceError, StudyFileError, TunecliError, did_you_mean
from tunecli.points import all_points
from tunecli.source import is_function, keys_of, source_file
from tunecli.space import DEFAULT_SETTINGS, EXHAUSTIVE, HPARAMS, build_space, example, nearest, parse_settings
from tunecli.study.duration import EXAMPLES
from tunecli.study.sections import PRUNER_KEYS, DataSection, ModelSection, SearchSection, StudyFile, TrainSection

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def faulty(where: str, faults: list[str], error: type[TunecliError] = StudyFileError) -> TunecliError:
    """Every fault in one error."""
    if len(faults) == 1:
        message, _, hint = faults[0].partition("\n")
        return error(f"{where}: {message}", hint=hint or None)
    # An example of how a key is written helps with one fault; under a list of them it is in the way.
    lines = ["  " + fault.partition("\nfor example")[0].rstrip("\n").replace("\n", "; ") for fault in faults]
    return error("\n".join([f"{where} has {len(faults)} faults:", *lines]), hint="mend these and try again")


# A fault is a line of what is wrong and, where there is one, a line of what to do about it.


_EXPECTED = {
    "model_type": "a table",
    "dict_type": "a table",
    "list_type": "a list",
    "string_type": "a text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "too_short": "three numbers, train : validation : test",
    "too_long": "three numbers, train : validation : test",
}
"""What a key takes, by the kind of pydantic's complaint. Only `split` has a length."""


def key_fault(detail: Any, file: type[BaseModel] = StudyFile) -> str:
    """One of pydantic's complaints about a `file` in our words."""
    path = [str(part) for part in detail["loc"]]
    key, section = path[-1], ".".join(path[:-1])
    place = f"in [{section}]" if section else "at the top"
    if detail["type"] == "extra_forbidden":
        of_section = None if section else _of_section(file, key)
        return f"unknown key {key!r} {place}\n{of_section or did_you_mean(key, _fields(file, section))}"
    if detail["type"] == "missing":
        example = '[data] with source = "digits", say'
        return f"{key!r} is missing {place}\n{example}" if section else f"[{key}] is missing\na study needs {example}"
    limits = detail.get("ctx", {})
    if detail["type"] in _EXPECTED:
        rule = f"expected {_EXPECTED[detail['type']]}"
    elif detail["type"] in _LIMITS:
        words, limit = _LIMITS[detail["type"]]
        rule = f"must be {words} {limits[limit]:.10g}"
    elif detail["type"] == "literal_error":
        rule = f"must be {limits['expected']}"
    else:
        rule = str(detail["msg"]).removeprefix("Input ")
    return f"{'.'.join(path)}: {rule}, got {detail['input']!r}\n{_example(file, path, detail['input']) or ''}"


_LIMITS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}


def _fields(file: type[BaseModel], section: str) -> Mapping[str, Any]:
    """The keys of a section, or of the top where it is empty."""
    fields = file.model_fields
    return fields[section].annotation.model_fields if section else fields  # type: ignore[union-attr]


def _of_section(file: type[BaseModel], key: str) -> str | None:
    """A hint at the section whose key this is, for one that stands at the top; None where it is no section's."""
    tables = {name: own.annotation for name, own in file.model_fields.items()}
    of = [name for name, own in tables.items() if isinstance(own, type) and key in getattr(own, "model_fields", {})]
    if not of and key in HPARAMS and "space" in tables:
        of = ["space"]
    return f"did you mean {' or '.join(f'{section}.{key}' for section in of)}?" if of else None


def _example(file: type[BaseModel], path: list[str], value: Any) -> str | None:
    """How the key is written that got this value, by its default."""
    section, key = (path[0], path[1]) if len(path) > 1 else ("", path[0])
    if not section and key in ("data", "model") and isinstance(value, str):
        return f"did you mean {key}.source?"
    if not section and key in ("data", "model", "program", "train", "search", "finetune", "space"):
        return f"for example a line [{key}], and below it its keys"
    fields = _fields(file, section) if section in ("", *file.model_fields) else {}
    default = fields[key].default if key in fields else None
    return f"for example {key} = {json.dumps(default)}" if isinstance(default, int | float | str | list) else None


def without(document: Mapping[str, Any], faulty: Iterable[tuple[Any, ...]]) -> dict[str, Any]:
    """The document less its faulty keys: what is left can be checked further."""
    kept = without_keys(document, faulty)
    if "source" not in kept.get("data", {}):
        kept["data"] = {"source": data.BUNDLED[0]}  # a stand-in for what was reported as missing
    return kept


def without_keys(document: Mapping[str, Any], faulty: Iterable[tuple[Any, ...]]) -> dict[str, Any]:
    kept = copy.deepcopy(dict(document))
    for section, *keys in faulty:
        if keys:
            kept.get(section, {}).pop(keys[0], None)
        else:
            kept.pop(section, None)
    return kept


def _value_faults(value: Any, key: str = "") -> list[str]:
    """Values that TOML has and the study's record, which is JSON, has not. Only `_Open` sections let them pass."""
    if isinstance(value, Mapping):
        return [fault for k, v in value.items() for fault in _value_faults(v, f"{key}.{k}" if key else k)]
    if isinstance(value, list):
        return [fault for item in value for fault in _value_faults(item, key)]
    if isinstance(value, datetime.date | datetime.time):
        return [f'{key}: expected a text instead of a date or time, got {value}\nwrite it in quotes, "{value}"']
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{key}: expected a finite number, got {value}"]
    return []


def space_faults(space: Mapping[str, Any]) -> list[str]:
    if not isinstance(space.get("model", {}), Mapping):
        rule = f"space.model: expected a table of the model's keys, got {space['model']!r}"
        return [f"{rule}\nfor example model.hidden = [64, 128]"]
    try:
        build_space(space)
    except SpaceError as error:
        named = [(line.partition(":")[0], line) for line in error.message.splitlines()]
        return [f"[space] {_with_hint(line, f'for example {example(name)}')}" for name, line in named]
    return []


def train_faults(train: TrainSection) -> list[str]:
    """Keys of [train] beside its fields: hparams that hold for every trial."""
    faults = []
    for key, value in train.keys.items():
        if key not in DEFAULT_SETTINGS:
            hint = f"it is a key of [space]: {key} = ..." if key in HPARAMS else nearest(key, _train_keys())
            faults.append(f"unknown key {key!r} in [train]\n{hint}")
            continue
        try:
            parse_settings({key: value})
        except SpaceError as error:
            example = f"for example {key} = {json.dumps(DEFAULT_SETTINGS[key])}"
            faults.append(f"[train] {_with_hint(error.message, example)}")
    return faults


def _train_keys() -> list[str]:
    return [*TrainSection.model_fields, *DEFAULT_SETTINGS]


def _with_hint(line: str, hint: str) -> str:
    """A fault of the space with its own hint where it names one: the nearest known word."""
    unknown = re.fullmatch(r"(.*?unknown (?:hyperparameter|optimizer|schedule|loss|precision) .*?): (.*)", line)
    return f"{unknown[1]}\n{unknown[2]}" if unknown else f"{line}\n{hint}"


def search_faults(search: SearchSection) -> list[str]:
    """Keys that another pruner reads, for whoever states one means that pruner, or would be misled; and no time."""
    own = PRUNER_KEYS[search.pruner]
    reads = f"it reads {', '.join(own)}" if own else "it reads none"
    others = {key for keys in PRUNER_KEYS.values() for key in keys} - own.keys()
    faults = [
        f"{key!r} in [search] is no key of the pruner {search.pruner!r}\n{reads}"
        for key in sorted(others & search.model_fields_set)
    ]
    if search.trial_timeout is not None and not search.trial_seconds:
        faults.append(f"search.trial_timeout takes a time, got {search.trial_timeout!r}\nfor example {EXAMPLES}")
    return faults


def sampler_faults(sampler: str, space: Mapping[str, Any]) -> list[str]:
    """A space that a sampler cannot list, though it is to try every point."""
    if sampler in EXHAUSTIVE and not space_faults(space):
        try:
            all_points(build_space(space))
        except SpaceError as error:
            return [f"{sampler}: {error.message}\n{error.hint}"]
    return []


def name_faults(name: str) -> list[str]:
    if NAME.fullmatch(name):
        return []
    return [f"a study's name has letters, digits, '.', '_' and '-' and no path, got {name!r}\nfor example digits-2"]


def source_faults(file: StudyFile, base: Path) -> list[str]:
    faults = _value_faults({"data": file.data.keys, "model": file.model.keys})
    try:
        data.check_source(file.data.source, base)
    except TunecliError as error:
        faults.append(f"data.source: {error.message}\n{error.hint or ''}")
    if is_function(file.data.source):
        faults += _strange_keys(file.data.keys, file.data.source, base, "data")
    elif file.data.keys:
        pictures = data.holds_pictures((base / file.data.source).expanduser())
        known = [*DataSection.model_fields, *(["size"] if pictures else [])]
        strange = [key for key in file.data.keys if key not in known]
        faults += [f"unknown key {key!r} in [data]\n{did_you_mean(key, known)}" for key in strange]
        try:
            data.picture_size(file.data.keys if pictures else {})
        except TunecliError as error:
            faults.append(f"{error.message}\n{error.hint}")
    if file.data.as_is and not data.is_arrays(base / file.data.source):
        faults.append(f"data.as_is is for arrays in a .npz file, and {file.data.source!r} is none\nleave it out")
    source = file.model.source
    searched = file.space.get("model", {})
    keys = [*file.model.keys, *(sorted(searched) if isinstance(searched, Mapping) else ())]
    if is_function(source):
        faults += _file_faults("model.source", source, base)
        faults += _strange_keys(keys, source, base, "model")
    elif source not in models.BUNDLED:
        faults.append(f'unknown model {source!r}, neither bundled nor "file.py:function"\n{_near_model(source, base)}')
    else:
        known = sorted(models.BUNDLED[source])
        for key in keys:
            if key not in known:
                faults.append(f"unknown key {key!r} of model {source!r}\n{did_you_mean(key, known) or 'it takes none'}")
    named = file.space.get("optimizer")
    for optimizer in named if isinstance(named, list) else [named]:
        if isinstance(optimizer, str) and is_function(optimizer) and not source_file(optimizer, base).is_file():
            hint = f"paths in a study file are relative to it, here {base}"
            faults.append(f"space.optimizer: no such file: {source_file(optimizer, base)}\n{hint}")
    for key, given, table, hint_for in (
        ("loss", file.train.loss, metrics.LOSSES, metrics.nearest_loss),
        ("metric", file.train.metric, metrics.METRICS, metrics.nearest_metric),
    ):
        if given is not None and is_function(given):
            faults += _file_faults(f"train.{key}", given, base)
        elif given is not None and given not in table:
            faults.append(f"unknown {key} {given!r} in [train]\n{hint_for(given)}")
    return [*faults, *_step_faults(file.train, base)]


def _near_model(source: str, base: Path) -> str | None:
    """A hint for a model that is written as Python imports it, `net.Net` or `net:Net`, or by its file alone."""
    if source.endswith(".py"):
        return f"{source}:FUNCTION"
    module, _, name = source.replace(":", ".").rpartition(".")
    file = f"{module.replace('.', '/')}.py"
    return f"did you mean {file}:{name}?" if (base / file).is_file() else did_you_mean(source, models.BUNDLED)


def _strange_keys(keys: Iterable[str], source: str, base: Path, section: str) -> list[str]:
    """Keys that a function of the user's does not take, as far as its file tells."""
    known = keys_of(source, base)
    strange = [] if known is None else [key for key in keys if key not in known]
    of_section = [*(known or ()), *(DataSection.model_fields if section == "data" else ModelSection.model_fields)]
    return [
        f"unknown key {key!r} in [{section}], which {source} does not take\n{did_you_mean(key, of_section)}"
        for key in strange
    ]


def _file_faults(key: str, source: str, base: Path) -> list[str]:
    if source_file(source, base).is_file():
        return []
    hint = f"paths in a study file are relative to it, here {base}"
    return [f"{key}: no such file: {source_file(source, base)}\n{hint}"]


def _step_faults(train: TrainSection, base: Path) -> list[str]:
    """What contradicts itself among the user's own functions in [train]."""
    faults: list[str] = []
    if train.step is not None:
        if not is_function(train.step):
            faults.append(f'train.step: expected "file.py:function", got {train.step!r}\nfor example "own.py:step"')
        else:
            faults += _file_faults("train.step", train.step, base)
        if train.loss is not None:
            faults.append("train.loss beside train.step: a step computes the loss itself\nleave one of them out")
    elif train.per_batch and not is_function(train.loss or ""):
        faults.append("train.per_batch = true without a loss or a step of your own\nthe bundled losses mix no samples")
    own = train.metric is not None and is_function(train.metric)
    if train.direction is not None and not own:
        known = metrics.METRICS.get(train.metric or "")
        if known is None or known.direction != train.direction:
            rule = f"train.direction = {train.direction!r} is for a metric of your own"
            faults.append(f"{rule}\nthe direction of {train.metric or 'a bundled metric'} is known; leave it out")
    return faults


def table_faults(file: StudyFile) -> list[str]:
    """Columns that are no question of this source, named twice or not at all; and weights of classes that are none."""
    section, faults = file.data, []
    is_file = section.source.lower().endswith(data.COLUMN_SUFFIXES)
    kinds = {"features": is_file or section.source in data.BUNDLED, "weight": is_file}
    for key, fits in kinds.items():
        if getattr(section, key) is not None and not fits:
            faults.append(f"data.{key} names columns of a table, and {section.source!r} is none\nleave it out")
    if section.features is not None:
        for role in ("target", "weight"):
            if (name := getattr(section, role)) in section.features:
                faults.append(f"data.features: {name!r} is the {role}\nleave it out of the features")
        if not section.features:
            faults.append("data.features names no column\nleave it out to use all of them")
    return faults + _class_weight_faults(file.train.class_weight)


def _class_weight_faults(given: Any) -> list[str]:
    if given in (None, "balanced"):
        return []
    as_hint = 'give "balanced", or a number a class: { yes = 3, no = 1 }'
    if not isinstance(given, Mapping) or not given:
        return [f"train.class_weight: expected 'balanced' or a table of class and weight, got {given!r}\n{as_hint}"]
    return [
        f"train.class_weight: the weight of {label!r} must be a number from 0 on, got {weight!r}\n{as_hint}"
        for label, weight in given.items()
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf
    ]
