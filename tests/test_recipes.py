"""Training recipes as a user states them: [train] and [space] of a study file, through search and finetune."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tunecli.errors import StudyFileError, TunecliError
from tunecli.search import search
from tunecli.store import Record, read
from tunecli.study import make_study
from tunecli.trial import State


def run(folder: Path, document: dict[str, Any]) -> Record:
    """Search the study that a document states; what its database holds then."""
    document = {"data": {"source": "iris"}, "search": {"trials": 3}, **document}
    document = {**document, "train": {"epochs": 2, **document.get("train", {})}}
    study = make_study(document, folder, "own", where="own.toml")
    for _ in search(study, folder / "own"):
        pass
    return read(folder / "own" / "study.db")


@pytest.mark.parametrize(
    ("source", "metric"),
    [
        *(("iris", name) for name in ("balanced_accuracy", "precision", "recall_micro", "auroc", "log_loss")),
        *(("breast_cancer", name) for name in ("f1_binary", "average_precision")),
        *(("diabetes", name) for name in ("rmse", "mae", "mape")),
    ],
)
def test_a_metric_can_be_searched_for(tmp_path: Path, source: str, metric: str) -> None:
    record = run(tmp_path, {"data": {"source": source}, "train": {"metric": metric}})
    assert record.metric == metric
    assert all(np.isfinite(own.value or np.nan) for own in record.trials if own.state is State.COMPLETE)


@pytest.mark.parametrize(("source", "loss"), [("iris", "focal"), ("diabetes", "mae"), ("diabetes", "huber")])
def test_a_loss_can_be_trained_with(tmp_path: Path, source: str, loss: str) -> None:
    record = run(tmp_path, {"data": {"source": source}, "train": {"loss": loss}})
    assert any(own.state is State.COMPLETE for own in record.trials)


def table(folder: Path) -> dict[str, Any]:
    """Two hundred rows, three of them of a class that is rare."""
    rng = np.random.default_rng(0)
    labels = np.array(["a", "b", "b", "a"] * 50, dtype=object)
    labels[:2] = "rare"
    pd.DataFrame({"x": rng.normal(size=200), "z": rng.normal(size=200), "y": labels}).to_csv(folder / "own.csv")
    return {"source": "own.csv", "target": "y"}


def test_a_metric_without_a_value_on_validation_is_one_error_and_no_trial(tmp_path: Path) -> None:
    with pytest.raises(TunecliError) as caught:
        run(tmp_path, {"data": table(tmp_path), "train": {"metric": "auroc"}})
    assert caught.value.message == (
        "the metric has no value on the validation split of own: "
        "auroc needs samples of every class, there are none of 'rare'"
    )
    assert caught.value.hint == "choose another train.metric, or make that split larger: data.split"
    assert not (tmp_path / "own" / "study.db").exists()


def test_a_metric_of_two_classes_is_refused_for_three(tmp_path: Path) -> None:
    with pytest.raises(StudyFileError, match="f1_binary needs two classes, not 3") as caught:
        run(tmp_path, {"train": {"metric": "f1_binary"}})
    assert caught.value.hint == "choose another train.metric"


@pytest.mark.parametrize("optimizer", ["radam", "adamax", "adadelta", "lion", "muon"])
def test_an_optimizer_beyond_the_first_six_can_be_searched(tmp_path: Path, optimizer: str) -> None:
    record = run(tmp_path, {"space": {"optimizer": optimizer}, "train": {"epochs": 10}, "search": {"trials": 8}})
    assert max(own.value or 0 for own in record.trials) > 0.5, "it learns"


OWN = """
import torch

class Mine(torch.optim.SGD):
    pass

def function():
    pass
"""


def test_an_optimizer_of_the_users_own_is_named_by_the_study_file(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    optimizers = ["sgd", "own.py:Mine"]
    record = run(tmp_path, {"space": {"optimizer": optimizers, "momentum": 0.9}, "search": {"trials": 10}})
    assert {own.hparams["optimizer"] for own in record.trials} == set(optimizers)
    assert all(own.state is not State.FAILED for own in record.trials)


@pytest.mark.parametrize(
    ("optimizer", "message", "hint"),
    [
        ("none.py:Mine", "space.optimizer: no such file: ", "paths in a study file are relative to it"),
        ("own.py:Mien", "own.py has no function 'Mien'", "did you mean 'Mine'?"),
        ("own.py:function", "own.py:function is no subclass of torch.optim.Optimizer", "torch.optim.Optimizer"),
    ],
)
def test_a_name_that_is_no_optimizer_is_one_error(tmp_path: Path, optimizer: str, message: str, hint: str) -> None:
    (tmp_path / "own.py").write_text(OWN)
    with pytest.raises(TunecliError) as caught:
        run(tmp_path, {"space": {"optimizer": ["adam", optimizer]}})
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")
    assert not (tmp_path / "own" / "study.db").exists()
