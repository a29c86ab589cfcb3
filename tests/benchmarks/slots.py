"""Slots against the loops that people write: an epoch of 32 recipes, evaluation included, one thread each.

    python -m tests.benchmarks.slots [narrow | wide] [mix | 32] [--l1]

"mix" is the default space's mix of batch sizes, "32" that size alone; optimizers are mixed in both. The sides take
turns in one process, A B A B, and train the same recipes with or without L1 alike:

    chosen, looped         the engine under the plan that a study with a window of 32 gets, and under another
    res                    a plain loop on tensors in memory, Adam(fused=True) for every recipe
    DL                     the same with a DataLoader, as in every tutorial

Times are the process's CPU time, which on one thread is the wall time of an idle machine: others may be at work.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.benchmarks import results
from tunecli import data, metrics, models
from tunecli.data import Samples
from tunecli.engine import LOOPED, LocalEngine, Plan, Task, choose_plan
from tunecli.engine.batches import batch_length, epoch_order
from tunecli.engine.compiler import can_compile
from tunecli.engine.plan import TRIED
from tunecli.space import Choice, Int, Range, build_space
from tunecli.trial import Run, Value

SLOTS, ROUNDS, EPOCHS = 32, 7, 1000


def sample_runs(seed: int, batch_size: int | None, l1: bool) -> list[Run]:
    """32 recipes of the default space, of one batch size or of all."""
    draw = random.Random(seed)

    def ask(name: str, range_: Range) -> Value:
        if isinstance(range_, Choice):
            return draw.choice(range_.values)
        if isinstance(range_, Int):
            return draw.randint(range_.low, range_.high)
        if range_.log:
            return range_.low * (range_.high / range_.low) ** draw.random()
        return draw.uniform(range_.low, range_.high)

    space = build_space({})
    runs = [Run(number, seed, space.suggest(ask), EPOCHS) for number in range(SLOTS)]
    fixed = ({"batch_size": batch_size} if batch_size else {}) | ({} if l1 else {"l1": 0.0})
    # Rates at which no recipe diverges: infinite numbers are slow to compute with.
    rates = ({"learning_rate": min(float(run.hparams["learning_rate"]), 0.01)} for run in runs)  # type: ignore[arg-type]
    return [replace(run, hparams=run.hparams | fixed | rate) for run, rate in zip(runs, rates, strict=True)]


def slots(task: Task, runs: list[Run], plan: Plan) -> Callable[[], None]:
    """An epoch of all runs in the engine under one plan."""
    engine = LocalEngine(task, plan)
    for run in runs:
        engine.start(run)

    def epoch() -> None:
        if len(engine.advance(float("inf"))) != len(runs):
            raise RuntimeError("not every run was measured")

    return epoch


Batches = Callable[[Samples, int, int], Iterator[tuple[Tensor, Tensor]]]


def resident(train: Samples, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    for index in epoch_order(seed, len(train)).split(size):
        yield train.inputs[index], train.targets[index]


def loaded(train: Samples, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    torch.manual_seed(seed)
    yield from DataLoader(TensorDataset(train.inputs, train.targets), batch_size=size, shuffle=True)


def plain(task: Task, runs: list[Run], batches: Batches) -> Callable[[], None]:
    """An epoch of all runs as people write it: a module, torch.optim, a batch at a time."""
    made = []
    for run in runs:
        h, module = run.hparams, task.build(run)
        keys = {"lr": h["learning_rate"], "weight_decay": min(h["l2"], 0.01)}
        made.append((run, module, torch.optim.Adam(module.parameters(), fused=True, **keys)))

    def epoch() -> None:
        for run, module, optimizer in made:
            size = batch_length(run.hparams["batch_size"], len(task.train))
            module.train()
            for inputs, targets in batches(task.train, size, run.trial):
                optimizer.zero_grad()
                nn.functional.cross_entropy(module(inputs), targets).backward()
                if run.hparams["l1"]:
                    for parameter in module.parameters():
                        parameter.grad.add_(parameter.detach().sign(), alpha=run.hparams["l1"])
                optimizer.step()
            module.eval()
            with torch.no_grad():
                task.score(module(task.validation.inputs)[None], task.validation.targets)[1].item()

    return epoch


def is_native(task: Task, run: Run) -> bool:
    """Whether the tool's C computes the model of a run."""
    return LocalEngine(task, TRIED.with_compiled(can_compile("cpu"))).traits(run).native


