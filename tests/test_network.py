"""Models that C computes, all of their layers: what they come to is what autograd and a plain loop make of them, and
what has other layers is computed otherwise."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from tests.conftest import examples
from tests.test_engine import BLOCKS_OF_32, BY_TORCH, PLANS, make_run, make_task, outcome, outcomes, start, tick, train
from tests.test_rowwise import assert_equal_alone
from tunecli import models
from tunecli.data import Samples
from tunecli.data.scaling import Scaling
from tunecli.engine import LOOPED, LocalEngine, choose_plan, epoch, plan
from tunecli.engine.block import Block
from tunecli.engine.compiler import can_compile
from tunecli.engine.gradients import Gradient, Layout
from tunecli.engine.plan import NATIVE_WEIGHTS
from tunecli.engine.rowwise import Recorded, Rowwise, Steps, native, workspace
from tunecli.engine.task import evaluate
from tunecli.errors import ModelError, OutOfMemory
from tunecli.metrics import LOSSES
from tunecli.models.bundled import cnn
from tunecli.models.bundled import mlp as mlp_of_table

pytestmark = pytest.mark.skipif(not can_compile("cpu"), reason="there is no C compiler (cc)")

CLASSES, IMAGE = 3, (2, 7, 6)
ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.GELU, lambda: nn.LeakyReLU(0.2), lambda: nn.Dropout(0.4)]


def activations() -> st.SearchStrategy[nn.Module]:
    return st.sampled_from(ACTIVATIONS).map(lambda make: make())


@st.composite
def layers(draw: st.DrawFn, features: int, outputs: int) -> nn.Module:
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
def test_layers_that_follow_one_another_have_the_gradient_of_plain_autograd(
    data: st.DataObject, loss: str, rows: int, samples: int, features: int
) -> None:
    own = LOSSES[loss]
    module = data.draw(layers(features, own.outputs(CLASSES))).double()
    inputs = torch.randn(rows * samples, features, dtype=torch.float64)
    targets = torch.randn(rows * samples, dtype=torch.float64)
    if own.task == "classification":
        targets = torch.randint(2 if own.one_output else CLASSES, (rows * samples,))
    assert_equal_alone(module, Samples(inputs, targets), own, rows, apart=data.draw(st.booleans()), native=True)


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Module:
    torch.manual_seed(draw(st.integers(0, 2**31)))
    kernel, stride = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    how = {"padding": draw(st.integers(0, 1)), "bias": draw(st.booleans())}
    layers: list[nn.Module] = [nn.Conv2d(IMAGE[0], draw(st.sampled_from([1, 4, 5])), kernel, stride, **how)]
    layers += draw(st.lists(activations() | st.builds(nn.ReLU, inplace=st.just(True)), max_size=1))
    if draw(st.booleans()):
        layers += [nn.GroupNorm(1, layers[0].out_channels, affine=draw(st.booleans()))]  # type: ignore[arg-type]  # int
    if draw(st.booleans()):
        layers += [draw(st.sampled_from([nn.MaxPool2d, nn.AvgPool2d]))(2, stride=draw(st.integers(1, 2)))]
    if draw(st.booleans()):
        layers += [nn.LazyConv2d(4, 2, padding=1), nn.ReLU()]
    if draw(st.booleans()):
        layers += [nn.AdaptiveAvgPool2d(1)]
    module = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(CLASSES))
    module(torch.zeros(2, *IMAGE))
    return module


@examples(15)
@given(module=convolutions(), rows=st.integers(1, 3), samples=st.sampled_from([16, 32]))
def test_convolutions_have_the_gradient_of_plain_autograd(module: nn.Module, rows: int, samples: int) -> None:
    inputs = torch.randn(rows * samples, *IMAGE, dtype=torch.float64)
    targets = torch.randint(CLASSES, (rows * samples,))
    assert_equal_alone(module.double(), Samples(inputs, targets), LOSSES["cross_entropy"], rows, native=True)


TOKENS, WIDTH = 5, 6


def functions(x: Tensor, y: Tensor) -> Tensor:
    found = functional.gelu(x, approximate="tanh") + functional.hardswish(y) + functional.relu6(4 * x)
    found = found + functional.softplus(x) + functional.mish(y) + x.clamp(-0.5, 0.4) + (x.clamp(max=1) / 2).exp()
    return found + (x**2 + 1).log() + y / (x.abs() + 1).sqrt() + (x**3) * 0.1 + (x**2 + 1) ** -0.5


class Woven(nn.Module):
    """Steps over tokens (m, T, F), each of which reads the one before and perhaps an earlier one."""

    def __init__(self, steps: list[str], head: str) -> None:
        super().__init__()
        self.steps, self.head_of = steps, head
        self.linears = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=place % 2 == 0) for place in range(len(steps) + 2))
        self.norms = nn.ModuleList(
            nn.LayerNorm(WIDTH, elementwise_affine=place % 2 == 0) for place in range(len(steps))
        )
        self.groups, self.dropout = nn.GroupNorm(1, TOKENS), nn.Dropout(0.3)
        self.place, self.scale = (nn.Parameter(torch.randn(shape)) for shape in ((TOKENS, WIDTH), (1, WIDTH)))
        self.matrix, self.narrow = (nn.Parameter(torch.randn(WIDTH, width) / 2) for width in (WIDTH, 2))
        self.register_buffer("mask", torch.randn(TOKENS, 1))
        self.register_buffer("hidden", torch.ones(TOKENS, TOKENS).triu(1).bool())
        self.memory = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(TOKENS * WIDTH if head == "all" else WIDTH, CLASSES)
        self.to(torch.float64)

    def step(self, place: int, name: str, x: Tensor, y: Tensor) -> Tensor:
        linear, norm = self.linears[place], self.norms[place]
        own = {
            "linear": lambda: linear(x),
            "reads twice": lambda: linear(self.linears[-1](x).tanh()) + self.linears[-1](y),
            "norm": lambda: norm(x),
            "group norm": lambda: self.groups(x),
            "residual": lambda: x + 0.5 * functional.gelu(linear(norm(x))),
            "gate": lambda: y * linear(x).sigmoid(),
            "difference": lambda: 1 - (y - x) / 3,
            "square": lambda: x * x,
            "place": lambda: x + self.place,
            "weigh": lambda: (x - self.scale) * self.mask,
            "mean": lambda: x - x.mean(1, keepdim=True) + y.sum(2, keepdim=True),
            "attend": lambda: (linear(x) @ y.transpose(1, 2) / 2).softmax(2) @ y,
            "heads": lambda: self.heads(linear(x), x, y),
            "join": lambda: linear(torch.cat([x[..., :2], y[..., 1:3], x[..., :2].relu()], 2)),
            "flip": lambda: torch.stack([y[:, TOKENS - 1 - own] for own in range(TOKENS)], 1) + x,
            "elu": lambda: functional.elu(x, 0.7),
            "dropout": lambda: self.dropout(x) * 2,
            "functions": lambda: functions(x, y),
            "causal": lambda: functional.scaled_dot_product_attention(linear(x), x, y, is_causal=True),
            "masked": lambda: (x @ y.transpose(1, 2)).masked_fill(self.hidden, -math.inf).softmax(2) @ y,
            "matrix": lambda: x @ self.matrix + y @ self.matrix.t(),
            "narrow matrix": lambda: torch.cat([x @ self.narrow, y[..., 2:]], 2),
            "token": lambda: torch.cat([self.scale.expand(len(x), 1, WIDTH), x[:, 1:]], 1) + y,
            "root norm": lambda: functional.rms_norm(x, (WIDTH,), self.scale[0]),
            "recur": lambda: self.memory(x)[0] + y,
        }
        found: Tensor = own[name]()
        return found

    def heads(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        split = [own.unflatten(2, (2, WIDTH // 2)).transpose(1, 2) for own in (query, key, value)]
        found: Tensor = functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
        return found

    def forward(self, x: Tensor) -> Tensor:
        seen = [x, self.linears[-2](x)]
        for place, name in enumerate(self.steps):
            seen.append(self.step(place, name, seen[-1], seen[place // 2]))
        x = seen[-1]
        read = {"first": x[:, 0], "mean": x.mean(1), "all": x.flatten(1), "log": x.sum(1)}[self.head_of]
        found: Tensor = self.head(read)
        return functional.log_softmax(found, 1) if self.head_of == "log" else found


STEPS = (
    *("linear", "reads twice", "norm", "group norm", "residual", "gate", "difference", "square", "place", "weigh"),
    *("mean", "attend", "heads", "join", "flip", "elu", "dropout", "recur"),
    *("functions", "causal", "masked", "root norm", "token", "matrix", "narrow matrix"),
)


@examples(25)
@given(
    steps=st.lists(st.sampled_from(STEPS), min_size=1, max_size=5),
    head=st.sampled_from(["first", "mean", "all", "log"]),
    rows=st.integers(1, 2),
    samples=st.sampled_from([16, 32]),
)
@example(["linear", "functions", "functions", "linear", "difference"], "first", 1, 32)  # softplus of more than 20
def test_layers_that_branch_and_join_have_the_gradient_of_plain_autograd(
    steps: list[str], head: str, rows: int, samples: int
) -> None:
    torch.manual_seed(len(steps))
    module = only_used(Woven(steps, head), torch.randn(2, TOKENS, WIDTH, dtype=torch.float64))
    inputs = torch.randn(rows * samples, TOKENS, WIDTH, dtype=torch.float64)
    targets = torch.randint(CLASSES, (rows * samples,))
    assert_equal_alone(module, Samples(inputs, targets), LOSSES["cross_entropy"], rows, native=True)


def only_used(module: nn.Module, inputs: Tensor) -> nn.Module:
    """The module, without training those weights that its forward pass does not read."""
    found = torch.autograd.grad(module(inputs).sum(), list(module.parameters()), allow_unused=True)
    for weight, gradient in zip(module.parameters(), found, strict=True):
        weight.requires_grad_(gradient is not None)
    return module


@pytest.mark.parametrize(
    "part", [nn.ReLU6(), nn.Hardtanh(0.0, 1.0), nn.ReLU(), nn.Hardswish(), nn.LeakyReLU(), nn.ELU()]
)
def test_where_a_function_has_a_corner_its_gradient_is_that_of_torch(part: nn.Module) -> None:
    """At the bounds themselves: where no bias was learned yet, black pixels are there."""
    module = nn.Sequential(nn.Linear(2, 2, bias=False), part, nn.Linear(2, CLASSES)).double()
    nn.init.eye_(module[0].weight)  # type: ignore[arg-type]  # a tensor
    inputs = torch.tensor([0.0, 1.0, -3.0, 3.0, 6.0, 5.0, -1.0, 0.5], dtype=torch.float64).repeat(4).view(16, 2)
    weights = Layout.of(module).row(module)[None]
    samples = Samples(inputs[None], torch.randint(CLASSES, (1, 16)))
    gradients = []
    for in_c in (True, False):
        gradient = Gradient(Layout.of(module), torch.zeros_like(weights))
        recorded = Recorded(module, Layout.of(module), LOSSES["cross_entropy"], compiled=in_c, native=in_c)
        Rowwise(recorded, weights, gradient).add_gradient(samples, torch.ones(1, 16, dtype=torch.float64))
        gradients.append(gradient.row(0))
    torch.testing.assert_close(*gradients)


@examples(10)
@given(data=st.data(), rows=st.integers(1, 2))
def test_convolutions_of_sequences_have_the_gradient_of_plain_autograd(data: st.DataObject, rows: int) -> None:
    torch.manual_seed(0)
    how = {"stride": data.draw(st.integers(1, 2)), "dilation": data.draw(st.integers(1, 2))}
    around = data.draw(st.sampled_from([0, 1, "valid"]))
    pool = data.draw(st.sampled_from([nn.MaxPool1d, nn.AvgPool1d]))(2, stride=data.draw(st.integers(1, 2)))
    layers = nn.Conv1d(3, 4, 3, padding=around, bias=data.draw(st.booleans()), **how), nn.ReLU(), pool
    module = nn.Sequential(*layers, nn.Conv1d(4, 5, 3, padding="same"), nn.Flatten(), nn.LazyLinear(CLASSES)).double()
    inputs, targets = torch.randn(rows * 16, 3, 17, dtype=torch.float64), torch.randint(CLASSES, (rows * 16,))
    module(inputs)
    assert_equal_alone(module, Samples(inputs, targets), LOSSES["cross_entropy"], rows, native=True)


@pytest.mark.parametrize(
    "function",
    [
        *(torch.relu, torch.tanh, torch.sigmoid, functional.silu, functional.gelu, functional.elu, functional.softplus),
        *(functional.mish, functional.hardswish, torch.abs, lambda x: functional.gelu(x, approximate="tanh")),
        *(torch.sin, torch.cos, functional.hardsigmoid, functional.selu, lambda x: functional.celu(x, 0.6)),
        lambda x: torch.sin(1024 * x) / 1024,
    ],
    ids=[
        *("relu", "tanh", "sigmoid", "silu", "gelu", "elu", "softplus", "mish", "hardswish", "abs", "gelu tanh"),
        *("sin", "cos", "hardsigmoid", "selu", "celu", "sin far out"),
    ],
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
    way = Rowwise(Recorded(module, layout, LOSSES["mse"], compiled=True, native=True), weights, gradient)
    outputs = way.outputs(torch.zeros(16, 1), 16)[:, :, 0]
    inputs = Samples(torch.zeros(len(biases), 16, 1), outputs - 0.5)
    way.add_gradient(inputs, torch.full_like(outputs, 1 / 16))
    slopes = torch.stack([gradient.row(row)[place] for row in range(len(biases))])
    return outputs[:, :1], slopes[:, None]


class Remembering(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **how: Any) -> None:
        super().__init__()
        self.memory, self.head = kind(2, 3, batch_first=True, **how), nn.LazyLinear(CLASSES)
        self(torch.zeros(2, 8))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.memory(x.unflatten(1, (4, 2)))[0].flatten(1))
        return found


class ByCell(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.cell, self.head = kind(2, 3), nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.split(2, 1):
            state = self.cell(step, state)
        found: Tensor = self.head(state[0] if isinstance(state, tuple) else state)
        return found


RECURRENT = {
    "lstm": lambda: Remembering(nn.LSTM),
    "gru": lambda: Remembering(nn.GRU),
    "rnn": lambda: Remembering(nn.RNN),
    "relu, no bias": lambda: Remembering(nn.RNN, nonlinearity="relu", bias=False),
    "two layers, both ways": lambda: Remembering(nn.GRU, num_layers=2, bidirectional=True),
    "dropout between": lambda: Remembering(nn.LSTM, num_layers=2, dropout=0.3),
    "lstm cell": lambda: ByCell(nn.LSTMCell),
    "gru cell": lambda: ByCell(nn.GRUCell),
    "rnn cell": lambda: ByCell(nn.RNNCell),
}


@pytest.mark.parametrize("make", RECURRENT.values(), ids=RECURRENT)
def test_recurrent_layers_have_the_gradient_of_torch(make: Callable[[], nn.Module]) -> None:
    inputs, targets = torch.randn(32, 8, dtype=torch.float64), torch.randint(CLASSES, (32,))
    assert_equal_alone(make().double(), Samples(inputs, targets), LOSSES["cross_entropy"], 2, native=True)


def test_long_sequences_are_left_to_torch() -> None:
    """Each step of them would be recorded."""

    def make() -> nn.Module:
        return nn.Sequential(nn.Unflatten(1, (-1, 1)), nn.GRU(1, 2, batch_first=True), Last(), nn.Linear(2, CLASSES))

    short, long = (LocalEngine(make_task(make, features=(steps,)), BLOCKS_OF_32) for steps in (64, 65))
    assert short.traits(make_run(0)).native
    assert long.traits(make_run(0)).looped_because == "recurrent layers are faster one by one"


class Last(nn.Module):
    def forward(self, found: tuple[Tensor, Tensor]) -> Tensor:
        return found[0][:, -1]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(x + self.first(x).relu())
        return found


class Hooked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, CLASSES)
        self.head.register_forward_hook(lambda part, given, found: found * 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(x)
        return found


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.calls = nn.Linear(4, CLASSES), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        found: Tensor = self.head(x)
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


class Straight(torch.autograd.Function):
    """A clamp whose gradient is that of what it reads."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clamp(-5, 5)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        beyond = x.clamp(-5, 5) - x
    return x + beyond


