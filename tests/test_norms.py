"""BatchNorm in C: gradients, running statistics and evaluation are those of torch, for each row its own."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.conftest import examples
from tests.test_engine import BLOCKS_OF_32, BY_TORCH, PLANS, make_run, make_task, start, tick, train
from tests.test_native import assert_depends_on_nothing_else
from tunecli.data import Samples
from tunecli.engine import LocalEngine
from tunecli.engine.compiler import can_compile
from tunecli.engine.gradients import Gradient, Layout
from tunecli.engine.rowwise import Recorded, Rowwise
from tunecli.metrics import LOSSES

pytestmark = pytest.mark.skipif(not can_compile("cpu"), reason="there is no C compiler (cc)")

CLASSES, CHANNELS, LENGTH = 3, 4, 5


def images(norm: Callable[[type[nn.Module], int], nn.Module]) -> nn.Module:
    first = nn.Unflatten(1, (CHANNELS, LENGTH, 1)), nn.Conv2d(CHANNELS, 6, (3, 1)), norm(nn.BatchNorm2d, 6), nn.ReLU()
    return nn.Sequential(*first, nn.MaxPool2d((2, 1)), norm(nn.BatchNorm2d, 6), nn.Flatten(), nn.Linear(6, CLASSES))


class Tokens(nn.Module):
    """Normalized as (N, C, L), then each token as a sample of its own, twice by one layer; beside what passes it by."""

    def __init__(self, norm: Callable[[type[nn.Module], int], nn.Module]) -> None:
        super().__init__()
        self.first, self.second = norm(nn.BatchNorm1d, CHANNELS), norm(nn.BatchNorm1d, LENGTH)
        self.linear, self.head = nn.Linear(LENGTH, LENGTH), nn.Linear(LENGTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(len(x), CHANNELS, LENGTH)
        y = self.linear(self.first(x)).tanh().transpose(0, 1).flatten(0, 1)
        y = (self.second(self.second(y)) * y).view(CHANNELS, len(x), LENGTH)
        found: Tensor = self.head(y.mean(0) + self.first(x)[:, 1])
        return found


MODELS: dict[str, Callable[[Callable[[type[nn.Module], int], nn.Module]], nn.Module]] = {
    "mlp": lambda norm: nn.Sequential(
        nn.Linear(20, 7), norm(nn.BatchNorm1d, 7), nn.ReLU(), nn.Dropout(0.0), nn.Linear(7, CLASSES)
    ),
    "first and last": lambda norm: nn.Sequential(
        norm(nn.BatchNorm1d, 20), nn.Linear(20, CLASSES), norm(nn.BatchNorm1d, CLASSES)
    ),
    "images": images,
    "tokens": Tokens,
}


@examples(40)
@given(
    model=st.sampled_from(sorted(MODELS)),
    how=st.fixed_dictionaries(
        {"affine": st.booleans(), "momentum": st.sampled_from([0.1, 0.7, None]), "eps": st.sampled_from([1e-5, 0.1])}
    ),
    fixed=st.booleans(),
    batch=st.sampled_from([16, 48, 64]),
    cap=st.sampled_from([16, 32, 64]),
    real=st.lists(st.integers(2, 64), min_size=2, max_size=2),
)
def test_all_of_it_is_that_of_torch(
    model: str, how: dict[str, Any], fixed: bool, batch: int, cap: int, real: list[int]
) -> None:
    """Of two rows, through two batches, of which only the first samples are real."""
    torch.manual_seed(batch + cap)
    module = MODELS[model](lambda kind, width: kind(width, **how)).double()
    fixed = fixed and model != "first and last"
    if fixed:
        keep_one_as_it_is(module)
    cap = max(own for own in (16, 32, 64) if own <= cap and batch % own == 0)
    lengths = torch.tensor([min(own, batch) for own in real])
    layout, kept = Layout.of(module), Layout.of_statistics(module)
    weights = layout.row(module) + 0.3 * torch.randn(2, layout.width, dtype=torch.float64)
    statistics = kept.row(module).repeat(2, 1)
    gradient = Gradient(layout, torch.zeros_like(weights))
    recorded = Recorded(module, layout, LOSSES["cross_entropy"], compiled=True, native=True, cap=cap)
    way = Rowwise(recorded, weights, gradient, statistics=statistics)
    alone = [deepcopy(module) for _ in range(2)]
    for row, own in enumerate(alone):
        for name, view in layout.views(weights).items():
            own.get_parameter(name).data = view[row].clone()
    for step in range(2):
        inputs, targets = torch.randn(2, batch, 20, dtype=torch.float64) * 3 + 1, torch.randint(CLASSES, (2, batch))
        for row, length in enumerate(lengths):
            inputs[row, length:], targets[row, length:] = inputs[row, length - 1], targets[row, length - 1]
        present = torch.rand(2, batch, dtype=torch.float64) * (torch.arange(batch) < lengths[:, None])
        samples = Samples(inputs, targets)
        assert way.is_native(samples)
        found, _ = way.add_gradient(samples, present, over=step == 0, real=lengths)
        for row, (own, length) in enumerate(zip(alone, lengths, strict=True)):
            losses = LOSSES["cross_entropy"].per_sample(own(inputs[row, :length]), targets[row, :length])
            loss = (losses * present[row, :length]).sum()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            torch.testing.assert_close(found[row], loss.detach(), rtol=1e-9, atol=1e-12)
    outputs = way.outputs(inputs[0, :16], 16)
    for row, own in enumerate(alone):
        for name, view in layout.views(gradient.row(row)[None]).items():
            torch.testing.assert_close(view[0], own.get_parameter(name).grad, rtol=1e-8, atol=1e-10)
        for name, view in kept.views(statistics).items():
            torch.testing.assert_close(view[row], own.get_buffer(name).double(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(outputs[row], own.eval()(inputs[0, :16]).detach(), rtol=1e-9, atol=1e-12)


def keep_one_as_it_is(module: nn.Module) -> None:
    """As a user does who fine-tunes: the first norm stays in evaluation mode."""
    norm = next(own for own in module.modules() if isinstance(own, nn.modules.batchnorm._BatchNorm))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    norm.eval()


def make(model: str = "images", **how: Any) -> Callable[[], nn.Module]:
    return lambda: MODELS[model](lambda kind, width: kind(width, **how))


@pytest.mark.parametrize("model", sorted(MODELS))
@pytest.mark.parametrize("plan", ["rules, blocks of 32", "rules, blocks of 8"])
def test_a_study_of_it_is_that_of_a_loop(model: str, plan: str) -> None:
    """65 samples: a lone last one joins a batch, others are short, each longer than what is computed at once.

    By SGD without L1: a bias below a norm has a gradient of nothing but rounding, of which Adam makes whole steps, and
    L1 goes by the sign of what is left of it.
    """
    weights = torch.arange(65.0) % 3
    torch.manual_seed(0)
    own = Samples(torch.randn(65, 20).double(), torch.randint(CLASSES, (65,)), weights=weights.double())
    task = make_task(make(model), train=own, features=(20,), dtype=torch.float64)
    runs = [make_run(n, optimizer="sgd", batch_size=size, l1=0.0) for n, size in enumerate((16, 4, 48, 21, "full"))]
    engine = LocalEngine(task, PLANS[plan])
    assert all(engine.traits(run).native for run in runs)
    by_torch = LocalEngine(task, BY_TORCH)
    assert by_torch.traits(runs[0]).looped_because is not None
    for own, other in zip(train(engine, runs, 3), train(by_torch, runs, 3), strict=True):
        for found, expected in zip(own, other, strict=True):
            assert found.failure is None
            assert found.train_loss == pytest.approx(expected.train_loss, rel=1e-7)
            assert found.validation_loss == pytest.approx(expected.validation_loss, rel=1e-7)
    for run in runs:
        found, expected = engine.weights(run), by_torch.weights(run)
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            assert tensor.dtype == expected[name].dtype
            torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("model", ["mlp", "images"])
def test_a_run_depends_on_nothing_but_itself(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_depends_on_nothing_else(make_task(make(model), samples=61, features=(20,)), monkeypatch)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(20), nn.Linear(20, CLASSES)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        found: Tensor = self.head(self.norm(x))
        return found


class Centred(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(20), nn.Linear(20, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.norm(x) - x.mean(0))
        return found


class Sized(nn.Module):
    """What it gives depends on how many samples there are."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(20), nn.Linear(20, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.norm(x)) / len(x)
        return found


