"""A whole search, as a user types it, against the same search in plain Optuna, on one core.

    python -m tests.benchmarks.whole [--trials 1000] [--theirs 100] [--cores 1] [--write]

Ours is the command `tunecli search` on digits with the narrow mlp and every default, its start included. Theirs is what
a tutorial shows: a study with TPE in SQLite, an objective with a DataLoader, torch.optim as it is; its imports are not
counted. It takes hours for 1,000 trials, so the seconds of fewer are scaled; that favours it, for an ask of TPE costs
more the more trials there are. Ours runs between the two halves of theirs,
twice: the first search of all on a machine builds our C, where torch's comes built.
"""

from __future__ import annotations

import compileall
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
import torch

import tunecli
from tests.benchmarks import results
from tests.benchmarks.plain import EPOCHS, MIN_TICKS, REDUCTION_FACTOR, Split, accuracies, loaded, suggest
from tunecli import data
from tunecli.store import Record, read

STUDY = """name = "digits"
[data]
source = "digits"
[model]
source = "mlp"
hidden = [128]
[train]
epochs = {epochs}
[search]
trials = {trials}
"""


@dataclass
class Spent:
    """Seconds of a side: of its processes on the cores, and by the clock on the wall."""

    cpu: float = 0.0
    wall: float = 0.0


@contextmanager
def timed(spent: Spent, who: int = resource.RUSAGE_SELF) -> Iterator[None]:
    """Add what this process has used, or with RUSAGE_CHILDREN those that it started and that have ended."""
    cpu, wall = _cpu(who), time.monotonic()
    yield
    spent.cpu += _cpu(who) - cpu
    spent.wall += time.monotonic() - wall


def _cpu(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def our_search(folder: Path, cache: Path, trials: int, epochs: int = EPOCHS, *more: str) -> tuple[Spent, Record]:
    """`tunecli search` from a study file to its end; what a machine keeps for other studies lies in the `cache`."""
    folder.mkdir()
    (folder / "digits.toml").write_text(STUDY.format(trials=trials, epochs=epochs))
    compileall.compile_dir(Path(tunecli.__file__).parent, quiet=2)  # as it is where it was installed
    command = [sys.executable, "-m", "tunecli", "search", "digits.toml", "--home", ".", "--device", "cpu", *more]
    spent = Spent()
    with timed(spent, resource.RUSAGE_CHILDREN):
        subprocess.run(
            command, cwd=folder, env=os.environ | {"XDG_CACHE_HOME": str(cache)}, check=True, capture_output=True
        )
    return spent, read(folder / "digits" / "study.db")


def digits() -> Split:
    """The split of a study with seed 0."""
    own = data.load("digits", {}, base=Path(), seed=0)
    return Split(own.train.inputs, own.train.targets, own.validation.inputs, own.validation.targets)


class Theirs:
    """A study of plain Optuna that goes on by some trials at a time."""

    def __init__(self, pruner: optuna.pruners.BasePruner | None, *, reports: bool = True) -> None:
        self.spent, self.seen = Spent(), 0
        self._reports = reports
        self._split = digits()
        self._folder = tempfile.TemporaryDirectory()
        with timed(self.spent):
            self.study = optuna.create_study(
                storage=f"sqlite:///{self._folder.name}/study.db",
                direction="maximize",
                sampler=optuna.samplers.TPESampler(seed=0),
                pruner=pruner or optuna.pruners.NopPruner(),
            )

    def go_on(self, trials: int, epochs: int) -> None:
        with timed(self.spent):
            self.study.optimize(lambda trial: self._objective(trial, epochs), n_trials=trials)

    def _objective(self, trial: optuna.Trial, epochs: int) -> float:
        torch.manual_seed(trial.number)
        best = 0.0
        curve = accuracies(suggest(trial), self._split, loaded)
        for epoch in range(1, epochs + 1):
            accuracy = next(curve)
            best, self.seen = max(best, accuracy), self.seen + 1
            if self._reports:
                trial.report(accuracy, epoch)
                if trial.should_prune():
                    raise optuna.TrialPruned
        return best


def halving() -> optuna.pruners.BasePruner:
    """At our rungs."""
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=MIN_TICKS, reduction_factor=REDUCTION_FACTOR)


