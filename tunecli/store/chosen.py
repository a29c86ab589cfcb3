"""The trial that a later command goes on from, and its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunecli import checkpoint
from tunecli.errors import CheckpointError, InputError, NoUsableTrial
from tunecli.home import checkpoint_folder
from tunecli.store.record import Record
from tunecli.study.program import no_weights
from tunecli.trial import State, Trial, best_trial

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Kept:
    """A trial and its checkpoint, verified. `notices` say which better ones are damaged, so that it stands in."""

    trial: Trial
    weights: Mapping[str, Tensor]
    manifest: Mapping[str, Any]
    notices: tuple[str, ...] = ()


def load_kept(folder: Path, record: Record, number: int | None = None) -> Kept:
    """The best complete trial whose checkpoint is whole; or trial `number` and no other.

    Raises NoUsableTrial where no trial is complete, InputError where `number` or the whole study has no checkpoint,
    CheckpointError where its checkpoint is damaged or none is left.
    """
    if record.of_program:
        raise no_weights(record.name)
    if number is not None:
        trial = _trial(record, number)
        return Kept(trial, *_load(folder, record, trial))
    candidates = [trial for trial in record.trials if trial.state is State.COMPLETE and trial.number in record.kept]
    best = best_trial(list(record.trials), record.direction)
    if best is None:
        raise _none_complete(record)
    damaged: dict[int, CheckpointError] = {}
    own: Trial | None = best
    while own is not None:
        try:
            weights, manifest = _load(folder, record, own)
        except CheckpointError as error:
            damaged[own.number] = error
            candidates = [trial for trial in candidates if trial.number not in damaged]
            own = best_trial(candidates, record.direction)
            continue
        notices = (f"{error.message}; trial {own.number} stands in for trial {it}" for it, error in damaged.items())
        return Kept(own, weights, manifest, tuple(notices))
    if len(damaged) == 1:
        raise damaged[best.number]
    lines = "\n".join(f"  {error.message}" for error in damaged.values())
    raise CheckpointError(
        f"all {len(damaged)} checkpoints of {record.name} are damaged:\n{lines}",
        hint="run the search again with --fresh",
    )


def _none_complete(record: Record) -> NoUsableTrial:
    """A search goes on only where trials are missing: why all of them came to nothing, the report tells."""
    ended, asked = sum(trial.state.ended for trial in record.trials), int(record.document["search"]["trials"])
    if ended < asked:
        return NoUsableTrial(f"{record.name} has no complete trial yet", hint=f"tunecli search {record.name}")
    return NoUsableTrial(
        f"none of the {ended} trials of {record.name} is complete", hint=f"tunecli report {record.name} tells why"
    )


def _trial(record: Record, number: int) -> Trial:
    if number >= len(record.trials):
        raise InputError(
            f"{record.name} has no trial {number}: it has {len(record.trials)} trials, counted from 0",
            hint=f"tunecli report {record.name} lists the best",
        )
    if number not in record.kept:
        kept = ", ".join(str(own) for own in sorted(record.kept)) or "none"
        raise InputError(f"trial {number} has no checkpoint; kept are those of {kept}", hint="choose one of these")
    return record.trials[number]


def _load(folder: Path, record: Record, trial: Trial) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the manifest of a trial, those that the study recorded. Raises CheckpointError."""
    place = checkpoint_folder(folder, trial.number)
    weights, manifest = checkpoint.load(place)
    if record.kept.get(trial.number) != manifest["sha256"]:
        raise checkpoint.damaged(place, "is not the one that the study recorded")
    return weights, manifest
