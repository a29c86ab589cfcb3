"""Losses equal torch's, metrics scikit-learn's; nothing here is compared with our own output."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import label_binarize
from torch import Tensor, nn

from tests.conftest import examples
from tunecli.metrics import (
    DEFAULT_LOSS,
    DEFAULT_METRIC,
    LOSSES,
    METRICS,
    TASKS,
    nearest_loss,
    nearest_metric,
    predicted_class,
)

Array = np.ndarray[Any, Any]


def evaluate(name: str, outputs: Tensor, targets: Tensor, classes: int = 0) -> float:
    function = METRICS[name].function
    assert function is not None
    return float(function(outputs, targets, classes))


AVERAGES: dict[str, Callable[..., float]] = {
    "precision": sk.precision_score,
    "recall": sk.recall_score,
    "f1": sk.f1_score,
}


def by_scikit_learn(name: str, logits: Tensor, targets: Tensor) -> float:
    """The metric from logits (N, C); in float64, as everything in scikit-learn."""
    predicted, probabilities = logits.numpy().argmax(1), logits.double().softmax(1).numpy()
    classes = logits.shape[1]
    base, _, average = name.partition("_")
    if base in AVERAGES and average in ("", "micro", "binary"):
        return AVERAGES[base](targets, predicted, average=average or "macro", zero_division=0)
    if name == "accuracy":
        return float(sk.accuracy_score(targets, predicted))
    if name == "balanced_accuracy":
        return float(sk.balanced_accuracy_score(targets, predicted))
    if name == "log_loss":
        return float(sk.log_loss(targets, probabilities, labels=range(classes)))
    if classes == 2:
        score = probabilities[:, 1]
        return float((sk.roc_auc_score if name == "auroc" else sk.average_precision_score)(targets, score))
    if name == "auroc":
        return float(sk.roc_auc_score(targets, probabilities, multi_class="ovr"))
    return float(sk.average_precision_score(label_binarize(targets, classes=range(classes)), probabilities))


@pytest.mark.filterwarnings("ignore:.*y_pred contains classes not in y_true.*", "ignore:A single label was found")
@examples(60)
@given(seed=st.integers(0, 10**6), samples=st.integers(1, 80), classes=st.integers(2, 12), used=st.integers(1, 12))
def test_metrics_of_predicted_classes_equal_scikit_learn(seed: int, samples: int, classes: int, used: int) -> None:
    """`used` below `classes`: some classes occur neither in the targets nor in the predictions."""
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(samples, classes, generator=generator)  # (N, C)
    outputs[:, min(used, classes) :] -= 100.0
    targets = torch.randint(min(used, classes), (samples,), generator=generator)  # (N,)
    names = ["accuracy", "balanced_accuracy", "log_loss"]
    names += [f"{base}{average}" for base in AVERAGES for average in ("", *(("_binary",) if classes == 2 else ()))]
    for name in names:
        expected = by_scikit_learn(name, outputs, targets)
        assert evaluate(name, outputs, targets, classes) == pytest.approx(expected, abs=1e-6), name
    # scikit-learn leaves a class that nothing mentions out of its micro average, which then is the accuracy.
    for base, average in AVERAGES.items():
        expected = average(targets, outputs.numpy().argmax(1), average="micro", labels=range(classes), zero_division=0)
        assert evaluate(f"{base}_micro", outputs, targets, classes) == pytest.approx(expected, abs=1e-6)


@examples(60)
@given(seed=st.integers(0, 10**6), samples=st.integers(12, 80), classes=st.integers(2, 8), levels=st.integers(1, 40))
def test_metrics_of_scores_equal_scikit_learn(seed: int, samples: int, classes: int, levels: int) -> None:
    """Few `levels`: many scores are tied."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.cat([torch.arange(classes), torch.randint(classes, (samples - classes,), generator=generator)])
    outputs = torch.randint(levels, (samples, classes), generator=generator).float() / 7
    if classes > 2:  # only equal rows of logits tie, for scikit-learn would see rounding in the ties of a softmax
        rows = torch.randn(samples, classes, generator=generator)
        outputs = rows[torch.randint(min(levels, samples), (samples,), generator=generator)]
    for name in ("auroc", "average_precision", "log_loss"):
        expected = by_scikit_learn(name, outputs, targets)
        assert evaluate(name, outputs, targets, classes) == pytest.approx(expected, abs=1e-6), name