SIDES: dict[str, tuple[Callable[[], Theirs], str]] = {
    "no pruning": (lambda: Theirs(None, reports=False), "60x"),
    "no pruning, each epoch recorded, as ours are": (lambda: Theirs(None), ""),
    "MedianPruner": (lambda: Theirs(optuna.pruners.MedianPruner()), "20x"),
    "SuccessiveHalvingPruner at our rungs": (lambda: Theirs(halving()), "12x"),
    "SuccessiveHalvingPruner()": (lambda: Theirs(optuna.pruners.SuccessiveHalvingPruner()), ""),
}


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--trials", type=int, default=1000, help="of ours")
    parser.add_argument(
        "--theirs", type=int, default=100, help="trials of each side of theirs, scaled to those of ours"
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--sides", type=int, default=len(SIDES), help="the first so many of theirs")
    given = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
    os.environ["OMP_NUM_THREADS"] = str(given.cores)
    torch.set_num_threads(given.cores)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sides = {name: make() for name, (make, _) in list(SIDES.items())[: given.sides]}
    with tempfile.TemporaryDirectory() as scratch:
        for theirs in sides.values():
            theirs.go_on(given.theirs // 2, given.epochs)
        cache, asked = Path(scratch, "cache"), (given.trials, given.epochs)
        first, _ = our_search(Path(scratch, "first"), cache, *asked)
        ours, record = our_search(Path(scratch, "ours"), cache, *asked)
        for theirs in sides.values():
            theirs.go_on(given.theirs - given.theirs // 2, given.epochs)
    scale = given.trials / given.theirs
    seen = sum(trial.fidelity for trial in record.trials)
    each = f"{seen / given.trials:.1f}"
    rows = [["tunecli search", f"{ours.cpu:,.1f}", f"{ours.wall:,.1f}", each, "1x", "1x", ""]]
    more = f"{first.cpu / ours.cpu:.2f}x", f"{first.wall / ours.wall:.2f}x"
    rows.append(
        ["the first on a machine, which builds our C", f"{first.cpu:,.1f}", f"{first.wall:,.1f}", each, *more, ""]
    )
    for name, theirs in sides.items():
        cpu, wall = theirs.spent.cpu * scale, theirs.spent.wall * scale
        ratios = f"{cpu / ours.cpu:.1f}x", f"{wall / ours.wall:.1f}x"
        row = [f"Optuna, {name}", f"{cpu:,.0f}", f"{wall:,.0f}", f"{theirs.seen / given.theirs:.1f}"]
        rows.append([*row, *ratios, SIDES[name][1]])
    training = sum(trial.seconds for trial in record.trials)
    how = f"""
    {given.trials:,} trials of up to {given.epochs} epochs on digits, mlp 64-128-10, the default space, on {given.cores}
    core{"s" if given.cores > 1 else ""}. Ours is the command `tunecli search` with every default (tpe, asha), its start
    and the measuring of its plan included: {training:,.0f} s of it train and evaluate. Optuna's is TPE in SQLite, a
    DataLoader and torch.optim as they come; its seconds are those of {given.theirs} trials, half before ours and half
    after, times {scale:g}, its imports not counted. L1 on both sides. Over the first search of all on a machine the
    wall of {next(iter(sides))} is {next(iter(sides.values())).spent.wall * scale / first.wall:.1f} times.
    """
    head = ["side", "CPU s", "wall s", "epochs a trial", "CPU, times ours", "wall, times ours", "goal"]
    results.show(
        f"A whole search of {given.trials:,} trials against plain Optuna",
        how,
        results.table(head, rows),
        write=given.write,
        versions=("torch", "optuna"),
    )


if __name__ == "__main__":
    main()
