"""A user's own program: a command with placeholders, `python train.py --lr {learning_rate}`."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

from tunecli.errors import StudyFileError
from tunecli.trial import Hparams, Value

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_SCRIPT_SUFFIXES = {".py", ".sh", ".bash", ".zsh", ".r", ".jl", ".js", ".rb", ".pl", ".lua", ".m"}


@dataclass(frozen=True, slots=True)
class Command:
    """A program and its arguments, as a shell would split them; each is text and placeholders in turn.

    No shell runs it, so nothing in a value has a meaning. `{{` and `}}` are braces.
    """

    arguments: tuple[tuple[tuple[str, str | None], ...], ...]

    @classmethod
    def parse(cls, text: str) -> Command:
        """Raises StudyFileError."""
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise StudyFileError(
                f"a quote is not closed in {text!r}", hint="close it, or write \\' for itself"
            ) from error
        if not words:
            raise StudyFileError("the command is empty", hint='for example "python train.py --lr {learning_rate}"')
        return cls(tuple(_parts(word) for word in words))

    @property
    def placeholders(self) -> tuple[str, ...]:
        """The hparams that it names, each once, in order."""
        return tuple(dict.fromkeys(name for word in self.arguments for _, name in word if name is not None))

    @property
    def program(self) -> str:
        return "".join(text for text, _ in self.arguments[0])

    def filled(self, hparams: Hparams) -> list[str]:
        """The arguments with each placeholder's value in its place."""
        return [
            "".join(text + ("" if name is None else _written(hparams[name])) for text, name in word)
            for word in self.arguments
        ]

    def script(self, base: Path) -> Path | None:
        """The first script file that it names: what the study is named after."""
        for word in self.arguments:
            if all(name is None for _, name in word):
                path = base / "".join(text for text, _ in word)
                if path.is_file() and (path.suffix.lower() in _SCRIPT_SUFFIXES or _has_shebang(path)):
                    return path
        return None


def _parts(word: str) -> tuple[tuple[str, str | None], ...]:
    hint = "a placeholder is {NAME}; braces that are none are written {{ and }}"
    try:
        parts = list(Formatter().parse(word))
    except ValueError as error:
        raise StudyFileError(f"unbalanced braces in {word!r}", hint=hint) from error
    for _, name, form, conversion in parts:
        if name is not None and (form or conversion or not _NAME.fullmatch(name)):
            raise StudyFileError(f"{word!r} has a placeholder that is no name", hint=hint)
    return tuple((text, name) for text, name, _, _ in parts)


def _written(value: Value) -> str:
    """A value as programs read it: the shortest text of a number that reads back the same, lists as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def _has_shebang(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(2) == b"#!"
    except OSError:
        return False
