"""A loss, a metric and a step of the user's own: what they say is what is trained for, and what they raise is told."""

import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.nn import functional

from tunecli.engine import LOOPED, LocalEngine, Plan, Task
from tunecli.engine.batches import epoch_order
from tunecli.engine.task import make_task
from tunecli.metrics import own_direction
from tunecli.search import search
from tunecli.source import load_function
from tunecli.store import read
from tunecli.study import Study, load_data, make_study
from tunecli.trial import Measurement, Run

Command = Callable[..., Any]

BLOCKS = Plan("rules", cap=16, block_rows=8, threads=1)

OWN = """
import random

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch import nn
from torch.nn import functional as F


def load(samples=90):
    inputs = torch.randn(samples, 6, generator=torch.Generator().manual_seed(0))
    return inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()


def make(width=8):
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3))


def step(model, batch):
    inputs, targets = batch
    return F.cross_entropy(model(inputs), targets, reduction="sum"), len(targets)


def tokens(model, batch):
    "Every sample counts as often as its class, and those of class 0 not at all."
    inputs, targets = batch
    losses = F.cross_entropy(model(inputs), targets, reduction="none")
    return (losses * targets).sum(), int(targets.sum())


def loss(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")


def f1(outputs, targets):
    return f1_score(targets.numpy(), outputs.argmax(1).numpy(), average="macro")
"""


def own_study(folder: Path, code: str = "", **train: Any) -> Study:
    """A study of the functions above and of `code`; `data`, `model`, `space` and `search` may be given whole."""
    for name in [name for name in sys.modules if name.startswith("tunecli_user_")]:
        del sys.modules[name]  # a file is loaded once in a process
    (folder / "own.py").write_text(OWN + textwrap.dedent(code))
    document: dict[str, Any] = {
        "name": "own",
        "data": train.pop("data", {"source": "own.py:load"}),
        "model": train.pop("model", {"source": "own.py:make"}),
        "space": train.pop("space", {"batch_size": [16, "full"]}),
        "search": train.pop("search", {"trials": 4, "window": 2, "pruner": "none"}),
    }
    return make_study({**document, "train": {"epochs": 2} | train}, folder, "own", where="a test")


def own_task(folder: Path, code: str = "", **train: Any) -> Task:
    study = own_study(folder, code, **train)
    return make_task(study, load_data(study))


def make_run(batch_size: int | str = 16, trial: int = 0, **hparams: Any) -> Run:
    defaults = {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.0, "batch_size": batch_size}
    return Run(trial, 7, defaults | hparams, 2)


def train(task: Task, *runs: Run, plan: Plan = LOOPED, ticks: int = 2) -> list[list[Measurement]]:
    engine = LocalEngine(task, plan)
    for run in runs:
        engine.start(run)
    found = [sorted(engine.advance(time.monotonic() + 600), key=lambda own: own.trial) for _ in range(ticks)]
    return [list(own) for own in zip(*found, strict=True)]


def shown(curve: list[Measurement]) -> list[tuple[float, ...]]:
    return [(own.train_loss, own.validation_loss, own.metric, own.gradient_norm) for own in curve]


def plain_loop(task: Task, run: Run, batch_loss: Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, float]]) -> Any:
    """SGD as everybody writes it; the loss and its count of each epoch in training, and then on validation."""
    module, samples = task.build(run), len(task.train)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    size = samples if run.hparams["batch_size"] == "full" else int(str(run.hparams["batch_size"]))
    curve = []
    for epoch in range(2):
        sums = counts = 0.0
        for batch in epoch_order(run.seed("order", epoch), samples).split(size):
            optimizer.zero_grad()
            read = task.train.take(batch)
            loss, count = batch_loss(module, read.inputs, read.targets)  # type: ignore[arg-type]
            (loss / count).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            sums, counts = sums + float(loss.detach()), counts + count
        assert task.validation is not None
        with torch.no_grad():
            loss, count = batch_loss(module, task.validation.inputs, task.validation.targets)  # type: ignore[arg-type]
        curve.append((sums / counts, float(loss) / count))
    return curve


# A step.


