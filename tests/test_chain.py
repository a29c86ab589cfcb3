"""Models whose layers follow one another, computed in C: what they come to is what autograd and a plain loop make of
them, and what is no chain is computed otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from tests.conftest import examples
from tests.test_engine import BLOCKS_OF_32, BY_TORCH, PLANS, make_run, make_task, outcomes, train
from tests.test_rowwise import assert_equal_alone
from tunecli import models
from tunecli.data import Samples
from tunecli.engine import LOOPED, LocalEngine, choose_plan
from tunecli.engine.compiler import can_compile
from tunecli.engine.gradients import Gradient, Layout
from tunecli.engine.plan import CHAINED_WEIGHTS
from tunecli.engine.rowwise import Recorded, Rowwise, Steps, chained
from tunecli.metrics import LOSSES

pytestmark = pytest.mark.skipif(not can_compile("cpu"), reason="there is no C compiler (cc)")

CLASSES, IMAGE = 3, (2, 7, 6)
ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.GELU, lambda: nn.LeakyReLU(0.2), lambda: nn.Dropout(0.4)]


def activations() -> st.SearchStrategy[nn.Module]:
    return st.sampled_from(ACTIVATIONS).map(lambda make: make())


@st.composite
def chains(draw: st.DrawFn, features: int, outputs: int) -> nn.Module:
    """Layers of any widths, some at a whole vector's length."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    layers: list[nn.Module] = [nn.Dropout(0.3)] if draw(st.booleans()) else []
    width = features
    for _ in range(draw(st.integers(0, 3))):
        wider = draw(st.sampled_from([1, 5, 16, 33]))
        layers += [nn.Linear(width, wider, bias=draw(st.booleans())), *draw(st.lists(activations(), max_size=2))]
        width = wider
    return nn.Sequential(*layers, nn.Linear(width, outputs, bias=draw(st.booleans())))


@examples(25)
@given(
    data=st.data(),
    loss=st.sampled_from(["cross_entropy", "binary_cross_entropy", "mse"]),
    rows=st.integers(1, 3),
    samples=st.sampled_from([16, 32, 48]),
    features=st.sampled_from([1, 13, 16, 64]),
)
def test_a_chain_of_layers_has_the_gradient_of_plain_autograd(
    data: st.DataObject, loss: str, rows: int, samples: int, features: int
) -> None:
    own = LOSSES[loss]
    module = data.draw(chains(features, own.outputs(CLASSES))).double()
    inputs = torch.randn(rows * samples, features, dtype=torch.float64)
    targets = torch.randn(rows * samples, dtype=torch.float64)
    if own.task == "classification":
        targets = torch.randint(2 if own.one_output else CLASSES, (rows * samples,))
    assert_equal_alone(module, Samples(inputs, targets), own, rows, apart=data.draw(st.booleans()), chained=True)


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Module:
    torch.manual_seed(draw(st.integers(0, 2**31)))
    kernel, stride = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    how = {"padding": draw(st.integers(0, 1)), "bias": draw(st.booleans())}
    layers: list[nn.Module] = [nn.Conv2d(IMAGE[0], draw(st.sampled_from([1, 4, 5])), kernel, stride, **how)]
    layers += draw(st.lists(activations() | st.builds(nn.ReLU, inplace=st.just(True)), max_size=1))
    if draw(st.booleans()):
        layers += [nn.MaxPool2d(2, stride=draw(st.integers(1, 2)))]
    if draw(st.booleans()):
        layers += [nn.LazyConv2d(4, 2, padding=1), nn.ReLU()]
    module = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(CLASSES))
    module(torch.zeros(2, *IMAGE))
    return module


@examples(15)
@given(module=convolutions(), rows=st.integers(1, 3), samples=st.sampled_from([16, 32]))
def test_a_chain_of_convolutions_has_the_gradient_of_plain_autograd(module: nn.Module, rows: int, samples: int) -> None:
    inputs = torch.randn(rows * samples, *IMAGE, dtype=torch.float64)
    targets = torch.randint(CLASSES, (rows * samples,))
    assert_equal_alone(module.double(), Samples(inputs, targets), LOSSES["cross_entropy"], rows, chained=True)