class Clamped(nn.Module):
    def __init__(self, clamp: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.clamp, self.first, self.head = clamp, nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.clamp(self.first(x)))
        return found


@pytest.mark.parametrize(
    ("clamp", "expected"),
    [
        (lambda x: x.clamp(-5, 5), True),
        (lambda x: x + (x.clamp(-5, 5) - x).detach(), False),
        (without_gradient, False),
        (Straight.apply, False),
    ],
    ids=["plain", "detach", "no_grad", "function"],
)
def test_gradients_of_a_models_own_are_left_to_torch(clamp: Callable[[Tensor], Tensor], expected: bool) -> None:
    """No sample that the model is tried on is large enough to tell."""
    task = make_task(lambda: Clamped(clamp), features=(4,))
    assert LocalEngine(task, BLOCKS_OF_32).traits(make_run(0)).native is expected


class InHalf(nn.Module):
    """Two layers, of which the second one's outputs are cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 9), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        found: Tensor = self.head(torch.cat([x, self.second(x)], 1)[:, :4].relu())
        return found


def test_a_layer_that_nothing_reads_has_no_gradient() -> None:
    samples = Samples(torch.randn(32, 4).double(), torch.randint(CLASSES, (32,)))
    assert_equal_alone(InHalf().double(), samples, LOSSES["cross_entropy"], 2, native=True)


class ReadTwice(nn.Module):
    """What an activation reads is read by something else too: as it is, in parts, or not at all."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.first, self.head = how, nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        own = {
            "whole": lambda: h.relu() + h,
            "twice": lambda: h.relu() * h.sigmoid(),
            "part": lambda: torch.cat([h.tanh()[:, :2], h[:, 1:3]], 1),
            "alone": lambda: h.sigmoid(),
            "curved": lambda: functional.gelu(h.relu()),
        }
        found: Tensor = self.head(own[self.how]()).relu()
        return found


