"""A checkpoint, trained on: on the study's own task with validation joined in, or on a new one.

The test split is read here, and each reading is recorded with its date.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunecli.home import find_database
from tunecli.loading import loading
from tunecli.storage import Database
from tunecli.store import hold


@dataclass(frozen=True, slots=True)
class Request:
    """What to train on, from where and how. None takes the study file's word, or the default.

    `trial` None is the best one. `data` is a new source, with `target` where it is a table and `data_keys` where it is
    a function. `checkpoint` is a file of weights to start from instead of the trial's. `hparams` replace the trial's.
    `fresh` trains anew what was done already, or was interrupted.
    """

    trial: int | None = None
    data: str | None = None
    target: str | None = None
    data_keys: Mapping[str, Any] | None = None
    layers: tuple[str, ...] | None = None
    epochs: int | None = None
    checkpoint: Path | None = None
    save: Path | None = None
    hparams: Mapping[str, Any] | None = None
    device: str = "auto"
    fresh: bool = False

    @property
    def new_task(self) -> bool:
        return self.data is not None or self.checkpoint is not None


@dataclass(frozen=True, slots=True)
class Notice:
    """What a user should know of what is trained on."""

    text: str


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch is done. `of` is "fine-tuning" or "from scratch"."""

    of: str
    epoch: int
    epochs: int
    train_loss: float


@dataclass(frozen=True, slots=True)
class Finetuned:
    """What came of it: the metric on the test split before, after, and for the same model from scratch by the trial's
    own recipe.

    `start` names the weights begun with, which had seen `updates_before`; `updates` were made by both. `used` says
    whether it is not worse than before: else the starting checkpoint stays the one in use. `earlier` says whether it
    is the result of an earlier call that asked for the same.
    """

    study: str
    trial: int
    data: str
    metric: str
    direction: str
    before: float
    after: float
    scratch: float
    updates: int
    updates_before: int
    epochs: int
    samples: int
    learning_rate: float
    scratch_learning_rate: float
    schedule: str
    trained: tuple[str, ...]
    new_head: bool
    start: str
    reading: int
    used: bool
    checkpoint: Path
    saved: Path | None
    earlier: bool = False


Event = Notice | Epoch | Finetuned


def finetune(
    folder: Path, request: Request, stop: Callable[[], bool] = lambda: False, database: Database | None = None
) -> Iterator[Event]:
    """Train a checkpoint of the study in `folder` on; yields each epoch, then what came of it. Its trials are in
    `database`, by default where `folder` says.

    Ends without a Finetuned where `stop()` said so; then nothing is written but snapshots, from which the same call
    goes on to bitwise the same weights (without `fresh`, which begins anew). A call that asks for nothing else than an
    earlier one, of the same samples, weights and code, trains nothing and gives that one's result.

    Raises NoUsableTrial, CheckpointError, InputError, StorageError.
    """
    with hold(folder, database or find_database(folder)) as held:
        # torch is loaded after the lock is held: what cannot begin says so at once.
        with loading():
            from tunecli.finetune.training import Training

        yield from Training(folder, held, request).events(stop)
