"""Two cores: threads, worker processes, and the loops that people write at their best thread count.

    python -m tests.benchmarks.cores [MODEL ...] [--cores 2] [--trials 32] [--rounds 5] [--write]

An epoch of so many recipes of the default space (its mix of optimizers and batch sizes, without L1), evaluation
included. The sides take turns, A B A B, each in a process of its own:

    P x T   the engine under the plan of a study with a window of 32: P processes of T threads each, which share the
            trials that C trains and are torch's elsewhere; a search takes the threads where C trains the model, and
            else the processes
    res T   a plain loop on tensors in memory, Adam(fused=True), on T threads
    DL T    the same with a DataLoader, as in every tutorial

Times are wall time: they mean something on an idle machine only.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection

import torch

from tests.benchmarks import results
from tests.benchmarks.slots import is_native, loaded, plain, resident, sample_runs
from tests.benchmarks.zoo import ZOO, make_task, measure
from tunecli.engine import Engine, LocalEngine, Plan, Processes, choose_plan
from tunecli.engine.compiler import can_compile
from tunecli.trial import Run

WINDOW, SAMPLES = 32, 1437

Announce = Callable[[tuple[int, ...]], None]


def make_local(name: str, plan: Plan, threads: int, announce: Announce = lambda trials: None) -> LocalEngine:
    return LocalEngine(make_task(name, SAMPLES), plan, "cpu", announce, threads)


def engine_epoch(engine: Engine, runs: Sequence[Run]) -> Callable[[], None]:
    for run in runs:
        engine.start(run)

    def epoch() -> None:
        found = 0
        while found < len(runs):
            found += len(engine.advance(time.monotonic() + 60))

    return epoch


def make_epoch(side: str, name: str, trials: int) -> Callable[[], None]:
    task, runs = make_task(name, SAMPLES), sample_runs(0, None, l1=False)[:trials]
    kind, _, threads = side.rpartition(" ")
    if kind in ("res", "DL"):
        torch.set_num_threads(int(threads))
        return plain(task, runs, resident if kind == "res" else loaded)
    processes = kind.partition(" ")[0]
    weights = sum(p.numel() for p in task.build(runs[0]).parameters())
    native = is_native(task, runs[0])
    plan = replace(
        choose_plan(weights, WINDOW, native=native),
        threads=1 if native else int(threads),  # torch's
        compiled=can_compile("cpu"),
    )
    local = make_local(name, plan, int(threads))
    if processes == "1":
        return engine_epoch(local, runs)
    return engine_epoch(
        Processes(local, partial(make_local, name, plan, int(threads)), int(processes), len(runs), print), runs
    )


def work(orders: Connection, side: str, trials: int) -> None:
    """One side's process: makes what it is told to, and says how many seconds an epoch of all trials took."""
    epoch: Callable[[], None] = lambda: None  # noqa: E731
    while (order := orders.recv()) is not None:
        if order != "epoch":
            epoch = make_epoch(side, order, trials)
            continue
        began = time.perf_counter()
        epoch()
        orders.send(time.perf_counter() - began)


def over(times: dict[str, list[float]], loop: str, cores: int, fast: str) -> float:
    """How many times faster than a loop at its best number of threads, round by round."""
    counts = {f"{loop} 1", f"{loop} {cores}"}
    best = min(counts, key=lambda side: statistics.median(times[side]))
    return statistics.median(slow / own for slow, own in zip(times[best], times[fast], strict=True))


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", default=["mlp narrow", "mlp wide", "cnn"])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--trials", type=int, default=WINDOW)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    assert set(given.models) <= set(ZOO), f"one of {', '.join(ZOO)}"
    cores = given.cores
    engines = ["1 x 1", f"1 x {cores}", f"{cores} x 1"]
    loops = [f"{loop} {threads}" for loop in ("res", "DL") for threads in (1, cores)]
    context = multiprocessing.get_context("spawn")
    sides: dict[str, Connection] = {}
    for side in (*engines, *loops):
        sides[side], theirs = context.Pipe()
        context.Process(target=work, args=(theirs, side, given.trials), daemon=False).start()
    rows = []
    for name in given.models:
        times = measure(sides, name, given.rounds)
        row = [name, *(f"{statistics.median(times[side]) / given.trials * 1e3:,.2f}" for side in (*engines, *loops))]
        task = make_task(name, SAMPLES)
        taken = engines[1] if is_native(task, sample_runs(0, None, l1=False)[0]) else engines[2]
        row += [taken, *(f"{over(times, loop, cores, taken):.1f}x" for loop in ("res", "DL"))]
        rows.append(row)
        print(*row, sep="\t", file=sys.stderr, flush=True)
    for orders in sides.values():
        orders.send(None)
    how = f"""
    Milliseconds of wall time for an epoch of one of {given.trials} trials, by processes x threads and by threads of the
    plain loops; how many times faster what a search takes is than either loop at its better number of threads. Asked
    for, of the narrow mlp: 12x and 22x.
    """
    head = ["model", *engines, *loops, "taken", "over res", "over DL"]
    results.show(f"{cores} cores", how, results.table(head, rows), write=given.write)


if __name__ == "__main__":
    main()
