"""Processes for the trials of a program, and what to say of one that cannot even begin."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tunecli.errors import InputError, SourceError
from tunecli.machine import cores
from tunecli.program import Child, wait
from tunecli.study import ProgramStudy
from tunecli.trial import derive_seed

LOAD_SECONDS = 0.1
"""How long to wait before a process that loads its script is asked again whether it is still there."""


class Launcher:
    """Starts a process for a trial: one that calls the study's objective, or one that runs its command."""

    def __init__(self, study: ProgramStudy, folder: Path) -> None:
        self._study, self._folder = study, folder

    def check(self, *, begins: bool) -> Child | None:
        """See that trials can begin; where they are calls of an objective, in the process of the first of them, which
        is returned where the study `begins` with it. Else an earlier one's logs lie where its own would.

        Raises InputError where there is no such program, SourceError where the objective cannot be loaded.
        """
        if self._study.command is not None:
            _check_program(self._study.command.program, self._study.base)
            return None
        if not begins:
            with TemporaryDirectory() as elsewhere:
                tried = Launcher(self._study, Path(elsewhere)).check(begins=True)
                assert tried is not None
                tried.kill()
            return None
        child = self.objective(0)
        try:
            while True:
                gone = child.gone
                wait([child], LOAD_SECONDS)
                for message in child.messages():
                    if "ready" in message:
                        return child
                    raise unloadable(message)
                if gone:
                    raise self.lost(child)
        except BaseException:
            child.kill()
            shutil.rmtree(self._folder / "logs", ignore_errors=True)
            raise

    def objective(self, number: int) -> Child:
        return self._start(number, {"objective": self._study.program.objective})

    def program(self, number: int, arguments: Sequence[str]) -> Child:
        return self._start(number, {"arguments": arguments, "metric": self._study.metric})

    def lost(self, child: Child) -> SourceError:
        """A process ended before its objective was loaded."""
        words = ": ".join(filter(None, [child.last_words(), printable(child.last_lines())]))
        return SourceError(
            f"{self._study.program.objective} cannot be loaded: {words}",
            hint="it has to load by itself: try it with python",
        )

    def _start(self, number: int, task: dict[str, Any]) -> Child:
        study = self._study
        about = {
            "trial": number,
            "base": str(study.base),
            "direction": study.direction,
            "seed": derive_seed(study.seed, number, "program"),
        }
        return Child(
            number,
            {**about, **task},
            folder=study.base,
            output=self._folder / "logs" / f"trial-{number}.txt",
            environment=_environment(number, study.window),
        )


def unloadable(message: dict[str, Any]) -> SourceError:
    """What a process said of an objective that it could not load."""
    hint = message["hint"] or "it has to load by itself: try it with python"
    return SourceError(printable(message["reason"]), hint=hint)


def no_objective(source: str | None, holds: str) -> SourceError:
    """What to say of a function that returns "data" or "a model"."""
    way = f"tunecli init {source} drafts one" if holds == "data" else f'[model] source = "{source}"'
    return SourceError(
        f"{source} returns {holds}, an objective returns a number",
        hint=f"{holds} of your own {'are' if holds == 'data' else 'is'} named in a study file: {way}",
    )


def printable(text: str) -> str:
    """A program's own words without what a terminal would obey."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]", "", text)).strip()


def _check_program(program: str, base: Path) -> None:
    found = shutil.which(program if os.sep not in program else str(base / program))
    if found is None:
        raise InputError(f"no program {program!r}", hint=f"it is looked for on the PATH, or from {base}")


def _environment(trial: int, window: int) -> dict[str, str]:
    """What a program finds in its environment beside what the search finds in its own, which stands."""
    # What it prints is read as it is printed, and its sets of texts have one order in every process.
    ours = {"PYTHONUNBUFFERED": "1", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": str(max(1, cores() // window))}
    return {name: value for name, value in ours.items() if name not in os.environ} | {"TUNECLI_TRIAL": str(trial)}