@pytest.mark.parametrize(
    "function",
    [torch.relu, torch.tanh, torch.sigmoid, functional.silu, functional.gelu],
    ids=["relu", "tanh", "sigmoid", "silu", "gelu"],
)
def test_functions_in_single_precision_are_those_of_torch_to_rounding(function: Callable[[Tensor], Tensor]) -> None:
    """Values and derivatives, by torch in double precision; far out too, and of what is no number."""
    numbers = torch.cat([torch.linspace(-120, 120, 4001), torch.linspace(-4, 4, 4095)]).view(-1, 1)

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.give, self.take = (nn.Linear(1, 1, bias=bias) for bias in (True, False))
            for weight, value in ((self.give.weight, 1.0), (self.give.bias, 0.0), (self.take.weight, 1.0)):
                nn.init.constant_(weight, value)

        def forward(self, inputs: Tensor) -> Tensor:
            found: Tensor = self.take(function(self.give(inputs)))
            return found

    exact = numbers.double().requires_grad_()
    expected = function(exact)
    found, slopes = of_rows(Bare(), numbers)
    torch.testing.assert_close(found.double(), expected.detach(), rtol=1e-6, atol=2e-7)
    (given,) = torch.autograd.grad(expected.sum(), exact)
    torch.testing.assert_close(slopes.double(), given, rtol=3e-6, atol=3e-7)
    found, _ = of_rows(Bare(), torch.full((1, 1), math.nan))
    assert found.isnan().all()


