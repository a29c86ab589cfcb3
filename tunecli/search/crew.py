"""The worker processes of a search: how many of them, and from when on."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tunecli.data import Data
from tunecli.engine import Engine, Processes, engine_of
from tunecli.engine.plan import Plan
from tunecli.engine.task import Task
from tunecli.engine.template import Template
from tunecli.search.fit import Fitted
from tunecli.study import Study
from tunecli.study.program import cores
from tunecli.trial import Run

FORKED_REPAYS_SECONDS = 1.0
"""What workers must spare to be started. It takes them a fifth of a second of a core until each trains as fast as it
can; but of how far trials come the first ticks show little, and more seems to be left than is."""

SPAWNED_REPAYS_SECONDS = 2.5
"""The same where each is a new Python, which has to load torch first: on two cores it took two to break even."""

SHARED_ROWS = 4
"""What a step costs that does not depend on how many rows it computes, in rows: 3 to 5 for a narrow mlp and a cnn. C of
our own that trains one row after the other shares nothing among them."""

CROWDED = 1.3
"""How much longer a core takes while the others compute too, with which it shares memory, and often more."""


def spared(seconds: float, *, rows: int, block_rows: int, workers: int) -> float:
    """What so many workers spare of the seconds that one process would train `rows` trials at a time: less than their
    share, where it computes them by blocks and they would share the cost of a step."""

    def cost(rows: int) -> int:
        return SHARED_ROWS * -(-rows // block_rows) + rows

    return seconds * (1 - CROWDED * cost(-(-rows // workers)) / cost(rows))


class Crew:
    """Has the trials of a study trained by worker processes, which are forked from the template if there is one.

    `tell` takes a line for the user.
    """

    def __init__(
        self,
        study: Study,
        data: Data,
        task: Task,
        device: str,
        template: Template | None,
        tell: Callable[[str], None],
    ) -> None:
        self._study, self._data, self._task, self._device = study, data, task, device
        # A GPU's driver need not bear what the search did with it when there was no template yet.
        self._template = template if device == "cpu" else None
        self._tell = tell
        self.count = 0

    def useful(self, workers: int, left: int) -> int:
        """So many workers, but no more than there will ever be trials in flight for, where so many are `left`."""
        most = min(self._study.window, max(1, left))
        if workers > most:
            trials = "1 trial is" if most == 1 else f"{most} trials are"
            why = f"only {trials} left" if left < self._study.window else f"{trials} in flight at a time"
            self._tell(f"--workers {workers}: {most} {'is' if most == 1 else 'are'} enough, {why}")
        return min(workers, most)

    def repaid(self, fitted: Fitted, seconds: float) -> int:
        """How many workers repay their start where one process would still train for so long; 0 for none.

        One a core, or for as many cores as a process has threads; and none without trials of its own to train, two of
        which are computed at once in little more than the time of one.
        """
        plan, window = fitted.plan, self._study.window
        rows = 1 if fitted.looped_because or fitted.chained else plan.block_rows  # that share what a step costs
        workers = min(cores() // plan.threads, -(-window // min(rows, 2)))
        if workers < 2 or self._device != "cpu":
            return 0
        repays = FORKED_REPAYS_SECONDS if self._template is not None else SPAWNED_REPAYS_SECONDS
        return workers if spared(seconds, rows=window, block_rows=rows, workers=workers) >= repays else 0

    def employ(self, workers: int, here: Engine, plan: Plan, moving: Iterable[Run]) -> Engine:
        """An engine of so many processes. `here` goes on with the runs that are to move, until they are all there.

        Raises StorageError or DataError where they cannot be.
        """
        make = engine_of(self._study, self._data, self._task, plan, self._device)
        engine = Processes(here, make, workers, self._study.window, self._tell, moving, self._template)
        self.count = workers
        return engine
