"""Losses equal torch's, metrics scikit-learn's; nothing here is compared with our own output."""

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tunecli.metrics import DEFAULT_LOSS, DEFAULT_METRIC, LOSSES, METRICS, TASKS, predicted_class


def evaluate(name: str, outputs: torch.Tensor, targets: torch.Tensor, classes: int = 0) -> float:
    function = METRICS[name].function
    assert function is not None
    return float(function(outputs, targets, classes))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), samples=st.integers(1, 80), classes=st.integers(2, 12), used=st.integers(1, 12))
def test_classification_metrics_equal_scikit_learn(seed: int, samples: int, classes: int, used: int) -> None:
    """`used` below `classes`: some classes occur neither in the targets nor in the predictions."""
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(samples, classes, generator=generator)  # (N, C)
    outputs[:, min(used, classes) :] -= 100.0
    targets = torch.randint(min(used, classes), (samples,), generator=generator)  # (N,)
    predicted = outputs.numpy().argmax(1)
    accuracy = sklearn.metrics.accuracy_score(targets, predicted)
    f1 = sklearn.metrics.f1_score(targets, predicted, average="macro", zero_division=0)
    assert evaluate("accuracy", outputs, targets, classes) == pytest.approx(accuracy, abs=1e-6)
    assert evaluate("f1", outputs, targets, classes) == pytest.approx(f1, abs=1e-6)


@pytest.mark.parametrize("present", [(0, 1), (0,), (1,)])
def test_one_logit_is_the_logit_of_class_one(present: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    outputs = torch.from_numpy(rng.normal(size=(50, 1)))  # (N, 1)
    targets = torch.from_numpy(rng.choice(present, 50))
    predicted = (torch.sigmoid(outputs[:, 0]) > 0.5).long()
    assert torch.equal(predicted_class(outputs), predicted)
    expected = sklearn.metrics.f1_score(targets, predicted, average="macro", zero_division=0)
    assert evaluate("f1", outputs, targets, 2) == pytest.approx(expected, abs=1e-6)
    expected = sklearn.metrics.accuracy_score(targets, predicted)
    assert evaluate("accuracy", outputs, targets, 2) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), samples=st.integers(2, 80), offset=st.sampled_from([0.0, 3.0, 1e3]))
def test_regression_metrics_equal_scikit_learn(seed: int, samples: int, offset: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randn(samples, generator=generator) + offset
    outputs = (targets + torch.randn(samples, generator=generator))[:, None]
    expected = sklearn.metrics.mean_squared_error(targets.double(), outputs[:, 0].double())
    assert evaluate("mse", outputs, targets) == pytest.approx(expected, abs=1e-6)
    expected = sklearn.metrics.r2_score(targets.double(), outputs[:, 0].double())
    assert evaluate("r2", outputs, targets) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("error", [0.0, 0.5])
def test_r2_of_targets_that_are_all_alike_is_finite_as_in_scikit_learn(error: float) -> None:
    targets = torch.full((5,), 2.0)
    outputs = (targets + error)[:, None]
    assert evaluate("r2", outputs, targets) == sklearn.metrics.r2_score(targets, outputs[:, 0])


def test_losses_equal_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, numbers = torch.randn(40, 5, generator=generator), torch.randn(40, generator=generator)
    classes, binary = torch.randint(5, (40,), generator=generator), torch.randint(2, (40,), generator=generator)
    expected = nn.CrossEntropyLoss(reduction="none")(outputs, classes)
    torch.testing.assert_close(LOSSES["cross_entropy"].per_sample(outputs, classes), expected)
    expected = nn.BCEWithLogitsLoss(reduction="none")(outputs[:, 0], binary.float())
    torch.testing.assert_close(LOSSES["binary_cross_entropy"].per_sample(outputs[:, :1], binary), expected)
    expected = nn.MSELoss(reduction="none")(outputs[:, 0], numbers)
    torch.testing.assert_close(LOSSES["mse"].per_sample(outputs[:, :1], numbers), expected)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_loss_gives_one_finite_number_a_sample_even_for_extreme_outputs(name: str) -> None:
    loss = LOSSES[name]
    outputs = torch.tensor([[1e4], [-1e4], [0.0]]).expand(3, loss.outputs(2))
    losses = loss.per_sample(outputs, torch.tensor([0, 1, 1]))
    assert losses.shape == (3,)
    assert bool(torch.isfinite(losses).all())


def test_a_loss_says_how_many_outputs_it_needs() -> None:
    assert LOSSES["cross_entropy"].outputs(10) == 10
    assert LOSSES["binary_cross_entropy"].outputs(2) == 1
    assert LOSSES["mse"].outputs(0) == 1


def test_the_direction_of_each_metric() -> None:
    directions = {name: metric.direction for name, metric in METRICS.items()}
    assert directions == {
        "loss": "minimize",
        "accuracy": "maximize",
        "f1": "maximize",
        "mse": "minimize",
        "r2": "maximize",
    }


@pytest.mark.parametrize("task", TASKS)
def test_each_task_has_a_loss_and_a_metric_of_its_own_kind(task: str) -> None:
    assert LOSSES[DEFAULT_LOSS[task]].task == task
    assert METRICS[DEFAULT_METRIC[task]].task == task


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.task == "regression"])
def test_target_power_turns_a_metric_of_standardized_targets_into_the_targets_unit(name: str) -> None:
    metric, scale = METRICS[name], 25.0
    targets, outputs = torch.randn(30), torch.randn(30, 1)
    restored = evaluate(name, outputs, targets) * scale**metric.target_power
    assert restored == pytest.approx(evaluate(name, outputs * scale, targets * scale), rel=1e-5)