@pytest.mark.parametrize("how", ["whole", "twice", "part", "alone", "curved"])
def test_an_activation_overwrites_nothing_that_is_read_again(how: str) -> None:
    samples = Samples(torch.randn(32, 4).double(), torch.randint(CLASSES, (32,)))
    assert_equal_alone(ReadTwice(how).double(), samples, LOSSES["cross_entropy"], 2, native=True)


class Rounded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(x.long().to(x.dtype))
        return found


def test_what_is_cut_to_whole_numbers_is_no_longer_what_it_was() -> None:
    """The samples that a model is tried on may all be whole numbers."""
    inputs = torch.cat([torch.randint(5, (16, 4)).float(), torch.randn(32, 4)])
    task = make_task(Rounded, train=Samples(inputs, torch.randint(CLASSES, (48,))), features=(4,))
    assert not LocalEngine(task, BLOCKS_OF_32).traits(make_run(0)).native


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
        (Residual, True),
        (HeadAlone, False),
        (Hooked, False),
        (Counting, False),
        (lambda: nn.Sequential(FROZEN, nn.ReLU(), nn.Linear(4, CLASSES)), True),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, CLASSES)), True),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.Hardshrink(), nn.Linear(4, CLASSES)), False),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.GELU("tanh"), nn.Linear(4, CLASSES)), True),
        (lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Linear(2, 2), nn.Flatten(), nn.Linear(4, CLASSES)), True),
    ],
    ids=[
        "mlp",
        "linear",
        "in place",
        "residual",
        "head alone",
        "hooked",
        "counting",
        "frozen",
        "norm",
        "hardshrink",
        "approximate",
        "tokens",
    ],
)
def test_what_has_other_layers_is_computed_otherwise_and_alike(make: Callable[[], nn.Module], expected: bool) -> None:
    task = make_task(make, features=(4,))
    runs = [make_run(trial, batch_size=size) for trial, size in enumerate((16, 48, "full"))]
    engine = LocalEngine(task, BLOCKS_OF_32)
    assert engine.traits(runs[0]).native is expected
    by_torch = train(LocalEngine(task, BY_TORCH), runs, ticks=2)
    for own, other in zip(train(engine, runs, ticks=2), by_torch, strict=True):
        for found, likewise in zip(own, other, strict=True):
            assert found.train_loss == pytest.approx(likewise.train_loss, rel=1e-3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_targets_are_smoothed_as_by_torch(smoothing: float) -> None:
    """Some rows more than others."""
    module, inputs = nn.Linear(4, CLASSES).double(), torch.randn(2, 16, 4, dtype=torch.float64)
    targets, layout = torch.randint(CLASSES, (2, 16)), Layout.of(module)
    weights = torch.randn(2, layout.width, dtype=torch.float64)
    gradient = Gradient(layout, torch.zeros_like(weights))
    recorded = Recorded(module, layout, LOSSES["cross_entropy"], compiled=True, native=True)
    way = Rowwise(recorded, weights, gradient, {"label_smoothing": torch.tensor([smoothing, 0.3], dtype=torch.float64)})
    samples = Samples(inputs, targets)
    assert way.is_native(samples)
    losses, _ = way.add_gradient(samples, torch.ones_like(inputs[..., 0]))
    for row, own in enumerate((smoothing, 0.3)):
        values = {name: view[row].clone().requires_grad_() for name, view in layout.views(weights).items()}
        outputs = functional.linear(inputs[row], values["weight"], values["bias"])
        expected = functional.cross_entropy(outputs, targets[row], label_smoothing=own, reduction="sum")
        expected.backward()  # type: ignore[no-untyped-call]  # torch's own
        torch.testing.assert_close(losses[row], expected.detach())
        found = layout.views(gradient.row(row)[None])
        for name, value in values.items():
            torch.testing.assert_close(found[name][0], value.grad)


def test_runs_with_smoothed_targets_are_computed_in_c() -> None:
    engine = LocalEngine(make_task(), BLOCKS_OF_32)
    for smoothing in (0.1, 0.0, 0.2):
        assert engine.traits(make_run(0, label_smoothing=smoothing)).native


def test_categories_are_looked_up_as_by_torch() -> None:
    inputs = torch.cat([torch.randn(32, 3), torch.randint(0, 7, (32, 1)), torch.randint(0, 4, (32, 1))], 1).double()
    module = mlp_of_table((5,), CLASSES, (7, 4), hidden=[9, 8], dropout=0.2).double()
    samples = Samples(inputs, torch.randint(CLASSES, (32,)))
    assert_equal_alone(module, samples, LOSSES["cross_entropy"], 2, native=True)


class Words(nn.Module):
    """A mean of words, each of which knows its place; one output, without a dimension of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.place, self.head = nn.Embedding(11, 6), nn.Parameter(torch.randn(7, 6)), nn.Linear(6, 1)

    def forward(self, words: Tensor) -> Tensor:
        found: Tensor = self.head((self.words(words) + self.place).relu().mean(1))
        return found.squeeze(1)


def test_whole_numbers_are_looked_up_and_outputs_keep_their_shape() -> None:
    own, others = (Samples(torch.randint(11, (n, 7)), torch.randint(2, (n,))) for n in (70, 32))
    task = replace(make_task(Words, train=own, validation=others), loss=LOSSES["binary_cross_entropy"], classes=2)
    runs = [make_run(trial, batch_size=size) for trial, size in enumerate((16, 23, "full"))]
    engine = LocalEngine(task, BLOCKS_OF_32)
    assert engine.traits(runs[0]).native
    by_torch = train(LocalEngine(task, BY_TORCH), runs, ticks=3)
    for own, other in zip(train(engine, runs, ticks=3), by_torch, strict=True):
        for found, likewise in zip(own, other, strict=True):
            assert found.train_loss == pytest.approx(likewise.train_loss, rel=1e-4)
            assert found.validation_loss == pytest.approx(likewise.validation_loss, rel=1e-4)


@pytest.mark.parametrize(("place", "token"), [(0, 11), (40, 11), (40, -1)])
def test_a_number_that_a_table_has_no_row_for_is_told(place: int, token: int) -> None:
    """Wherever it stands: C knows no error, and torch would look up the next trial's first row."""
    train = Samples(torch.randint(11, (70, 7)), torch.randint(2, (70,)))
    assert isinstance(train.inputs, Tensor)
    train.inputs[place, 3] = token
    task = replace(make_task(Words, train=train, validation=train), loss=LOSSES["binary_cross_entropy"], classes=2)
    with pytest.raises(ModelError) as raised:
        LocalEngine(task, BLOCKS_OF_32).traits(make_run(0))
    assert raised.value.hint is not None
    assert "rows 0 to 10" in raised.value.hint or "rows are 0 to 10" in raised.value.hint


def test_an_evaluation_in_which_forward_raises_says_so() -> None:
    """Of the test split, say, which no training has seen."""
    unknown = Samples(torch.full((4, 7), 11), torch.zeros(4, dtype=torch.int64))
    task = replace(make_task(Words, train=unknown, validation=unknown), loss=LOSSES["binary_cross_entropy"], classes=2)
    with pytest.raises(ModelError, match="index out of range"):
        evaluate(task, Words(), unknown)


def test_all_is_left_to_torch_where_nothing_is_compiled() -> None:
    task = make_task()
    assert not LocalEngine(task, BY_TORCH).traits(make_run(0)).native
    assert not LocalEngine(task, LOOPED).traits(make_run(0)).native


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
    for patch in ((native, "AT_ONCE", 1), (Rowwise, "steps", lambda *_: None)):
        with monkeypatch.context() as patched:
            patched.setattr(*patch)
            assert outcomes(LocalEngine(task, PLANS[plan]), runs) == at_once


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.bool])
def test_inputs_of_bytes_are_trained_on_as_what_they_are_scaled_to(
    kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, many steps in one call: C reads the bytes."""
    raw = torch.randint(0, 256, (61, 1, 6, 6), dtype=torch.uint8)
    raw = raw > 99 if kind == torch.bool else raw.view(kind)
    samples = Samples(raw, torch.randint(CLASSES, (61,)), scaling=Scaling(torch.tensor(3.0), torch.tensor(7.0)))
    others, runs = samples.take(slice(0, 37)), [make_run(trial, batch_size=23) for trial in range(3)]
    make = partial(cnn, (1, 6, 6), CLASSES, (4, 5))
    scaled = LocalEngine(
        make_task(make, train=samples.take(slice(0, 61)), validation=others), PLANS["rules, blocks of 8"]
    )
    expected = outcomes(scaled, runs)
    bytewise = LocalEngine(make_task(make, train=samples, validation=others), PLANS["rules, blocks of 8"])
    assert bytewise.traits(runs[0]).native
    monkeypatch.setattr(Rowwise, "add_gradient", None)  # what a single step takes
    assert outcomes(bytewise, runs) == expected


@pytest.mark.parametrize("samples_at_once", [1, 90, 10_000])
def test_inputs_that_c_does_not_read_are_taken_for_it_some_steps_at_once(
    samples_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit what they are in memory as it reads them, wherever one call ends; what streams is taken so, too."""
    raw, means = torch.randint(-200, 200, (61, 4), dtype=torch.int16), torch.tensor([1.0, 2.0, -3.0, 0.5])
    samples = Samples(raw, torch.randint(CLASSES, (61,)), scaling=Scaling(means, torch.tensor(70.0)))
    whole, others = samples.take(slice(0, 61)), samples.take(slice(0, 37))
    runs = [make_run(trial, batch_size=size) for trial, size in enumerate((16, 23, 40))]
    make, plan = partial(mlp, dropout=0.3), PLANS["rules, blocks of 8"]
    expected = outcomes(LocalEngine(make_task(make, train=whole, validation=others), plan), runs)
    engine = LocalEngine(make_task(make, train=samples, validation=others), plan)
    assert engine.traits(runs[0]).native
    monkeypatch.setattr(Rowwise, "add_gradient", None)  # what a single step takes
    monkeypatch.setattr(epoch, "TAKEN", samples_at_once * 4 * 4)
    assert outcomes(engine, runs) == expected


ATTENDING = nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.2, batch_first=True)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Sequential(deepcopy(ATTENDING), nn.Flatten(), nn.LazyLinear(CLASSES)), (TOKENS, WIDTH)),
        (lambda: Remembering(nn.LSTM, num_layers=2, dropout=0.3), (8,)),
        (lambda: mlp_of_table((5,), CLASSES, (7, 4), dropout=0.2), (5,)),
    ],
    ids=["attention", "recurrence", "table"],
)
def test_a_run_in_c_depends_on_nothing_but_itself(
    make: Callable[[], nn.Module], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: not on its neighbours, its place among them, how many steps one call takes or how many threads share
    the rows."""

    def made() -> nn.Module:
        module = make()
        module(inputs[:2])
        return module

    inputs = torch.randint(0, 4, (61, *shape)) * 1.0
    own, others = (Samples(inputs[:n], torch.randint(CLASSES, (n,))) for n in (61, 37))
    task = make_task(made, train=own, validation=others)
    optimizers = ("sgd", "adam", "lion", "adadelta", "adamw")
    runs = [
        make_run(trial, optimizer=optimizer, batch_size=size, l1=1e-4)
        for trial, (optimizer, size) in enumerate(zip(optimizers, (16, 23, "full", 1, 40), strict=True))
    ]
    engine = LocalEngine(task, BLOCKS_OF_32)
    assert engine.traits(runs[0]).native
    crowd = outcomes(engine, runs)
    for run in (runs[1], runs[4]):
        assert outcomes(LocalEngine(task, BLOCKS_OF_32), [run])[run.trial] == crowd[run.trial]
    monkeypatch.setattr(workspace, "SHARED", 1)
    assert outcomes(LocalEngine(task, BLOCKS_OF_32, threads=3), runs) == crowd
    monkeypatch.setattr(native, "AT_ONCE", 1)
    assert outcomes(LocalEngine(task, BLOCKS_OF_32), runs[::-1]) == crowd


def test_other_threads_train_what_an_engine_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until they are through it can be left, asked for snapshots and closed; what comes of it is the same."""
    monkeypatch.setattr(workspace, "SHARED", 1)
    task, runs = make_task(), [make_run(trial, batch_size=1) for trial in range(7)]
    expected = outcomes(LocalEngine(task, BLOCKS_OF_32), runs, ticks=1)

    def outcomes_of(engine: LocalEngine) -> dict[int, tuple[Any, ...]]:
        return {run.trial: outcome(engine, run, [own]) for run, own in zip(runs, tick(engine, runs), strict=True)}

    engine, again = (LocalEngine(task, BLOCKS_OF_32, threads=2) for _ in range(2))
    assert start(engine, runs).begin()
    for run in runs:
        snapshot = engine.snapshot(run)
        assert snapshot is not None
        again.restore(run, snapshot)
    assert not again.begin(), "their steps are over"
    assert outcomes_of(again) == outcomes_of(engine) == expected
    assert again.begin()
    again.close()


def test_memory_that_runs_out_where_a_tick_begins_is_told_by_advance(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what the runs in the middle of a tick were at is there for their snapshots."""
    task = make_task(samples=160)
    run, other = (make_run(trial, batch_size=16, optimizer=own) for trial, own in enumerate(("adam", "sgd")))
    stopped = start(LocalEngine(task, BLOCKS_OF_32), [run])
    for _ in range(6):
        assert stopped.advance(-1.0) == []
    snapshot = stopped.snapshot(run)
    assert snapshot is not None
    engine = start(LocalEngine(task, replace(BLOCKS_OF_32, block_rows=1), threads=2), [other])
    engine.restore(run, snapshot)
    real, begun = Block.begin, list[Block]()

    def begin(self: Block) -> None:
        begun.append(self)
        if len(begun) == 2:
            raise MemoryError("not now")
        real(self)

    monkeypatch.setattr(Block, "begin", begin)
    assert not engine.begin()
    with pytest.raises(OutOfMemory):
        engine.advance(-1.0)
    kept = engine.snapshot(run)
    assert kept is not None
    assert kept.numbers["step"] == 6


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="there are no alarms")
def test_no_thread_goes_on_for_a_trial_whose_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the alarm comes just as they begin."""
    monkeypatch.setattr(workspace, "SHARED", 1)
    task = replace(make_task(samples=4000), trial_seconds=30.0)
    engine = start(LocalEngine(task, BLOCKS_OF_32, threads=2), [make_run(trial, batch_size=1) for trial in range(4)])
    real = Steps.begin

    def begin(self: Steps, *given: Any, **keys: Any) -> None:
        functions = self._functions

        def begin_training(told: int) -> Any:
            found = functions.begin_training(told)
            signal.raise_signal(signal.SIGALRM)
            return found

        own = {name: getattr(functions, name) for name in ("is_taken", "end_sharing")}
        self._functions = SimpleNamespace(begin_training=begin_training, **own)
        try:
            real(self, *given, **keys)
        finally:
            self._functions = functions

    monkeypatch.setattr(Steps, "begin", begin)
    threads = threading_count()
    measured = engine.advance(time.monotonic() + 60)
    assert all("search.trial_timeout" in str(own.failure) for own in measured)
    assert threading_count() == threads


def threading_count() -> int:
    """Those of C included."""
    return len(os.listdir("/proc/self/task")) if Path("/proc/self/task").is_dir() else 0


def test_one_thread_trains_in_advance_alone() -> None:
    """So does what computes with torch, which has threads of its own."""
    for engine in (LocalEngine(make_task(), BLOCKS_OF_32), LocalEngine(make_task(), BY_TORCH, threads=2)):
        assert not start(engine, [make_run(0)]).begin()


def test_a_whole_epoch_of_a_narrow_model_is_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = Steps.begin

    def counted(self: Steps, low: int, high: int, *more: Any, **keys: Any) -> None:
        calls.append(high - low)
        real(self, low, high, *more, **keys)

    monkeypatch.setattr(Steps, "begin", counted)
    train(LocalEngine(make_task(), BLOCKS_OF_32), [make_run(trial, batch_size=16) for trial in range(5)], ticks=1)
    assert calls == [4]


def test_what_c_computes_is_planned_for_up_to_a_million_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one lane, alone too; with whole batches as large as pay, but where it convolves."""
    monkeypatch.setattr(plan, "cores", lambda: 2)
    assert choose_plan(NATIVE_WEIGHTS, 4, native=True).way == "rules"
    assert choose_plan(NATIVE_WEIGHTS + 1, 4, native=True).way == "looped"
    assert [choose_plan(1000, 1, size, native=True).cap for size in (8, 32, 500)] == [16, 32, 64]
    assert choose_plan(1000, 1, 500, native=True, convolves=True).cap == 16
    assert choose_plan(1000, 1, native=True).block_rows == 1
    assert [choose_plan(n, 64, native=True).block_rows for n in (1000, 400_000, NATIVE_WEIGHTS)] == [64, 16, 8]
    assert [choose_plan(1000, window, native=True).block_rows for window in (2, 5, 8, 33)] == [2, 8, 8, 64]


def test_an_activation_may_write_over_what_a_convolution_or_a_pool_gave() -> None:
    block = lambda: [nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.ReLU(inplace=True)]  # noqa: E731
    task = make_task(lambda: nn.Sequential(*block(), nn.Flatten(), nn.Linear(16, CLASSES)), features=(1, 6, 6))
    assert LocalEngine(task, BLOCKS_OF_32).traits(make_run(0)).native
    assert LocalEngine(task, BY_TORCH).traits(make_run(0)).looped_because is None


@pytest.mark.parametrize("source", ["linear", "mlp", "cnn"])
def test_bundled_models_are_computed_in_c(source: str) -> None:
    build = lambda: models.build(source, {}, base=None, features=(64,), outputs=CLASSES, seed=0)  # type: ignore[arg-type]  # noqa: E731
    task = make_task(build, features=(64,))
    assert LocalEngine(task, BLOCKS_OF_32).traits(make_run(0)).native


def test_weights_that_are_no_numbers_stay_in_their_row() -> None:
    task = make_task()
    runs = [make_run(0), make_run(1, learning_rate=1e30), make_run(2)]
    ended = outcomes(LocalEngine(task, BLOCKS_OF_32), runs)
    assert ended[0] == outcomes(LocalEngine(task, BLOCKS_OF_32), runs[:1])[0]
    plan = replace(BLOCKS_OF_32, block_rows=2)
    assert ended[2] == outcomes(LocalEngine(task, plan), runs[2:])[2]