def test_scores_that_a_probability_cannot_tell_apart_are_no_ties() -> None:
    """Both round to a probability of one."""
    outputs, targets = torch.tensor([[0.0, 800.0], [0.0, 900.0], [0.0, -1.0]]), torch.tensor([0, 1, 0])
    assert evaluate("auroc", outputs, targets, 2) == 1
    assert evaluate("auroc", outputs[:, 1:], targets, 2) == 1


def test_a_confident_error_is_clipped_in_log_loss_as_in_scikit_learn() -> None:
    outputs, targets = torch.tensor([[1e4, 0.0, 0.0], [0.0, 3.0, 0.0]]), torch.tensor([1, 1])
    assert evaluate("log_loss", outputs, targets, 3) == pytest.approx(by_scikit_learn("log_loss", outputs, targets))


@pytest.mark.parametrize("present", [(0, 1), (0,), (1,)])
def test_one_logit_is_the_logit_of_class_one(present: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    outputs = torch.from_numpy(rng.normal(size=(50, 1)))  # (N, 1)
    targets = torch.from_numpy(rng.choice(present, 50))
    predicted = (torch.sigmoid(outputs[:, 0]) > 0.5).long()
    assert torch.equal(predicted_class(outputs), predicted)
    both = torch.cat([torch.zeros_like(outputs), outputs], dim=1)
    names = ["accuracy", "f1", "precision", "recall", "f1_binary", "precision_binary", "recall_binary", "log_loss"]
    for name in [*names, *(("auroc", "average_precision") if len(present) == 2 else ())]:
        assert evaluate(name, outputs, targets, 2) == pytest.approx(by_scikit_learn(name, both, targets), abs=1e-6)


REGRESSION: dict[str, Callable[..., Any]] = {
    "mse": sk.mean_squared_error,
    "rmse": sk.root_mean_squared_error,
    "mae": sk.mean_absolute_error,
    "mape": sk.mean_absolute_percentage_error,
    "r2": sk.r2_score,
}


@examples(40)
@given(seed=st.integers(0, 10**6), samples=st.integers(2, 80), offset=st.sampled_from([0.0, 3.0, 1e3]))
def test_regression_metrics_equal_scikit_learn(seed: int, samples: int, offset: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randn(samples, generator=generator) + offset
    outputs = (targets + torch.randn(samples, generator=generator))[:, None]
    for name, function in REGRESSION.items():
        expected = function(targets.double(), outputs[:, 0].double())
        assert evaluate(name, outputs, targets) == pytest.approx(expected, rel=1e-9, abs=1e-6), name


def test_a_target_of_zero_weighs_in_mape_as_in_scikit_learn() -> None:
    targets, outputs = torch.tensor([0.0, 2.0]), torch.tensor([[0.5], [1.0]])
    expected = sk.mean_absolute_percentage_error(targets, outputs[:, 0])
    assert evaluate("mape", outputs, targets) == pytest.approx(expected)


@pytest.mark.parametrize("error", [0.0, 0.5])
def test_r2_of_targets_that_are_all_alike_is_finite_as_in_scikit_learn(error: float) -> None:
    targets = torch.full((5,), 2.0)
    outputs = (targets + error)[:, None]
    assert evaluate("r2", outputs, targets) == sk.r2_score(targets, outputs[:, 0])


@pytest.mark.parametrize("name", [name for name, own in METRICS.items() if own.function is not None])
def test_the_rows_of_a_block_are_scored_each_for_itself(name: str) -> None:
    metric, generator = METRICS[name], torch.Generator().manual_seed(0)
    assert metric.function is not None
    for classes in (2,) if metric.binary else (2, 4):
        targets = torch.randn(40, generator=generator)
        if metric.task == "classification":
            targets = torch.randint(classes, (40,), generator=generator)
        outputs = torch.randn(5, 40, 1 if metric.task == "regression" else classes, generator=generator)
        together = metric.function(outputs, targets, classes)
        assert together.tolist() == [float(metric.function(row, targets, classes)) for row in outputs]


# What a metric needs.


def test_a_metric_says_why_it_has_no_value() -> None:
    labels, targets = ("cat", "dog", "owl"), torch.tensor([0, 0, 2])
    assert METRICS["f1"].undefined_because(targets, labels) is None
    assert METRICS["auroc"].undefined_because(torch.tensor([0, 1, 2]), labels) is None
    reason = METRICS["auroc"].undefined_because(targets, labels)
    assert reason == "auroc needs samples of every class, there are none of 'dog'"
    assert METRICS["f1_binary"].undefined_because(targets, labels) == "f1_binary needs two classes, not 3"
    assert METRICS["mape"].undefined_because(torch.tensor([1.5]), ()) is None


@pytest.mark.parametrize(
    ("word", "ours"), [("f1_macro", "f1"), ("f1_macr", "f1"), ("roc_auc", "auroc"), ("acuracy", "accuracy")]
)
def test_other_tools_words_for_a_metric_are_known(word: str, ours: str) -> None:
    assert nearest_metric(word) == f"did you mean {ours!r}?"


@pytest.mark.parametrize(("word", "ours"), [("bce", "binary_cross_entropy"), ("cross-entropy", "cross_entropy")])
def test_other_tools_words_for_a_loss_are_known(word: str, ours: str) -> None:
    assert nearest_loss(word) == f"did you mean {ours!r}?"


# Losses.


def test_losses_equal_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, numbers = torch.randn(40, 5, generator=generator), torch.randn(40, generator=generator)
    classes, binary = torch.randint(5, (40,), generator=generator), torch.randint(2, (40,), generator=generator)
    expected = nn.CrossEntropyLoss(reduction="none")(outputs, classes)
    torch.testing.assert_close(LOSSES["cross_entropy"].per_sample(outputs, classes), expected)
    expected = nn.BCEWithLogitsLoss(reduction="none")(outputs[:, 0], binary.float())
    torch.testing.assert_close(LOSSES["binary_cross_entropy"].per_sample(outputs[:, :1], binary), expected)
    for name, theirs in (("mse", nn.MSELoss), ("mae", nn.L1Loss), ("huber", nn.HuberLoss)):
        expected = theirs(reduction="none")(outputs[:, 0], numbers)
        torch.testing.assert_close(LOSSES[name].per_sample(outputs[:, :1], numbers), expected)
    expected = nn.HuberLoss(reduction="none", delta=0.3)(outputs[:, 0], numbers)
    torch.testing.assert_close(LOSSES["huber"].per_sample(outputs[:, :1], numbers, huber_delta=0.3), expected)


@given(st.integers(1, 70), st.integers(1, 12), st.integers(2, 40), st.integers(0, 99))
@examples(30)
def test_the_losses_of_many_rows_are_those_of_each_to_the_bit(samples: int, rows: int, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs = 5 * torch.randn(rows, samples, classes, generator=generator)
    targets = torch.randint(classes, (samples,), generator=generator)
    for loss in (own for own in LOSSES.values() if own.of_rows is not None):
        assert loss.of_rows is not None
        found = loss.of_rows(outputs, targets)
        expected = [nn.CrossEntropyLoss(reduction="none")(own, targets) for own in outputs]
        torch.testing.assert_close(found, torch.stack(expected))
        alone = [loss.of_rows(own[None].clone(), targets)[0] for own in outputs]
        assert torch.equal(found, torch.stack(alone))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_label_smoothing_equals_torchs(smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, classes = torch.randn(40, 5, generator=generator), torch.randint(5, (40,), generator=generator)
    expected = nn.CrossEntropyLoss(reduction="none", label_smoothing=smoothing)(outputs, classes)
    found = LOSSES["cross_entropy"].per_sample(outputs, classes, label_smoothing=smoothing)
    torch.testing.assert_close(found, expected)
    found = LOSSES["focal"].per_sample(outputs, classes, focal_gamma=0.0, label_smoothing=smoothing)
    torch.testing.assert_close(found, expected)
    # Of two classes, as the softmax of both says it.
    binary = classes.clamp(max=1)
    two = torch.stack([torch.zeros(40), outputs[:, 0]], dim=1)
    expected = nn.CrossEntropyLoss(reduction="none", label_smoothing=smoothing)(two, binary)
    found = LOSSES["binary_cross_entropy"].per_sample(outputs[:, :1], binary, label_smoothing=smoothing)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_a_focal_loss_is_cross_entropy_times_the_missing_probability(gamma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, classes = torch.randn(40, 5, generator=generator), torch.randint(5, (40,), generator=generator)
    p = outputs.softmax(1).gather(1, classes[:, None])[:, 0]
    found = LOSSES["focal"].per_sample(outputs, classes, focal_gamma=gamma)
    torch.testing.assert_close(found, -((1 - p) ** gamma) * p.log(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("shape", [{}, {"focal_gamma": 0.5}, {"label_smoothing": 0.1}])
def test_a_loss_and_its_gradient_are_finite_even_for_extreme_outputs(name: str, shape: dict[str, float]) -> None:
    loss = LOSSES[name]
    own = {key: value for key, value in shape.items() if key in loss.shaped_by}
    outputs = torch.tensor([[1e4], [-1e4], [0.0]]).repeat(1, loss.outputs(2))
    outputs[:, -1] *= -1
    losses = loss.per_sample(outputs.requires_grad_(), torch.tensor([0, 1, 1]), **own)
    (gradient,) = torch.autograd.grad(losses.sum(), outputs)
    assert losses.shape == (3,)
    assert bool(torch.isfinite(losses).all())
    assert bool(torch.isfinite(gradient).all())


def test_a_loss_says_how_many_outputs_it_needs() -> None:
    assert {name: loss.outputs(10) for name, loss in LOSSES.items()} == {
        "cross_entropy": 10,
        "binary_cross_entropy": 1,
        "focal": 10,
        "mse": 1,
        "mae": 1,
        "huber": 1,
    }


# The tables.


def test_the_direction_of_each_metric() -> None:
    minimized = {name for name, metric in METRICS.items() if metric.direction == "minimize"}
    assert minimized == {"loss", "log_loss", "mse", "rmse", "mae", "mape"}
    assert {metric.direction for metric in METRICS.values()} == {"minimize", "maximize"}


@pytest.mark.parametrize("task", TASKS)
def test_each_task_has_a_loss_and_a_metric_of_its_own_kind(task: str) -> None:
    assert LOSSES[DEFAULT_LOSS[task]].task == task
    assert METRICS[DEFAULT_METRIC[task]].task == task


@pytest.mark.parametrize("name", ["mse", "rmse", "mae", "r2"])
def test_target_power_turns_a_metric_of_standardized_targets_into_the_targets_unit(name: str) -> None:
    metric, scale = METRICS[name], 25.0
    assert metric.target_power is not None
    targets, outputs = torch.randn(30), torch.randn(30, 1)
    restored = evaluate(name, outputs, targets) * scale**metric.target_power
    assert restored == pytest.approx(evaluate(name, outputs * scale + 7, targets * scale + 7), rel=1e-4)


def test_only_what_depends_on_the_targets_mean_has_no_power() -> None:
    without = [name for name, metric in METRICS.items() if metric.target_power is None]
    assert without == ["mape"]
