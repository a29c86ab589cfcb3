"""Outside training: what a trial costs besides its training, in studies of 100, 1,000 and 5,000 trials of 30 ticks.

    python -m tests.benchmarks.outside [--trials 100 1000 5000] [--sampler tpe] [--elsewhere] [--write]

The search is the real one, with its loop, sampler, pruner, database, checkpoints and live view; its engine is not: it
trains nothing and answers at once, by a valley in the default space. What is measured is how long that engine waits
from one tick to the next, spread over the trials; each study has a process of its own. A `report` of each follows.

With --elsewhere it is an engine of worker processes, which are away for a while in each tick: what the search does
meanwhile, it does not wait for.
"""

from __future__ import annotations

import gc
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from tests.benchmarks import results
from tunecli import live
from tunecli.engine import Plan, Traits
from tunecli.engine.task import Task
from tunecli.errors import TunecliError
from tunecli.search import fit, ledger, loop, search, shelf
from tunecli.store import Store
from tunecli.study import make_study
from tunecli.trial import Hparams, Measurement, Run, derive_seed

GOALS = {100: 2.0, 1000: 4.0, 5000: 10.0}
"""Milliseconds a trial, by the number of trials."""

MOST_MEMORY = 1.5
"""GB of a search of 5,000 trials."""

OPTIMA = {"learning_rate": 3e-3, "l1": 1e-7, "l2": 1e-3}
FLOORS = {"sgd": 0.02, "adam": 0.0, "adamw": 0.01}


def accuracy(hparams: Hparams, epoch: int, seed: int) -> float:
    """A valley in the logarithms of rates, which trials reach as the epochs go on, with some noise."""
    worse = FLOORS.get(str(hparams["optimizer"]), 0.05)
    worse += 0.02 * sum(math.log10(float(hparams[name]) / best) ** 2 for name, best in OPTIMA.items())  # type: ignore[arg-type]
    noise = (seed % 1000 / 1000 - 0.5) * 0.01
    return max(0.1, 0.98 - worse - 0.5 / epoch + noise)


TICK_SECONDS = 0.1
"""A tick of an engine that trains elsewhere; one of 64 narrow models takes two workers somewhat longer."""


class Clock:
    """How long the engine waits, by the thread's time and by the wall's, and what it waits for."""

    def __init__(self) -> None:
        # Seconds of each wait by both, and how many trials had been started by its end.
        self.waited: list[tuple[float, float, int]] = []
        self.started = 0
        self.parts: Counter[str] = Counter()
        self._left: tuple[float, float] | None = None

    def enter(self) -> None:
        """The engine's turn begins."""
        if self._left is not None:
            cpu, wall = time.thread_time() - self._left[0], time.perf_counter() - self._left[1]
            self.waited.append((cpu, wall, self.started))

    def leave(self) -> None:
        self._left = time.thread_time(), time.perf_counter()

    def time(self, owner: Any, method: str, part: str) -> None:
        own = getattr(owner, method)

        @wraps(own)
        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.thread_time()
            try:
                return own(*arguments, **options)
            finally:
                self.parts[part] += time.thread_time() - began

        setattr(owner, method, timed)


class Instant:
    """An engine that trains nothing."""

    clock: Clock

    def __init__(self, task: Task, plan: Plan, device: str = "cpu", threads: int = 1) -> None:
        self._runs: dict[int, tuple[Run, int]] = {}
        self._weights = {"weight": torch.zeros(9610)}

    def traits(self, run: Run) -> Traits:
        return Traits("rules", None)

    def plan_by(self, plan: Plan) -> None:
        pass

    def start(self, run: Run) -> None:
        self._runs[run.trial] = (run, 0)
        self.clock.started += 1

    def start_all(self, runs: Iterable[Run]) -> dict[int, TunecliError]:
        for run in runs:
            self.start(run)
        return {}

    def begin(self) -> bool:
        return False

    def advance(self, deadline: float) -> list[Measurement]:
        self.clock.enter()
        return self._measure()

    def _measure(self) -> list[Measurement]:
        measured = []
        for number, (run, fidelity) in self._runs.items():
            fidelity += 1
            metric = accuracy(run.hparams, fidelity, derive_seed(run.study_seed, number, "noise", fidelity))
            measured.append(Measurement(number, fidelity, 1 - metric, 1 - metric, metric, 1.0, 0.01))
            self._runs[number] = (run, fidelity)
        self.clock.leave()
        return measured

    def free(self, run: Run) -> None:
        self._runs.pop(run.trial, None)

    def weights(self, run: Run) -> dict[str, Tensor]:
        return self._weights

    def snapshot(self, run: Run) -> None:
        """It has nothing to go on from."""

    def epoch_updates(self, run: Run) -> int:
        return 45

    def close(self) -> None:
        pass


class Elsewhere(Instant):
    """The same in other processes: it answers after a while, in which this one is free."""

    _until: float | None = None

    def begin(self) -> bool:
        self.clock.enter()
        self._until = time.monotonic() + TICK_SECONDS
        return True

    def advance(self, deadline: float) -> list[Measurement]:
        if self._until is None:
            self.begin()
        assert self._until is not None
        time.sleep(max(min(self._until, deadline) - time.monotonic(), 0.0))
        if time.monotonic() < self._until:
            return []
        self._until = None
        return self._measure()


