"""What a search finds, against plain Optuna that trains every trial to its end: `python -m tests.benchmarks.quality`.

Ours is a search with every default (tpe, asha), and by the median pruner beside. Theirs is Optuna's TPE as it comes,
one trial after another, none pruned. That 4,000 trials of theirs do not take a day, studies of several seeds go on side
by side, and the trials that they ask for at one time are rows of our engine: only the seconds depend on that, which
`rows_beside_loop` shows first.
On both sides a trial's value is its validation accuracy at its best epoch, the first of equals, and the weights tested
are those of that epoch. Sides are paired by seed; a split of digits is shared by the seeds that go on together.

The best of many readings on 180 samples is also the luckiest, and theirs are more. What a recipe is worth without that
luck is seen where it is trained anew, from other weights on other splits.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import torch
from scipy import stats

from tests.benchmarks import results
from tests.benchmarks.plain import EPOCHS, Split, accuracies, suggest
from tunecli.data import Data
from tunecli.engine import LocalEngine, Task, choose_plan
from tunecli.engine.batches import epoch_order
from tunecli.engine.compiler import can_compile
from tunecli.engine.task import build_model, evaluate, make_task
from tunecli.search import search
from tunecli.store import read
from tunecli.store.chosen import load_kept
from tunecli.study import Study, load_data, make_study
from tunecli.trial import Run

SOURCE = '''
from pathlib import Path
from tunecli.data import load

def digits(number):
    """A split of digits, the same for studies of any seed."""
    own = load("digits", {}, base=Path(), seed=number)
    return tuple((part.inputs, part.targets) for part in (own.train, own.validation, own.test))
'''

ANEW = 4
"""So many times a recipe is trained anew, on each of two splits."""


class Found(NamedTuple):
    """The best trial's accuracy on validation, that of its weights on test, and its recipe."""

    validation: float
    test: float
    hparams: Mapping[str, Any]


def study_of(folder: Path, split: int, seed: int, trials: int, pruner: str = "asha") -> Study:
    (folder / "samples.py").write_text(SOURCE)
    document = {
        "seed": seed,
        "data": {"source": "samples.py:digits", "number": split},
        "model": {"source": "mlp", "hidden": [128]},
        "train": {"epochs": EPOCHS},
        "search": {"trials": trials, "pruner": pruner},
    }
    return make_study(document, folder, f"seed-{seed}-{pruner}", where="the benchmark")


def ours(study: Study, folder: Path) -> tuple[Found, int]:
    """What our search finds, and how many epochs its trials have seen."""
    list(search(study, folder, device="cpu"))
    record = read(folder / "study.db")
    kept, own = load_kept(folder, record), load_data(study)
    module = build_model(study, own, kept.trial.hparams, 0)
    module.load_state_dict(kept.weights)
    assert kept.trial.value is not None
    accuracy = evaluate(make_task(study, own), module, own.test)
    return Found(kept.trial.value, accuracy, kept.trial.hparams), sum(trial.fidelity for trial in record.trials)


def theirs(task: Task, own: Data, seeds: Sequence[int], trials: int) -> list[tuple[Found, list[float]]]:
    """What plain Optuna finds with each seed, and the values of its trials."""
    engine = make_engine(task)
    studies = [
        optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed)) for seed in seeds
    ]
    found = [Found(-math.inf, math.nan, {}) for _ in seeds]
    seen: list[list[float]] = [[] for _ in seeds]
    for number in range(trials):
        asked = [study.ask() for study in studies]
        runs = [
            Run(number * len(seeds) + place, seed, suggest(asked[place]), EPOCHS) for place, seed in enumerate(seeds)
        ]
        values = [max(curve) for curve in train(engine, runs, own)]
        for place, (study, value) in enumerate(zip(studies, values, strict=True)):
            study.tell(asked[place], value)
            seen[place].append(value)
            if value > found[place].validation:
                found[place] = Found(value, tested(engine, task, runs[place], own), runs[place].hparams)
            engine.free(runs[place])
    return list(zip(found, seen, strict=True))


def anew(studies: Sequence[Study], recipes: Sequence[Mapping[str, Any]]) -> list[float]:
    """What each recipe is worth on the splits of these studies, by its mean test accuracy: the same weights to begin
    with for all."""
    found: list[list[float]] = [[] for _ in recipes]
    for study in studies:
        own = load_data(study)
        task = make_task(study, own)
        for hparams, seen in zip(recipes, found, strict=True):
            engine = make_engine(task)
            runs = [Run(number, study.seed, hparams, EPOCHS) for number in range(ANEW)]
            train(engine, runs, own)
            seen += [tested(engine, task, run, own) for run in runs]
    return [statistics.mean(own) for own in found]


def tested(engine: LocalEngine, task: Task, run: Run, own: Data) -> float:
    """The test accuracy of a run's weights at its best epoch."""
    module = task.build(run)
    module.load_state_dict(engine.weights(run))
    return evaluate(task, module, own.test)


def make_engine(task: Task) -> LocalEngine:
    return LocalEngine(task, replace(choose_plan(10_000, window=32), compiled=can_compile("cpu")))


def train(engine: LocalEngine, runs: Sequence[Run], own: Data) -> list[list[float]]:
    """The validation accuracy of each run after each epoch. One that diverges goes on as a plain loop does: of NaNs the
    first class is the largest."""
    lost = float((own.validation.targets == 0).double().mean())
    for run in runs:
        engine.start(run)
    curves: dict[int, list[float]] = {run.trial: [] for run in runs}
    diverged: set[int] = set()
    for _ in range(EPOCHS):
        for seen in engine.advance(math.inf):
            diverged |= {seen.trial} if seen.failure else set()
            curves[seen.trial].append(lost if seen.trial in diverged else seen.metric)
    return list(curves.values())


