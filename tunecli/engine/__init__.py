"""The engine: slots, gradients, update. A place (this process, worker processes, a cluster) is an Engine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor

from tunecli.engine.device import resolve_device
from tunecli.engine.local import LocalEngine
from tunecli.engine.plan import LOOPED, Plan, choose_plan
from tunecli.engine.processes import Processes
from tunecli.engine.snapshot import Snapshot
from tunecli.engine.task import Task
from tunecli.engine.traits import Traits
from tunecli.engine.work import engine_of
from tunecli.errors import TunecliError
from tunecli.trial import Measurement, Run

__all__ = [
    "LOOPED",
    "Engine",
    "LocalEngine",
    "Plan",
    "Processes",
    "Snapshot",
    "Task",
    "Traits",
    "choose_plan",
    "engine_of",
    "resolve_device",
]


class Engine(Protocol):
    """Trains the runs in flight, a tick at a time. Decides nothing and opens no database."""

    def start(self, run: Run) -> None:
        """Give a run a slot; it trains from the next tick on."""

    def start_all(self, runs: Iterable[Run]) -> dict[int, TunecliError]:
        """Start several; what `start` would have raised for those that cannot be, by trial."""

    def begin(self) -> bool:
        """Begin a tick where others than this thread train the runs: whether they do, so that it can do something else
        before it waits for them in `advance`."""

    def advance(self, deadline: float) -> list[Measurement]:
        """Train until runs have finished their tick or `time.monotonic()` has passed the deadline.

        The runs that finished are measured. A tick ends when every run in flight is; the next call begins another.
        Raises OutOfMemory where a plan that computes less at once may do: all runs can still be taken out then.
        """

    def free(self, run: Run) -> None:
        """Take a run's slot back; the next run takes it over."""

    def epoch_updates(self, run: Run) -> int:
        """How many updates a run makes in an epoch."""

    def weights(self, run: Run) -> dict[str, Tensor]:
        """The state dict of a run's model at its best tick so far, on the CPU."""

    def snapshot(self, run: Run) -> Snapshot | None:
        """A run's whole state as it is now, in the middle of a tick too; None where it cannot be taken out.

        That is so for an optimizer of the user's own whose state is no plain value, for a model that keeps such in
        attributes of Python, and where memory ran out in the middle of a step.
        """

    def restore(self, run: Run, snapshot: Snapshot) -> None:
        """Give a run a slot, as `start` does, and have it go on from a snapshot to bitwise the same results.

        One that was taken in the middle of a tick has only the rest of it to train in the next tick here.
        """

    def close(self) -> None:
        """End the processes that it began."""
