"""A question whose trials are runs of the user's own program: an Optuna objective, or a command with placeholders."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tunecli.command import Command
from tunecli.errors import InputError, SpaceError, StudyFileError
from tunecli.machine import cores
from tunecli.source import function_name, is_function, source_file
from tunecli.space import Space, placeholder_space
from tunecli.study.faults import key_fault, name_faults, search_faults, without_keys
from tunecli.study.sections import ProgramFile, ProgramSection, SearchSection, as_toml


@dataclass(frozen=True, slots=True)
class ProgramStudy:
    """The question, checked. Paths in it are relative to `base`, where the program runs too.

    `space` holds the placeholders of a command; what an objective suggests, it alone knows.
    """

    name: str
    seed: int
    base: Path
    program: ProgramSection
    metric: str | None
    search: SearchSection
    space: Space
    space_keys: Mapping[str, Any]

    @property
    def window(self) -> int:
        """W: as stated, else one trial a core."""
        return self.search.window or cores()

    @property
    def direction(self) -> str:
        assert self.program.direction is not None  # settled by `checked_program`
        return self.program.direction

    @property
    def command(self) -> Command | None:
        return Command.parse(self.program.command) if self.program.command is not None else None

    def with_window(self, window: int) -> ProgramStudy:
        """The same question with its window stated: more trials must not change it."""
        return replace(self, search=self.search.model_copy(update={"window": window}))

    def with_trials(self, trials: int) -> ProgramStudy:
        """The same question of another length."""
        return replace(self, search=self.search.model_copy(update={"trials": trials}))

    def begun_as(self, first: ProgramStudy) -> ProgramStudy:
        """The same question as it was first stated, where both name one program: it runs where it began."""
        if self.program.objective is not None and first.program.objective is not None:
            own, theirs = (source_file(one.program.objective or "", one.base) for one in (self, first))
            names = [one.program.objective.rpartition(":")[2] for one in (self, first) if one.program.objective]
            if own == theirs and names[0] == names[1]:
                program = self.program.model_copy(update={"objective": first.program.objective})
                return replace(self, base=first.base, program=program)
        elif self.program.command == first.program.command:
            return replace(self, base=first.base)
        return self

    def document(self) -> dict[str, Any]:
        """The question as it was resolved, as TOML and JSON can hold it."""
        return {
            "name": self.name,
            "seed": self.seed,
            "base": str(self.base),
            "program": self.program.model_dump(mode="json", exclude_none=True),
            "train": {} if self.metric is None else {"metric": self.metric},
            "search": self.search.model_dump(mode="json", exclude_none=True, exclude={"keep"}),
            "space": dict(self.space_keys),
        }

    def toml(self) -> str:
        return as_toml(self.document())


PROGRAM_SAMPLERS = ("tpe", "random", "gp")
"""The samplers that can answer one question at a time, and need no memory of their own answers."""


def no_weights(name: str) -> InputError:
    """What to say to whoever asks such a study for a model."""
    return InputError(
        f"the trials of {name!r} are runs of a program, which keeps its weights itself",
        hint=f"tunecli report {name} tells the best hparams to run it with",
    )


def checked_program(document: dict[str, Any], base: Path, name: str) -> tuple[ProgramStudy | None, list[str]]:
    """The study of a program that a document states, or everything that is wrong with it."""
    faults: list[str] = []
    try:
        file = ProgramFile.model_validate(document)
    except ValidationError as error:
        faults += [_fault(detail) for detail in error.errors()]
        file = ProgramFile.model_validate(without_keys(document, [detail["loc"] for detail in error.errors()]))
    base = base / file.base if file.base is not None else base
    name = name if file.name is None else file.name
    program, space = file.program, Space(())
    faults += [*name_faults(name), *search_faults(file.search), *_search_faults(file.search)]
    if (program.objective is None) == (program.command is None):
        if not any("program" in fault for fault in faults):
            faults.append(
                '[program] has one of two keys\nobjective = "file.py:function", or command = "python train.py ..."'
            )
    elif program.objective is not None:
        faults += _objective_faults(program.objective, base, file.space)
    else:
        try:
            command = Command.parse(program.command or "")
            space = placeholder_space(command.placeholders, file.space)
        except (StudyFileError, SpaceError) as error:
            faults += [f"{line}\n{error.hint or ''}" for line in error.message.splitlines()]
    if faults:
        return None, faults
    if program.direction is None:
        path = source_file(program.objective, base) if program.objective is not None else None
        direction = (stated_direction(path) if path is not None else None) or "minimize"
        program = program.model_copy(update={"direction": direction})
    search, metric = file.search.resolved(), file.train.metric
    return ProgramStudy(name, file.seed, base, program, metric, search, space, file.space), []


def _fault(detail: Any) -> str:
    if detail["type"] == "extra_forbidden" and detail["loc"][0] in ("data", "model", "finetune"):
        return f"a study of a program has no [{detail['loc'][0]}]\nthe program has its own"
    return key_fault(detail, ProgramFile)


def _search_faults(search: SearchSection) -> Iterable[str]:
    if "keep" in search.model_fields_set:
        yield "'keep' in [search] is about checkpoints\na program keeps its own"
    if search.sampler not in PROGRAM_SAMPLERS:
        known = ", ".join(PROGRAM_SAMPLERS)
        yield f"the sampler {search.sampler!r} has to know the space beforehand\na program's can be sampled by {known}"
    if search.pruner == "hyperband":
        yield "the pruner 'hyperband' has to know how long a trial is, which no program says\nasha need not know"


def _objective_faults(objective: str, base: Path, space: Mapping[str, Any]) -> list[str]:
    faults = []
    if not is_function(objective):
        faults.append(
            f"program.objective: expected file.py:function, got {objective!r}\nfor example train.py:objective"
        )
    elif not source_file(objective, base).is_file():
        faults.append(f"no such file: {source_file(objective, base)}\npaths are relative to {base}")
    elif _is_class(source_file(objective, base), function_name(objective)):
        faults.append(
            f"an objective is a function, {function_name(objective)} is a class\n"
            f'a model of your own is named in a study file: [model] source = "{objective}"'
        )
    elif (taken := _taken_instead(source_file(objective, base), function_name(objective))) is not None:
        faults.append(
            f"an objective takes a trial, this function takes {taken}\n"
            f"data of your own are named in a study file: tunecli init {objective} drafts one"
        )
    if space:
        faults.append(
            f"[space] names {next(iter(space))!r}, but an objective names its own ranges\nchange its suggest_*"
        )
    return faults


def _defined(path: Path) -> list[ast.stmt]:
    """What a script has at its top: read, never run. Nothing where it cannot be read: the trial says what is wrong."""
    try:
        return ast.parse(path.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return []


def _is_class(path: Path, name: str) -> bool:
    return any(isinstance(own, ast.ClassDef) and own.name == name for own in _defined(path))


def _taken_instead(path: Path, function: str) -> str | None:
    """What a script's function takes that cannot be called with a trial alone. None where it can, or where it stands
    elsewhere."""
    found = [own for own in _defined(path) if isinstance(own, ast.FunctionDef) and own.name == function]
    if len(found) != 1 or found[0].decorator_list or found[0].args.vararg is not None:
        return None
    names, defaults = [own.arg for own in (*found[0].args.posonlyargs, *found[0].args.args)], found[0].args.defaults
    if not names:
        return "nothing"
    # A key with a default, `folder="data"`, is no trial: nobody gives those one.
    is_key = len(names) == len(defaults) and "trial" not in names[0] and not _suggests(found[0], names[0])
    return ", ".join(names) if is_key or len(names) - len(defaults) > 1 else None


def _suggests(function: ast.FunctionDef, name: str) -> bool:
    """Whether a function asks something called `name` for hparams."""
    asked = (node for node in ast.walk(function) if isinstance(node, ast.Attribute) and "suggest" in node.attr)
    return any(isinstance(node.value, ast.Name) and node.value.id == name for node in asked)


def stated_direction(path: Path) -> str | None:
    """The direction that a script's own `create_study` states, where it states one: read, never run."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    found = {
        keyword.value.value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[2] == "create_study"
        for keyword in call.keywords
        if keyword.arg == "direction" and isinstance(keyword.value, ast.Constant)
    }
    return str(found.pop()) if len(found) == 1 and found <= {"minimize", "maximize"} else None
