"""Our TPE against Optuna's own: what each finds on functions with a known optimum, paired by seed, and what it takes.

    python -m tests.benchmarks.proposals [--seeds 30] [--trials 100] [--write]

Both propose to the same loop, with eight trials in flight. In spaces of real numbers and choices the two propose the
same points (tests/test_tpe.py holds that), so there the difference is zero; of equal whole numbers ours takes the
earlier trial first, and Optuna's the one that its machine's sort takes.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

from tests.benchmarks import results
from tunecli.sampler import Proposer
from tunecli.sampler.model import Model
from tunecli.sampler.tpe import Tpe
from tunecli.space import build_space
from tunecli.trial import Hparams, Measurement, State, Trial

WINDOW = 8
FIXED: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0, "batch_size": 32, "l1": 0, "l2": 0}


def coordinates(hparams: Hparams) -> list[float]:
    return [float(value) for name, value in hparams.items() if name.startswith("model.x")]  # type: ignore[arg-type]


def sphere(hparams: Hparams) -> float:
    return sum((x - 1) ** 2 for x in coordinates(hparams))


def rosenbrock(hparams: Hparams) -> float:
    xs = coordinates(hparams)
    return math.log1p(sum(100 * (b - a**2) ** 2 + (1 - a) ** 2 for a, b in pairwise(xs)))


def conditional(hparams: Hparams) -> float:
    """A valley in the logarithms of the rates, its floor lower for some optimizers."""
    floor = {"sgd": 0.2, "adam": 0.0, "adamw": 0.1}.get(str(hparams["optimizer"]), 0.5)
    optima = {"learning_rate": 2.5e-3, "l1": 1e-7, "l2": 1e-3}
    return floor + sum(math.log10(float(hparams[name]) / best) ** 2 for name, best in optima.items())  # type: ignore[arg-type]


def axes(count: int, **range_: Any) -> dict[str, Any]:
    return {**FIXED, "model": {f"x{place}": range_ for place in range(count)}}


FUNCTIONS: dict[str, tuple[dict[str, Any], Callable[[Hparams], float]]] = {
    "sphere, 5 real numbers": (axes(5, low=-5.0, high=5.0), sphere),
    "sphere, 5 whole numbers": (axes(5, low=-20, high=20), sphere),
    "Rosenbrock, 4 real numbers": (axes(4, low=-2.0, high=2.0), rosenbrock),
    "conditional, the default space": ({}, conditional),
}


def search(proposer: Proposer, value_of: Callable[[Hparams], float], trials: int) -> tuple[float, float]:
    """The best value found, and the milliseconds that a proposal took."""
    flight: list[Trial] = []
    best, spent = math.inf, 0.0
    for number in range(trials):
        if len(flight) == WINDOW:
            proposer.end(flight.pop(0))
        began = time.thread_time()
        hparams = proposer.propose(number, number + 1)
        spent += time.thread_time() - began
        value = value_of(hparams)
        best = min(best, value)
        own = Measurement(number, 1, value, value, value, 0.0, 0.0)
        trial = Trial(number, State.RUNNING, hparams, start_tick=number + 1, curve=(own,))
        flight.append(replace(trial, state=State.COMPLETE, end_tick=number + WINDOW, value=value, best_tick=1))
    return best, 1000 * spent / trials


def interval(differences: list[float]) -> tuple[float, float]:
    """What the mean lies between, by the bootstrap, at 95 %."""
    draw = random.Random(0)
    means = sorted(statistics.mean(draw.choices(differences, k=len(differences))) for _ in range(2000))
    return means[50], means[-51]


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--trials", type=int, default=100)
    given = parser.parse_args()
    rows = []
    for name, (keys, value_of) in FUNCTIONS.items():
        space = build_space(keys)
        ours, theirs = [], []
        for seed in range(given.seeds):
            ours.append(search(Tpe(space, "minimize", seed), value_of, given.trials))
            theirs.append(search(Model(space, "tpe", "minimize", seed, WINDOW), value_of, given.trials))
        differences = [mine - its for (mine, _), (its, _) in zip(ours, theirs, strict=True)]
        low, high = interval(differences)
        best = [statistics.mean(value for value, _ in side) for side in (ours, theirs)]
        times = [statistics.median(ms for _, ms in side) for side in (ours, theirs)]
        mean = f"{statistics.mean(differences):+.3f} ({low:+.3f} to {high:+.3f})"
        ratio = f"{times[1] / times[0]:.1f} x"
        rows.append([name, *(f"{value:.3f}" for value in best), mean, *(f"{ms:.2f}" for ms in times), ratio])
    head = ["best of a search", "ours", "Optuna's", "difference (95 %)", "ours, ms", "Optuna's, ms", "ratio"]
    results.show(
        "Proposals",
        f"The lowest value of {given.trials} trials, {given.seeds} seeds, paired; milliseconds of CPU a proposal.",
        results.table(head, rows),
        versions=("optuna", "numpy"),
        write=given.write,
    )


if __name__ == "__main__":
    main()
