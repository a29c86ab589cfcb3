"""Study file -> Study: the question, every key checked, all faults reported at once."""

from __future__ import annotations

import copy
import datetime
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args

import tomlkit
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tunecli import data, metrics, models
from tunecli.errors import DataError, SpaceError, StudyFileError, TunecliError, UsageError, did_you_mean
from tunecli.source import is_function, source_file
from tunecli.space import PRUNERS, SAMPLERS, Space, build_space

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Open(_Section):
    """A section whose other keys go to a function or a bundled model, which checks them."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    @property
    def keys(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class DataSection(_Open):
    source: str
    target: str | None = None
    split: Annotated[list[Share], Field(min_length=3, max_length=3)] = [8, 1, 1]
    task: Literal["classification", "regression"] | None = None


class ModelSection(_Open):
    source: str = "mlp"


class TrainSection(_Section):
    epochs: Positive = 30
    loss: str | None = None
    metric: str | None = None
    decay_biases: bool = True


class SearchSection(_Section):
    trials: Positive = 100
    sampler: Literal["tpe", "random"] = "tpe"
    pruner: Literal["asha", "none"] = "asha"
    window: Positive | None = None
    keep: Positive = 5
    min_ticks: Positive = 3
    reduction_factor: Annotated[int, Field(ge=2)] = 3


class FinetuneSection(_Section):
    layers: list[str] | None = None
    epochs: Positive | None = None


class _File(_Section):
    name: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    base: str | None = None
    data: DataSection
    model: ModelSection = ModelSection()
    train: TrainSection = TrainSection()
    space: dict[str, Any] = {}
    search: SearchSection = SearchSection()
    finetune: FinetuneSection = FinetuneSection()


assert get_args(SearchSection.model_fields["sampler"].annotation) == SAMPLERS
assert get_args(SearchSection.model_fields["pruner"].annotation) == PRUNERS


@dataclass(frozen=True, slots=True)
class Study:
    """The question, checked. Paths in it are relative to `base`."""

    name: str
    seed: int
    base: Path
    data: DataSection
    model: ModelSection
    train: TrainSection
    search: SearchSection
    finetune: FinetuneSection
    space: Space
    space_keys: Mapping[str, Any]

    @property
    def window(self) -> int:
        """W: as stated, else an eighth of the trials, between 8 and 64."""
        return self.search.window or min(64, max(8, self.search.trials // 8))

    def with_window(self, window: int) -> Study:
        """The same question with its window stated: more trials must not change it."""
        return replace(self, search=self.search.model_copy(update={"window": window}))

    def document(self) -> dict[str, Any]:
        """The question as it was resolved, as TOML and JSON can hold it."""
        document: dict[str, Any] = {"name": self.name, "seed": self.seed, "base": str(self.base)}
        for section in ("data", "model", "train", "search", "finetune"):
            document[section] = getattr(self, section).model_dump(mode="json", exclude_none=True)
        document["space"] = dict(self.space_keys)
        return document

    def toml(self) -> str:
        head = "# The question as it was resolved when this study began. Later commands take code from here.\n"
        return head + tomlkit.dumps({k: v for k, v in self.document().items() if v != {}})


_NOTHING: Mapping[str, Any] = MappingProxyType({})


def read_study(path: Path, overrides: Iterable[str] = (), replaced: Mapping[str, Any] = _NOTHING) -> Study:
    """The study that a TOML file states, with `replaced` values by dotted key, and `--set` overrides (KEY=VALUE).

    Raises StudyFileError with every fault of the file.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StudyFileError(f"no such study file: {path}") from error
    except OSError as error:
        raise StudyFileError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise StudyFileError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
    except tomllib.TOMLDecodeError as error:
        raise StudyFileError(f"{path} is no TOML: {error}") from error
    return make_study(document, path.parent.resolve(), path.stem, overrides, replaced, where=str(path))


def study_of_table(path: Path, overrides: Iterable[str] = (), replaced: Mapping[str, Any] = _NOTHING) -> Study:
    """The study that a table itself is: everything default, named after the file."""
    if not path.is_file():
        raise DataError(f"no such file: {path}", hint="give the path of a table, a study file or a study's name")
    document: dict[str, Any] = {"data": {"source": path.name}}
    return make_study(document, path.parent.resolve(), table_name(path), overrides, replaced, where=str(path))


def table_name(path: Path) -> str:
    """The name of the study that a table is: its stem, with what a name cannot have made dashes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-.") or "table"


def make_study(
    document: dict[str, Any],
    base: Path,
    name: str,
    overrides: Iterable[str] = (),
    replaced: Mapping[str, Any] = _NOTHING,
    *,
    where: str,
) -> Study:
    """The study that a document states. `base` and `name` are used where it does not state them."""
    document = copy.deepcopy(document)
    for key, value in replaced.items():
        if value is not None:
            _put(document, key, value)
    for override in overrides:
        _put(document, *parse_override(override))
    faults: list[str] = []
    try:
        file = _File.model_validate(document)
    except ValidationError as error:
        # What can still be checked is, so that a user mends the file once.
        faults += [_fault(detail) for detail in error.errors()]
        file = _File.model_validate(_without(document, [detail["loc"] for detail in error.errors()]))
    base = base / file.base if file.base is not None else base
    name = name if file.name is None else file.name
    faults += [*_name_faults(name), *_space_faults(file.space), *_source_faults(file, base)]
    if faults:
        raise _faulty(where, faults)
    return Study(
        name=name,
        seed=file.seed,
        base=base,
        data=file.data,
        model=file.model,
        train=file.train,
        search=file.search,
        finetune=file.finetune,
        space=build_space(file.space),
        space_keys=file.space,
    )


def load_data(study: Study) -> data.Data:
    """The study's data, split and prepared."""
    section = study.data
    return data.load(
        section.source,
        section.keys,
        base=study.base,
        seed=study.seed,
        split=tuple(section.split),
        target=section.target,
        task=section.task,
    )


