"""Trials that misbehave, each beside seven good ones: it fails with its reason, and they do not notice to the bit."""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.faults.conftest import Report
from tunecli.engine import LOOPED, LocalEngine, Plan, Task
from tunecli.search import Ended, search
from tunecli.store import read
from tunecli.study import Study
from tunecli.trial import Measurement, Run, State

PLANS = {"looped": LOOPED, "in blocks": Plan("rules", cap=16, block_rows=8, threads=1)}
FEATURES, CLASSES, TICKS = 6, 3, 3


class Bad(nn.Module):
    """Learns well for some batches, then does what it does."""

    def __init__(self, does: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)
        self.does, self.left = does, 30

    def forward(self, inputs: Tensor) -> Tensor:
        self.left -= self.training
        found: Tensor = self.layer(inputs)
        return self.does(found) if self.left < 0 else found


def raises(outputs: Tensor) -> Tensor:
    raise ValueError("not today")


def leaves(outputs: Tensor) -> Tensor:
    sys.exit(3)


def takes_all_memory(outputs: Tensor) -> Tensor:
    return torch.empty(1 << 60)


def has_no_memory(outputs: Tensor) -> Tensor:
    raise MemoryError


def never_ends(outputs: Tensor) -> Tensor:
    while True:
        try:
            time.sleep(0.01)
        except Exception:  # as a user may have it around everything
            continue


BAD: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "nan": (lambda outputs: outputs * float("nan"), "diverged: training loss is nan"),
    "infinity": (lambda outputs: outputs + float("inf") * outputs.sign(), "diverged: training loss is"),
    "wrong shape": (lambda outputs: outputs[:1], "a model must return (samples, outputs)"),
    "exception": (raises, "the model raised ValueError: not today (test_trials.py, line "),
    "sys.exit": (leaves, "the model raised SystemExit: 3"),
    "out of memory, torch": (takes_all_memory, "out of memory (4,294,967,296.0 GiB at once): a smaller batch_size "),
    "out of memory, Python": (has_no_memory, "out of memory: a smaller batch_size "),
    "endless step": (never_ends, "it took more than 1 second, the search.trial_timeout"),
}


def make_task(does: Callable[[Tensor], Tensor]) -> Task:
    from tests.test_engine import draw_samples
    from tunecli.metrics import LOSSES, METRICS

    def build(run: Run) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(run.seed("weights"))
            return Bad(does) if run.hparams.get("model.kind") == "bad" else nn.Linear(FEATURES, CLASSES)

    train, validation = (draw_samples(61, seed, torch.float32, (FEATURES,)) for seed in (0, 1))
    return Task(train, validation, LOSSES["cross_entropy"], METRICS["loss"], CLASSES, build, trial_seconds=1.0)


def make_run(trial: int, kind: str) -> Run:
    hparams = {"optimizer": "adam", "learning_rate": 0.01, "batch_size": 4 + trial % 3, "model.kind": kind}
    return Run(trial, 7, hparams, TICKS)


def curves(engine: LocalEngine, runs: list[Run]) -> dict[int, list[Measurement]]:
    found: dict[int, list[Measurement]] = {run.trial: [] for run in runs}
    flying = list(runs)
    for run in runs:
        engine.start(run)
    for _ in range(TICKS):
        measured: list[Measurement] = []
        while len(measured) < len(flying):
            measured += engine.advance(time.monotonic() + 0.1)
        for own in measured:
            found[own.trial].append(replace(own, seconds=0.0))
        for run in [run for run in flying if found[run.trial][-1].failure is not None]:
            engine.free(run)
            flying.remove(run)
    return found


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
@pytest.mark.parametrize("kind", BAD)
def test_a_trial_that_misbehaves_fails_alone(plan: Plan, kind: str, report: Report) -> None:
    does, reason = BAD[kind]
    task = make_task(does)
    good = [make_run(trial, "good") for trial in (0, 1, 2, 4, 5, 6, 7)]
    alone = curves(LocalEngine(task, plan), good)
    beside = curves(LocalEngine(task, plan), [*good[:3], make_run(3, "bad"), *good[3:]])
    bad = beside.pop(3)
    assert beside == alone
    assert bad[-1].failure is not None
    assert bad[-1].failure.startswith(reason)
    assert all(own.failure is None for curve in alone.values() for own in curve)
    report(f"a trial with {kind} beside 7 good ones", "failed with its reason; the good ones equal to the bit")


SOMETIMES = """
import torch
def metric(outputs, targets):
    if outputs.abs().max() > 50:
        raise ValueError("input contains outliers")
    return (outputs.argmax(1) == targets).double().mean()
"""


@pytest.mark.parametrize("window", [2, 8], ids=["looped", "in blocks"])
def test_a_metric_that_raises_for_one_trial_fails_that_one(
    question: Callable[..., Study], tmp_path: Path, window: int
) -> None:
    (tmp_path / "own.py").write_text(SOMETIMES)
    study = question(
        base=tmp_path,
        window=window,
        pruner="none",
        train={"metric": "own.py:metric", "direction": "maximize"},
        space={"optimizer": "sgd", "learning_rate": {"low": 0.1, "high": 10.0, "log": True}, "l2": 0, "momentum": 0.9},
        sampler="random",
    )
    events = list(search(study, tmp_path / "tiny"))
    assert isinstance(events[-1], Ended)
    assert events[-1].how == "done"
    found = read(tmp_path / "tiny" / "study.db").trials
    assert {trial.state for trial in found} == {State.COMPLETE, State.FAILED}
    for trial in found:
        if trial.state is State.FAILED and "diverged" not in str(trial.reason):
            assert str(trial.reason).startswith("own.py:metric raised ValueError: input contains outliers")


NEVER = """
import sys
from torch import nn

class Model(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers, self.left = nn.Sequential(nn.Linear(4, width), nn.Linear(width, 3)), 20

    def forward(self, inputs):
        self.left -= self.training
        if self.left < 0 and "%s" in sys.modules:
            raise ValueError("out of order")
        return self.layers(inputs)

def make(width):
    return Model(width)
"""


@pytest.mark.parametrize("window", [2, 8])
def test_too_many_failures_in_a_row_end_a_search_until_it_is_asked_for_again(
    question: Callable[..., Study], tmp_path: Path, window: int
) -> None:
    (tmp_path / "own.py").write_text(NEVER % f"broken{window}")
    more: dict[str, Any] = {"trials": 40, "max_failures": 5, "sampler": "random", "pruner": "none"}
    model = {"source": "own.py:make", "width": 4}
    study = question(base=tmp_path, model=model, window=window, train={"epochs": 40}, **more)
    calls = iter(range(1000))
    list(search(study, tmp_path / "tiny", stop=lambda: next(calls) > 3))
    done = [trial for trial in read(tmp_path / "tiny" / "study.db").trials if trial.state.ended]
    sys.modules[f"broken{window}"] = sys
    for _ in range(2):
        events = list(search(study, tmp_path / "tiny"))
        assert isinstance(events[-1], Ended)
        assert events[-1].how == "hopeless"
    ended = [trial for trial in read(tmp_path / "tiny" / "study.db").trials if trial.state.ended]
    assert 10 <= len(ended) - len(done) < 40
    del sys.modules[f"broken{window}"]
    events = list(search(study, tmp_path / "tiny"))
    assert isinstance(events[-1], Ended)
    assert events[-1].how == "done"