def narrow_task() -> Task:
    """64-128-10 on digits."""
    digits = data.load("digits", {}, base=Path(), seed=0)
    return _task(digits.train, digits.validation, 128)


def wide_task() -> Task:
    """784-1024-10 on 1,000 random images."""
    draw = torch.Generator().manual_seed(0)
    sets = [Samples(torch.randn(n, 784, generator=draw), torch.randint(10, (n,), generator=draw)) for n in (1000, 125)]
    return _task(*sets, 1024)


def _task(train: Samples, validation: Samples, hidden: int) -> Task:
    def build(run: Run) -> nn.Module:
        seed, keys = run.seed("weights"), {"hidden": hidden}
        return models.build("mlp", keys, base=Path(), features=train.features, outputs=10, seed=seed)

    return Task(train, validation, metrics.LOSSES["cross_entropy"], metrics.METRICS["accuracy"], 10, build)


def measure(sides: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side in each round, a first one not counted."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, epoch in sides.items():
            began = time.process_time()
            epoch()
            if number:
                times[name].append(time.process_time() - began)
    return times


GOALS = {("narrow", "32"): ("8x", "15x"), ("narrow", "mix"): ("7x", "13x")}
"""Over res, over DL, by model and batches: what was asked of the plan that is chosen."""


def report(times: dict[str, list[float]], base: str, goals: tuple[str, str] | None) -> str:
    """A row a side: microseconds an epoch of one trial, and how many times those of `base` they are."""
    rows = []
    for name, seconds in times.items():
        ratio = statistics.median(own / one for own, one in zip(seconds, times[base], strict=True))
        spread = f"{min(seconds) / SLOTS * 1e6:,.0f} to {max(seconds) / SLOTS * 1e6:,.0f}"
        goal = dict(zip(("res", "DL"), goals or (), strict=False)).get(name, "")
        rows.append([name, f"{statistics.median(seconds) / SLOTS * 1e6:,.0f}", spread, f"{ratio:.2f}x", goal])
    return results.table(["side", "median us", "least to most", f"times {base}", "goal"], rows)


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("model", nargs="?", choices=["narrow", "wide"], default="narrow")
    parser.add_argument("batches", nargs="?", choices=["mix", "32"], default="mix")
    parser.add_argument("--l1", action="store_true")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--plans", nargs="*", default=[], metavar="WAY:CAP:ROWS")
    given = parser.parse_args()
    task = narrow_task() if given.model == "narrow" else wide_task()
    runs = sample_runs(0, None if given.batches == "mix" else 32, given.l1)
    weights = sum(p.numel() for p in task.build(runs[0]).parameters())
    compiled = can_compile("cpu")
    chosen = choose_plan(weights, SLOTS, 16 if given.batches == "mix" else 32, native=is_native(task, runs[0]))
    chosen = replace(chosen, threads=1, compiled=compiled)
    plans = {"chosen": chosen, "looped": replace(LOOPED, compiled=compiled)}
    if given.plans:
        parts = {text: text.split(":") for text in given.plans}
        plans = {text: Plan(way, int(cap), int(rows), 1, compiled=compiled) for text, (way, cap, rows) in parts.items()}
    sides = {name: slots(task, runs, plan) for name, plan in plans.items()}
    sides |= {"res": plain(task, runs, resident), "DL": plain(task, runs, loaded)}
    torch.set_num_threads(1)
    base = next(iter(sides))
    mix = "the default mix of batch sizes" if given.batches == "mix" else "batch size 32"
    how = f"""
    Microseconds of CPU time for an epoch of one trial, evaluation included: {SLOTS} recipes of mixed optimizers,
    {"with" if given.l1 else "without"} L1, on one thread. res is the plain loop on tensors in memory, with
    Adam(fused=True) for every recipe; DL the same with a DataLoader. chosen: {chosen}.
    """
    measured = report(measure(sides, given.rounds), base, GOALS.get((given.model, given.batches)))
    results.show(f"Slots: {given.model} mlp, {mix}{', L1' if given.l1 else ''}", how, measured, write=given.write)


if __name__ == "__main__":
    main()