class Peeking(nn.Module):
    """What runs on is read by something else."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(20), nn.Linear(20, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.norm(x) + self.norm.running_mean)
        return found


@pytest.mark.parametrize(
    "model",
    [make("mlp", track_running_stats=False), Counting, Centred, Sized, Peeking, lambda: nn.SyncBatchNorm(20)],
    ids=["no running statistics", "another buffer", "mixes otherwise", "counts them", "reads them", "in sync"],
)
def test_what_c_cannot_do_is_left_to_torch(model: Callable[[], nn.Module]) -> None:
    found = LocalEngine(make_task(model, features=(20,)), BLOCKS_OF_32).traits(make_run(0))
    assert (found.native, found.way, found.mixes_samples) == (False, "looped", True)
    assert "mixes the samples of a batch" in (found.looped_because or "")


def test_a_batch_of_one_sample_has_no_statistics_as_by_torch() -> None:
    run = make_run(0, batch_size=1)
    engine = start(LocalEngine(make_task(make("mlp"), features=(20,)), BLOCKS_OF_32), [run])
    assert not engine.traits(run).native
    assert "more than 1 value per channel" in (tick(engine, [run])[0].failure or "")


def test_a_batch_that_takes_too_much_memory_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LocalEngine(make_task(make(), samples=64, features=(20,)), BLOCKS_OF_32)
    runs = [make_run(0, batch_size=32), make_run(1, batch_size="full")]
    monkeypatch.setattr("tunecli.engine.local.MOST_NUMBERS", 40 * engine.traits(runs[0]).numbers)
    assert [engine.traits(run).native for run in runs] == [True, False]
    assert all(own.failure is None for own in tick(start(engine, runs), runs))


def test_a_norm_that_stays_as_it_is_gives_what_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own module that keeps it in evaluation mode."""

    class Kept(nn.Sequential):
        def train(self, mode: bool = True) -> Kept:
            super().train(mode)
            self[1].eval()
            return self

    def build() -> nn.Module:
        module = Kept(nn.Linear(20, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, CLASSES))
        module[1].running_mean.fill_(0.3)  # type: ignore[operator,union-attr]  # a tensor
        return module

    run = make_run(0, batch_size=16)
    engine = start(LocalEngine(make_task(build, features=(20,)), BLOCKS_OF_32), [run])
    assert engine.traits(run).native
    tick(engine, [run])
    found = engine.weights(run)
    assert found["1.running_mean"].eq(0.3).all()
    assert found["1.num_batches_tracked"] == 0


