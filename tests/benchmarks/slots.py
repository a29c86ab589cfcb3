"""The epoch time of 32 slots over that of 32 single runs, narrow mlp on digits.

    python -m tests.benchmarks.slots

Both sides train the same 32 recipes (the default space, sampled once) and evaluate on validation after the epoch; they
take turns in one process, A B A B, on one thread each. "slots" is the plan that a study with a window of 32 gets,
"single" the engine with one run after another in a module of its own, "torch" a plain loop with torch.optim on data in
memory.
"""

from __future__ import annotations

import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from tunecli import data, metrics, models
from tunecli.engine import LOOPED, LocalEngine, Plan, Task, choose_plan
from tunecli.engine.batches import batch_length, epoch_order
from tunecli.space import Choice, Int, Range, build_space
from tunecli.trial import Run, Value

SLOTS, ROUNDS, EPOCHS = 32, 5, 1000


def sample_runs(seed: int) -> list[Run]:
    """32 recipes of the default space."""
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
    return [Run(number, seed, space.suggest(ask), EPOCHS) for number in range(SLOTS)]


def slots(task: Task, runs: list[Run], plan: Plan) -> Callable[[], None]:
    """An epoch of all runs in the engine under one plan."""
    engine = LocalEngine(task, plan)
    for run in runs:
        engine.start(run)

    def epoch() -> None:
        if len(engine.advance(float("inf"))) != len(runs):
            raise RuntimeError("not every run was measured")

    return epoch


def plain(task: Task, runs: list[Run]) -> Callable[[], None]:
    """An epoch of all runs as people write it: a module, torch.optim, batches indexed from tensors in memory."""
    made = [(run, task.build(run)) for run in runs]
    optimizers = [_optimizer(run, module) for run, module in made]
    epochs = 0

    def epoch() -> None:
        nonlocal epochs
        for (run, module), optimizer in zip(made, optimizers, strict=True):
            order = epoch_order(run.seed("order", epochs), len(task.train))
            for index in order.split(batch_length(run.hparams["batch_size"], len(task.train))):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(module(task.train.inputs[index]), task.train.targets[index])
                loss.backward()
                for parameter in module.parameters():
                    parameter.grad.add_(parameter.detach().sign(), alpha=run.hparams["l1"])
                optimizer.step()
            with torch.no_grad():
                task.score(module(task.validation.inputs)[None], task.validation.targets)[1].item()
        epochs += 1

    return epoch


def _optimizer(run: Run, module: nn.Module) -> torch.optim.Optimizer:
    h = run.hparams
    name, common = h["optimizer"], {"lr": h["learning_rate"], "weight_decay": h["l2"]}
    weights = module.parameters()
    if name == "sgd":
        return torch.optim.SGD(weights, momentum=h["momentum"], **common)
    if name == "adagrad":
        return torch.optim.Adagrad(weights, **common)
    if name == "rmsprop":
        return torch.optim.RMSprop(weights, momentum=h["momentum"], **common)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "nadam": torch.optim.NAdam}[str(name)]
    return kind(weights, betas=(h["beta1"], h["beta2"]), **common)


def main() -> None:
    digits = data.load("digits", {}, base=Path(), seed=0)

    def build(run: Run) -> nn.Module:
        seed = run.seed("weights")
        return models.build("mlp", {}, base=Path(), features=digits.features, outputs=10, seed=seed)

    task = Task(
        digits.train, digits.validation, metrics.LOSSES["cross_entropy"], metrics.METRICS["accuracy"], 10, build
    )
    runs = sample_runs(seed=0)
    plan = choose_plan(weights=9610, window=SLOTS)
    sides = {"slots": slots(task, runs, plan), "single": slots(task, runs, LOOPED), "torch": plain(task, runs)}
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for epoch in sides.values():
        epoch()
    for _ in range(ROUNDS):
        for name, epoch in sides.items():
            began = time.perf_counter()
            epoch()
            times[name].append(time.perf_counter() - began)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, 1 thread")
    print(f"slots: {plan}")
    for name, seconds in times.items():
        ratio = statistics.median(own / base for own, base in zip(seconds, times["slots"], strict=True))
        spread = f"{min(seconds) * 1e3:.0f} to {max(seconds) * 1e3:.0f}"
        print(
            f"{name:<7}{statistics.median(seconds) * 1e3:7.0f} ms an epoch of {SLOTS} ({spread}), {ratio:.2f} x slots"
        )


if __name__ == "__main__":
    main()
