"""Convolutions: whatever the way and the layout, a run is what a plain loop makes of it."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from tests.conftest import examples
from tests.test_engine import BY_TORCH, CLASSES, PLANS, assert_equals_plain_loop, make_run, make_task, outcomes, train
from tests.test_rowwise import assert_equal_alone
from tunecli.data import Samples
from tunecli.engine import LOOPED, LocalEngine
from tunecli.engine.compiler import can_compile
from tunecli.engine.rowwise import compiled, images
from tunecli.metrics import LOSSES

IMAGE = (2, 6, 6)
DTYPES = [torch.float32, torch.float64]

needs_compiler = pytest.mark.skipif(not can_compile("cpu"), reason="there is no C compiler (cc)")


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


class Halving(nn.Module):
    """Pools numbers of a kind of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(16, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.head(functional.max_pool2d(self.conv(images).bfloat16(), 2).float().flatten(1))
        return found


MODELS = {
    "plain": convolving(),
    "averaging": convolving(nn.AvgPool2d),
    "normed": convolving(norm=True),
    "view": Viewing,
}


@pytest.mark.parametrize("plan", ["rules, blocks of 8", "looped"])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_a_run_equals_a_plain_loop(model: Callable[[], nn.Module], plan: str) -> None:
    task = make_task(model, dtype=torch.float64, features=IMAGE)
    runs = [make_run(trial, batch_size=size) for trial, size in enumerate((16, 23, "full"))]
    assert_equals_plain_loop(lambda task: LocalEngine(task, PLANS[plan]), task, runs, ticks=2)


@pytest.mark.parametrize(("model", "precision"), [(MODELS["plain"], "bf16"), (Halving, "float32")])
def test_a_model_may_compute_in_half_precision(model: Callable[[], nn.Module], precision: str) -> None:
    """By rows as one after another, but for rounding."""
    task = make_task(model, features=IMAGE)
    run = make_run(0, batch_size=16, precision=precision)
    plans = PLANS["rules, blocks of 8"], PLANS["looped"]
    (by_rows,), (alone,) = (train(LocalEngine(task, plan), [run], ticks=2) for plan in plans)
    assert [own.failure for own in by_rows] == [None] * len(by_rows)
    for own, expected in zip(by_rows, alone, strict=True):
        assert own.train_loss == pytest.approx(expected.train_loss, rel=0.05)


@pytest.mark.parametrize("plan", ["rules, blocks of 32", "rules, blocks of 8"])
def test_a_run_by_rules_is_the_same_alone_and_in_a_crowd(plan: str) -> None:
    task = make_task(MODELS["plain"], features=IMAGE)
    runs = [make_run(trial) for trial in range(11)]
    crowd = outcomes(LocalEngine(task, PLANS[plan]), runs)
    for trial in (0, 5, 10):
        assert crowd[trial] == outcomes(LocalEngine(task, PLANS[plan]), [runs[trial]])[trial]


@st.composite
def pools(draw: st.DrawFn) -> nn.Module:
    kernel, stride = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    if draw(st.booleans()):
        return nn.MaxPool2d(kernel, stride, padding=draw(st.integers(0, kernel // 2)))
    return nn.AvgPool2d((kernel, 2), stride, padding=(draw(st.integers(0, kernel // 2)), 1))


@st.composite
def convolutions(draw: st.DrawFn, channels: int, outputs: int) -> nn.Module:
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    return nn.Conv2d(channels, outputs, kernel, stride, padding, dilation, bias=draw(st.booleans()))


@examples(12)
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_compiler)], ids=["torch", "C"])
@given(data=st.data(), height=st.integers(9, 11), width=st.integers(9, 11), ties=st.booleans())
def test_a_chain_of_convolutions_has_the_gradient_of_plain_autograd(
    compiled: bool, data: st.DataObject, height: int, width: int, ties: bool
) -> None:
    """Where pixels of a window are equal, the gradient goes to the one that torch takes."""
    torch.manual_seed(0)
    layers = [data.draw(convolutions(2, 4)), data.draw(pools()), nn.ReLU(), nn.Conv2d(4, 3, 3, padding="same")]
    last = data.draw(st.sampled_from([nn.AdaptiveAvgPool2d(1), nn.ReLU(), nn.MaxPool2d(2, padding=0)]))
    images = torch.randn(2 * 16, 2, height, width, dtype=torch.float64)
    images = images.round().clamp(min=0) if ties else images
    body = nn.Sequential(*layers, *([last] if min(nn.Sequential(*layers).double()(images).shape[2:]) > 1 else []))
    features = body.double()(images).flatten(1).shape[1]
    module = nn.Sequential(body, nn.Flatten(), nn.Linear(features, CLASSES)).double()
    samples = Samples(images, torch.randint(CLASSES, (32,)))
    assert_equal_alone(module, samples, LOSSES["cross_entropy"], rows=2, compiled=compiled)


@needs_compiler
@examples(30)
@given(data=st.data(), samples=st.sampled_from([1, 3, 8, 16, 17, 40]), dtype=st.sampled_from(DTYPES))
def test_windows_hold_the_same_in_c_to_the_bit(data: st.DataObject, samples: int, dtype: torch.dtype) -> None:
    """Whatever overlaps, lies on the edge, is equal, or is shared by all rows."""
    sizes, steps = st.tuples(st.integers(1, 3), st.integers(1, 4)), st.tuples(st.integers(1, 3), st.integers(1, 2))
    kernel, stride, dilation = data.draw(sizes), data.draw(steps), data.draw(steps)
    torch.manual_seed(0)
    inputs = torch.randn(2, samples, 3, 8, 9, dtype=dtype)
    inputs = inputs.round() if data.draw(st.booleans()) else inputs
    inputs = inputs[:1].expand_as(inputs) if data.draw(st.booleans()) else inputs
    over = images.Windows(kernel, stride, data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2))), dilation)
    unfolded = images.unfold(inputs, over)
    assert_same(compiled.unfold(inputs, over), unfolded)
    addends, shape = torch.randn(unfolded.shape, dtype=dtype), tuple(inputs.shape)
    assert_same(compiled.fold(addends, over, shape), images.fold(addends, over, shape))
    over = images.Windows(kernel, stride, (kernel[0] // 2, kernel[1] // 2))
    largest = images.largest(inputs, over)
    assert_same(compiled.largest(inputs, over), largest)
    gradient = torch.randn(largest.shape, dtype=dtype)
    assert_same(
        compiled.to_largest(gradient, inputs, largest, over), images.to_largest(gradient, inputs, largest, over)
    )


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@needs_compiler
def test_what_is_no_number_is_the_largest_in_c_too() -> None:
    inputs = torch.randn(1, 20, 1, 4, 4)
    inputs[0, 3, 0, 1, 1] = inputs[0, 7, 0, 0, 0] = torch.nan
    over = images.Windows((2, 2), (2, 2), (0, 0))
    expected = torch.max_pool2d(inputs[0], 2)
    torch.testing.assert_close(compiled.largest(inputs, over)[0], expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("layer", "side", "expected"),
    [
        (nn.Conv2d(2, 4, 3), 6, "rules"),
        (nn.Conv2d(2, 4, 3), 40, "looped"),
        (nn.Conv2d(2, 4, 3, groups=2), 6, "looped"),
        (nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), 6, "rules"),
    ],
    ids=["small", "large", "grouped", "reflecting"],
)
def test_small_images_are_convolved_by_rules(layer: nn.Module, side: int, expected: str) -> None:
    model = lambda: nn.Sequential(layer, nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES))  # noqa: E731
    task = make_task(model, features=(2, side, side), samples=20)
    assert LocalEngine(task, BY_TORCH).traits(make_run(0)).way == expected


@pytest.mark.parametrize(("model", "expected"), [("plain", True), ("normed", True), ("view", False)])
def test_channels_are_last_where_the_model_bears_it(model: str, expected: bool) -> None:
    engine = LocalEngine(make_task(MODELS[model], features=IMAGE), LOOPED)
    run = make_run(0, batch_size=16)
    assert engine.traits(run).channels_last is expected
    found = outcomes(engine, [run])[0]
    assert all(tensor.is_contiguous() for tensor in engine.weights(run).values()), "a checkpoint has the usual layout"
    again = outcomes(LocalEngine(make_task(MODELS[model], features=IMAGE), LOOPED), [make_run(1), run])[0]
    assert found == again


def test_a_norm_behind_frozen_filters_is_no_danger() -> None:
    """torch's GroupNorm ends the process where what it reads is channels last and needs no gradient."""

    def build() -> nn.Module:
        torch.manual_seed(0)
        filters = nn.Conv2d(2, 4, 3).requires_grad_(False)
        return nn.Sequential(filters, nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, CLASSES))

    task = make_task(build, features=IMAGE)
    for plan in PLANS.values():
        train(LocalEngine(task, plan), [make_run(0, batch_size=16)], ticks=1)
