"""Persistence: what it costs to keep a trial of 8 hparams and 10 reports, 32 trials at once, against Optuna's storage.

    python -m tests.benchmarks.persistence [--rounds 5] [--write]
    python -m tests.benchmarks.persistence --postgres          # a server of its own, for as long as it takes

Both sides write the same trials into an SQLite file of their own on one disk, or into studies of one PostgreSQL
database, and take turns. Optuna's are asked for,
reported and told as `study.optimize` does it, with its default storage; ours are written by the store as a search
writes them: a commit a tick, and grouped. Seconds are the wall's, for a commit waits for the disk.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import optuna

from tests import postgres as server
from tests.benchmarks import results
from tunecli.space import Choice, Float, Int, Range, Space, build_space
from tunecli.storage import Database, Shared
from tunecli.store import Store, create_study, read
from tunecli.trial import Measurement, State, Trial, Value

SLOTS, REPORTS, GOAL = 32, 10, 100

KEYS = {"optimizer": "adam", "clip_norm": {"low": 0.0, "high": 1.0}, "warmup": {"low": 0.0, "high": 0.5}}
SPACE = build_space(KEYS)
"""Eight hparams, in every trial."""


def point(space: Space, choose: random.Random) -> dict[str, Value]:
    def ask(name: str, range_: Range) -> Value:
        if isinstance(range_, Choice):
            return choose.choice(range_.values)
        return choose.uniform(range_.low, range_.high) if isinstance(range_, Float) else choose.randint(1, 9)

    return space.suggest(ask)


def distributions(space: Space) -> dict[str, optuna.distributions.BaseDistribution]:
    found: dict[str, optuna.distributions.BaseDistribution] = {}
    for own in space.dimensions:
        if isinstance(own.range, Choice):
            found[own.name] = optuna.distributions.CategoricalDistribution(own.range.values)  # type: ignore[arg-type]
        elif isinstance(own.range, Float):
            found[own.name] = optuna.distributions.FloatDistribution(own.range.low, own.range.high, log=own.range.log)
        assert not isinstance(own.range, Int)
    return found


def theirs(study: optuna.Study) -> None:
    trials = [study.ask(distributions(SPACE)) for _ in range(SLOTS)]
    for step in range(1, REPORTS + 1):
        for trial in trials:
            trial.report(0.5 + trial.number / 1000 + step / 100, step)
    for trial in trials:
        study.tell(trial, 0.6 + trial.number / 1000)


def ours(store: Store, first: int, commit: Callable[[], object]) -> None:
    choose = random.Random(first)
    trials = [Trial(first + k, State.RUNNING, point(SPACE, choose), start_tick=first + 1) for k in range(SLOTS)]
    for trial in trials:
        store.start(trial)
    for tick in range(1, REPORTS + 1):
        store.record(
            Measurement(t.number, tick, 0.1, 0.2, 0.5 + t.number / 1000 + tick / 100, 0.3, 0.01) for t in trials
        )
        if tick == REPORTS:
            for trial in trials:
                value = 0.6 + trial.number / 1000
                end = replace(trial, state=State.COMPLETE, value=value, best_tick=tick, end_tick=first + tick)
                store.end(end)
        commit()
    store.flush()


def timed(work: Callable[[], object]) -> float:
    """Milliseconds a trial."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000 / SLOTS


@contextmanager
def places(postgres: bool) -> Iterator[tuple[str, Database]]:
    """Where Optuna writes, and where we do."""
    if not postgres:
        with tempfile.TemporaryDirectory(dir=".") as folder:
            yield f"sqlite:///{folder}/theirs.db", Path(folder) / "study.db"
        return
    programs = server.find_programs()
    assert programs is not None, "no PostgreSQL here"
    with server.running(programs, fsync="on") as own:
        address = own.make("persistence")
        yield f"postgresql+psycopg{str(address).removeprefix('postgresql')}", Shared(address, "ours")


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--postgres", action="store_true")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with places(given.postgres) as (url, database):
        study = optuna.create_study(storage=url, sampler=optuna.samplers.RandomSampler(seed=0))
        create_study(
            database,
            name="persistence",
            metric="accuracy",
            direction="maximize",
            document={"search": {"trials": SLOTS}, "train": {"epochs": REPORTS}, "space": KEYS},
            plan={},
            data_hash="",
            environment={},
        )
        store = Store(database, SPACE)
        sides: dict[str, list[float]] = {"Optuna": [], "a commit a tick": [], "grouped": []}
        for place in range(given.rounds + 1):
            found = {
                "Optuna": timed(lambda: theirs(study)),
                "a commit a tick": timed(lambda first=2 * place * SLOTS: ours(store, first, store.flush)),  # type: ignore[misc]
                "grouped": timed(lambda first=(2 * place + 1) * SLOTS: ours(store, first, store.commit)),  # type: ignore[misc]
            }
            if place:  # the first is for warming up
                for name, own in found.items():
                    sides[name].append(own)
        store.close()
        kept, told = read(database).trials, study.get_trials(deepcopy=False)
        assert len(kept) == 2 * len(told)
        assert all(len(t.params) == 8 and len(t.intermediate_values) == REPORTS for t in told)
        assert all(t.fidelity == REPORTS and t.value == 0.6 + t.number / 1000 for t in kept)
    median = {name: statistics.median(own) for name, own in sides.items()}
    rows = [
        [name, f"{own:.2f}", f"{median['Optuna'] / own:.0f}", "" if name == "Optuna" else GOAL]
        for name, own in median.items()
    ]
    results.show(
        "Persistence in PostgreSQL" if given.postgres else "Persistence",
        f"{SLOTS} trials at once of 8 hparams and {REPORTS} reports each, {given.rounds} rounds in turn, medians.",
        results.table(["side", "ms a trial", "times cheaper", "goal"], rows),
        write=given.write,
        versions=("optuna", "sqlalchemy"),
    )


if __name__ == "__main__":
    main()