def of_rows(module: nn.Module, biases: Tensor) -> tuple[Tensor, Tensor]:
    """For zeros, the outputs of rows that differ in the bias of `give`, and its derivative, (B, 1) each: half of that
    of (output - target) ** 2 where these differ by 1."""
    layout = Layout.of(module)
    place = layout.offsets[layout.names.index("give.bias")]
    weights = layout.row(module).repeat(len(biases), 1)
    weights[:, place] = biases[:, 0]
    gradient = Gradient(layout, torch.zeros_like(weights))
    way = Rowwise(Recorded(module, layout, LOSSES["mse"], compiled=True, chained=True), weights, gradient)
    outputs = way.outputs(torch.zeros(16, 1), 16)[:, :, 0]
    inputs = Samples(torch.zeros(len(biases), 16, 1), outputs - 0.5)
    way.add_gradient(inputs, torch.full_like(outputs, 1 / 16))
    slopes = torch.stack([gradient.row(row)[place] for row in range(len(biases))])
    return outputs[:, :1], slopes[:, None]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(x + self.first(x).relu())
        return found


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.first(self.first(x).tanh()))
        return found


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, CLASSES)
        self.register_buffer("scale", torch.full((4,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(x * self.scale)
        return found


class HeadAlone(nn.Module):
    """Only the head learns, from zeros on."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, CLASSES)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.body(x).relu()
        found: Tensor = self.head(features)
        return found


def mlp(**keys: Any) -> nn.Module:
    from tunecli.models.bundled import mlp

    return mlp((4,), CLASSES, **keys)


FROZEN = nn.Linear(4, 4).requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: mlp(hidden=[8, 5], activation="gelu", dropout=0.2), True),
        (lambda: nn.Linear(4, CLASSES), True),
        (lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, CLASSES)), True),
        (Residual, False),
        (Twice, False),
        (Scaled, False),
        (HeadAlone, False),
        (lambda: nn.Sequential(FROZEN, nn.ReLU(), nn.Linear(4, CLASSES)), False),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, CLASSES)), False),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.GELU("tanh"), nn.Linear(4, CLASSES)), False),
        (lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Linear(2, 2), nn.Flatten(), nn.Linear(4, CLASSES)), False),
    ],
    ids=[
        "mlp",
        "linear",
        "in place",
        "residual",
        "twice",
        "buffer",
        "head alone",
        "frozen",
        "norm",
        "approximate",
        "tokens",
    ],
)
def test_what_is_no_chain_is_computed_otherwise_and_alike(make: Callable[[], nn.Module], expected: bool) -> None:
    task = make_task(make, features=(4,))
    runs = [make_run(trial, batch_size=size) for trial, size in enumerate((16, 48, "full"))]
    engine = LocalEngine(task, BLOCKS_OF_32)
    assert engine.traits(runs[0]).chained is expected
    by_torch = train(LocalEngine(task, BY_TORCH), runs, ticks=2)
    for own, other in zip(train(engine, runs, ticks=2), by_torch, strict=True):
        for found, likewise in zip(own, other, strict=True):
            assert found.train_loss == pytest.approx(likewise.train_loss, rel=1e-3)


def test_a_chain_whose_loss_is_smoothed_is_left_to_torch() -> None:
    """And planned for so: by torch a million weights are faster one trial after another."""
    engine = LocalEngine(make_task(), BLOCKS_OF_32)
    for smoothing in (0.1, 0.0, 0.2):
        assert engine.traits(make_run(0, label_smoothing=smoothing)).chained is not bool(smoothing)


def test_a_chain_is_left_to_torch_where_nothing_is_compiled() -> None:
    task = make_task()
    assert not LocalEngine(task, BY_TORCH).traits(make_run(0)).chained
    assert not LocalEngine(task, LOOPED).traits(make_run(0)).chained


@pytest.mark.parametrize("plan", ["rules, blocks of 32", "rules, blocks of 8"])
def test_steps_that_are_taken_at_once_have_the_bits_of_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch, plan: str
) -> None:
    """By C and by the calls that serve a row that joins, whatever is trained in one call."""
    task = make_task(lambda: mlp(dropout=0.3), features=(4,))
    optimizers = ("sgd", "adam", "lion", "adadelta")
    sizes = (1, 16, 23, "full")
    runs = [
        make_run(trial, optimizer=optimizer, batch_size=size, l1=1e-4, clip_norm=0.5)
        for trial, (optimizer, size) in enumerate(zip(optimizers, sizes, strict=True))
    ]
    at_once = outcomes(LocalEngine(task, PLANS[plan]), runs)
    for patch in ((chained, "AT_ONCE", 1), (Rowwise, "steps", lambda *_: None)):
        with monkeypatch.context() as patched:
            patched.setattr(*patch)
            assert outcomes(LocalEngine(task, PLANS[plan]), runs) == at_once


def test_a_whole_epoch_of_a_narrow_model_is_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = Steps.train

    def counted(self: Steps, low: int, high: int, *more: Any, **keys: Any) -> None:
        calls.append(high - low)
        real(self, low, high, *more, **keys)

    monkeypatch.setattr(Steps, "train", counted)
    train(LocalEngine(make_task(), BLOCKS_OF_32), [make_run(trial, batch_size=16) for trial in range(5)], ticks=1)
    assert calls == [4]


def test_a_chain_is_planned_for_up_to_a_million_weights() -> None:
    """In one lane, alone too; with whole batches as large as pay, but where it convolves."""
    assert choose_plan(CHAINED_WEIGHTS, 4, chained=True).way == "rules"
    assert choose_plan(CHAINED_WEIGHTS + 1, 4, chained=True).way == "looped"
    assert [choose_plan(1000, 1, size, chained=True).cap for size in (8, 32, 500)] == [16, 32, 64]
    assert choose_plan(1000, 1, 500, chained=True, convolves=True).cap == 16
    assert choose_plan(1000, 1, chained=True).block_rows == 1
    assert [choose_plan(n, 64, chained=True).block_rows for n in (1000, 800_000, CHAINED_WEIGHTS)] == [32, 4, 4]


def test_an_activation_may_write_over_what_a_convolution_or_a_pool_gave() -> None:
    block = lambda: [nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.ReLU(inplace=True)]  # noqa: E731
    task = make_task(lambda: nn.Sequential(*block(), nn.Flatten(), nn.Linear(16, CLASSES)), features=(1, 6, 6))
    assert LocalEngine(task, BLOCKS_OF_32).traits(make_run(0)).chained
    assert LocalEngine(task, BY_TORCH).traits(make_run(0)).looped_because is None


@pytest.mark.parametrize("source", ["linear", "mlp", "cnn"])
def test_bundled_models_are_chains(source: str) -> None:
    build = lambda: models.build(source, {}, base=None, features=(64,), outputs=CLASSES, seed=0)  # type: ignore[arg-type]  # noqa: E731
    task = make_task(build, features=(64,))
    assert LocalEngine(task, BLOCKS_OF_32).traits(make_run(0)).chained


def test_weights_that_are_no_numbers_stay_in_their_row() -> None:
    task = make_task()
    runs = [make_run(0), make_run(1, learning_rate=1e30), make_run(2)]
    ended = outcomes(LocalEngine(task, BLOCKS_OF_32), runs)
    assert ended[0] == outcomes(LocalEngine(task, BLOCKS_OF_32), runs[:1])[0]
    plan = replace(BLOCKS_OF_32, block_rows=2)
    assert ended[2] == outcomes(LocalEngine(task, plan), runs[2:])[2]
