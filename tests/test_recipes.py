"""Training recipes as a user states them: [train] and [space] of a study file, through search and finetune."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tunecli.errors import StudyFileError, TunecliError
from tunecli.finetune import Finetuned, Request, finetune
from tunecli.search import search
from tunecli.store import Record, read
from tunecli.study import make_study
from tunecli.trial import State, best_trial


def run(folder: Path, document: dict[str, Any]) -> Record:
    """Search the study that a document states; what its database holds then."""
    document = {"data": {"source": "iris"}, "search": {"trials": 3}, **document}
    document = {**document, "train": {"epochs": 2, **document.get("train", {})}}
    folder.mkdir(exist_ok=True)
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


# Schedules, clipping, averages and stopping early: keys of [train], and hparams as well.


def test_keys_of_train_hold_for_every_trial_and_are_no_hparams(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", {})
    recipe = {"schedule": "one_cycle", "warmup": 0.1, "clip_norm": 0.5, "ema_decay": 0.5}
    record = run(tmp_path / "recipe", {"train": recipe})
    assert [own.hparams for own in record.trials] == [own.hparams for own in plain.trials]
    assert all(own.state is not State.FAILED for own in record.trials)
    pairs = zip(record.trials, plain.trials, strict=True)
    assert all(own.curve[0].train_loss != other.curve[0].train_loss for own, other in pairs)


def test_an_hparam_of_a_trial_overrides_train(tmp_path: Path) -> None:
    by_trial = run(tmp_path / "a", {"train": {"clip_norm": 9.0}, "space": {"clip_norm": 0.01}})
    by_train = run(tmp_path / "b", {"train": {"clip_norm": 0.01}})
    losses = [[[m.train_loss for m in own.curve] for own in record.trials] for record in (by_trial, by_train)]
    assert losses[0] == losses[1]
    assert all(own.hparams["clip_norm"] == 0.01 for own in by_trial.trials)


def test_a_trial_has_the_keys_of_its_own_schedule(tmp_path: Path) -> None:
    space = {
        "schedule": ["constant", "step", "plateau"],
        "step_gamma": {"low": 0.1, "high": 0.9},
        "plateau_patience": {"low": 0, "high": 3},
        "ema_decay": [0.0, 0.9],
    }
    record = run(tmp_path, {"space": space, "search": {"trials": 12}})
    for own in record.trials:
        assert ("step_gamma" in own.hparams) == (own.hparams["schedule"] == "step")
        assert ("plateau_patience" in own.hparams) == (own.hparams["schedule"] == "plateau")
        assert "ema_decay" in own.hparams


def test_a_searched_key_of_a_schedule_that_train_states_is_read_by_every_trial(tmp_path: Path) -> None:
    gamma = {"low": 0.1, "high": 0.9}
    record = run(tmp_path / "a", {"train": {"schedule": "step"}, "space": {"step_gamma": gamma}})
    assert all("step_gamma" in own.hparams for own in record.trials)
    record = run(tmp_path / "b", {"space": {"step_gamma": gamma}})
    assert all("step_gamma" not in own.hparams for own in record.trials)


@pytest.mark.parametrize(
    ("train", "reason"),
    [
        ({"patience": 2}, "no better metric for 2 epochs"),
        ({"loss_tolerance": 0.05}, "converged: the training loss changed by"),
        ({"gradient_tolerance": 0.2}, "converged: the gradient norm is"),
    ],
)
def test_a_trial_that_stops_early_is_complete_and_says_why(tmp_path: Path, train: dict[str, Any], reason: str) -> None:
    document = {"train": {"epochs": 40, **train}, "search": {"trials": 6, "pruner": "none"}}
    record = run(tmp_path, {**document, "space": {"learning_rate": 0.05, "optimizer": "adam"}})
    early = [own for own in record.trials if own.fidelity < 40]
    assert early
    assert all(own.state is State.COMPLETE and (own.reason or "").startswith(reason) for own in early)
    assert all(own.reason is None for own in record.trials if own.fidelity == 40)


def test_a_search_of_recipes_that_was_stopped_goes_on_to_the_same_trials(tmp_path: Path) -> None:
    document = {
        "data": {"source": "iris"},
        "train": {"epochs": 9, "patience": 3},
        "space": {"schedule": ["plateau", "one_cycle"], "plateau_patience": 0, "ema_decay": [0.0, 0.8]},
        "search": {"trials": 10},
    }
    study = make_study(document, tmp_path, "own", where="own.toml")
    whole = run(tmp_path / "whole", document)
    stops, how = 0, ""
    while how != "done":
        stops += 1
        left = iter(range(3 * stops))
        events = list(search(study, tmp_path / "own", stop=lambda left=left: next(left, None) is None))  # type: ignore[misc]
        how = events[-1].how  # type: ignore[union-attr]
    parts = read(tmp_path / "own" / "study.db")
    assert stops > 2
    for one, other in zip(whole.trials, parts.trials, strict=True):
        assert (one.hparams, one.state, one.value, one.reason) == (
            other.hparams,
            other.state,
            other.value,
            other.reason,
        )
        assert [m.metric for m in one.curve] == [m.metric for m in other.curve]


@pytest.mark.parametrize(
    ("train", "message", "hint"),
    [
        ({"schedule": "cosin"}, "[train] schedule: unknown schedule 'cosin'", "did you mean 'cosine'?"),
        ({"lr_scheduler": "cosine"}, "unknown key 'lr_scheduler' in [train]", "it is called 'schedule' here"),
        ({"learning_rate": 1}, "unknown key 'learning_rate' in [train]", "it is a key of [space]: learning_rate = ..."),
        ({"patience": -1}, "patience: expected a whole number of at least 0, got -1", "for example patience = 0"),
        ({"warmup": 1.0}, "warmup: must be at least 0 and below 1, got 1.0", "for example warmup = 0.0"),
        ({"clip_norm": "1"}, "clip_norm: expected a number, got '1'", "for example clip_norm = 0.0"),
        ({"epohcs": 3}, "unknown key 'epohcs' in [train]", "did you mean 'epochs'?"),
    ],
)
def test_a_mistake_in_train_is_answered(tmp_path: Path, train: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(StudyFileError) as caught:
        run(tmp_path, {"train": train})
    assert message in caught.value.message
    assert caught.value.hint == hint


# What shapes a loss, and precision.


def losses(record: Record) -> list[list[float]]:
    return [[own.train_loss for own in trial.curve] for trial in record.trials]


def test_labels_are_smoothed_in_training_alone(tmp_path: Path) -> None:
    """One epoch of learning nothing: both losses are those of the initial weights."""
    document = {"space": {"learning_rate": 0.0}, "train": {"epochs": 1}}
    plain = run(tmp_path / "plain", document)
    smooth = run(tmp_path / "smooth", {**document, "train": {"epochs": 1, "label_smoothing": 0.3}})
    for one, other in zip(plain.trials, smooth.trials, strict=True):
        # C trains the one and torch the other.
        assert one.curve[0].validation_loss == pytest.approx(other.curve[0].validation_loss, rel=1e-6)
        assert one.curve[0].train_loss != pytest.approx(other.curve[0].train_loss, rel=1e-3)


@pytest.mark.parametrize(
    ("document", "space"),
    [
        ({}, {"label_smoothing": {"low": 0.0, "high": 0.2}}),
        ({}, {"loss": ["cross_entropy", "focal"], "focal_gamma": {"low": 0.5, "high": 3.0}}),
        ({"data": {"source": "breast_cancer"}}, {"loss": ["binary_cross_entropy", "cross_entropy"]}),
        ({"data": {"source": "diabetes"}}, {"loss": ["mse", "mae", "huber"], "huber_delta": [0.5, 1.0]}),
        ({"data": {"source": "diabetes"}, "train": {"loss": "huber"}}, {"huber_delta": {"low": 0.1, "high": 2.0}}),
        ({}, {"precision": ["float32", "bf16"]}),
    ],
)
def test_the_loss_and_what_shapes_it_can_be_searched(
    tmp_path: Path, document: dict[str, Any], space: dict[str, Any]
) -> None:
    record = run(tmp_path, {**document, "space": space, "search": {"trials": 8}})
    assert all(own.state is not State.FAILED for own in record.trials)
    for own in record.trials:
        assert ("focal_gamma" in own.hparams) == (own.hparams.get("loss") == "focal")
        if "huber_delta" in space and "loss" in space:
            assert ("huber_delta" in own.hparams) == (own.hparams["loss"] == "huber")
    best = best_trial(list(record.trials), record.direction)
    assert best is not None
    for event in finetune(tmp_path / "own", Request(epochs=1)):
        last = event
    assert isinstance(last, Finetuned)
    assert np.isfinite(last.after)


def test_half_precision_learns_as_well_and_is_another_computation(tmp_path: Path) -> None:
    document = {"space": {"optimizer": "adam", "learning_rate": 0.01}, "search": {"pruner": "none", "trials": 3}}
    plain = run(tmp_path / "plain", {**document, "train": {"epochs": 5}})
    half = run(tmp_path / "half", {**document, "train": {"epochs": 5, "precision": "bf16"}})
    assert losses(plain) != losses(half)
    for one, other in zip(losses(plain), losses(half), strict=True):
        assert other == pytest.approx(one, rel=0.05)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"data": {"source": "diabetes"}, "train": {"label_smoothing": 0.1}}, "the loss mse smooths no labels"),
        (
            {"train": {"metric": "loss"}, "space": {"loss": ["focal", "cross_entropy"]}},
            "the metric 'loss' cannot compare trials of different losses: [space] searches loss",
        ),
        ({"space": {"loss": ["mse", "cross_entropy"]}}, "loss 'mse' is for regression, iris is classification"),
        ({"space": {"loss": "crossentropy"}}, "[space] loss: unknown loss 'crossentropy'"),
        ({"train": {"precision": "fp16"}}, "[train] precision: unknown precision 'fp16'"),
    ],
)
def test_a_loss_or_precision_that_does_not_fit_is_refused(
    tmp_path: Path, document: dict[str, Any], message: str
) -> None:
    with pytest.raises(StudyFileError) as caught:
        run(tmp_path, document)
    assert message in caught.value.message
    assert caught.value.hint
    assert not (tmp_path / "own" / "study.db").exists()
