"""What every engine promises: a run's result is that of a plain torch loop, and depends on nothing but itself."""

import inspect
import itertools
import json
import math
import multiprocessing
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.conftest import examples
from tunecli.data import Samples
from tunecli.engine import LOOPED, Engine, LocalEngine, Plan, Processes, Snapshot, Task, child, stretch
from tunecli.engine.batches import batch_length, epoch_order
from tunecli.engine.forward import call
from tunecli.engine.functions import Step
from tunecli.engine.plan import EVALUATION_SAMPLES
from tunecli.engine.rowwise import Rowwise, Steps, native
from tunecli.engine.update import Updates
from tunecli.errors import ModelError
from tunecli.metrics import LOSSES, METRICS, Metric
from tunecli.models import build
from tunecli.space import DEFAULT_OPTIMIZERS, OPTIMIZERS, SCHEDULES, settings_of
from tunecli.trial import Measurement, Run, better

MakeEngine = Callable[[Task], Engine]
MakeModel = Callable[[], nn.Module]
Curves = dict[int, list[tuple[Any, ...]]]

PLANS = {
    "rules, blocks of 32": Plan("rules", cap=16, block_rows=32, threads=1, compiled=True),
    "rules, blocks of 8": Plan("rules", cap=64, block_rows=8, threads=1, compiled=True),
    "rules, blocks of 2": Plan("rules", cap=16, block_rows=2, threads=1),
    "looped": replace(LOOPED, compiled=True),
}
BLOCKS_OF_32 = PLANS["rules, blocks of 32"]
BY_TORCH = replace(BLOCKS_OF_32, compiled=False)
FEATURES, CLASSES = 30, 3


@pytest.fixture(params=PLANS.values(), ids=PLANS.keys())
def make_local(request: pytest.FixtureRequest) -> MakeEngine:
    """This process's engine under every plan."""
    return lambda task: LocalEngine(task, request.param)


@pytest.fixture(params=["rules, blocks of 8", "looped"])
def make_way(request: pytest.FixtureRequest) -> MakeEngine:
    """This process's engine by either way to a gradient, for what is tried with many models and recipes: that blocks
    and processes change nothing is shown with fewer."""
    return lambda task: LocalEngine(task, PLANS[request.param])


@pytest.fixture(params=[*PLANS.values(), None], ids=[*PLANS.keys(), "two processes"])
def make_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeEngine]:
    """Every engine and plan that the promises hold for."""
    if request.param is not None:
        yield lambda task: LocalEngine(task, request.param)
        return
    # Forked they are there at once, and the tests' own models need not be sent; `test_workers` has them spawned.
    monkeypatch.setattr(child, "CONTEXT", multiprocessing.get_context("fork"))
    begun: list[Processes] = []

    def make(task: Task) -> Engine:
        plan = PLANS["rules, blocks of 8"]

        def there(announce: Callable[[tuple[int, ...]], None]) -> LocalEngine:
            return LocalEngine(task, plan, "cpu", announce)

        begun.append(Processes(LocalEngine(task, plan), there, workers=2, window=6, tell=[].append))
        return begun[-1]

    yield make
    for engine in begun:
        engine.close()


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """An engine sets the threads of the process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def draw_samples(count: int, seed: int, dtype: torch.dtype, features: tuple[int, ...] = (FEATURES,)) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, *features, generator=generator, dtype=dtype)
    return Samples(inputs, torch.randint(CLASSES, (count,), generator=generator))


def make_task(
    model: MakeModel | None = None, *, dtype: torch.dtype = torch.float32, samples: int = 61, **more: Any
) -> Task:
    """A small classification task; `model` gives a new module and draws its weights from torch's global generator."""

    def seeded(run: Run) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(run.seed("weights"))
            return (model or mlp())().to(dtype)

    features = more.pop("features", (FEATURES,))
    defaults: dict[str, Any] = {
        "train": draw_samples(samples, 0, dtype, features),
        "validation": draw_samples(37, 1, dtype, features),
        "loss": LOSSES["cross_entropy"],
        "metric": METRICS["loss"],
        "classes": CLASSES,
        "build": seeded,
    }
    return Task(**defaults | more)


def mlp(hidden: int = 33, activation: str = "tanh", features: int = FEATURES, outputs: int = CLASSES) -> MakeModel:
    keys = {"hidden": hidden, "activation": activation}
    return lambda: build(
        "mlp", keys, base=Path(), features=(features,), outputs=outputs, seed=int(torch.randint(2**31, ()))
    )


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.TransformerEncoderLayer(6, 2, 11, dropout=0.1), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.layer(x.view(len(x), -1, 6)).mean(1))
        return found


def mish() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 33), nn.Mish(), nn.Linear(33, CLASSES))


