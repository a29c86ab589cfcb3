"""Snapshots on disk: the newest of each run in flight, so that an interrupted search or fine-tuning loses little time.

They are a cache and never part of an answer: a damaged or foreign one is left aside, and a run without one trains from
its fresh weights again, to the same bits. Hence they are written without waiting for the disk.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch  # noqa: F401 - which saves: once training has taken all memory, nothing can be loaded

from tunecli import __version__, checkpoint
from tunecli.engine import Snapshot
from tunecli.errors import CheckpointError, StorageError
from tunecli.source import named_functions, source_file
from tunecli.trial import Measurement, Run

EVERY_SECONDS = 30.0
"""How much work a kill may cost."""

LARGEST_SHARE = 0.05
"""Of the time that may go into writing them."""

LIMIT_BYTES = 4 << 30
"""All of a study's together."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A snapshot, and what its last tick showed where that is recorded nowhere else yet."""

    snapshot: Snapshot
    measured: Measurement | None = None


class Snapshots:
    """The snapshots in `folder`. `made_by` is all that they depend on beside their run: plan, data, model, code."""

    def __init__(self, folder: Path, made_by: Mapping[str, Any]) -> None:
        self._folder, self._made_by = folder, {**made_by, "tunecli": __version__}
        self._next = time.monotonic() + EVERY_SECONDS
        self._off = False

    @property
    def due(self) -> bool:
        """Whether enough time has gone by since the last ones to write the next."""
        return not self._off and time.monotonic() >= self._next

    def write(self, runs: Iterable[Run], take: Callable[[Run], Kept | None], within_seconds: float = 60.0) -> list[str]:
        """Replace the snapshots of some runs by what `take` gives, as many as there is time for; what a user should
        know of it.

        Whatever they go on from must be committed: a run's recorded ticks, but for the one that is kept with it.
        """
        began = time.monotonic()
        runs = list(runs)
        try:
            for run in runs:
                if self._off or time.monotonic() - began > within_seconds:
                    break
                kept = take(run)
                if kept is None:
                    continue
                if (note := self._too_large(kept.snapshot, len(runs))) is not None:
                    return [note]
                self._save(run, kept)
        except StorageError as error:
            self._off = True
            return [f"{error.message}: a search that is killed trains the trials in flight anew"]
        finally:
            ended = time.monotonic()
            self._next = ended + max(EVERY_SECONDS, (ended - began) / LARGEST_SHARE)
        return []

    def load(self, run: Run) -> tuple[Kept | None, str | None]:
        """A run's snapshot, if there is one that is whole and its own; a note where there is a damaged one."""
        folder = self._place(run.trial)
        try:
            tensors, manifest = checkpoint.load(folder)
        except CheckpointError as error:
            if not folder.exists():
                return None, None
            return None, f"{error.message.replace('checkpoint', 'snapshot', 1)}: trial {run.trial} is trained anew"
        if manifest.get("run") != key_of(self._made_by, run):
            return None, None  # of a study that lay here before, or of other code
        measured = manifest["measured"]
        snapshot = Snapshot(manifest["fidelity"], tensors, manifest["numbers"])
        return Kept(snapshot, None if measured is None else Measurement(**measured)), None

    def remove(self, trial: int) -> None:
        """Remove those of a trial, and the folder where none is left."""
        if self._folder.exists():  # most searches end before there are any
            checkpoint.remove(self._place(trial))
            self._remove_empty()

    def clear(self, but: Iterable[int] = ()) -> None:
        """Remove all but those of some trials, and the folder where none is left."""
        kept = {self._place(trial).name for trial in but}
        for found in self._folder.glob("trial-*"):
            if found.name.removesuffix(".old") not in kept:
                shutil.rmtree(found, ignore_errors=True)
        self._remove_empty()

    def _remove_empty(self) -> None:
        for folder in (self._folder, self._folder.parent):
            with suppress(OSError):  # it holds something, or is not there
                folder.rmdir()

    def _place(self, trial: int) -> Path:
        return self._folder / f"trial-{trial}"

    def _save(self, run: Run, kept: Kept) -> None:
        manifest = {
            "run": key_of(self._made_by, run),
            "fidelity": kept.snapshot.fidelity,
            "numbers": dict(kept.snapshot.numbers),
            "measured": None if kept.measured is None else asdict(kept.measured),
        }
        try:
            checkpoint.save(self._place(run.trial), kept.snapshot.tensors, manifest, sync=False)
        except StorageError as error:
            # What is half written takes the room that the database needs.
            shutil.rmtree(self._place(run.trial).with_name(f"trial-{run.trial}.new"), ignore_errors=True)
            raise StorageError(error.message.replace("checkpoint", "snapshot", 1), hint=error.hint) from error

    def _too_large(self, snapshot: Snapshot, runs: int) -> str | None:
        each = sum(tensor.numel() * tensor.element_size() for tensor in snapshot.tensors.values())
        if each * runs <= LIMIT_BYTES:
            return None
        self._off = True
        return (
            f"no snapshots: {runs} trials in flight would take {each * runs / 2**30:.1f} GiB, "
            f"more than {LIMIT_BYTES / 2**30:.0f}; a search that is killed trains them anew"
        )


def key_of(made_by: Mapping[str, Any], run: Run) -> str:
    """What a run comes to depends on this alone, where `made_by` is all that it depends on beside itself: the same key,
    the same result."""
    own = run.trial, run.study_seed, dict(run.hparams), run.epochs, dict(run.settings)
    return hashlib.sha256(json.dumps([made_by, own], sort_keys=True, default=str).encode()).hexdigest()


def code_of(document: Any, base: Path) -> dict[str, str]:
    """The hash of every file that a question names as `file.py:function`: other code trains otherwise."""
    found: dict[str, str] = {}
    for name in named_functions(document):
        if (path := source_file(name, base)).is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
