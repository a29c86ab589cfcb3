"""Convolutions: whatever the way and the layout, a run is what a plain loop makes of it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.test_engine import CLASSES, assert_equals_plain_loop, make_run, make_task, outcomes
from tunecli.engine import LOOPED, LocalEngine

IMAGE = (2, 6, 6)


def convolving(pool: type[nn.Module] = nn.MaxPool2d, norm: bool = False) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        norms = [nn.BatchNorm2d(4)] if norm else []
        first, second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2, bias=False)
        return nn.Sequential(first, *norms, nn.ReLU(), pool(2), second, nn.Tanh(), nn.Flatten(), nn.Linear(8, CLASSES))

    return build


class Viewing(nn.Module):
    """As in torch's own tutorial: `view` refuses what is channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(64, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.head(functional.relu(self.conv(images)).view(-1, 64))
        return found


MODELS = {
    "plain": convolving(),
    "averaging": convolving(nn.AvgPool2d),
    "normed": convolving(norm=True),
    "view": Viewing,
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_a_looped_run_equals_a_plain_loop(model: Callable[[], nn.Module]) -> None:
    task = make_task(model, dtype=torch.float64, features=IMAGE)
    runs = [make_run(trial, batch_size=size) for trial, size in enumerate((16, 23, "full"))]
    assert_equals_plain_loop(lambda task: LocalEngine(task, LOOPED), task, runs, ticks=2)


@pytest.mark.parametrize(("model", "expected"), [("plain", True), ("normed", True), ("view", False)])
def test_channels_are_last_where_the_model_bears_it(model: str, expected: bool) -> None:
    engine = LocalEngine(make_task(MODELS[model], features=IMAGE), LOOPED)
    run = make_run(0, batch_size=16)
    assert engine.traits(run).channels_last is expected
    found = outcomes(engine, [run])[0]
    assert all(tensor.is_contiguous() for tensor in engine.weights(run).values()), "a checkpoint has the usual layout"
    again = outcomes(LocalEngine(make_task(MODELS[model], features=IMAGE), LOOPED), [make_run(1), run])[0]
    assert found == again
