"""The trial that a later command goes on from, and its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunecli import checkpoint
from tunecli.errors import CheckpointError, InputError, NoUsableTrial
from tunecli.home import checkpoint_folder
from tunecli.store.reader import Record
from tunecli.trial import Trial, best_trial

if TYPE_CHECKING:
    from torch import Tensor


def choose_trial(record: Record, number: int | None) -> Trial:
    """The best complete trial, or trial `number`. Raises NoUsableTrial or InputError where it has no checkpoint."""
    if number is None:
        best = best_trial(list(record.trials), record.direction)
        if best is None:
            raise NoUsableTrial(f"{record.name} has no complete trial yet", hint=f"tunecli search {record.name}")
        return best
    if number >= len(record.trials):
        raise InputError(
            f"{record.name} has no trial {number}: it has {len(record.trials)} trials, counted from 0",
            hint=f"tunecli report {record.name} lists the best",
        )
    if number not in record.kept:
        kept = ", ".join(str(own) for own in sorted(record.kept)) or "none"
        raise InputError(f"trial {number} has no checkpoint; kept are those of {kept}", hint="choose one of these")
    return record.trials[number]


def load_checkpoint(folder: Path, record: Record, trial: Trial) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the manifest of a trial, those that the study recorded. Raises CheckpointError."""
    place = checkpoint_folder(folder, trial.number)
    weights, manifest = checkpoint.load(place)
    if record.kept.get(trial.number) != manifest["sha256"]:
        raise CheckpointError(
            f"damaged checkpoint: {place} is not the one that the study recorded", hint=checkpoint.DAMAGED_HINT
        )
    return weights, manifest
