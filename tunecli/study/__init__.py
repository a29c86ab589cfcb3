"""Study file -> Study: the question, every key checked, all faults reported at once."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import ValidationError

from tunecli import data, models
from tunecli.errors import DataError, StudyFileError, UsageError
from tunecli.source import is_function
from tunecli.space import Space, build_space
from tunecli.study.faults import (
    faulty,
    key_fault,
    name_faults,
    sampler_faults,
    search_faults,
    source_faults,
    space_faults,
    table_faults,
    train_faults,
    without,
)
from tunecli.study.overrides import changed, option, parse_override
from tunecli.study.program import ProgramStudy as ProgramStudy
from tunecli.study.program import checked_program, no_weights
from tunecli.study.sections import (
    PRUNER_KEYS,
    DataSection,
    FinetuneSection,
    ModelSection,
    SearchSection,
    StudyFile,
    TrainSection,
    as_toml,
)


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

    def with_data(self, **keys: bool | None) -> Study:
        """The same question with it stated how its data are read, `stream` or `as_is`: what was found out once, by the
        memory of a machine or by trying the model, must not change."""
        return replace(self, data=self.data.model_copy(update=keys))

    def with_trials(self, trials: int) -> Study:
        """The same question of another length."""
        return replace(self, search=self.search.model_copy(update={"trials": trials}))

    def document(self) -> dict[str, Any]:
        """The question as it was resolved, as TOML and JSON can hold it."""
        document: dict[str, Any] = {"name": self.name, "seed": self.seed, "base": str(self.base)}
        for section in ("data", "model", "train", "search", "finetune"):
            document[section] = getattr(self, section).model_dump(mode="json", exclude_none=True)
        document["space"] = dict(self.space_keys)
        return document

    def toml(self) -> str:
        return as_toml(self.document())


Question = Study | ProgramStudy
"""What can be searched."""


_Q = TypeVar("_Q", Study, ProgramStudy)

_NOTHING: Mapping[str, Any] = MappingProxyType({})


def read_study(path: Path) -> Study:
    """The study that a TOML file states, as `read_question` reads it.

    Raises InputError where its trials are runs of a program: then there is no model here.
    """
    study = read_question(path)
    if isinstance(study, ProgramStudy):
        raise no_weights(study.name)
    return study


def read_question(path: Path, overrides: Iterable[str] = (), replaced: Mapping[str, Any] = _NOTHING) -> Question:
    """The question that a TOML file states, with `replaced` values by dotted key, and `--set` overrides (KEY=VALUE).

    Raises StudyFileError with every fault of the file.
    """
    document, base = _read(path), path.parent.resolve()
    if "program" in document:
        return make_program(document, base, path.stem, overrides, replaced, where=str(path))
    return make_study(document, base, path.stem, overrides, replaced, where=str(path))


def model_code(path: Path) -> tuple[str, Path]:
    """The source of a study's model and the folder that it is relative to: what a study file says, and nothing else.

    The rest of the question is not checked: its data may be gone. Raises StudyFileError.
    """
    document = _read(path)
    model, base = document.get("model", {}), document.get("base", "")
    source = model.get("source", ModelSection().source) if isinstance(model, dict) else model
    if not isinstance(source, str) or not isinstance(base, str):
        raise StudyFileError(f"{path} does not say its model", hint="[model] has a source, a text")
    return source, path.parent.resolve() / base


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StudyFileError(
            f"no such study file: {path}", hint="give the path of a study file or a table, or a study's name"
        ) from error
    except OSError as error:
        raise StudyFileError(f"cannot read {path}: {error.strerror}", hint="a study file is a TOML file") from error
    except UnicodeDecodeError as error:
        raise StudyFileError(
            f"{path} is not UTF-8: {error.reason} at byte {error.start}", hint="save it as UTF-8"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise StudyFileError(
            f"{path} is no TOML: {error}", hint="a line is [section], or key = value with texts in quotes"
        ) from error


def study_of_table(path: Path, overrides: Iterable[str] = (), replaced: Mapping[str, Any] = _NOTHING) -> Study:
    """The study that a table or a folder of data itself is: everything default, named after it."""
    if not path.exists():
        raise DataError(f"no such file: {path}", hint="give the path of a table, a study file or a study's name")
    path = path.absolute()
    document = default_document(path.name, path)
    return make_study(document, path.parent.resolve(), table_name(path), overrides, replaced, where=str(path))


def default_document(source: str, path: Path) -> dict[str, Any]:
    """The question that data at a path are themselves: everything is left to its default, for pictures a network of
    convolutions."""
    document: dict[str, Any] = {"data": {"source": source}}
    return document | {"model": {"source": "cnn"}} if data.holds_pictures(path) else document


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
    """The study that a document states. `base` and `name` are used where it does not state them.

    Raises StudyFileError with every fault, or UsageError where the document alone has none.
    """
    if replaced.get("program.direction") is not None:
        raise UsageError(
            "--direction is for scripts and programs",
            hint="the direction of a metric is known; for one of your own it is "
            f"--set train.direction={replaced['program.direction']}",
        )
    return _made(_checked, document, base, name, overrides, replaced, where)


def make_program(
    document: dict[str, Any],
    base: Path,
    name: str,
    overrides: Iterable[str] = (),
    replaced: Mapping[str, Any] = _NOTHING,
    *,
    where: str,
) -> ProgramStudy:
    """The study of a program that a document states, as `make_study` makes one."""
    return _made(checked_program, document, base, name, overrides, replaced, where)


def _made(
    check: Callable[[dict[str, Any], Path, str], tuple[_Q | None, list[str]]],
    document: dict[str, Any],
    base: Path,
    name: str,
    overrides: Iterable[str],
    replaced: Mapping[str, Any],
    where: str,
) -> _Q:
    """What `check` makes of a document and what was typed beside it; a fault is blamed on where it stands."""
    if "name" in replaced:  # a folder's, which nobody typed
        document = changed(document, [("name", replaced["name"])])
    changes = {
        option(key, value): (key, value) for key, value in replaced.items() if value is not None and key != "name"
    }
    changes |= {f"--set {override}": parse_override(override) for override in overrides}
    document = _with_keys_of(dict(changes.values()).get("search.pruner"), document)
    study, faults = check(changed(document, changes.values()), base, name)
    if study is not None:
        return study
    if changes and not check(changed(document, ()), base, name)[1]:
        alone = [option for option in changes if check(changed(document, [changes[option]]), base, name)[1]]
        raise faulty(" ".join(alone or changes), faults, UsageError)
    raise faulty(where, faults)


def _with_keys_of(pruner: Any, document: dict[str, Any]) -> dict[str, Any]:
    """The document without what it says to its own pruner alone, where another one was typed; unchanged for None."""
    search = document.get("search")
    if not isinstance(search, dict) or not isinstance(pruner, str) or pruner not in PRUNER_KEYS:
        return document
    if pruner == search.get("pruner", "asha"):
        return document
    others = {key for keys in PRUNER_KEYS.values() for key in keys} - PRUNER_KEYS[pruner].keys()
    return {**document, "search": {key: value for key, value in search.items() if key not in others}}


def _checked(document: dict[str, Any], base: Path, name: str) -> tuple[Study | None, list[str]]:
    """The study that a document states, or everything that is wrong with it."""
    faults: list[str] = []
    try:
        file = StudyFile.model_validate(document)
    except ValidationError as error:
        # What can still be checked is, so that a user mends the file once.
        faults += [key_fault(detail) for detail in error.errors()]
        file = StudyFile.model_validate(without(document, [detail["loc"] for detail in error.errors()]))
    base = base / file.base if file.base is not None else base
    name = name if file.name is None else file.name
    faults += [
        *name_faults(name),
        *train_faults(file.train),
        *space_faults(file.space),
        *search_faults(file.search),
        *sampler_faults(file.search.sampler, file.space),
        *source_faults(file, base),
        *table_faults(file),
    ]
    if faults:
        return None, faults
    study = Study(
        name=name,
        seed=file.seed,
        base=base,
        data=file.data,
        model=file.model,
        train=file.train,
        search=file.search.resolved(),
        finetune=file.finetune,
        space=build_space(file.space, file.train.model_dump(exclude_none=True)),
        space_keys=file.space,
    )
    return study, []


def load_data(study: Study) -> data.Data:
    """The study's data, split and prepared."""
    section = study.data
    loaded = data.load(
        section.source,
        section.keys,
        base=study.base,
        seed=study.seed,
        split=tuple(section.split),
        target=section.target,
        features=section.features,
        weight=section.weight,
        task=section.task,
        embed=study.model.source in models.EMBEDDING,
        targets=targets_of(study),
        cache=section.cache,
        workers=section.workers,
        stream=section.stream,
        as_is=section.as_is or False,
        scale_bytes=not is_function(study.model.source),
    )
    class_weight = study.train.class_weight
    return loaded if class_weight is None else data.weigh(loaded, class_weight)


def targets_of(study: Study) -> str:
    """What a study needs of a user's targets: "one" a sample, "any" for a loss of their own, "optional" for a step
    whose metric is its loss."""
    train = study.train
    if train.step is not None:
        return "optional" if train.metric in (None, "loss") else "any"
    return "any" if train.loss is not None and is_function(train.loss) else "one"