def make_run(trial: int, *, epochs: int = 4, settings: dict[str, Any] | None = None, **hparams: Any) -> Run:
    """A run whose optimizer, batch size and the rest differ from those of its neighbours, where not given."""
    uniform = torch.rand(8, generator=torch.Generator().manual_seed(trial)).tolist()
    optimizer = hparams.get("optimizer", OPTIMIZERS[trial % len(OPTIMIZERS)])
    defaults = {
        "optimizer": optimizer,
        "learning_rate": 10 ** (-3 + 2 * uniform[0]),
        "batch_size": (7, 16, 1, 100, "full", 20)[(trial // 2) % 6],
        "l1": 10 ** (-6 + 3 * uniform[1]),
        "l2": 10 ** (-6 + 3 * uniform[2]),
    }
    if optimizer in ("sgd", "rmsprop", "muon"):
        defaults["momentum"] = 0.9 * uniform[3] if trial % 3 else 0.0
    if optimizer in ("adam", "adamw", "nadam", "radam", "adamax", "lion"):
        defaults |= {"beta1": 0.8 + 0.19 * uniform[4], "beta2": 0.9 + 0.09 * uniform[5]}
    return Run(trial, 7, defaults | hparams, epochs, {"schedule": "cosine"} if settings is None else settings)


def shown(measurement: Measurement) -> tuple[Any, ...]:
    """All of a measurement but the seconds; the text of a number keeps every bit, and a NaN equals itself."""
    own = measurement
    losses = own.train_loss, own.validation_loss, own.metric, own.gradient_norm
    return own.fidelity, *map(repr, losses), own.failure


def start(engine: Engine, runs: list[Run]) -> Engine:
    for run in runs:
        engine.start(run)
    return engine


def tick(engine: Engine, runs: list[Run]) -> list[Measurement]:
    """One tick of all runs in flight, in the order of `runs`."""
    found: dict[int, Measurement] = {}
    while len(found) < len(runs):
        measured = {own.trial: own for own in engine.advance(time.monotonic() + 60)}
        assert measured, "some run finishes its tick well within a minute"
        assert not found.keys() & measured.keys(), "and each is measured once"
        found |= measured
    return [found[run.trial] for run in runs]


def train(engine: Engine, runs: list[Run], ticks: int) -> list[list[Measurement]]:
    """Start the runs and train all of them; the measurements of each run."""
    start(engine, runs)
    found = [tick(engine, runs) for _ in range(ticks)]
    return [list(own) for own in zip(*found, strict=True)]


def outcome(engine: Engine, run: Run, curve: list[Measurement]) -> tuple[Any, ...]:
    """Everything a run gives, for comparison bit by bit."""
    weights = {name: tensor.numpy().tobytes() for name, tensor in engine.weights(run).items()}
    return [shown(own) for own in curve], weights


def outcomes(engine: Engine, runs: list[Run], ticks: int = 2) -> dict[int, tuple[Any, ...]]:
    curves = train(engine, runs, ticks)
    return {run.trial: outcome(engine, run, curve) for run, curve in zip(runs, curves, strict=True)}


# What a run gives is what a plain loop gives.


def plain_optimizer(run: Run, module: nn.Module, decay_biases: bool) -> torch.optim.Optimizer:
    hparams = run.hparams
    keys: dict[str, Any] = {"lr": hparams["learning_rate"]}
    keys |= {"momentum": hparams["momentum"]} if "momentum" in hparams else {}
    keys |= {"betas": (hparams["beta1"], hparams["beta2"])} if "beta1" in hparams else {}
    trained = [p for p in module.parameters() if p.requires_grad]
    spared = [p for p in trained if p.dim() == 1 and not decay_biases]
    decayed = [p for p in trained if p.dim() > 1 or decay_biases]
    groups = [{"params": decayed, "weight_decay": hparams["l2"]}, {"params": spared, "weight_decay": 0.0}]
    optimizers: dict[Any, Any] = {
        "sgd": torch.optim.SGD,
        "adagrad": torch.optim.Adagrad,
        "rmsprop": torch.optim.RMSprop,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "nadam": torch.optim.NAdam,
        "radam": torch.optim.RAdam,
        "adamax": torch.optim.Adamax,
        "own.py:Mine": torch.optim.AdamW,
    }
    found: torch.optim.Optimizer = optimizers[hparams["optimizer"]](groups, **keys)
    return found


def plain_schedulers(settings: Any, optimizer: torch.optim.Optimizer, total: int) -> tuple[Any, Any]:
    """The scheduler that is stepped after each update, and the one after each epoch."""
    from torch.optim import lr_scheduler as theirs

    rate = optimizer.param_groups[0]["lr"]
    each_update: dict[str, Callable[[], Any]] = {
        "cosine": lambda: theirs.CosineAnnealingLR(optimizer, T_max=total),
        "one_cycle": lambda: theirs.OneCycleLR(
            optimizer, rate, total, pct_start=settings["one_cycle_pct_start"], cycle_momentum=False
        ),
    }
    each_epoch: dict[str, Callable[[], Any]] = {
        "exponential": lambda: theirs.ExponentialLR(optimizer, settings["exponential_gamma"]),
        "step": lambda: theirs.StepLR(optimizer, settings["step_epochs"], settings["step_gamma"]),
        "plateau": lambda: theirs.ReduceLROnPlateau(
            optimizer, factor=settings["plateau_factor"], patience=settings["plateau_patience"]
        ),
    }
    nothing = lambda: None  # noqa: E731
    name = settings["schedule"]
    return each_update.get(name, nothing)(), each_epoch.get(name, nothing)()


def plain_loop(task: Task, run: Run, ticks: int) -> tuple[list[list[float]], dict[str, Tensor]]:
    """The same training as everybody writes it: losses, metric and gradient norm by tick, and the best weights."""
    module = task.build(run)
    optimizer = plain_optimizer(run, module, task.decay_biases)
    samples = len(task.train)
    size = batch_length(run.hparams["batch_size"], samples)
    settings = settings_of(run.settings, run.hparams)
    each_update, each_epoch = plain_schedulers(settings, optimizer, run.epochs * math.ceil(samples / size))
    clip, decay = float(settings["clip_norm"]), float(settings["ema_decay"])  # type: ignore[arg-type]
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None
    assert task.validation is not None
    curve: list[list[float]] = []
    best: dict[str, Tensor] = {}
    for epoch in range(ticks):
        module.train()
        loss_sum = 0.0
        for batch in epoch_order(run.seed("order", epoch), samples).split(size):
            optimizer.zero_grad()
            read = task.train.take(batch)
            outputs = call(module, read.inputs).reshape(len(batch), -1)
            weights = torch.ones(len(batch)) if read.weights is None else read.weights.double()
            loss = (task.loss.per_sample(outputs, read.targets) * weights).sum() / weights.sum()
            loss.backward()
            trained = [p for p in module.parameters() if p.grad is not None]
            norm = float(torch.cat([p.grad.flatten() for p in trained]).norm())  # type: ignore[union-attr]
            if clip:
                nn.utils.clip_grad_norm_(trained, clip)
            for p in trained:
                if p.dim() > 1 or task.decay_biases:
                    p.grad += run.hparams["l1"] * p.detach().sign()  # type: ignore[operator]
            optimizer.step()
            if average is not None:
                average.update_parameters(module)
            if each_update is not None:
                each_update.step()
            loss_sum += float(loss.detach()) * float(weights.sum())
        counted = module if average is None else average.module
        counted.eval()
        with torch.no_grad():
            outputs = call(counted, task.validation.inputs).reshape(1, len(task.validation), -1)
        validation_loss, metric = (float(own) for own in task.score(outputs, task.validation.targets))
        if not curve or better(metric, min(own[2] for own in curve), "minimize"):
            best = {name: tensor.clone() for name, tensor in counted.state_dict().items()}
        if each_epoch is not None:
            each_epoch.step(*([metric] if settings["schedule"] == "plateau" else []))
        whole = samples if task.train.weights is None else float(task.train.weights.double().sum())
        curve.append([loss_sum / whole, validation_loss, metric, norm])
    return curve, best


def assert_equals_plain_loop(make_engine: MakeEngine, task: Task, runs: list[Run], ticks: int = 3) -> None:
    """To 1e-9 in float64, losses and the best weights; for metrics that are minimized."""
    torch.set_default_dtype(torch.float64)  # torch keeps NAdam's product of momenta in it
    try:
        engine = make_engine(task)
        for run, measured in zip(runs, train(engine, runs, ticks), strict=True):
            curve, best = plain_loop(task, run, ticks)
            found = [[own.train_loss, own.validation_loss, own.metric, own.gradient_norm] for own in measured]
            torch.testing.assert_close(torch.tensor(found), torch.tensor(curve), rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(engine.weights(run), best, rtol=1e-9, atol=1e-12)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_run_equals_a_plain_loop_for_any_batch_size(make_engine: MakeEngine) -> None:
    """101 samples: the last batch of 100 is a single one, that of 7 is three, that of 16 is five."""
    sizes = (1, 7, 16, 100, "full", 23)
    runs = [
        make_run(trial, optimizer=optimizer, batch_size=size, settings={"schedule": SCHEDULES[trial % 6]})
        for trial, (size, optimizer) in enumerate(zip(sizes, DEFAULT_OPTIMIZERS, strict=True))
    ]
    assert_equals_plain_loop(make_engine, make_task(dtype=torch.float64, samples=101), runs, ticks=2)


class Shifted(nn.Module):
    """Two weights that autograd gives one gradient: the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(FEATURES, 16), nn.Linear(16, CLASSES)
        self.base, self.shift = nn.Parameter(torch.ones(16)), nn.Parameter(torch.zeros(16))

    def forward(self, inputs: Tensor) -> Tensor:
        factor = self.base.unsqueeze(0) + self.shift.unsqueeze(0)
        found: Tensor = self.head(torch.tanh(self.first(inputs)) * factor)
        return found


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_weights_whose_gradients_are_one_are_updated_each_for_itself(make_way: MakeEngine, optimizer: str) -> None:
    run = make_run(0, batch_size=16, optimizer=optimizer, l1=0.0, l2=0.05)
    assert_equals_plain_loop(make_way, make_task(Shifted, dtype=torch.float64), [run], ticks=2)


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": "plateau", "plateau_patience": 0, "plateau_factor": 0.3},
        {"schedule": "step", "step_epochs": 2, "step_gamma": 0.5, "clip_norm": 0.3},
        {"schedule": "one_cycle", "one_cycle_pct_start": 0.5, "ema_decay": 0.9},
        {"ema_decay": 0.99, "clip_norm": 0.01},
    ],
)
def test_a_recipe_equals_a_plain_loop_with_torchs_own(make_way: MakeEngine, settings: dict[str, Any]) -> None:
    """Some hold for a run by [train], some as hparams of its own; neighbours have none of them."""
    by_train, by_trial = make_run(0, batch_size=16, epochs=6, settings=settings), make_run(1, epochs=6, **settings)
    plain = [make_run(trial, settings={}, epochs=6) for trial in (2, 3)]
    own = {"optimizer": "sgd", "batch_size": 7, "learning_rate": 0.3, "momentum": 0.9}
    wild = make_run(4, epochs=6, settings=settings, **own)
    task = make_task(dtype=torch.float64)
    assert_equals_plain_loop(make_way, task, [by_train, plain[0], by_trial, plain[1], wild], ticks=6)


def test_a_run_without_decay_of_biases_equals_a_plain_loop(make_way: MakeEngine) -> None:
    task = make_task(dtype=torch.float64, decay_biases=False)
    assert_equals_plain_loop(make_way, task, [make_run(trial, batch_size=16, l1=1e-3, l2=1e-2) for trial in range(6)])


class Flat(nn.Module):
    """One number a sample, as (N,)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(FEATURES, 8), nn.Linear(8, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.layer(inputs).relu())[:, 0]
        return outputs


def test_a_regression_is_scored_in_the_units_of_its_target(make_way: MakeEngine) -> None:
    more = {"loss": LOSSES["mse"], "metric": METRICS["mse"], "classes": 0, "target_scale": 10.0}
    for part, seed in (("train", 0), ("validation", 1)):
        inputs = draw_samples(45, seed, torch.float64).inputs
        more[part] = Samples(inputs, inputs[:, 0] * 2 - 1)
    task = make_task(Flat, dtype=torch.float64, **more)
    runs = [make_run(trial, batch_size=16) for trial in range(3)]
    assert_equals_plain_loop(make_way, task, runs)
    measured = tick(engine := start(make_way(task), runs), runs)
    assert all(own.metric == pytest.approx(100 * own.validation_loss) for own in measured)
    assert set(engine.weights(runs[0])) == {"layer.weight", "layer.bias", "head.weight", "head.bias"}


@pytest.mark.parametrize("name", ["mse", "rmse", "mae", "mape", "r2"])
def test_a_metric_of_standardized_targets_is_that_of_the_targets_in_their_own_unit(name: str) -> None:
    more = {"loss": LOSSES["mse"], "metric": METRICS[name], "classes": 0}
    outputs, targets = torch.randn(3, 40, 1).double(), torch.randn(40).double()
    plain = make_task(Flat, **more)
    standardized = make_task(Flat, **more, target_scale=10.0, target_mean=-4.0)
    found, expected = standardized.score(outputs, targets)[1], plain.score(outputs * 10 - 4, targets * 10 - 4)[1]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_two_classes_can_share_one_output(make_way: MakeEngine) -> None:
    train_, validation = (draw_samples(45, seed, torch.float64) for seed in (0, 1))
    more: dict[str, Any] = {"loss": LOSSES["binary_cross_entropy"], "classes": 2}
    more |= {"train": Samples(train_.inputs, train_.targets.clamp(max=1))}
    more |= {"validation": Samples(validation.inputs, validation.targets.clamp(max=1))}
    task = make_task(mlp(outputs=1), dtype=torch.float64, **more)
    assert_equals_plain_loop(make_way, task, [make_run(trial, batch_size=16) for trial in range(2)])


def test_weighted_samples_are_trained_on_as_in_torchs_weighted_cross_entropy(make_way: MakeEngine) -> None:
    """One batch of all samples, one step without momentum: the gradient of torch's own weighted mean."""
    importance = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    drawn = draw_samples(61, 0, torch.float64)
    weighted = Samples(drawn.inputs, drawn.targets, importance[drawn.targets].float())
    task = make_task(dtype=torch.float64, train=weighted, validation=None)
    run = make_run(0, optimizer="sgd", batch_size="full", learning_rate=0.1, l1=0.0, l2=0.0, momentum=0.0)
    engine = start(make_way(task), [run])
    measured = tick(engine, [run])[0]
    module = task.build(run)
    loss = nn.functional.cross_entropy(module(drawn.inputs), drawn.targets, weight=importance)
    loss.backward()
    assert measured.train_loss == pytest.approx(float(loss.detach()), rel=1e-9)
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        stepped = parameter.detach() - 0.1 * parameter.grad
        torch.testing.assert_close(engine.weights(run)[name], stepped, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("normed", [False, True])
def test_a_run_on_weighted_samples_equals_a_plain_loop(make_way: MakeEngine, normed: bool) -> None:
    """The validation is never weighted."""
    drawn = draw_samples(61, 0, torch.float64)
    weights = torch.rand(61, generator=torch.Generator().manual_seed(0)) * 3
    train_ = Samples(drawn.inputs, drawn.targets, weights)
    task = make_task(batch_norm if normed else None, dtype=torch.float64, train=train_)
    sizes = (7, 16, 40, "full") if normed else (1, 7, 16, "full")
    assert_equals_plain_loop(make_way, task, [make_run(trial, batch_size=size) for trial, size in enumerate(sizes)])


def test_a_sample_of_no_weight_counts_nothing(make_way: MakeEngine) -> None:
    drawn = draw_samples(61, 0, torch.float64)
    padded = Samples(drawn.inputs, drawn.targets, torch.cat([torch.ones(40), torch.zeros(21)]))
    run = make_run(0, optimizer="sgd", batch_size="full")
    tasks = [make_task(dtype=torch.float64, train=own) for own in (drawn.take(slice(0, 40)), padded)]
    kept, found = ([own.train_loss for own in train(make_way(task), [run], 2)[0]] for task in tasks)
    assert found == pytest.approx(kept, rel=1e-9)
    alone = make_run(0, batch_size=1)  # batches of nothing but such samples, divided by nothing
    assert train(make_way(tasks[1]), [alone], 1)[0][0].failure is None


def test_equal_weights_change_nothing(make_engine: MakeEngine) -> None:
    drawn = draw_samples(61, 0, torch.float32)
    equal = Samples(drawn.inputs, drawn.targets, torch.ones(61))
    runs = [make_run(trial) for trial in range(6)]
    weighted, plain = (outcomes(make_engine(make_task(train=own)), runs) for own in (equal, drawn))
    assert weighted == plain


# Several inputs, and a dict of them.


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(FEATURES, 8), nn.Linear(4, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        outputs: Tensor = self.head((self.left(left) + self.right(right)).tanh())
        return outputs


class OneDict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.two = Two()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        outputs: Tensor = self.two(batch["left"], batch["right"])
        return outputs


class Output:
    """As Hugging Face's models return it."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class WithLogits(OneDict):
    def forward(self, left: Tensor, right: Tensor, attention: Tensor | None = None) -> Any:  # type: ignore[override]
        return Output(self.two(left, right))


@pytest.mark.parametrize(
    ("model", "as_dict"), [(Two, False), (Two, True), (OneDict, True), (WithLogits, False), (WithLogits, True)]
)
def test_several_inputs_reach_forward_by_place_by_name_or_as_one_dict(
    make_way: MakeEngine, model: MakeModel, as_dict: bool
) -> None:
    """The same numbers, to rounding, as a model that reads both from one tensor, computed at once too."""

    def split(own: Samples) -> Samples:
        left, right = own.inputs[:, :FEATURES], own.inputs[:, FEATURES:]  # type: ignore[call-overload,index]
        return Samples({"right": right, "left": left} if as_dict else (left, right), own.targets)

    class One(Two):
        def forward(self, both: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(both[:, :FEATURES], both[:, FEATURES:])

    whole = make_task(One, features=(FEATURES + 4,))
    assert whole.validation is not None
    parts = {"train": split(whole.train), "validation": split(whole.validation)}
    task = make_task(model, **parts)
    runs = [make_run(trial) for trial in range(6)]
    assert LocalEngine(task, BLOCKS_OF_32).traits(runs[0]).looped_because is None
    found, expected = train(make_way(task), runs, 2), train(make_way(whole), runs, 2)
    for one, other in zip(found, expected, strict=True):
        assert [own.train_loss for own in one] == pytest.approx([own.train_loss for own in other], rel=1e-5)
        assert [own.validation_loss for own in one] == pytest.approx([own.validation_loss for own in other], rel=1e-5)


def test_a_dict_that_forward_cannot_take_is_refused_with_both_lists_of_names(make_way: MakeEngine) -> None:
    drawn = draw_samples(20, 0, torch.float32)
    engine = make_way(make_task(Two, train=Samples({"left": drawn.inputs, "rigth": drawn.inputs}, drawn.targets)))
    with pytest.raises(ModelError, match="forward takes left, right, a sample has left, rigth") as caught:
        engine.start(make_run(0))
    assert caught.value.hint is not None


KINDS_OF_RECIPE: tuple[Callable[[int], dict[str, Any]], ...] = (
    lambda trial: {"label_smoothing": trial / 70},
    lambda trial: {"loss": "focal", "focal_gamma": trial / 9},
    lambda trial: {"precision": "bf16"},
    lambda trial: {"clip_norm": 0.1 * (trial % 3), "ema_decay": 0.5 * (trial % 2), "schedule": SCHEDULES[trial % 6]},
)


def test_a_recipe_is_bitwise_the_same_alone_and_beside_any_neighbours(make_engine: MakeEngine) -> None:
    task = make_task(mlp(activation="gelu"), samples=39)
    runs = [make_run(trial, **KINDS_OF_RECIPE[trial % 4](trial)) for trial in range(20)]
    crowd = outcomes(make_engine(task), runs)
    for trial in (3, 4, 9, 14, 15):
        assert crowd[trial] == outcomes(make_engine(task), [runs[trial]])[trial]


def test_a_tick_may_be_begun_before_it_is_waited_for(make_engine: MakeEngine) -> None:
    task, runs = make_task(), [make_run(trial) for trial in range(5)]
    engine, found = start(make_engine(task), runs), []
    for _ in range(2):
        elsewhere = engine.begin()
        assert elsewhere == isinstance(engine, Processes)
        assert engine.begin() == elsewhere  # the same tick
        found.append(tick(engine, runs))
    expected = outcomes(make_engine(task), runs)
    assert {
        own.trial: outcome(engine, own, list(c)) for own, c in zip(runs, zip(*found, strict=True), strict=True)
    } == expected


@pytest.mark.parametrize("loss", ["cross_entropy", "focal"])
def test_a_loss_with_a_shape_of_its_own_equals_a_plain_loop(make_way: MakeEngine, loss: str) -> None:
    """Three runs beside each other, each with its own label smoothing and gamma."""
    task = make_task(dtype=torch.float64, loss=LOSSES[loss], metric=METRICS["log_loss"])
    for trial in range(3):
        shape = {"label_smoothing": 0.1 * trial} | ({"focal_gamma": 1.0 + trial} if loss == "focal" else {})
        shaped = replace(LOSSES[loss], per_sample=partial(LOSSES[loss].per_sample, **shape), shaped_by=())
        run = make_run(trial, batch_size=16, **shape)
        beside = [make_run(other, batch_size=16, label_smoothing=0.1 * other) for other in range(3) if other != trial]
        engine = make_way(task)
        found = train(engine, [run, *beside], 2)[0]
        curve, best = plain_loop(replace(task, loss=shaped), run, 2)
        assert [o.train_loss for o in found] == pytest.approx([own[0] for own in curve], rel=1e-9)
        torch.testing.assert_close(engine.weights(run), best, rtol=1e-9, atol=1e-12)


# An optimizer of the user's own.


class Mine(torch.optim.AdamW):
    def __init__(self, params: Any, **keys: Any) -> None:
        super().__init__(params, **keys)


class Noisy(torch.optim.Optimizer):
    """Takes nothing but a learning rate, and rolls dice."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad + 0.1 * torch.randn_like(p), alpha=group["lr"])


class Broken(torch.optim.SGD):
    def step(self) -> None:  # type: ignore[override]
        raise ValueError("no step today")


OWN: dict[str, Any] = {"own.py:Mine": Mine, "own.py:Noisy": Noisy, "own.py:Broken": Broken}


@pytest.mark.parametrize("decay_biases", [True, False])
def test_an_optimizer_of_the_users_own_equals_a_plain_loop(make_way: MakeEngine, decay_biases: bool) -> None:
    """l1 is added to its gradient; l2 and the betas it takes itself."""
    task = make_task(dtype=torch.float64, optimizers=OWN, decay_biases=decay_biases)
    own = {"optimizer": "own.py:Mine", "beta1": 0.8, "beta2": 0.9, "l2": 0.1}
    assert_equals_plain_loop(make_way, task, [make_run(trial, batch_size=16, **own) for trial in range(2)])


def test_what_an_optimizer_does_not_take_of_l2_is_added_to_its_gradient(make_way: MakeEngine) -> None:
    class Plain(torch.optim.SGD):
        def __init__(self, params: Any, lr: float) -> None:
            super().__init__(params, lr=lr)

    task = make_task(dtype=torch.float64, optimizers={"own.py:Plain": Plain})
    same = {"batch_size": 16, "l1": 0.01, "l2": 0.1, "learning_rate": 0.1}
    plain = make_run(0, optimizer="sgd", momentum=0.0, **same)
    own = make_run(0, optimizer="own.py:Plain", **same)
    found, expected = (train(make_way(task), [run], 2)[0] for run in (own, plain))
    assert [o.train_loss for o in found] == pytest.approx([o.train_loss for o in expected], rel=1e-9)


def test_what_an_optimizer_draws_is_the_runs_own(make_engine: MakeEngine) -> None:
    task = make_task(optimizers=OWN)
    runs = [make_run(trial, optimizer="own.py:Noisy", batch_size=16) for trial in range(3)]
    process = torch.get_rng_state()
    crowd = outcomes(make_engine(task), [make_run(7), *runs])
    assert torch.equal(process, torch.get_rng_state())
    assert crowd[1] == outcomes(make_engine(task), [runs[1]])[1]


def test_an_optimizer_that_raises_fails_its_own_run(make_engine: MakeEngine) -> None:
    runs = [make_run(0, optimizer="own.py:Broken"), make_run(1)]
    broken, fine = tick(start(make_engine(make_task(optimizers=OWN)), runs), runs)
    assert (broken.failure or "").startswith("own.py:Broken raised ValueError: no step today (test_engine.py, line ")
    assert fine.failure is None


# A run's result depends on nothing but itself: not on the neighbours, not on the slot.


@pytest.mark.parametrize("activation", ["gelu", "tanh"])
def test_a_run_is_bitwise_the_same_alone_and_beside_any_neighbours(make_engine: MakeEngine, activation: str) -> None:
    task = make_task(mlp(activation=activation), samples=39)
    runs = [make_run(trial) for trial in range(32)]
    alone = {trial: outcomes(make_engine(task), [runs[trial]])[trial] for trial in (3, 4, 6)}
    for neighbours in (runs[3:5], runs[:7], runs):
        crowd = outcomes(make_engine(task), neighbours)
        both = alone.keys() & crowd.keys()
        assert len(both) > 1
        assert {trial: crowd[trial] for trial in both} == {trial: alone[trial] for trial in both}


@pytest.mark.parametrize(
    ("plan", "slot"),
    [("rules, blocks of 32", 1), ("rules, blocks of 32", 14), ("rules, blocks of 32", 31)]
    + [("rules, blocks of 8", slot) for slot in (1, 2, 5, 7)]
    + [("rules, blocks of 2", 1)],
)
@pytest.mark.parametrize("activation", ["mish", "gelu"])
def test_a_run_is_bitwise_the_same_in_any_slot(plan: str, slot: int, activation: str) -> None:
    """Neighbours of the same optimizer and batch size stand in the order of their numbers, and fill their block.

    torch's mish rounds otherwise for the elements of a tensor that no longer fill a vector.
    """
    task = make_task(mish if activation == "mish" else mlp(activation="gelu"))
    same = {"optimizer": "adam", "batch_size": 7}
    rows = PLANS[plan].block_rows
    alone = outcomes(LocalEngine(task, PLANS[plan]), [make_run(100, **same)])
    crowd = [make_run(trial, **same) for trial in range(100 - slot, 100 - slot + rows)]
    assert outcomes(LocalEngine(task, PLANS[plan]), crowd)[100] == alone[100]


@pytest.mark.parametrize("model", ["transformer", "silu"])
def test_how_many_rows_are_computed_at_once_changes_no_bit(model: str) -> None:
    """Blocks have one height, as low as their slots allow: 9 trials fall into blocks of 2, 4, 6 or 10 rows."""
    task = make_task(Transformer if model == "transformer" else mlp(37, "silu"))
    runs = [make_run(trial) for trial in range(9)]
    by_two, by_six, at_once = (
        outcomes(LocalEngine(task, replace(BLOCKS_OF_32, block_rows=rows)), runs, ticks=1) for rows in (2, 8, 16)
    )
    assert by_six == by_two
    assert at_once == by_two


@examples(6)
@given(
    plan=st.sampled_from([own for own in PLANS.values() if own.way != "looped"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    activation=st.sampled_from(["relu", "tanh", "gelu", "silu"]),
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70), st.integers(CLASSES, 12), st.integers(10, 50)),
    runs=st.lists(st.integers(0, 500), min_size=2, max_size=10, unique=True),
)
def test_a_run_is_bitwise_the_same_for_any_shape_of_model_and_data(
    plan: Plan, dtype: torch.dtype, activation: str, shape: tuple[int, int, int, int], runs: list[int]
) -> None:
    features, hidden, outputs, samples = shape
    model = mlp(hidden, activation, features, outputs)
    task = make_task(model, dtype=dtype, samples=samples, features=(features,))
    crowd = outcomes(LocalEngine(task, plan), [make_run(trial) for trial in runs])
    for trial in runs[:2]:
        assert crowd[trial] == outcomes(LocalEngine(task, plan), [make_run(trial)])[trial]


def test_a_run_does_not_see_others_come_and_go(make_engine: MakeEngine) -> None:
    task = make_task()
    runs = [make_run(trial) for trial in range(12)]
    staying, late = runs[1], runs[10]
    alone = outcomes(make_engine(task), [staying], ticks=3) | outcomes(make_engine(task), [late], ticks=3)
    engine = make_engine(task)
    curves: dict[int, list[Measurement]] = {staying.trial: [], late.trial: []}
    crowds = [runs[:8], runs[:4], [*runs[1:4], *runs[8:]], [runs[0], *runs[8:]], [runs[4], *runs[9:]]]
    flying: list[Run] = []
    for crowd in crowds:
        for run in flying:
            if run not in crowd:
                engine.free(run)
        start(engine, [run for run in crowd if run not in flying])
        flying = crowd
        for own in tick(engine, flying):
            if own.trial in curves:
                curves[own.trial].append(own)
        for run in (staying, late):
            if run in flying and len(curves[run.trial]) == 3:
                assert outcome(engine, run, curves[run.trial]) == alone[run.trial]
    assert all(len(curve) == 3 for curve in curves.values())


@pytest.mark.parametrize("size", [16, "full"])
def test_a_run_that_diverges_fails_and_its_neighbours_do_not_notice(make_engine: MakeEngine, size: int | str) -> None:
    task = make_task(mlp(activation="relu"))
    wild = make_run(3, optimizer="sgd", learning_rate=1e30, batch_size=size, settings={})
    tame = [make_run(trial, optimizer="sgd", batch_size=own) for trial, own in ((1, 16), (2, 1), (4, 7), (5, 16))]
    calm = outcomes(make_engine(task), tame)
    crowd = outcomes(make_engine(task), [*tame[:2], wild, *tame[2:]])
    assert {run.trial: crowd[run.trial] for run in tame} == calm
    assert crowd[3] == outcomes(make_engine(task), [wild])[3]
    engine = make_engine(task)
    (curve,) = train(engine, [wild], 2)
    assert curve[-1].failure is not None
    assert curve[-1].failure.startswith("diverged: ")
    assert all(tensor.isfinite().all() for tensor in engine.weights(wild).values())


class Closed(nn.Module):
    """A gate that is shut for good: its weights are trained, and infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.gate = nn.Linear(FEATURES, CLASSES), nn.Parameter(torch.full((CLASSES,), -torch.inf))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs) + self.gate.relu()
        return outputs


def test_a_run_without_penalties_does_not_feel_those_of_its_neighbours(make_engine: MakeEngine) -> None:
    task = make_task(Closed)
    run = make_run(3, optimizer="sgd", batch_size=16, l1=0.0, l2=0.0)
    crowd = [make_run(trial, optimizer="sgd", batch_size=16) for trial in range(3)] + [run]
    assert outcomes(make_engine(task), crowd)[3] == outcomes(make_engine(task), [run])[3]


def test_ways_agree_to_rounding() -> None:
    task = make_task(mlp(activation="gelu"), dtype=torch.float64)
    runs = [make_run(trial) for trial in range(6)]
    engines = [LocalEngine(task, plan) for plan in PLANS.values()]
    curves = [train(engine, runs, 3) for engine in engines]
    for run, *measured in zip(runs, *curves, strict=True):
        first, *others = [
            torch.tensor([[o.train_loss, o.validation_loss, o.metric, o.gradient_norm] for o in own])
            for own in measured
        ]
        for other, engine in zip(others, engines[1:], strict=True):
            torch.testing.assert_close(other, first, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(engine.weights(run), engines[0].weights(run), rtol=1e-9, atol=1e-12)


def test_the_seed_of_a_study_gives_another_training(make_engine: MakeEngine) -> None:
    task, run = make_task(), make_run(0)
    other = Run(run.trial, run.study_seed + 1, run.hparams, run.epochs, run.settings)
    assert outcomes(make_engine(task), [run]) != outcomes(make_engine(task), [other])


# Many trials train as one program, and can be interrupted.


def count_calls(monkeypatch: pytest.MonkeyPatch, target: Any, name: str) -> list[str]:
    calls: list[str] = []
    original = getattr(target, name)

    def counted(*args: Any, **keys: Any) -> Any:
        calls.append(name)
        return original(*args, **keys)

    monkeypatch.setattr(target, name, counted)
    return calls


@pytest.mark.parametrize(("trials", "blocks"), [(1, 1), (32, 1), (33, 2)])
def test_a_block_takes_one_gradient_and_one_update_a_step(
    monkeypatch: pytest.MonkeyPatch, trials: int, blocks: int
) -> None:
    """61 samples in batches of 16: four steps, however many trials and optimizers."""
    runs = [make_run(trial, batch_size=16) for trial in range(trials)]
    engine = start(LocalEngine(make_task(), BY_TORCH), runs)
    gradients = count_calls(monkeypatch, Rowwise, "add_gradient")
    updates = count_calls(monkeypatch, Updates, "apply")
    tick(engine, runs)
    assert len(gradients) == 4 * blocks
    assert len(updates) == 4 * blocks


def test_batch_sizes_share_the_steps_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 16, of 48 and of everything are read in the same micro-batches of 16: four steps of one block."""
    runs = [make_run(trial, batch_size=size) for trial, size in enumerate((16, 48, "full"))]
    engine = start(LocalEngine(make_task(), BY_TORCH), runs)
    gradients = count_calls(monkeypatch, Rowwise, "add_gradient")
    tick(engine, runs)
    assert len(gradients) == 4


@pytest.fixture
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves on by a second whenever somebody reads it; a step in C takes as long as it may."""
    monkeypatch.setattr(native, "AT_ONCE", 1)
    seconds = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(seconds)))


@pytest.mark.usefixtures("_clock")
def test_an_interrupted_tick_goes_on_where_it_stopped(make_local: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    validation = draw_samples(2 * EVALUATION_SAMPLES + 50, 1, torch.float32)
    task, runs = make_task(validation=validation), [make_run(trial) for trial in range(6)]
    engine = start(make_local(task), runs)
    curves: dict[int, list[Measurement]] = {run.trial: [] for run in runs}
    interruptions = 0
    for ticks in (1, 2):
        assert engine.advance(time.monotonic() - 1) == []
        while any(len(curve) < ticks for curve in curves.values()):
            measured = engine.advance(time.monotonic() + 3)
            interruptions += not measured
            for own in measured:
                curves[own.trial].append(own)
    assert interruptions > 50
    monkeypatch.undo()
    whole = start(make_local(task), runs)
    for number in range(2):
        expected = [shown(own) for own in tick(whole, runs)]
        assert [shown(curves[run.trial][number]) for run in runs] == expected
    for run in runs:
        torch.testing.assert_close(engine.weights(run), whole.weights(run), rtol=0, atol=0)


@pytest.mark.usefixtures("_clock")
def test_a_deadline_is_kept_within_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step at most is trained beyond a deadline, so that signals and the live view never wait for an epoch."""
    for plan, owner, name in ((BY_TORCH, Rowwise, "add_gradient"), (BLOCKS_OF_32, Steps, "begin")):
        engine = start(LocalEngine(make_task(), plan), [make_run(0, batch_size=1)])
        steps = count_calls(monkeypatch, owner, name)
        assert engine.advance(time.monotonic() + 10) == []
        assert 0 < len(steps) <= 10


def test_a_deadline_is_kept_within_an_evaluation() -> None:
    validation = draw_samples(2 * EVALUATION_SAMPLES + 50, 1, torch.float32)
    engine = start(LocalEngine(make_task(validation=validation), BLOCKS_OF_32), [make_run(0, batch_size="full")])
    calls = 1
    while not engine.advance(time.monotonic() - 1):
        calls += 1
    assert calls == 4 + 2, "four micro-batches, and with the last of them the first of three chunks"


def test_a_run_stopped_in_its_evaluation_is_evaluated_where_it_is_restored() -> None:
    validation = draw_samples(2 * EVALUATION_SAMPLES + 50, 1, torch.float32)
    task, run = make_task(validation=validation), make_run(0, batch_size="full")
    whole = tick(start(LocalEngine(task, BLOCKS_OF_32), [run]), [run])
    engine = start(LocalEngine(task, BLOCKS_OF_32), [run])
    for _ in range(5):
        assert engine.advance(time.monotonic() - 1) == []
    snapshot = engine.snapshot(run)
    assert snapshot is not None
    later = start(LocalEngine(task, BLOCKS_OF_32), [run])
    later.restore(run, snapshot)
    assert [shown(own) for own in tick(later, [run])] == [shown(own) for own in whole]


@pytest.mark.parametrize("steps", [16, 32])
def test_an_epoch_laid_out_in_stretches_has_the_bits_of_one_laid_out_at_once(
    make_local: MakeEngine, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    drawn = draw_samples(100, 0, torch.float32)
    weighted = replace(drawn, weights=torch.rand(100, generator=torch.Generator().manual_seed(0)) * 3)
    for task in (make_task(train=drawn), make_task(train=weighted)):
        runs = [make_run(trial, batch_size=size) for trial, size in enumerate([1, 2, 7, 1, "full"])]
        whole = outcomes(make_local(task), runs)
        with monkeypatch.context() as patch:
            patch.setattr(stretch, "LAID_OUT", 1)
            patch.setattr(stretch, "LEAST_STEPS", steps)
            assert outcomes(make_local(task), runs) == whole


def test_a_batch_that_two_stretches_share_is_weighted_as_a_whole(
    make_local: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 samples in micro-batches of 16 or 64: the only batch goes on after the fourth step."""
    drawn = draw_samples(300, 0, torch.float32)
    task = make_task(train=replace(drawn, weights=torch.rand(300, generator=torch.Generator().manual_seed(0)) * 3))
    runs = [make_run(trial, batch_size="full") for trial in range(2)]
    whole = outcomes(make_local(task), runs)
    monkeypatch.setattr(stretch, "LAID_OUT", 1)
    monkeypatch.setattr(stretch, "LEAST_STEPS", 4)
    assert outcomes(make_local(task), runs) == whole


def test_every_call_makes_progress_however_near_its_deadline() -> None:
    """61 samples in batches of 16: four steps."""
    engine = start(LocalEngine(make_task(), BLOCKS_OF_32), [make_run(0, batch_size=16)])
    assert [len(engine.advance(time.monotonic() - 1)) for _ in range(4)] == [0, 0, 0, 1]


# Models that cannot share a program.


class Mixing(nn.Module):
    """Every output depends on all samples of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs - inputs.mean(0))
        return outputs


class Warming(nn.Module):
    """Its outputs grow with every batch that it learns from."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        outputs: Tensor = self.layer(inputs) * (self.seen / 9).clamp(max=1)
        return outputs


class Sparse(nn.Module):
    """Its table's gradient is a sparse tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4, sparse=True), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.table((x.abs() * 2).long().clamp(max=8)).mean(1))
        return found


def test_a_sparse_gradient_trains_as_a_dense_one() -> None:
    runs = [make_run(trial) for trial in range(2)]
    sparse, dense = (make_task(own) for own in (Sparse, lambda: _dense(Sparse())))
    assert outcomes(LocalEngine(sparse, LOOPED), runs) == outcomes(LocalEngine(dense, LOOPED), runs)


def _dense(module: Sparse) -> Sparse:
    module.table.sparse = False
    return module


class Tied(nn.Module):
    """Two names of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, FEATURES)
        self.second = nn.Linear(FEATURES, FEATURES)
        self.second.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.second(self.first(inputs).tanh())
        return outputs


class Across(nn.Module):
    """A sequence's steps first, as torch has it by default: what is one is the caller's to see to."""

    def __init__(self, layer: nn.Module, *, transposed: bool = False, dropped: float = 0.0) -> None:
        super().__init__()
        self.layer, self.head, self.transposed = layer, nn.Linear(5, CLASSES), transposed
        self.drop = nn.Dropout(dropped)

    def forward(self, inputs: Tensor) -> Tensor:
        steps = self.drop(inputs.unflatten(1, (6, 5)))
        steps = steps.transpose(0, 1) if self.transposed else steps
        found = self.layer(steps, steps, steps) if isinstance(self.layer, nn.MultiheadAttention) else self.layer(steps)
        outputs: Tensor = self.head((found[0] if isinstance(found, tuple) else found).mean(0 if self.transposed else 1))
        return outputs


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        (lambda: Across(nn.LSTM(5, 5)), "layer, LSTM(5, 5)"),
        (lambda: Across(nn.GRU(5, 5), dropped=0.5), "layer, GRU(5, 5)"),
        (lambda: Across(nn.MultiheadAttention(5, 1)), "layer, MultiheadAttention"),
        (lambda: Across(nn.TransformerEncoderLayer(5, 1, 4)), "layer.self_attn, MultiheadAttention"),
        (lambda: Across(nn.LSTM(5, 5, batch_first=True)), None),
        (lambda: Across(nn.LSTM(5, 5), transposed=True), None),
        (lambda: Across(nn.TransformerEncoderLayer(5, 1, 4), transposed=True), None),
    ],
)
def test_a_layer_that_takes_samples_for_the_steps_of_a_sequence_is_named(model: MakeModel, layer: str | None) -> None:
    found = LocalEngine(make_task(model), BY_TORCH).traits(make_run(0))
    assert found.mixes_samples == (layer is not None)
    wrong = "takes samples for steps of a sequence: batch_first=True"
    assert (found.looped_because == f"layer {layer}, {wrong}") if layer else (wrong not in str(found.looped_because))


@pytest.mark.parametrize(
    ("last", "told"), [(nn.Softmax(1), True), (nn.LogSoftmax(1), False), (nn.Sigmoid(), False), (nn.Identity(), False)]
)
def test_probabilities_where_a_loss_takes_logits_are_remarked(last: nn.Module, told: bool) -> None:
    task = make_task(lambda: nn.Sequential(nn.Linear(FEATURES, CLASSES), last))
    remark = "the model gives probabilities, and cross_entropy takes logits: leave its last activation out"
    assert LocalEngine(task, BY_TORCH).traits(make_run(0)).remark == (remark if told else None)


@pytest.mark.parametrize("last", [nn.Sigmoid(), nn.Identity()])
def test_a_sigmoid_before_a_loss_of_one_logit_is_remarked(last: nn.Module) -> None:
    loss = LOSSES["binary_cross_entropy"]
    task = make_task(lambda: nn.Sequential(nn.Linear(FEATURES, 1), last), loss=loss, classes=2)
    task = replace(task, **{part: two_classes(getattr(task, part)) for part in ("train", "validation")})
    assert (LocalEngine(task, BY_TORCH).traits(make_run(0)).remark is None) == isinstance(last, nn.Identity)


def two_classes(samples: Samples) -> Samples:
    return replace(samples, targets=samples.targets % 2)


class Shifting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        inputs += 1
        outputs: Tensor = self.layer(inputs)
        return outputs


def test_a_model_that_writes_into_the_data_is_refused_and_they_are_left_as_they_were() -> None:
    task = make_task(Shifting)
    assert isinstance(task.train, Samples)
    before = task.train.inputs.clone()
    with pytest.raises(ModelError, match="writes into its inputs") as caught:
        LocalEngine(task, BY_TORCH).traits(make_run(0))
    assert "x = x + 1" in str(caught.value.hint)
    assert torch.equal(task.train.inputs, before)


class Branching(nn.Module):
    """Looks at its numbers, which vmap cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs)
        return outputs if float(outputs.detach().sum()) < 1e9 else outputs * 0


def frozen(first: nn.Module) -> nn.Module:
    return nn.Sequential(first.requires_grad_(False), nn.Tanh(), nn.Linear(8, CLASSES))


def frozen_random() -> nn.Module:
    return frozen(nn.Linear(FEATURES, 8))


def frozen_same() -> nn.Module:
    first = nn.Linear(FEATURES, 8)
    nn.init.constant_(first.weight, 0.1)
    nn.init.zeros_(first.bias)
    return frozen(first)


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, CLASSES))


def dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 9), nn.Dropout(0.4), nn.Tanh(), nn.Linear(9, CLASSES))


def convolution() -> nn.Module:
    convolving = nn.Unflatten(1, (2, FEATURES // 2)), nn.Conv1d(2, 2, 3, groups=2), nn.Flatten()
    return nn.Sequential(*convolving, nn.Linear(FEATURES - 4, CLASSES))


def normed_convolution() -> nn.Module:
    """What is faster one by one is no faster by another norm."""
    *layers, last = convolution()
    return nn.Sequential(*layers, last, nn.BatchNorm1d(CLASSES))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memory, self.head = nn.LSTM(5, 4, batch_first=True), nn.Linear(4, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.memory(inputs.unflatten(1, (6, 5)))[0][:, -1])
        return outputs


MODELS = [frozen_same, Tied, batch_norm, Mixing, convolution, Recurrent, frozen_random, Branching]


@pytest.mark.parametrize(
    ("model", "because"),
    [
        (mlp(), None),
        (frozen_same, None),
        (Tied, None),
        (dropout, None),
        (batch_norm, "BatchNorm1d (layer 1) mixes the samples of a batch: nn.GroupNorm does not"),
        (normed_convolution, "BatchNorm1d (layer 4) mixes the samples of a batch"),
        (Mixing, "samples of a batch depend on each other"),
        (Warming, "its forward pass writes to self.seen"),
        (convolution, "such convolutions are faster one by one"),
        (Recurrent, "recurrent layers are faster one by one"),
        (frozen_random, "its frozen weights differ from trial to trial"),
        (
            Branching,
            "test_engine.py:LINE: its forward pass reads a tensor's value (if, float, print): use torch.where",
        ),
    ],
)
def test_an_engine_says_why_a_model_is_looped(model: MakeModel, because: str | None) -> None:
    found = LocalEngine(make_task(model), BY_TORCH).traits(make_run(0)).looped_because
    if because is not None and "LINE" in because:
        lines, first = inspect.getsourcelines(model.forward)  # type: ignore[attr-defined]  # a class
        because = because.replace("LINE", str(first + len(lines) - 1))
    assert found == because


@pytest.mark.parametrize("model", MODELS)
def test_a_model_of_any_kind_equals_a_plain_loop_with_whole_batches(make_way: MakeEngine, model: MakeModel) -> None:
    """Batches above every cap too: statistics are those of the whole batch, buffers those of the best tick."""
    runs = [make_run(trial, batch_size=size) for trial, size in enumerate((10, 61, 70, "full"))]
    assert_equals_plain_loop(make_way, make_task(model, dtype=torch.float64, samples=133), runs)


def test_dropout_is_drawn_per_run(make_engine: MakeEngine) -> None:
    task, runs = make_task(dropout), [make_run(trial, batch_size=16) for trial in range(4)]
    process = torch.get_rng_state()
    alone = {run.trial: outcomes(make_engine(task), [run])[run.trial] for run in runs[:2]}
    crowd = outcomes(make_engine(task), runs)
    assert torch.equal(process, torch.get_rng_state()), "the process's own randomness is left alone"
    assert {trial: crowd[trial] for trial in alone} == alone
    without = outcomes(make_engine(make_task(lambda: nn.Sequential(*list(dropout())[:1], *list(dropout())[2:]))), runs)
    assert without[0] != crowd[0]


@pytest.mark.parametrize("p", [0.001, 0.01, 0.05])
@pytest.mark.parametrize("hidden", [1, 4])
def test_dropout_so_rare_that_a_few_samples_show_none_is_dropout(p: float, hidden: int) -> None:
    task = make_task(lambda: nn.Sequential(nn.Linear(FEATURES, hidden), nn.Dropout(p), nn.Linear(hidden, CLASSES)))
    found = LocalEngine(task, PLANS["rules, blocks of 8"]).traits(make_run(0))
    assert (found.stochastic, found.way) == (True, "rules")


def test_dropout_is_drawn_anew_for_each_batch_and_epoch(make_engine: MakeEngine) -> None:
    """Equal samples and a learning rate of zero: what dropout draws is all that can change the training loss."""

    def losses(samples: int) -> list[float]:
        equal = Samples(torch.ones(samples, FEATURES), torch.zeros(samples, dtype=torch.int64))
        run = make_run(0, optimizer="sgd", learning_rate=0.0, batch_size=16)
        (curve,) = train(make_engine(make_task(dropout, train=equal)), [run], 2)
        return [own.train_loss for own in curve]

    one, two = losses(16), losses(32)
    assert one[0] != one[1]
    assert one[0] != two[0]


# The weights that a run gives are those of its best tick.


def scripted(values: list[float], direction: str) -> Metric:
    """A metric that takes these values, tick by tick."""
    left = iter(values)
    return Metric(
        "scripted", None, direction, lambda outputs, targets, classes: torch.full(outputs.shape[:1], next(left))
    )


@pytest.mark.parametrize(
    ("direction", "values", "best"),
    [
        ("maximize", [1.0, 3.0, 3.0, 2.0], 2),
        ("minimize", [1.0, 3.0, 1.0, 2.0], 1),
        ("minimize", [3.0, 2.0, 2.0, 1.0], 4),
    ],
)
@pytest.mark.parametrize("model", [batch_norm, frozen_same, Tied])
def test_weights_are_those_of_the_best_tick_the_first_of_equals(
    make_way: MakeEngine, model: MakeModel, direction: str, values: list[float], best: int
) -> None:
    run = make_run(0, batch_size=16)
    last = start(make_way(make_task(model, validation=None)), [run])  # nothing to choose by: the last tick's
    states = []
    for _ in values:
        tick(last, [run])
        states.append(last.weights(run))
    engine = start(make_way(make_task(model, metric=scripted(values, direction))), [run])
    assert [tick(engine, [run])[0].metric for _ in values] == values
    found = engine.weights(run)
    assert found.keys() == states[0].keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, states[best - 1][name]), name


@pytest.mark.parametrize("model", [batch_norm, frozen_same, frozen_random, Tied])
def test_weights_load_into_a_new_model_and_give_the_value_measured(make_engine: MakeEngine, model: MakeModel) -> None:
    task = make_task(model, dtype=torch.float64)
    runs = [make_run(trial, batch_size=16) for trial in range(3)]
    engine = make_engine(task)
    curves = train(engine, runs, 3)
    assert task.validation is not None
    for run, curve in zip(runs, curves, strict=True):
        module = task.build(make_run(99))
        module.load_state_dict(engine.weights(run), strict=True)
        outputs = module.eval()(task.validation.inputs)[None].detach()
        _, value = task.score(outputs, task.validation.targets)
        assert float(value) == pytest.approx(min(own.metric for own in curve), rel=1e-9)


def test_weights_of_a_run_before_its_first_tick_are_its_initial_ones(make_engine: MakeEngine) -> None:
    task, run = make_task(), make_run(0)
    found = start(make_engine(task), [run]).weights(run)
    torch.testing.assert_close(found, dict(task.build(run).state_dict()), rtol=0, atol=0)


def test_weights_are_a_copy(make_engine: MakeEngine) -> None:
    run = make_run(0)
    engine = start(make_engine(make_task()), [run])
    tick(engine, [run])
    first = engine.weights(run)
    for tensor in first.values():
        tensor.zero_()
    assert any(tensor.any() for tensor in engine.weights(run).values())


def test_of_many_runs_started_at_once_those_that_cannot_be_are_told_and_the_others_train(
    make_engine: MakeEngine,
) -> None:
    task = make_task()

    def build(run: Run) -> nn.Module:
        if run.hparams.get("model.kind") == "odd":
            raise ModelError(f"no model for {run.trial}")
        return task.build(run)

    runs = [make_run(trial, **{"model.kind": "odd"} if trial % 5 == 2 else {}) for trial in range(40)]
    odd, even = runs[2::5], [run for run in runs if run.trial % 5 != 2]
    engine = make_engine(replace(task, build=build))
    failed = engine.start_all(runs)
    assert {trial: error.message for trial, error in failed.items()} == {
        r.trial: f"no model for {r.trial}" for r in odd
    }
    curves = [list(own) for own in zip(*[tick(engine, even) for _ in range(2)], strict=True)]
    found = {run.trial: outcome(engine, run, curve) for run, curve in zip(even, curves, strict=True)}
    assert found == outcomes(make_engine(task), even)
    # Those that are freed leave their slots at once, to runs of their number too.
    for run in even:
        engine.free(run)
    assert not engine.start_all(even)
    assert [shown(own) for own in tick(engine, even)] == [found[run.trial][0][0] for run in even]


# A model that does not fit is refused before anything is trained.


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (mlp(outputs=2), "the model gives 2 outputs a sample, the data have 3 classes and cross_entropy needs 3"),
        (mlp(features=FEATURES + 1), f"the model cannot read samples of shape ({FEATURES},)"),
        (lambda: nn.Sequential(nn.Linear(FEATURES, 6), nn.Unflatten(1, (2, 3))), "must return (samples, outputs)"),
        (lambda: nn.Sequential(nn.Linear(FEATURES, 6), nn.Flatten(0)), "must return (samples, outputs)"),
        (lambda: nn.Sequential(nn.Unflatten(1, (6, 5)), nn.LSTM(5, 3)), "must return a tensor, got tuple"),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_refused_with_a_hint(
    make_engine: MakeEngine, model: MakeModel, expected: str
) -> None:
    engine = make_engine(make_task(model))
    with pytest.raises(ModelError) as caught:
        engine.start(make_run(0))
    assert expected in caught.value.message
    assert caught.value.hint


class Refusing(nn.Module):
    """Stops in the middle of its first epoch, after the few forward passes by which a model is tried."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)
        self.left = 40

    def forward(self, inputs: Tensor) -> Tensor:
        self.left -= self.training
        if self.left < 0:
            raise ValueError("enough")
        outputs: Tensor = self.layer(inputs)
        return outputs


def test_a_model_that_raises_while_it_trains_fails_its_own_run_and_no_other() -> None:
    def build(run: Run) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(run.seed("weights"))
            return Refusing() if run.trial == 1 else nn.Linear(FEATURES, CLASSES)

    runs = [make_run(number, batch_size=1, **{"model.kind": str(number)}) for number in range(2)]
    alone = tick(start(LocalEngine(make_task(build=build), LOOPED), runs[:1]), runs[:1])
    beside = tick(start(LocalEngine(make_task(build=build), LOOPED), runs), runs)
    assert shown(beside[0]) == shown(alone[0])
    assert (beside[1].failure or "").startswith("the model raised ValueError: enough")


def test_a_last_batch_of_one_sample_joins_the_one_before_where_samples_mix() -> None:
    def normed() -> nn.Module:
        return nn.Sequential(nn.BatchNorm1d(FEATURES), nn.Linear(FEATURES, CLASSES))

    run = make_run(0, batch_size=20)
    engine = start(LocalEngine(make_task(normed, samples=61), LOOPED), [run])
    assert tick(engine, [run])[0].failure is None


@pytest.mark.parametrize(("model", "expected"), [(mlp(), 4), (batch_norm, 3)])
def test_an_engine_tells_how_many_updates_an_epoch_has(
    monkeypatch: pytest.MonkeyPatch, model: MakeModel, expected: int
) -> None:
    """61 samples in batches of 20: a lone last one joins its neighbours where they mix."""
    run = make_run(0, batch_size=20)
    engine = start(LocalEngine(make_task(model), LOOPED), [run])
    updates = count_calls(monkeypatch, Updates, "apply")
    tick(engine, [run])
    assert len(updates) == engine.epoch_updates(run) == expected


# A snapshot: a run goes on from it to bitwise what it would have come to.


class Course:
    """Runs on their way to their last epoch: what each has shown, and all it gave once it had ended."""

    def __init__(self, runs: list[Run]) -> None:
        self.flying = list(runs)
        self.curves: dict[int, list[Measurement]] = {run.trial: [] for run in runs}
        self.given: dict[int, tuple[Any, ...]] = {}

    def train(self, engine: Engine, calls: int, seconds: float) -> None:
        """Call `advance` so often; a run that has ended is freed."""
        for _ in range(calls):
            for own in engine.advance(time.monotonic() + seconds):
                self.curves.setdefault(own.trial, []).append(own)
            ended = [run for run in self.flying if len(self.curves[run.trial]) == run.epochs]
            for run in ended:
                self.given[run.trial] = outcome(engine, run, self.curves[run.trial])
                engine.free(run)
                self.flying.remove(run)


def as_stored(snapshot: Snapshot | None) -> Snapshot:
    """As it comes back from a disk, or from another process: numbers as JSON."""
    assert snapshot is not None
    return replace(snapshot, numbers=json.loads(json.dumps(snapshot.numbers)))


RECIPES: list[dict[str, Any]] = [
    {},
    {"ema_decay": 0.9, "clip_norm": 0.5},
    {"schedule": "plateau", "plateau_patience": 0, "plateau_factor": 0.3},
    {"optimizer": "own.py:Mine"},
    {"optimizer": "own.py:Noisy"},
]


@examples(8)
@given(
    plan=st.sampled_from(list(PLANS.values())),
    model=st.sampled_from([mlp(), dropout, batch_norm, frozen_same, Tied]),
    recipes=st.lists(st.sampled_from(RECIPES), min_size=1, max_size=5),
    stops=st.lists(st.integers(0, 60), min_size=1, max_size=3),
    draw=st.randoms(use_true_random=False),
)
def test_a_restored_run_goes_on_to_bitwise_the_same(
    plan: Plan, model: MakeModel, recipes: list[dict[str, Any]], stops: list[int], draw: random.Random
) -> None:
    """Stopped after any micro-steps, several times over: then in a new engine, in another order, beside others."""
    task = make_task(model, samples=39, optimizers=OWN)
    runs = [make_run(draw.randrange(10) * 10 + at, epochs=3, **recipe) for at, recipe in enumerate(recipes)]
    whole, course = Course(runs), Course(runs)
    whole.train(start(LocalEngine(task, plan), runs), calls=4, seconds=60)
    engine = start(LocalEngine(task, plan), runs)
    for stop in stops:
        course.train(engine, calls=stop, seconds=-1)
        snapshots = {run.trial: as_stored(engine.snapshot(run)) for run in course.flying}
        engine = LocalEngine(task, plan)
        for run in draw.sample(course.flying, len(course.flying)):
            engine.restore(run, snapshots[run.trial])
            if draw.random() < 0.5:
                engine.start(make_run(1000 + draw.randrange(9000), epochs=9))
    course.train(engine, calls=4, seconds=60)
    assert course.given == whole.given


def test_a_run_moves_from_one_engine_to_another_between_two_ticks(make_engine: MakeEngine) -> None:
    task, runs = make_task(), [make_run(trial) for trial in range(6)]
    whole = outcomes(make_engine(task), runs, ticks=3)
    first, second = start(make_engine(task), runs), make_engine(task)
    curves = {own.trial: [own] for own in tick(first, runs)}
    for run in runs:
        second.restore(run, as_stored(first.snapshot(run)))
        first.free(run)
    for _ in range(2):
        for own in tick(second, runs):
            curves[own.trial].append(own)
    assert {run.trial: outcome(second, run, curves[run.trial]) for run in runs} == whole


@pytest.mark.parametrize("size", [20, "full"])
def test_a_run_restored_in_the_middle_of_a_batch_joins_others_that_begin_their_tick(
    make_local: MakeEngine, size: int | str
) -> None:
    """133 samples: batches of several micro-steps where the plan has a cap, and of one where it has none."""
    task = make_task(samples=133)
    run, other, late = make_run(3, batch_size=size, epochs=2), *(make_run(n, batch_size=16, epochs=2) for n in (0, 5))
    whole = Course([run, late])
    whole.train(start(make_local(task), [run, late]), calls=2, seconds=60)
    engine, course = start(make_local(task), [run, other]), Course([run])
    for steps in (1, 2, 3):
        course.train(engine, calls=1, seconds=-1)
        snapshot = as_stored(engine.snapshot(run))
        beside, joined = make_local(task), Course([run, late])
        joined.curves[run.trial] = list(course.curves[run.trial])
        beside.start(late)
        beside.restore(run, snapshot)
        joined.train(beside, calls=2, seconds=60)
        assert joined.given == whole.given, steps


def test_a_snapshot_is_a_copy_and_knows_its_fidelity(make_local: MakeEngine) -> None:
    run = make_run(0, optimizer="adam", batch_size=16)
    engine = start(make_local(make_task()), [run])
    for fidelity in range(2):
        for _ in range(2):
            found = as_stored(engine.snapshot(run))
            kept = {name: tensor.clone() for name, tensor in found.tensors.items()}
            assert found.fidelity == fidelity
            engine.advance(time.monotonic() - 1)
            torch.testing.assert_close(dict(found.tensors), kept, rtol=0, atol=0)
        tick(engine, [run])


class Teacher(nn.Module):
    """A student, and a teacher that no gradient reaches: the average of what the student was."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = nn.Linear(FEATURES, CLASSES), nn.Linear(FEATURES, CLASSES).requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.student(inputs)
        return outputs


def distil(model: Teacher, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
    model.teacher.weight.data = model.teacher.weight.data * 0.9 + model.student.weight.data * 0.1
    apart = (model(batch[0]) - model.teacher(batch[0])).square().sum()
    return apart + nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])


def test_what_a_step_of_the_users_own_writes_to_is_in_a_snapshot() -> None:
    task = make_task(Teacher, loss=Step("own.py:distil", distil), metric=METRICS["loss"])
    run = make_run(0, optimizer="adam", batch_size=16, epochs=2)
    whole, course = Course([run]), Course([run])
    whole.train(start(LocalEngine(task, LOOPED), [run]), calls=2, seconds=60)
    engine = start(LocalEngine(task, LOOPED), [run])
    course.train(engine, calls=6, seconds=-1)
    snapshot = as_stored(engine.snapshot(run))
    engine = LocalEngine(task, LOOPED)
    engine.restore(run, snapshot)
    course.train(engine, calls=1, seconds=60)
    assert course.given == whole.given


class Counting(nn.Module):
    """Keeps how often it was called, and a mean of what it saw, in attributes of Python."""

    def __init__(self) -> None:
        super().__init__()
        self._calls, self.seen, self.head = 0, [torch.zeros(FEATURES)], nn.Linear(FEATURES, CLASSES)
        self.weights = [self.head.weight]

    def forward(self, inputs: Tensor) -> Tensor:
        self._calls += 1
        self.seen = [0.9 * self.seen[0] + 0.1 * inputs.mean(0)]
        outputs: Tensor = (inputs - self.seen[0]) @ self.weights[0].T * min(1.0, self._calls / 9)
        return outputs


def test_what_a_model_keeps_in_attributes_of_python_is_in_a_snapshot() -> None:
    task, runs = make_task(Counting), [make_run(trial, epochs=3) for trial in range(3)]
    whole, course = Course(runs), Course(runs)
    whole.train(start(LocalEngine(task, LOOPED), runs), calls=3, seconds=60)
    engine = start(LocalEngine(task, LOOPED), runs)
    for calls in (7, 3):
        course.train(engine, calls=calls, seconds=-1)
        snapshots = [as_stored(engine.snapshot(run)) for run in runs]
        engine = LocalEngine(task, LOOPED)
        for run, snapshot in zip(runs, snapshots, strict=True):
            engine.restore(run, snapshot)
    course.train(engine, calls=3, seconds=60)
    assert course.given == whole.given


class Remembering(nn.Module):
    """Keeps what is neither a tensor nor a number."""

    def __init__(self) -> None:
        super().__init__()
        self.lengths, self.head = set[int](), nn.Linear(FEATURES, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        self.lengths |= {len(inputs)}
        outputs: Tensor = self.head(inputs)
        return outputs


def test_a_model_that_keeps_what_is_no_plain_value_has_no_snapshot() -> None:
    engine = start(LocalEngine(make_task(Remembering), LOOPED), [run := make_run(0, batch_size=16)])
    assert engine.snapshot(run) is not None
    tick(engine, [run])
    assert engine.snapshot(run) is None


class Noisy(nn.Module):
    """Keeps a generator, and more numbers than Python writes."""

    def __init__(self, kept: str) -> None:
        super().__init__()
        self.head = nn.Linear(FEATURES, CLASSES)
        if kept == "generator":
            self.generator = torch.Generator().manual_seed(1)
        else:
            self.many = torch.zeros(5000)

    def forward(self, inputs: Tensor) -> Tensor:
        if hasattr(self, "generator"):
            inputs = inputs + torch.randn(inputs.shape, generator=self.generator)
        else:
            self.many[2500] += 1
        outputs: Tensor = self.head(inputs)
        return outputs


def test_what_python_writes_in_short_is_seen_to_change_too() -> None:
    run = make_run(0, batch_size=16)
    for kept in ("generator", "numbers"):
        engine = start(LocalEngine(make_task(partial(Noisy, kept)), LOOPED), [run])
        tick(engine, [run])
        snapshot = engine.snapshot(run)
        assert (snapshot is None) == (kept == "generator"), "whose state is no plain value"
        assert snapshot is None or "attributes" in snapshot.numbers


class Opaque(torch.optim.SGD):
    """Keeps what is neither a tensor nor a number."""

    def step(self) -> None:  # type: ignore[override]
        super().step()
        for group in self.param_groups:
            self.state[group["params"][0]]["secret"] = object()


def test_an_optimizer_whose_state_is_no_plain_value_has_no_snapshot() -> None:
    run = make_run(0, optimizer="own.py:Opaque", batch_size=16)
    engine = start(LocalEngine(make_task(optimizers={"own.py:Opaque": Opaque}), LOOPED), [run])
    tick(engine, [run])
    assert engine.snapshot(run) is None
