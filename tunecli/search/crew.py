"""Who trains in a search: this process or workers, how many and from when on, and by which plan once memory ran out."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tunecli.data import Data
from tunecli.engine import Engine, LocalEngine, Plan, Processes, engine_of
from tunecli.engine.device import release_memory
from tunecli.engine.plan import lessened
from tunecli.engine.template import Template
from tunecli.errors import OutOfMemory, TunecliError
from tunecli.machine import cores
from tunecli.search.fit import Fitted
from tunecli.study import Study
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
    """Who trains the trials of a study, with which `engine` and by which `plan`: this process, or worker processes,
    forked from the template if there is one. `tell` takes a line for the user.
    """

    def __init__(
        self, study: Study, data: Data, fitted: Fitted, template: Template | None, tell: Callable[[str], None]
    ) -> None:
        self.engine: Engine = fitted.engine
        self.plan = fitted.plan
        self._study, self._data, self._fitted, self._tell = study, data, fitted, tell
        # A GPU's driver need not bear what the search did with it when there was no template yet.
        self._template = template if fitted.device == "cpu" else None
        self._workers = 0
        self._before_shortage: Plan | None = None

    def close(self) -> None:
        self.engine.close()

    @property
    def threads(self) -> int:
        """How many compute in this process where there are no workers."""
        return cores() if self._fitted.native and self._fitted.device == "cpu" else self.plan.threads

    def useful(self, workers: int, left: int) -> int:
        """So many workers, but no more than there will ever be trials in flight for, where so many are `left`."""
        most = min(self._study.window, max(1, left))
        if workers > most:
            trials = "1 trial is" if most == 1 else f"{most} trials are"
            why = f"only {trials} left" if left < self._study.window else f"{trials} in flight at a time"
            self._tell(f"--workers {workers}: {most} {'is' if most == 1 else 'are'} enough, {why}")
        return min(workers, most)

    def repaid(self, seconds: float) -> int:
        """How many workers repay their start where one process would still train for so long; 0 for none.

        One a core, or for as many cores as a process has threads; and none without trials of its own to train, two of
        which are computed at once in little more than the time of one. None where C trains the rows, which every core
        shares without: what workers hear and tell costs them more than they gain by deciding nothing.
        """
        fitted, window = self._fitted, self._study.window
        rows = 1 if fitted.looped_because else self.plan.block_rows  # that share what a step costs
        workers = min(cores() // self.plan.threads, -(-window // min(rows, 2)))
        if workers < 2 or fitted.device != "cpu" or fitted.native:
            return 0
        repays = FORKED_REPAYS_SECONDS if self._template is not None else SPAWNED_REPAYS_SECONDS
        return workers if spared(seconds, rows=window, block_rows=rows, workers=workers) >= repays else 0

    def employ(self, workers: int, moving: Iterable[Run] = ()) -> None:
        """Have so many processes train. The runs that are to move go on here, until all processes are there.

        Raises StorageError or DataError where they cannot be.
        """
        make = engine_of(self._study, self._data, self._fitted.task, self.plan, self._fitted.device)
        window = self._study.window
        self.engine = Processes(self.engine, make, workers, window, self._tell, moving, self._template)
        self._workers = workers

    def hand_over(self, workers: int, moving: Iterable[Run]) -> None:
        """`employ` in the middle of a search, where nobody asked for it: this process goes on alone where it cannot."""
        try:
            self.employ(workers, moving)
        except TunecliError as error:
            self._tell(f"{error.message}; this process trains alone")
        else:
            self._tell(f"{workers} worker processes take over, which changes no result")

    def lesser_plan(self, error: OutOfMemory) -> Plan:
        """The plan by which half as much is computed at once, after memory ran out. Raises the error where there is
        nothing to halve."""
        if error.of is None:
            raise error
        return self.plan.halved(error.of, error.at)

    def compute_by(self, plan: Plan) -> None:
        """Have a new engine compute by this plan; whoever has runs in the one before has taken them out."""
        self._before_shortage = self._before_shortage or self.plan
        self.engine.close()
        release_memory()
        self.engine = LocalEngine(self._fitted.task, plan, self._fitted.device, threads=cores())
        self.plan = plan
        if self._workers:
            self.employ(self._workers)

    def tell_shortage(self) -> None:
        """Say once, when a tick is through with it, that less is computed at once now."""
        if self._before_shortage is not None:
            self._tell(f"memory ran out: {' and '.join(lessened(self._before_shortage, self.plan))}")
            self._before_shortage = None