def test_half_precision_is_left_to_torch() -> None:
    engine = LocalEngine(make_task(make("mlp"), features=(20,)), BLOCKS_OF_32)
    run = make_run(0, batch_size=16, settings={"precision": "bf16"})
    assert not engine.traits(run).native
    assert tick(start(engine, [run]), [run])[0].failure is None


@pytest.mark.parametrize("ticks", [0, 2])
def test_a_run_that_had_a_module_of_its_own_goes_on_in_c(ticks: int) -> None:
    """In flight when another version stopped, say: that C trains it now changes what it comes to by rounding alone."""
    task = make_task(make("mlp", momentum=None), features=(20,), dtype=torch.float64)
    run = make_run(0, optimizer="sgd", batch_size=16, l1=0.0)
    whole = start(LocalEngine(task, BY_TORCH), [run])
    for _ in range(ticks):
        tick(whole, [run])
    whole.advance(-1.0)
    snapshot = whole.snapshot(run)
    assert snapshot is not None
    engine = LocalEngine(task, BLOCKS_OF_32)
    engine.restore(run, snapshot)
    for _ in range(2):
        found, expected = tick(engine, [run])[0], tick(whole, [run])[0]
        assert found.validation_loss == pytest.approx(expected.validation_loss, rel=1e-9)
    torch.testing.assert_close(engine.weights(run), whole.weights(run))


def test_each_trial_begins_with_statistics_of_its_own() -> None:
    """As they are where a trial's model is built, be it the first or not."""

    def build(run: Any) -> nn.Module:
        module = make("mlp")()
        module[1].running_mean.fill_(float(run.trial))
        return module

    task = replace(make_task(make("mlp"), features=(20,)), build=build)
    runs = [make_run(trial, batch_size=16) for trial in range(3)]
    engine = start(LocalEngine(task, BLOCKS_OF_32), runs)
    assert engine.traits(runs[0]).native
    for run in runs:
        assert engine.weights(run)["1.running_mean"].eq(run.trial).all()


def test_the_statistics_of_a_run_wait_until_it_joins_a_block_that_is_behind_it() -> None:
    module = lambda: nn.Sequential(nn.Linear(30, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))  # noqa: E731
    task = make_task(module, samples=160)
    run, other = (make_run(trial, batch_size=16, optimizer="sgd", learning_rate=0.05) for trial in (0, 5))
    whole, stopped, again = (LocalEngine(task, BLOCKS_OF_32) for _ in range(3))
    (expected,) = tick(start(whole, [run]), [run])
    start(stopped, [run])
    for _ in range(6):
        assert stopped.advance(-1.0) == []
    snapshot = stopped.snapshot(run)
    assert snapshot is not None
    start(again, [other])
    again.restore(run, snapshot)
    found, _ = tick(again, [run, other])
    assert found.validation_loss == expected.validation_loss
    torch.testing.assert_close(again.weights(run), whole.weights(run), rtol=0, atol=0)
