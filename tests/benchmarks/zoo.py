"""The zoo: the engine against the loops that people write, for models of all kinds at every batch size of the space.

    python -m tests.benchmarks.zoo [MODEL ...] [--sizes 16 32 ...] [--threads 1] [--write]

An epoch of one trial, evaluation included, Adam without L1 for all. The sides take turns, A B A B, each in a process of
its own, because an engine sets its process's allocator and threads:

    1, 4    the engine under the plan that a study with such a window gets, by the trial
    res     a plain loop on tensors in memory, Adam(fused=True), the usual layout
    DL      the same with a DataLoader, as in every tutorial

On one thread times are the process's CPU time; on more they are wall time, and mean something on an idle machine only.
"""

from __future__ import annotations

import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.benchmarks import results
from tests.benchmarks.slots import is_native, loaded, plain, resident, slots
from tunecli import data, metrics, models
from tunecli.data import Samples
from tunecli.engine import Task, choose_plan
from tunecli.engine.compiler import can_compile
from tunecli.engine.gradients import filters
from tunecli.trial import Run

SIZES = (16, 32, 64, 128, 256)
IMAGE, TOKENS, CLASSES = (1, 28, 28), 32, 10


class Recurrent(nn.Module):
    """An image read row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(28, 64, batch_first=True), nn.Linear(64, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.head(self.lstm(images[:, 0])[0][:, -1])
        return found


class Transformer(nn.Module):
    """Two layers over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(28, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(64, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.head(self.encoder(self.embed(images[:, 0])).mean(1))
        return found


class Own(nn.Module):
    """A user's own module, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, 96), nn.Linear(96, 64), nn.Linear(64, CLASSES)
        self.dropout = nn.Dropout(0.2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.dropout(self.first(inputs).relu())
        found: Tensor = self.head(self.dropout(self.second(hidden).relu()))
        return found


def normed() -> nn.Module:
    """A plain nn.Sequential of a user's: convolutions with BatchNorm."""
    blocks: list[nn.Module] = []
    for narrow, wide in ((1, 16), (16, 32)):
        blocks += [nn.Conv2d(narrow, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU(), nn.Linear(64, CLASSES))


def bundled(name: str, **keys: object) -> Callable[[tuple[int, ...]], nn.Module]:
    return lambda features: models.build(name, keys, base=Path(), features=features, outputs=CLASSES, seed=0)


ZOO: dict[str, tuple[tuple[int, ...], Callable[[tuple[int, ...]], nn.Module]]] = {
    "mlp narrow": ((64,), bundled("mlp", hidden=128)),
    "mlp wide": ((784,), bundled("mlp", hidden=1024)),
    "digits cnn": ((64,), bundled("cnn", channels=[8, 16])),
    "cnn": (IMAGE, bundled("cnn")),
    "cnn BatchNorm": (IMAGE, lambda _: normed()),
    "lstm": (IMAGE, lambda _: Recurrent()),
    "transformer": (IMAGE, lambda _: Transformer()),
    "own dropout": ((64,), lambda _: Own()),
}
"""Each model's features, and how it is built for them. digits are digits, the others' data are random numbers."""


def make_task(name: str, samples: int) -> Task:
    features, build = ZOO[name]
    if features == (64,):
        digits = data.load("digits", {}, base=Path(), seed=0)
        sets = [digits.train.take(slice(0, samples)), digits.validation]
    else:
        draw = torch.Generator().manual_seed(0)
        sizes = samples, samples // 8
        sets = [
            Samples(torch.randn(n, *features, generator=draw), torch.randint(CLASSES, (n,), generator=draw))
            for n in sizes
        ]
    loss, metric = metrics.LOSSES["cross_entropy"], metrics.METRICS["accuracy"]
    return Task(sets[0], sets[1], loss, metric, CLASSES, lambda run: build(features))


def make_epoch(side: str, name: str, size: int, samples: int, threads: int) -> Callable[[], None]:
    """An epoch of one side's runs: of `side` trials at once where it is a number."""
    task, window = make_task(name, samples), int(side) if side.isdigit() else 1
    hparams = {"optimizer": "adam", "learning_rate": 1e-4, "batch_size": size, "l1": 0.0, "l2": 1e-4}
    runs = [Run(number, 0, hparams, 1000) for number in range(window)]
    if side in ("res", "DL"):
        torch.set_num_threads(threads)
        return plain(task, runs, resident if side == "res" else loaded)
    module = task.build(runs[0])
    how = {"convolves": bool(filters(module)), "native": is_native(task, runs[0])}
    plan = choose_plan(sum(p.numel() for p in module.parameters()), window, size, **how)
    return slots(task, runs, replace(plan, threads=threads, compiled=can_compile("cpu")))


def work(orders: Connection, side: str, samples: int, threads: int) -> None:
    """One side's process: makes what it is told to, and says how many seconds a trial's epoch took."""
    clock = time.process_time if threads == 1 else time.perf_counter
    trials = int(side) if side.isdigit() else 1
    epoch: Callable[[], None] = lambda: None  # noqa: E731
    while (order := orders.recv()) is not None:
        if order != "epoch":
            epoch = make_epoch(side, *order, samples, threads)
            continue
        began = clock()
        epoch()
        orders.send((clock() - began) / trials)


def measure(sides: dict[str, Connection], order: object, rounds: int) -> dict[str, list[float]]:
    """Seconds of an epoch, as each side's process gives them, for each round, a first one not counted.

    `order` is what a process is first told to make.
    """
    times: dict[str, list[float]] = {side: [] for side in sides}
    for orders in sides.values():
        orders.send(order)
    for number in range(rounds + 1):
        for side, orders in sides.items():
            orders.send("epoch")
            seconds = orders.recv()
            if number:
                times[side].append(seconds)
    return times


def ratio(times: dict[str, list[float]], slow: str, fast: str) -> float:
    return statistics.median(one / own for one, own in zip(times[slow], times[fast], strict=True))


def compare(
    names: Sequence[str], sizes: Sequence[int], sides: dict[str, Connection], rounds: int
) -> tuple[list[list[str]], str]:
    """A row for each model and batch size, and the worst ratio over res."""
    rows = []
    worst = (math.inf, "")
    for name in names:
        for size in sizes:
            times = measure(sides, (name, size), rounds)
            row = [name, str(size), f"{statistics.median(times['res']) * 1e6:,.0f}"]
            for own in (side for side in sides if side.isdigit()):
                over = ratio(times, "res", own), ratio(times, "DL", own)
                row += [f"{one:.2f}x" for one in over]
                worst = min(worst, (over[0], f"{name}, batch size {size}, window {own}"))
            rows.append(row)
            print(*row, sep="\t", file=sys.stderr, flush=True)
    return rows, f"{worst[0]:.2f}x ({worst[1]})"


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", default=list(ZOO), help=", ".join(ZOO))
    parser.add_argument("--sizes", nargs="*", type=int, default=SIZES)
    parser.add_argument("--windows", nargs="*", default=["1", "4"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=512)
    given = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    sides: dict[str, Connection] = {}
    for side in (*given.windows, "res", "DL"):
        sides[side], theirs = context.Pipe()
        arguments = (theirs, side, given.samples, given.threads)
        context.Process(target=work, args=arguments, daemon=True).start()
    rows, worst = compare(given.models, given.sizes, sides, given.rounds)
    for orders in sides.values():
        orders.send(None)
    threads, time_of = ("one thread", "CPU") if given.threads == 1 else (f"{given.threads} threads", "wall")
    how = f"""
    Microseconds of {time_of} time for an epoch of one trial on {given.samples} samples, evaluation included, with
    {threads}; how many times faster than that, and than the DataLoader loop, the engine is with a window of so many
    trials. Worst over res: {worst}; asked for: at least 0.97x.
    """
    head = ["model", "batch", "res, us"]
    head += [f"{own} trial{'s' if own != '1' else ''} over {base}" for own in given.windows for base in ("res", "DL")]
    results.show(f"Zoo, {threads}", how, results.table(head, rows), write=given.write)


if __name__ == "__main__":
    main()
