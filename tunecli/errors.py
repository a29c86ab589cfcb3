"""Every error that a user can meet: what is wrong, the value got, and a hint that is a thing to do.

A class is an exit code: the command line turns one into the other and prints both lines, never a traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class TunecliError(Exception):
    """A mistake or a misfortune that a user can act on. `hint` is one thing to do about it."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(TunecliError):
    """The command line itself does not fit: exit 2."""

    exit_code = 2


class InputError(TunecliError):
    """Bad or incompatible input, a file or a study that does not exist included: exit 3."""

    exit_code = 3


class SpaceError(InputError):
    """A range or a search space that cannot be sampled."""


class StudyFileError(InputError):
    """A study file that does not say a question; all its faults in one message."""


class DataError(InputError):
    """Data that cannot be read, split or learned from."""


class ModelError(InputError):
    """A model that cannot be built, or does not fit its data."""


class OutOfMemory(ModelError):
    """What is computed at once does not fit into memory. `of` is the part of a plan whose half may, None where there
    is none, and `at` how much of it did not."""

    def __init__(self, message: str, *, hint: str | None = None, of: str | None = None, at: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.of, self.at = of, at


class CheckpointError(InputError):
    """A checkpoint that is missing, damaged, or of another model."""


class SourceError(InputError):
    """A user's own `file.py:function` that is missing or raised."""


class NoUsableTrial(TunecliError):
    """A study without a complete trial to go on from: exit 4."""

    exit_code = 4


class StorageError(TunecliError):
    """Storage that cannot be written, or a study held by another search: exit 5."""

    exit_code = 5


LEAST_ALIKE = 0.65
"""As difflib counts it: `sede` is near `seed`, and `acc` is not near `auroc`, nor `bayes` near `binary`."""


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """A hint that names the nearest known word, or all of them where none is near."""
    known = sorted(known)
    near = nearest(word, known)
    if near is not None:
        return f"did you mean {near!r}?"
    return f"known: {', '.join(known)}" if known else None


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one that a word begins, or that it hardly differs from, in either case; None where none is near."""
    known, word = sorted(known), word.casefold()
    begun = [own for own in known if len(word) > 1 and own.casefold().startswith(word)]
    if len(begun) == 1:
        return begun[0]
    folded = {own.casefold(): own for own in known}
    near = get_close_matches(word, folded, n=1, cutoff=LEAST_ALIKE)
    return folded[near[0]] if near else None