def measure(trials: int, sampler: str, folder: Path, engine: type[Instant]) -> dict[str, Any]:
    """Search one study; milliseconds a trial, and the most memory that the process had."""
    document = {
        "name": "outside",
        "data": {"source": "digits"},
        "model": {"source": "mlp"},
        "train": {"epochs": 30, "metric": "accuracy"},
        "search": {"trials": trials, "sampler": sampler},
    }
    study = make_study(document, folder, "outside", where="a benchmark")
    gc.freeze()  # what is loaded by now, as a command's own loading does
    clock = Clock()
    Instant.clock = clock
    fit.LocalEngine = engine  # type: ignore[assignment, misc]
    fit.repays_measuring = lambda *given: False
    made: Callable[..., Any] = loop.make_proposer

    def make_proposer(*arguments: Any) -> Any:
        proposer = made(*arguments)
        clock.time(proposer, "propose", "ask")
        clock.time(proposer, "prepare", "ask ahead")
        clock.time(proposer, "end", "tell")
        return proposer

    loop.make_proposer = make_proposer
    clock.time(ledger.Ledger, "reason_to_prune", "decide")
    clock.time(ledger.Ledger, "record", "record")
    clock.time(ledger.Ledger, "end", "tell")
    clock.time(ledger.Ledger, "start", "record")
    clock.time(shelf.Shelf, "put", "checkpoint")
    clock.time(Store, "flush", "commit")
    clock.time(live.progress.BarView, "update", "view")
    with Path(os.devnull).open("w") as nowhere:
        began = time.perf_counter()
        live.show(search(study, folder / "outside"), Console(file=nowhere, force_terminal=True, width=80))
        seconds = time.perf_counter() - began
    if not clock.waited:
        raise AssertionError("the search trained: it makes its engine elsewhere now")
    last = [cpu for cpu, _, started in clock.waited if started > 0.9 * trials]
    return {
        "trials": trials,
        "cpu": 1000 * sum(cpu for cpu, _, _ in clock.waited) / trials,
        "wall": 1000 * sum(wall for _, wall, _ in clock.waited) / trials,
        # What the last trials cost that were started, the end of the study included.
        "last": 10 * 1000 * sum(last) / trials,
        "seconds": seconds,
        "parts": {part: 1000 * spent / trials for part, spent in clock.parts.items()},
        "gigabytes": peak_gigabytes(),
    }


def peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def report(folder: Path) -> tuple[float, float]:
    """Seconds and gigabytes of `tunecli report` of the study in this home."""
    code = (
        "import resource, sys; from tunecli.cli import main\n"
        "try: main()\n"
        "except SystemExit: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, file=sys.stderr)"
    )
    began = time.perf_counter()
    command = [sys.executable, "-c", code, "report", "outside", "--home", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - began, float(done.stderr.split()[-1])


PARTS = ("ask ahead", "ask", "record", "decide", "tell", "commit", "checkpoint", "view")


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--trials", type=int, nargs="*", default=list(GOALS))
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--elsewhere", action="store_true", help="an engine of worker processes")
    parser.add_argument("--one", metavar="FOLDER", help="one study in this process, as JSON")
    given = parser.parse_args()
    if given.one:
        print(
            json.dumps(
                measure(given.trials[0], given.sampler, Path(given.one), Elsewhere if given.elsewhere else Instant)
            )
        )
        return
    figures, parts = [], []
    for trials in given.trials:
        with tempfile.TemporaryDirectory() as home:
            command = [sys.executable, "-m", "tests.benchmarks.outside", "--one", home]
            command += ["--trials", str(trials), "--sampler", given.sampler]
            command += ["--elsewhere"] if given.elsewhere else []
            found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
            seconds, gigabytes = report(Path(home))
        goal = f"{GOALS[trials]:g}" if trials in GOALS else ""
        waits = [f"{found[name]:.2f}" for name in ("cpu", "last", "wall")]
        memory = [f"{found['gigabytes']:.2f}", f"{gigabytes:.2f}", f"{seconds:.1f}"]
        figures.append([f"{trials:,} trials", goal, *waits, f"{found['seconds']:.1f}", *memory])
        own = [found["parts"].get(part, 0.0) for part in PARTS]
        rest = "" if given.elsewhere else f"{found['cpu'] - sum(own):.2f}"
        parts.append([f"{trials:,} trials", *(f"{ms:.2f}" for ms in own), rest])
    head = ["ms a trial", "goal", "got (CPU)", "its last tenth", "got (wall)", "search, s"]
    results.show(
        f"Outside training, {given.sampler}" + (", trained in worker processes" if given.elsewhere else ""),
        "Milliseconds that the engine waits for the rest of the search, a trial; 30 ticks a trial, asha, default space "
        "and window. Memory is the most that the process had, of which torch itself takes about a third of a "
        f"gigabyte; at most {MOST_MEMORY} GB are asked for.",
        results.table([*head, "search, GB", "report, GB", "report, s"], figures),
        f"What was done in ticks of {TICK_SECONDS:g} s and after them, milliseconds of CPU a trial:"
        if given.elsewhere
        else "What it waits for, milliseconds of CPU a trial; the disk is waited for besides:",
        results.table(["", *PARTS, "rest"], parts),
        versions=("torch", "optuna", "numpy", "sqlalchemy"),
        write=given.write,
    )


if __name__ == "__main__":
    main()