@pytest.mark.parametrize("size", [1, 16, 50, "full"])
@pytest.mark.parametrize("name", ["step", "tokens"])
def test_a_step_trains_on_the_sum_of_its_losses_over_the_sum_of_its_counts(
    tmp_path: Path, size: int | str, name: str
) -> None:
    """What it counts is the divisor, on validation too; a batch that counts nothing changes nothing."""
    task = own_task(tmp_path, step=f"own.py:{name}")
    function = load_function(f"own.py:{name}", tmp_path)

    def batch_loss(module: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, float]:
        loss, count = function(module, (inputs, targets))
        return loss, max(count, 1)

    (found,) = train(task, run := make_run(size))
    expected = plain_loop(task, run, batch_loss)
    if not (name == "tokens" and size == 1):
        pairs = [(own.train_loss, own.validation_loss) for own in found]
        assert torch.tensor(pairs).flatten().tolist() == pytest.approx(torch.tensor(expected).flatten().tolist(), 1e-5)
    assert all(own.failure is None for own in found)
    assert [own.metric for own in found] == [own.validation_loss for own in found]


def test_a_large_batch_of_a_step_is_read_in_parts_that_add_up(tmp_path: Path) -> None:
    code = "seen = []\ndef counted(model, batch):\n    seen.append(len(batch[0]))\n    return tokens(model, batch)\n"
    task = own_task(tmp_path, code, step="own.py:counted", data={"source": "own.py:load", "samples": 3000})
    (found,) = train(task, run := make_run("full"))
    seen = load_function("own.py:counted", tmp_path).__globals__["seen"]
    assert max(seen) == 1024
    whole = own_task(tmp_path, step="own.py:tokens", per_batch=True, data={"source": "own.py:load", "samples": 3000})
    (at_once,) = train(whole, run)
    for one, other in zip(shown(found), shown(at_once), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize("per_batch", [True, False])
def test_a_step_whose_samples_depend_on_each_other_gets_whole_batches(tmp_path: Path, per_batch: bool) -> None:
    """It says so, or it is noticed."""
    code = """
    seen = []
    def centred(model, batch):
        inputs, targets = batch
        seen.append(len(inputs))
        outputs = model(inputs)
        return F.cross_entropy(outputs - outputs.mean(0), targets, reduction="sum"), len(inputs)
    """
    more = {"data": {"source": "own.py:load", "samples": 2600}, "per_batch": per_batch}
    task = own_task(tmp_path, code, step="own.py:centred", **more)
    train(task, make_run("full"), ticks=1)
    assert len(task.train) in load_function("own.py:centred", tmp_path).__globals__["seen"]
    assert LocalEngine(task, BLOCKS).traits(make_run()).mixes_samples


def test_a_step_may_draw_from_any_generator_and_depends_on_its_run_alone(tmp_path: Path) -> None:
    code = """
    def noisy(model, batch):
        inputs, targets = batch
        noise = torch.randn(inputs.shape) * random.random() + float(np.random.rand())
        return F.cross_entropy(model(inputs + noise), targets, reduction="sum"), len(targets)
    """
    task = own_task(tmp_path, code, step="own.py:noisy")
    runs = [make_run(trial=trial) for trial in range(3)]
    crowd = train(task, *runs)
    assert [shown(own) for own in crowd] == [shown(train(task, run)[0]) for run in runs]
    assert shown(crowd[0])[0] != shown(crowd[1])[0]
    frozen = train(task, make_run(learning_rate=0.0))[0]
    assert frozen[0].train_loss != frozen[1].train_loss, "drawn anew each epoch"
    assert frozen[0].validation_loss == frozen[1].validation_loss, "and the same in every evaluation"


def test_a_step_may_have_a_metric_beside_it(tmp_path: Path) -> None:
    for metric in ("accuracy", "own.py:f1"):
        task = own_task(tmp_path, step="own.py:step", metric=metric)
        (own,), (bundled,) = train(task, make_run()), train(own_task(tmp_path, metric="accuracy"), make_run())
        assert [m.validation_loss for m in own] == pytest.approx([m.validation_loss for m in bundled], rel=1e-6)
        if metric == "accuracy":
            assert [m.metric for m in own] == [m.metric for m in bundled]


# A loss.


@pytest.mark.parametrize("plan", [LOOPED, BLOCKS])
def test_a_loss_of_ones_own_is_as_good_as_a_bundled_one(tmp_path: Path, plan: Plan) -> None:
    """Bit for bit, and to rounding for many trials at once, where the gradient of a bundled one is written by hand."""
    runs = [make_run(trial=trial, learning_rate=0.1 * (trial + 1)) for trial in range(3)]
    found, bundled = (train(own_task(tmp_path, **own), *runs, plan=plan) for own in ({"loss": "own.py:loss"}, {}))
    near = 0 if plan == LOOPED else 1e-5
    for curve, expected in zip(found, bundled, strict=True):
        for own, one in zip(shown(curve), shown(expected), strict=True):
            assert own == pytest.approx(one, rel=near, abs=0)
    assert LocalEngine(own_task(tmp_path, loss="own.py:loss"), BLOCKS).traits(runs[0]).looped_because is None


def test_the_losses_of_a_sample_are_averaged_and_targets_may_have_any_shape(tmp_path: Path) -> None:
    """As reduction="mean" does, which is a plain loop's."""
    code = """
    def load_pairs():
        inputs = load()[0]
        return inputs, inputs[:, :3].square()
    def squares(outputs, targets):
        return F.mse_loss(outputs, targets, reduction="none")
    """
    task = own_task(tmp_path, code, loss="own.py:squares", data={"source": "own.py:load_pairs"})

    def batch_loss(module: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, float]:
        return functional.mse_loss(module(inputs), targets) * len(inputs), len(inputs)

    for plan in (LOOPED, BLOCKS):
        (found,) = train(task, make_run(), plan=plan)
        expected = plain_loop(task, make_run(), batch_loss)
        assert [own.train_loss for own in found] == pytest.approx([own[0] for own in expected], rel=1e-5)
        assert [own.metric for own in found] == pytest.approx([own[1] for own in expected], rel=1e-5)


BATCH_LOSS = """
def spread(outputs, targets):
    "Correlates over the batch: no sample has a loss of its own."
    centred = outputs - outputs.mean(0)
    return F.cross_entropy(centred, targets) + centred.std(0).mean()
"""


def test_a_loss_over_a_batch_is_given_whole_batches(tmp_path: Path) -> None:
    """With a last batch of one sample, whose deviation is nothing: it joins the one before."""
    task = own_task(tmp_path, BATCH_LOSS, loss="own.py:spread", per_batch=True)
    spread = load_function("own.py:spread", tmp_path)
    assert len(task.train) == 72

    def batch_loss(module: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, float]:
        return spread(module(inputs), targets) * len(inputs), len(inputs)

    for size in (16, "full"):
        (found,) = train(task, make_run(size), plan=BLOCKS)
        expected = plain_loop(task, make_run(size), batch_loss)
        pairs = [value for own in found for value in (own.train_loss, own.validation_loss)]
        assert pairs == pytest.approx([value for own in expected for value in own], rel=1e-5)
    assert all(own.failure is None for own in train(task, make_run(71))[0])


def test_a_loss_that_mixes_samples_without_saying_so_is_given_whole_batches(tmp_path: Path) -> None:
    code = """
    def centred(outputs, targets):
        return F.cross_entropy(outputs - outputs.mean(0), targets, reduction="none")
    """
    task = own_task(tmp_path, code, loss="own.py:centred")
    assert LocalEngine(task, BLOCKS).traits(make_run()).mixes_samples


# A metric.


def test_a_metric_of_ones_own_decides(tmp_path: Path) -> None:
    """scikit-learn's own number, which no program can be made of."""
    study = own_study(tmp_path, metric="own.py:f1", direction="maximize")
    list(search(study, tmp_path / "study"))
    record = read(tmp_path / "study" / "study.db")
    assert (record.metric, record.direction) == ("f1", "maximize")
    task = make_task(study, load_data(study))
    engine = LocalEngine(replace(task, validation=task.validation), BLOCKS)
    engine.start(run := Run(0, 0, record.trials[0].hparams, 2))
    measured = [engine.advance(time.monotonic() + 60)[0] for _ in range(2)]
    module = task.build(run)
    module.load_state_dict(engine.weights(run))
    assert task.validation is not None
    with torch.no_grad():
        guessed = module(task.validation.inputs).argmax(1)
    best = max(own.metric for own in measured)
    assert best == f1_score(task.validation.targets, guessed, average="macro") == record.trials[0].value


def test_a_metric_of_a_standardized_target_sees_the_targets_own_unit(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,y\n" + "".join(f"{i % 13},{1000 + 50 * (i % 13)}\n" for i in range(80)))
    code = "def largest(outputs, targets):\n    assert outputs.shape == (len(targets), 1)\n    return targets.max()\n"
    study = own_study(
        tmp_path, code, metric="own.py:largest", data={"source": "t.csv", "target": "y", "task": "regression"},
        model={"source": "mlp"},
    )  # fmt: skip
    (found,) = train(make_task(study, load_data(study)), make_run())
    assert found[0].metric == pytest.approx(1600, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "direction"),
    [("accuracy", "maximize"), ("rmse", "minimize"), ("my_score", "maximize"), ("perplexity", "minimize")],
)
def test_the_direction_of_a_metric_of_ones_own(name: str, direction: str) -> None:
    """As the bundled one of its name, or scikit-learn's convention; else minimized, as everywhere."""
    assert own_direction(name) == direction


def test_the_opening_lines_say_what_a_step_and_a_metric_mean(tunecli: Command, tmp_path: Path) -> None:
    own_study(tmp_path)
    (tmp_path / "own.toml").write_text(
        '[data]\nsource = "own.py:load"\n[model]\nsource = "own.py:make"\n'
        '[train]\nepochs = 2\nstep = "own.py:step"\nmetric = "own.py:f1"\n[search]\ntrials = 2\n'
    )
    done = tunecli("search", "own.toml")
    assert done.code == 0
    assert "f1 on validation is maximized" in done.err
    assert "train.step is the user's own" in done.err
    done = tunecli("finetune", "own", "--best", "--epochs", "1", "--format", "json")
    assert (done.code, done.document["metric"]) == (0, "f1")


# Mistakes.

MISTAKES = {
    "no pair": ("step", "return F.cross_entropy(a(b[0]), b[1])", "returned a tensor of shape ()"),
    "no sum": ("step", "return 3.0, 2", "returned 3.0 for the loss sum"),
    "no number": ("step", "return a(b[0]).sum(), None", "returned NoneType for the count"),
    "negative": ("step", "return a(b[0]).sum(), -2", "returned -2 for the count"),
    "detached": ("step", "return a(b[0]).sum().detach(), 2", "a loss sum without a gradient"),
    "raises": ("step", "return a(b['x'])", "raised TypeError"),
    "scalar": ("loss", "return F.cross_entropy(a, b)", "returned one number for 8 samples"),
    "no tensor": ("loss", "return 1.0", "own.py:wrong returned 1.0"),
    "too few": (
        "loss",
        "return F.cross_entropy(a[:3], b[:3], reduction='none')",
        "tensor of shape (3,) for 8 samples",
    ),
    "raises too": ("loss", "raise KeyError('nothing')", "raised KeyError: 'nothing' (own.py, line"),
    "a text": ("metric", "return 'good'", "own.py:wrong returned 'good'"),
    "a vector": ("metric", "return a", "own.py:wrong returned a tensor of shape (8, 3)"),
    "raises as well": ("metric", "return 1 / 0", "raised ZeroDivisionError: division by zero (own.py, line"),
}


@pytest.mark.parametrize(("key", "body", "said"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_function_that_does_wrong_is_refused_before_there_is_a_study(
    tunecli: Command, tmp_path: Path, key: str, body: str, said: str
) -> None:
    own_study(tmp_path, f"def wrong(a, b):\n    {body}\n")
    (tmp_path / "own.toml").write_text(
        f'[data]\nsource = "own.py:load"\n[model]\nsource = "own.py:make"\n[train]\n{key} = "own.py:wrong"\n'
    )
    done = tunecli("search", "own.toml")
    assert done.code == 3
    message, hint = done.complaint
    assert said in message
    assert "own.py" in message
    assert hint
    assert not list(tmp_path.rglob("study.*"))


def test_a_step_that_raises_later_fails_its_trial_and_says_where(tmp_path: Path) -> None:
    code = """
    calls = []
    def tired(model, batch):
        calls.append(1)
        if model.training and len(calls) > 30:
            raise ValueError("enough")
        return step(model, batch)
    """
    study = own_study(tmp_path, code, step="own.py:tired", space={"batch_size": [8]})
    list(search(study, tmp_path / "study"))
    trials = read(tmp_path / "study" / "study.db").trials
    reasons = [trial.reason or "" for trial in trials if trial.state == "failed"]
    assert reasons
    assert all(reason.startswith("own.py:tired raised ValueError: enough (own.py, line") for reason in reasons)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('step = "step"', """train.step: expected "file.py:function", got 'step'"""),
        ('step = "other.py:step"', "train.step: no such file"),
        ('metric = "other.py:f1"', "train.metric: no such file"),
        ('step = "own.py:step"\nloss = "mse"', "train.loss beside train.step"),
        ("per_batch = true", "train.per_batch = true without a loss or a step of your own"),
        ('direction = "minimize"\nmetric = "accuracy"', "train.direction = 'minimize' is for a metric of your own"),
        ('step = "own.py:stap"', "own.py has no function 'stap'"),
    ],
)
def test_keys_that_contradict_themselves_are_refused(tunecli: Command, tmp_path: Path, lines: str, said: str) -> None:
    own_study(tmp_path)
    (tmp_path / "own.toml").write_text(
        f'[data]\nsource = "own.py:load"\n[model]\nsource = "own.py:make"\n[train]\n{lines}\n'
    )
    done = tunecli("search", "own.toml")
    assert done.code == 3
    assert said in done.complaint[0]
    assert not list(tmp_path.rglob("study.*"))
