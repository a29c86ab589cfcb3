"""The engine on a device that is none, which `tests/test_device.py` runs in a process of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.conftest import Question
from tests.pretended import NAME, Pretending, waits
from tests.test_engine import CLASSES, PLANS, make_run, make_task, outcome, outcomes, shown, start, tick
from tunecli import engine
from tunecli.data import Samples
from tunecli.data.scaling import BYTES, Scaling
from tunecli.engine import LocalEngine
from tunecli.finetune import Finetuned, Request, finetune, training
from tunecli.models.bundled import cnn
from tunecli.predict import predict
from tunecli.search import ready, search
from tunecli.space.hparams import OPTIMIZERS
from tunecli.store import read
from tunecli.trial import Run

N, TICKS = 61, 2
FLAT, CLASS = torch.randn(N, 4), torch.randint(CLASSES, (N,))
PICTURES = torch.randint(0, 256, (N, 1, 8, 8), dtype=torch.uint8)

MODELS: dict[str, tuple[Callable[[], nn.Module], Samples]] = {
    "dropout": (
        lambda: nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, CLASSES)),
        Samples(FLAT, CLASS, torch.rand(N)),
    ),
    "norms": (
        lambda: nn.Sequential(
            nn.Linear(4, 16), nn.BatchNorm1d(16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, CLASSES)
        ),
        Samples(FLAT, CLASS),
    ),
    "attention": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (2, 2)),
            nn.Linear(2, 4),
            nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True),
            nn.Flatten(),
            nn.Linear(8, CLASSES),
        ),
        Samples(FLAT, CLASS),
    ),
    "pictures": (partial(cnn, (1, 8, 8), CLASSES, (4, 5)), Samples(PICTURES, CLASS, scaling=Scaling.of(BYTES))),
}

BY_TORCH = {name: replace(PLANS[name], compiled=False) for name in ("rules, blocks of 8", "looped")}


def runs(optimizers: Sequence[str] = ("sgd", "adam", "muon")) -> list[Run]:
    own = {"l1": 1e-4, "clip_norm": 0.5, "label_smoothing": 0.1, "ema_decay": 0.9}
    sizes = (16, 23, 8, "full")
    return [make_run(n, optimizer=name, batch_size=sizes[n % 4], **own) for n, name in enumerate(optimizers)]


DISCRETE = ("muon", "lion")
"""They round, or take signs: where a last bit differs a step may."""


def near(found: dict[int, Any], expected: dict[int, Any], own: list[Run]) -> None:
    """The same losses, as `shown` has them, to rounding."""
    for run in own:
        within = 1e-2 if run.hparams["optimizer"] in DISCRETE else 1e-5
        for one, other in zip(found[run.trial][0], expected[run.trial][0], strict=True):
            assert [float(value) for value in one[1:3]] == pytest.approx([float(v) for v in other[1:3]], rel=within)
            assert one[5] == other[5]


@pytest.mark.parametrize("plan", BY_TORCH)
@pytest.mark.parametrize("model", MODELS)
def test_what_is_trained_there_is_what_is_trained_here(model: str, plan: str) -> None:
    """To rounding: the updates are other kernels of torch there. The host waits once a tick."""
    make, samples = MODELS[model]
    task = make_task(make, train=samples, validation=samples.take(slice(0, 30)))
    own = runs(tuple(OPTIMIZERS)) if model == "dropout" else runs()
    expected = outcomes(LocalEngine(task, BY_TORCH[plan]), own, ticks=TICKS)
    with Pretending():
        engine = LocalEngine(task, BY_TORCH[plan], NAME)
        start(engine, own)
        waits.clear()
        curves = zip(*(tick(engine, own) for _ in range(TICKS)), strict=True)
        (where,) = waits
        assert where.startswith("block.py: found = torch.stack([train_loss")
        found = {run.trial: outcome(engine, run, list(curve)) for run, curve in zip(own, curves, strict=True)}
    near(found, expected, own)


@pytest.mark.parametrize("plan", BY_TORCH)
def test_a_run_goes_on_from_a_snapshot_there(plan: str) -> None:
    make, samples = MODELS["norms"]
    task = make_task(make, train=samples, validation=samples)
    own = runs()
    with Pretending():
        whole = outcomes(LocalEngine(task, BY_TORCH[plan], NAME), own, ticks=3)
        first, second = (LocalEngine(task, BY_TORCH[plan], NAME) for _ in range(2))
        start(first, own)
        tick(first, own)
        for run in own:
            second.restore(run, first.snapshot(run))
        for _ in range(2):
            last = tick(second, own)
    for run, measured in zip(own, last, strict=True):
        assert shown(measured) == whole[run.trial][0][-1]


def test_a_search_its_fine_tuning_and_predictions_there(
    question: Question, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (engine, ready, training):
        monkeypatch.setattr(module, "resolve_device", lambda name: name)
    with Pretending():
        list(search(question(trials=6), tmp_path / "there", device=NAME))
        tuned = list(finetune(tmp_path / "there", Request(epochs=1, device=NAME)))[-1]
        (tmp_path / "new.py").write_text("import numpy\ndef rows():\n    return numpy.ones((3, 4), 'float32')\n")
        predicted = list(predict(tmp_path / "there", "new.py:rows", base=tmp_path, device=NAME).rows)
    assert isinstance(tuned, Finetuned)
    assert len(predicted) == 3
    list(search(question(trials=6), tmp_path / "here", device="cpu"))
    there, here = (read(tmp_path / name / "study.db").trials for name in ("there", "here"))
    assert [own.hparams for own in there] == [own.hparams for own in here]
    assert [own.value for own in there] == pytest.approx([own.value for own in here], abs=0.05)