def differences(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Where a question contradicts the one that a study was begun with, a line each; more trials do not."""
    free = {"base", "search.trials", "search.keep", "search.window", "finetune.layers", "finetune.epochs", "name"}
    before, now = _leaves(stored), _leaves(asked)

    def shown(leaves: Mapping[str, Any], key: str) -> str:
        return json.dumps(leaves[key]) if key in leaves else "not set"

    return [
        f"{key}: {shown(before, key)} -> {shown(now, key)}"
        for key in sorted(before.keys() | now.keys())
        # Compared as values, so that 0 and 0.0 ask the same question.
        if key not in free and (key not in before or key not in now or before[key] != now[key])
    ]


def _faulty(where: str, faults: list[str]) -> StudyFileError:
    if len(faults) == 1:
        message, _, hint = faults[0].partition("\n")
        return StudyFileError(f"{where}: {message}", hint=hint or None)
    lines = ["  " + "; ".join(filter(None, fault.split("\n"))) for fault in faults]
    return StudyFileError("\n".join([f"{where} has {len(faults)} faults:", *lines]), hint="mend these and try again")


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


def _fault(detail: Any) -> str:
    """One of pydantic's complaints in our words."""
    path = [str(part) for part in detail["loc"]]
    key, section = path[-1], ".".join(path[:-1])
    place = f"in [{section}]" if section else "at the top"
    if detail["type"] == "extra_forbidden":
        fields = _File.model_fields
        known = fields if not section else fields[section].annotation.model_fields  # type: ignore[union-attr]
        return f"unknown key {key!r} {place}: {did_you_mean(key, known)}"
    if detail["type"] == "missing":
        return f"{key!r} is missing {place}" if section else f"[{key}] is missing: a study needs at least data.source"
    if detail["type"] in _EXPECTED:
        return f"{'.'.join(path)}: expected {_EXPECTED[detail['type']]}, got {detail['input']!r}"
    return f"{'.'.join(path)}: {detail['msg'].removeprefix('Input ')}, got {detail['input']!r}"


def _without(document: Mapping[str, Any], faulty: Iterable[tuple[Any, ...]]) -> dict[str, Any]:
    """The document less its faulty keys: what is left can be checked further."""
    kept = copy.deepcopy(dict(document))
    for section, *keys in faulty:
        if keys:
            kept.get(section, {}).pop(keys[0], None)
        else:
            kept.pop(section, None)
    if "source" not in kept.get("data", {}):
        kept["data"] = {"source": data.BUNDLED[0]}  # a stand-in for what was reported as missing
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


def _space_faults(space: Mapping[str, Any]) -> list[str]:
    if not isinstance(space.get("model", {}), Mapping):
        return [f"space.model: expected a table of the model's keys, got {space['model']!r}"]
    try:
        build_space(space)
    except SpaceError as error:
        return [f"[space] {line}" for line in error.message.splitlines()]
    return []


def _name_faults(name: str) -> list[str]:
    if NAME.fullmatch(name):
        return []
    return [f"a study's name has letters, digits, '.', '_' and '-' and no path, got {name!r}"]


def _source_faults(file: _File, base: Path) -> list[str]:
    faults = _value_faults({"data": file.data.keys, "model": file.model.keys})
    try:
        data.check_source(file.data.source, base)
    except TunecliError as error:
        faults.append(f"data.source: {error.message}\n{error.hint or ''}")
    if file.data.keys and not is_function(file.data.source):
        known = list(DataSection.model_fields)
        faults += [f"unknown key {key!r} in [data]: {did_you_mean(key, known)}" for key in file.data.keys]
    source = file.model.source
    searched = file.space.get("model", {})
    if is_function(source):
        if not source_file(source, base).is_file():
            hint = f"paths in a study file are relative to it, here {base}"
            faults.append(f"model.source: no such file: {source_file(source, base)}\n{hint}")
    elif source not in models.BUNDLED:
        nearest = did_you_mean(source, models.BUNDLED)
        faults.append(f'unknown model {source!r}, neither bundled nor "file.py:function": {nearest}')
    else:
        known = sorted(models.BUNDLED[source])
        for key in [*file.model.keys, *(sorted(searched) if isinstance(searched, Mapping) else ())]:
            if key not in known:
                faults.append(f"unknown key {key!r} of model {source!r}: {did_you_mean(key, known) or 'it takes none'}")
    for key, given, table in (
        ("loss", file.train.loss, metrics.LOSSES),
        ("metric", file.train.metric, metrics.METRICS),
    ):
        if given is not None and given not in table:
            faults.append(f"unknown {key} {given!r} in [train]: {did_you_mean(given, table)}")
    return faults


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
