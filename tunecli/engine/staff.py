"""The worker processes of an engine: hired, and replaced when they die, as long as others can be had."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing.connection import wait

from tunecli.engine.child import Child
from tunecli.engine.template import Template
from tunecli.engine.work import Make
from tunecli.engine.worker import Worker
from tunecli.errors import TunecliError

MOST_DEATHS = 3
"""So often a run is at work in one tick when its worker dies; after that it has failed. And so many workers die one
after another before they could begin; after that no other is hired."""


class Staff:
    """The workers that live, in the order in which they were hired. `make` makes the engine of each; `tell` is given a
    line where no other can be had any more."""

    def __init__(self, make: Make, template: Template | None, tell: Callable[[str], None]) -> None:
        self._make, self._template, self._tell = make, template, tell
        self._children: dict[Worker, Child] = {}
        self._hiring, self._stillborn = True, 0

    def __len__(self) -> int:
        return len(self._children)

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._children)

    def close(self) -> None:
        for child in self._children.values():
            child.kill()
        self._children.clear()

    def hire(self) -> Worker:
        """Another worker. Raises StorageError or DataError where it cannot be."""
        child = Child(self._make, self._template)
        worker = Worker(child)
        self._children[worker] = child
        return worker

    def wait(self, workers: Iterable[Worker], seconds: float) -> None:
        """Wait until one of the workers has said something or died, so long at most."""
        wait([self._children[worker].fileno() for worker in workers], seconds)

    def dismiss(self, worker: Worker) -> str:
        """A worker died, or is to: how it has ended."""
        child = self._children.pop(worker)
        cause = worker.fell or child.exit()
        child.kill()
        return cause

    def replace(self, worker: Worker, cause: str) -> Worker | None:
        """A worker in the place of one that was dismissed; None, which is said once, where none can be had any more."""
        self._stillborn = 0 if worker.ready else self._stillborn + 1
        reason = None
        if worker.failed is not None:
            reason = worker.failed.message
        elif self._stillborn >= MOST_DEATHS:
            reason = f"the last one {cause}"
        elif self._hiring:
            try:
                return self.hire()
            except TunecliError as error:
                reason = error.message
        if self._hiring:
            self._hiring = False
            self._tell(f"no worker process can be started: {reason}")
        if not self._children:
            self._tell("this process goes on alone")
        return None


class Deaths:
    """How often runs were at work in one tick when their worker died."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, int]] = {}

    def count(self, trials: Iterable[int], ticks: Mapping[int, int]) -> None:
        """The worker of these died: `ticks` are how many each had seen."""
        for trial in trials:
            seen = ticks.get(trial, 0)
            before, deaths = self._seen.get(trial, (-1, 0))
            self._seen[trial] = seen, deaths + 1 if before == seen else 1

    def too_many(self, trial: int) -> bool:
        """Whether it may be the run that ends them."""
        return self._seen.get(trial, (0, 0))[1] >= MOST_DEATHS

    def forget(self, trial: int) -> None:
        self._seen.pop(trial, None)