def rows_beside_loop(task: Task, own: Data, trials: int) -> str:
    """How rows of the engine differ from a plain loop that begins with the same weights and reads in the same order."""
    split = Split(own.train.inputs, own.train.targets, own.validation.inputs, own.validation.targets)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    runs = [Run(number, 0, suggest(study.ask()), EPOCHS) for number in range(trials)]
    rows = train(make_engine(task), runs, own)
    loops = []
    for run in runs:

        def in_order(split: Split, size: int, run: Run = run) -> Any:
            ticks = iter(range(EPOCHS))

            def epoch() -> Iterator[Any]:
                for index in epoch_order(run.seed("order", next(ticks)), len(split.train_inputs)).split(size):
                    yield split.train_inputs[index], split.train_targets[index]

            return epoch

        curve = accuracies(run.hparams, split, in_order, task.build(run))
        loops.append([next(curve) for _ in range(EPOCHS)])
    same = statistics.mean(row == loop for own in zip(rows, loops, strict=True) for row, loop in zip(*own, strict=True))
    best = [max(row) - max(loop) for row, loop in zip(rows, loops, strict=True)]
    return f"""
    Trained as rows of the engine and by a plain loop of torch.optim, from the same weights and in the same order,
    {trials} random trials show the same validation accuracy in {same:.1%} of their {trials * EPOCHS} epochs, and the
    same at their best epoch in {sum(not own for own in best)} of {trials}; it differs by {max(map(abs, best)):.4f} at
    most and by {statistics.mean(best):+.5f} on average, as float32 rounding lets training differ.
    """


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """The mean, and half the width of its 95 % interval (Student's t)."""
    count = len(differences)
    half = stats.t.ppf(0.975, count - 1) * statistics.stdev(differences) / math.sqrt(count)
    return statistics.mean(differences), float(half)


def row(name: str, pairs: Sequence[tuple[float, float]]) -> list[str]:
    """A line of the table: ours and Optuna's by seed."""
    means = [statistics.mean(pair[side] for pair in pairs) for side in (0, 1)]
    mean, half = interval([mine - found for mine, found in pairs])
    reached = "yes" if mean + half >= 0 else "no"
    return [name, *(f"{own:.4f}" for own in means), f"{mean:+.4f} ± {half:.4f}", "reaches 0", reached]


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--splits", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=5, help="of each split")
    parser.add_argument("--rows", type=int, default=24, help="trials that are trained both ways")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    pairs: list[tuple[Found, Found]] = []
    at_equal: list[tuple[float, float]] = []
    by_median: list[tuple[float, float]] = []
    epochs, epochs_by_median, agree = 0, 0, ""
    with tempfile.TemporaryDirectory() as scratch:
        for split in range(given.splits):
            seeds = range(split * given.seeds, (split + 1) * given.seeds)
            studies = [study_of(Path(scratch), split, seed, given.trials) for seed in seeds]
            own = load_data(studies[0])
            task = make_task(studies[0], own)
            agree = agree or rows_beside_loop(task, own, given.rows)
            began = time.process_time()
            optuna_found = theirs(task, own, seeds, given.trials)
            _tell(f"split {split}: Optuna {time.process_time() - began:.0f} s")
            for study, (found, values) in zip(studies, optuna_found, strict=True):
                began = time.process_time()
                mine, seen = ours(study, Path(scratch) / study.name)
                pairs.append((mine, found))
                at_equal.append((mine.validation, max(values[: math.ceil(seen / EPOCHS)])))
                epochs += seen
                pruned_less = study_of(Path(scratch), split, study.seed, given.trials, "median")
                other, seen = ours(pruned_less, Path(scratch) / pruned_less.name)
                by_median.append((other.validation, found.validation))
                epochs_by_median += seen
                _tell(f"seed {study.seed}: ours {mine}, Optuna {found}, {time.process_time() - began:.0f} s")
        others = [study_of(Path(scratch), split, split, 1) for split in (given.splits, given.splits + 1)]
        again = [anew(others, [pair[side].hparams for pair in pairs]) for side in (0, 1)]
    rows = [
        row("validation accuracy of the best trial", [(mine.validation, found.validation) for mine, found in pairs]),
        row("test accuracy of the same weights", [(mine.test, found.test) for mine, found in pairs]),
        row("test accuracy of its recipe, trained anew", list(zip(*again, strict=True))),
        row("validation accuracy, Optuna after as many epochs", at_equal),
        row("validation accuracy, ours by the median pruner", by_median),
    ]
    count = given.splits * given.seeds
    how = f"""
    {count} seeds of {given.trials} trials of up to {EPOCHS} epochs on digits, mlp 64-128-10, the default space: ours
    with every default (tpe, asha; {epochs / count:,.0f} epochs a search) and Optuna's TPE as it comes, sequential,
    nothing pruned ({given.trials * EPOCHS:,} epochs). The difference is paired by seed, its interval one of 95 %;
    splits: {given.splits}, seeds on each: {given.seeds}. A value is that of a trial's best epoch on both sides, and so
    the luckiest of many readings on 180 samples, of which theirs are {EPOCHS * given.trials * count / epochs:.1f} times
    as many. The third row is without that luck: each best recipe is trained anew, {ANEW} times on each of two other
    splits. The fourth row gives both sides as many readings: Optuna's trials that take our epochs.
    The last is what our search finds where it prunes less, in {epochs_by_median / count:,.0f} epochs.
    """
    head = ["", "ours", "Optuna", "difference", "goal", "reached"]
    title = "Quality of a search against plain Optuna without pruning"
    parts = how, results.table(head, rows), agree
    results.show(title, *parts, write=given.write, versions=("torch", "optuna"))


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
