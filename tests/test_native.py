"""What C reads and what it leaves alone: bytes, several inputs, padding and frozen layers, as autograd has them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.test_engine import BLOCKS_OF_32, make_run, make_task, outcomes, train
from tests.test_rowwise import assert_equal_alone
from tunecli.data import Samples
from tunecli.data.samples import Inputs
from tunecli.engine import LOOPED, LocalEngine
from tunecli.engine.compiler import can_compile
from tunecli.engine.rowwise import Rowwise, native, workspace
from tunecli.engine.task import Task
from tunecli.errors import ModelError
from tunecli.metrics import LOSSES

pytestmark = pytest.mark.skipif(not can_compile("cpu"), reason="there is no C compiler (cc)")

CLASSES = 3


def task_of(make: Callable[[], nn.Module], inputs: Inputs, dtype: torch.dtype = torch.float32) -> Task:
    """Of 61 samples, of which 37 are validation's too."""
    targets = torch.randint(CLASSES, (61,), generator=torch.Generator().manual_seed(0))
    own = Samples(inputs, targets)
    return make_task(make, train=own, validation=own.take(slice(0, 37)), dtype=dtype)


def assert_trained_in_c_as_by_torch(make: Callable[[], nn.Module], inputs: Inputs) -> None:
    assert all(assert_trained_as_by_torch(make, inputs))


def assert_trained_as_by_torch(make: Callable[[], nn.Module], inputs: Inputs) -> list[bool]:
    """In double precision, by SGD: what is nothing but rounding would be a step of Adam's. Which runs C has trained."""
    inputs = doubled(inputs)
    task = task_of(make, inputs, torch.float64)
    runs = [make_run(n, optimizer="sgd", batch_size=size, l1=0.0) for n, size in enumerate((16, 5, 40, "full"))]
    engine, by_torch = LocalEngine(task, BLOCKS_OF_32), LocalEngine(task, LOOPED)
    for own, other in zip(train(engine, runs, 3), train(by_torch, runs, 3), strict=True):
        for found, expected in zip(own, other, strict=True):
            assert found.failure is None
            assert found.train_loss == pytest.approx(expected.train_loss, rel=1e-7)
            assert found.validation_loss == pytest.approx(expected.validation_loss, rel=1e-7)
    for run in runs:
        torch.testing.assert_close(engine.weights(run), by_torch.weights(run), rtol=1e-6, atol=1e-8)
    return [engine.traits(run).native for run in runs]


def doubled(inputs: Inputs) -> Inputs:
    def double(own: Tensor) -> Tensor:
        return own.double() if own.is_floating_point() else own

    if isinstance(inputs, tuple):
        return tuple(map(double, inputs))
    return {name: double(own) for name, own in inputs.items()} if isinstance(inputs, dict) else double(inputs)


def assert_depends_on_nothing_else(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: not on neighbours or threads, nor on how many steps one call takes, if they are called so at all."""
    optimizers = ("sgd", "adam", "lion", "adadelta", "adamw")
    runs = [
        make_run(trial, optimizer=optimizer, batch_size=size, l1=1e-4, ema_decay=0.5 if trial == 1 else 0.0)
        for trial, (optimizer, size) in enumerate(zip(optimizers, (16, 16, "full", 5, 40), strict=True))
    ]
    crowd = outcomes(LocalEngine(task, BLOCKS_OF_32), runs)
    for run in (runs[1], runs[4]):
        assert outcomes(LocalEngine(task, BLOCKS_OF_32), [run])[run.trial] == crowd[run.trial]
    monkeypatch.setattr(workspace, "SHARED", 1)
    assert outcomes(LocalEngine(task, BLOCKS_OF_32, threads=3), runs) == crowd
    for patch in ((native, "AT_ONCE", 1), (Rowwise, "steps", lambda *_: None)):
        with monkeypatch.context() as patched:
            patched.setattr(*patch)
            assert outcomes(LocalEngine(task, BLOCKS_OF_32), runs[::-1]) == crowd


class Pictures(nn.Module):
    """Bytes that the model itself makes small numbers, as tutorials do."""

    def __init__(self, how: str = "float") -> None:
        super().__init__()
        self.how, self.conv, self.norm, self.head = how, nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, CLASSES)
        self.register_buffer("mean", torch.tensor([0.4, 0.5]).view(1, 2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        dtype = self.head.weight.dtype
        x = {
            "float": lambda: x.to(dtype) / 255,
            "divided": lambda: (x / 255).to(dtype) - self.mean,
            "product": lambda: (x * 0.004).to(dtype) + 1,
        }[self.how]()
        found: Tensor = self.head(functional.relu(self.norm(self.conv(x))).mean((2, 3)))
        return found


def whole_numbers(dtype: torch.dtype, *shape: int) -> Tensor:
    most = min(torch.iinfo(dtype).max, 255)
    return torch.randint(0, most + 1, shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_pictures_of_whole_numbers_are_read_as_they_are(dtype: torch.dtype) -> None:
    assert_trained_in_c_as_by_torch(Pictures, whole_numbers(dtype, 61, 2, 6, 5))


@pytest.mark.parametrize("how", ["divided", "product"])
def test_whole_numbers_become_others_by_any_operation(how: str) -> None:
    inputs = whole_numbers(torch.uint8, 61, 2, 6, 5)
    engine, by_torch = (LocalEngine(task_of(lambda: Pictures(how), inputs), own) for own in (BLOCKS_OF_32, LOOPED))
    run = make_run(0, batch_size=16, optimizer="sgd", l1=0.0)
    assert engine.traits(run).native
    for found, expected in zip(train(engine, [run], 3)[0], train(by_torch, [run], 3)[0], strict=True):
        assert found.train_loss == pytest.approx(expected.train_loss, rel=1e-4)
        assert found.validation_loss == pytest.approx(expected.validation_loss, rel=1e-4)


def test_a_run_that_reads_bytes_depends_on_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_depends_on_nothing_else(task_of(Pictures, whole_numbers(torch.uint8, 61, 2, 6, 5)), monkeypatch)


class Wrapping(nn.Module):
    """Sums of bytes are bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head((x + 100).float())
        return found


def test_what_torch_computes_with_whole_numbers_is_left_to_it() -> None:
    task = task_of(Wrapping, whole_numbers(torch.uint8, 61, 4))
    assert not LocalEngine(task, BLOCKS_OF_32).traits(make_run(0)).native


class Several(nn.Module):
    """Categories, of which some are padding, and numbers; the latter are normalized."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(7, 3, padding_idx=place) for place in (0, -1))
        self.norm, self.head = nn.BatchNorm1d(5), nn.Linear(11, CLASSES)

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        found = [table(categories[:, place]) for place, table in enumerate(self.tables)]
        return self.head(torch.cat([*found, self.norm(numbers)], 1))  # type: ignore[no-any-return]  # a tensor


class OfDict(Several):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # type: ignore[override]  # one argument
        return super().forward(batch["categories"], batch["numbers"])


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def table(dtype: torch.dtype = torch.int64) -> tuple[Tensor, Tensor]:
    return whole_numbers(dtype, 61, 2) % 7, numbers(61, 5)


SEVERAL: dict[str, tuple[Callable[[], nn.Module], Inputs]] = {
    "tuple": (Several, table()),
    "small numbers": (Several, table(torch.int32)),
    "dict": (OfDict, dict(zip(("categories", "numbers"), table(), strict=True))),
    "dict by names": (Several, dict(zip(("numbers", "categories"), reversed(table()), strict=True))),
}


@pytest.mark.parametrize("own", SEVERAL.values(), ids=SEVERAL)
def test_several_inputs_are_read_as_one(own: tuple[Callable[[], nn.Module], Inputs]) -> None:
    assert_trained_in_c_as_by_torch(*own)


def test_a_run_that_reads_several_inputs_depends_on_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_depends_on_nothing_else(task_of(*SEVERAL["dict"]), monkeypatch)


@pytest.mark.parametrize("token", [7, -1])
def test_a_category_that_a_table_has_no_row_for_is_told(token: int) -> None:
    """Of any column, and wherever it stands: C knows no error."""
    categories, others = table()
    categories[50, 1] = token
    with pytest.raises(ModelError, match="a table of the model has 7 rows"):
        LocalEngine(task_of(Several, (categories, others)), BLOCKS_OF_32).traits(make_run(0))


class Words(nn.Module):
    def __init__(self, padding: int | None, frozen: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.places = nn.Embedding(9, 6, padding_idx=padding), nn.Embedding(7, 6)
        self.memory, self.head = nn.GRU(6, 4, batch_first=True), nn.Linear(4, CLASSES)
        self.words.requires_grad_(not frozen)

    def forward(self, words: Tensor) -> Tensor:
        found = self.memory(self.words(words) + self.places(torch.arange(words.shape[1])))[0]
        return self.head(found[:, -1])  # type: ignore[no-any-return]  # a tensor


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("padding", [None, 0, 4, -1])
def test_padding_is_looked_up_and_learns_nothing(padding: int | None, frozen: bool) -> None:
    words = torch.randint(9, (32, 7))
    words[:, :2] = padding or 0
    samples = Samples(words % 9, torch.randint(CLASSES, (32,)))
    for in_c in (True, False):
        module = Words(padding, frozen).double()
        assert_equal_alone(module, samples, LOSSES["cross_entropy"], 2, native=in_c)


def body(norm: bool = True) -> nn.Sequential:
    """As loaded from a file: the same for all trials."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        norms = [nn.BatchNorm2d(6), nn.BatchNorm2d(5)] if norm else [nn.Identity(), nn.GroupNorm(1, 5)]
        for own in norms if norm else ():
            own.running_mean.normal_()  # type: ignore[operator,union-attr]  # a tensor
            own.running_var.uniform_(0.5, 2)  # type: ignore[operator,union-attr]  # a tensor
            own.weight.data.normal_()  # type: ignore[operator,union-attr]  # a tensor
        first = nn.Conv2d(2, 6, 3, padding=1), norms[0], nn.ReLU(), nn.MaxPool2d(2)
        return nn.Sequential(
            *first, nn.Conv2d(6, 5, 2, bias=False), norms[1], nn.GELU(), nn.Flatten(), nn.Linear(10, 7)
        )


class Transferred(nn.Module):
    """A body from elsewhere, of which some is trained, and a head; or another input beside it."""

    def __init__(self, how: str, *, norm: bool = True) -> None:
        super().__init__()
        self.how, self.body, self.head = how, body(norm), nn.Linear(7, CLASSES)
        self.first = nn.Conv2d(2, 2, 1)
        self.body.requires_grad_(False)
        trained: dict[str, list[nn.Module]] = {
            "last layer too": [self.body[8]],
            "norms too": [self.body[1], self.body[5]],
        }
        for part in trained.get(how, ()):
            part.requires_grad_(True)
        if how == "biases":
            self.body[0].get_parameter("bias").requires_grad_(True)
        if how != "in front":
            self.first.requires_grad_(False)
            nn.init.dirac_(self.first.weight)
            nn.init.zeros_(self.first.bias)  # type: ignore[arg-type]  # a tensor

    def train(self, mode: bool = True) -> Transferred:
        super().train(mode)
        if self.how in ("evaluated", "without gradients"):
            self.body.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "without gradients":
            with torch.no_grad():
                x = self.body(self.first(x))
        else:
            x = self.body(self.first(x))
        found: Tensor = self.head(x)
        return found


FROZEN = ("evaluated", "without gradients", "in training", "last layer too", "norms too", "biases", "in front")


@pytest.mark.parametrize("norm", [True, False], ids=["batch norm", "no batch norm"])
@pytest.mark.parametrize("how", FROZEN)
def test_what_is_frozen_is_computed_and_stays(how: str, norm: bool) -> None:
    assert_trained_in_c_as_by_torch(lambda: Transferred(how, norm=norm), numbers(61, 2, 6, 5))


def test_a_run_of_which_a_part_is_frozen_depends_on_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_depends_on_nothing_else(task_of(lambda: Transferred("last layer too"), numbers(61, 2, 6, 5)), monkeypatch)


class Adapted(nn.Module):
    """A frozen layer with a narrow one of two matrices beside it, as in LoRA."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.own = nn.Linear(8, 6)
            self.matrix = nn.Parameter(torch.randn(6, 5), requires_grad=False)
        self.own.requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.randn(8, 2)), nn.Parameter(torch.randn(2, 6))
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head((self.own(x) + x @ self.down @ self.up).relu() @ self.matrix)
        return found


def test_a_frozen_layer_may_stand_beside_a_trained_one() -> None:
    assert_trained_in_c_as_by_torch(Adapted, numbers(61, 8))


def test_frozen_weights_of_each_trial_are_its_own() -> None:
    """Drawn anew for each: rows would share the first one's."""

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 6).requires_grad_(False), nn.ReLU(), nn.Linear(6, CLASSES))

    found = LocalEngine(task_of(make, numbers(61, 8)), BLOCKS_OF_32).traits(make_run(0))
    assert found.looped_because == "its frozen weights differ from trial to trial"


def test_what_learns_nothing_by_its_own_will_is_left_to_torch() -> None:
    """A layer that may learn, and does not where the forward pass says so."""

    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(8, 6), nn.Linear(6, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.head(self.body(x).relu().detach())
            return found

    assert not LocalEngine(task_of(Kept, numbers(61, 8)), BLOCKS_OF_32).traits(make_run(0)).native


class Sliced(nn.Module):
    """One matrix for all of the layers, of which each has some rows, and a table for the last."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.matrix, self.bias = how, nn.Parameter(torch.randn(15, 5)), nn.Parameter(torch.randn(10))

    def forward(self, x: Tensor) -> Tensor:
        found = functional.linear(x, self.matrix[:5], self.bias[:5]).tanh()
        last = {"all": slice(10, 15), "not all": slice(10, 14), "overlapping": slice(9, 14)}[self.how]
        found = functional.linear(found, self.matrix[5:10], self.bias[5:]) + functional.linear(
            x, self.matrix[last]
        ).sum(1, keepdim=True)
        return found[:, :CLASSES]


@pytest.mark.parametrize(("how", "native"), [("all", True), ("not all", False), ("overlapping", False)])
def test_a_weight_may_be_that_of_several_layers(how: str, native: bool) -> None:
    task = task_of(lambda: Sliced(how), numbers(61, 5))
    assert LocalEngine(task, BLOCKS_OF_32).traits(make_run(0)).native is native
    if native:
        assert_trained_in_c_as_by_torch(lambda: Sliced(how), numbers(61, 5))


class Asking(nn.Module):
    """A learned question to all steps: of one weight queries have a third, keys and values the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.question, self.attend = nn.Parameter(torch.randn(1, 1, 6)), nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found = self.attend(self.question.expand(len(x), -1, -1), x, x, need_weights=False)[0]
        return self.head(found[:, 0])  # type: ignore[no-any-return]  # a tensor


def test_attention_to_something_else_has_parts_of_one_weight() -> None:
    assert_trained_in_c_as_by_torch(Asking, numbers(61, 4, 6))


class Unused(nn.Module):
    """Layers that forward has forgotten; weight decay has not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.forgotten, self.norm = nn.Linear(8, 6), nn.Linear(6, 6), nn.LayerNorm(6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.first(x).relu())
        return found


def test_weights_that_nothing_reads_have_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_trained_in_c_as_by_torch(Unused, numbers(61, 8))
    assert_depends_on_nothing_else(task_of(Unused, numbers(61, 8)), monkeypatch)


# What C must not take for something else.


class Named(nn.Module):
    """A linear layer, and what a function makes of (inputs, its outputs)."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor], features: int = 4) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(features, 6), nn.Linear(6, CLASSES)
        self.table = nn.Embedding(5, 6, padding_idx=0)
        self.register_buffer("mask", torch.arange(6) % 2 == 0)
        self.both = nn.Parameter(torch.linspace(-1, 1, 6))
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.head(self.function(self, inputs))
        return found


def late() -> Tensor:
    """Inputs whose first samples are whole numbers, and others not."""
    inputs = torch.randint(0, 4, (61, 4)) * 1.0
    inputs[30:] += 0.5
    inputs[45:, 0] = -0.5
    return inputs


def picked(own: Any, inputs: Tensor) -> Tensor:
    found: Tensor = own.layer(inputs).gather(1, inputs[:, :1].clamp(min=0).long().expand(-1, 6))
    return found


UNLIKE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "weight and bias": lambda own, x: functional.linear(
        own.layer(x).mean(1, keepdim=True), own.both[:, None], own.both
    ),
    "gather by numbers cut": picked,
    "embedding by numbers cut": lambda own, x: own.table(x[:, 0].long()) + own.layer(x),
    "where of a constant": lambda own, x: (
        own.layer(x)
        + torch.where(own.mask[:4], (x.abs() + own.mask[:4] * 0.5).log(), torch.zeros(())).sum(1, keepdim=True)
    ),
    "masked by a constant": lambda own, x: (
        own.layer(x) + (x.abs() + own.mask[:4] * 0.5).log().masked_fill(~own.mask[:4], 0.0).sum(1, keepdim=True)
    ),
    "all masked": lambda own, x: (
        own.layer(x)
        + torch.logsumexp(own.layer(x).masked_fill(x[:, :1] < 0, -torch.inf), 1, keepdim=True).clamp(min=-9)
    ),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_what_c_may_not_have_is_trained_as_by_torch(name: str) -> None:
    inputs = late()
    if "a constant" in name:  # what has no logarithm comes late, and in the branch that is not taken
        inputs[:30] += 1
        inputs[30:] -= 0.5
    assert_trained_as_by_torch(lambda: Named(UNLIKE[name]), inputs)


def test_what_draws_from_pythons_random_is_trained_one_by_one() -> None:
    """Which way a model is trained must be no chance."""
    skipping = lambda own, x: own.layer(x) if random.random() < 0.9 else own.layer(x) * 0  # noqa: E731
    task = task_of(lambda: Named(skipping), late(), torch.float32)
    for seed in range(6):
        random.seed(seed)
        found = LocalEngine(task, BLOCKS_OF_32).traits(make_run(0))
        assert (found.way, found.native) == ("looped", False)
        assert "Python's random" in str(found.looped_because)


@pytest.mark.parametrize("largest", [1 << 24, (1 << 24) + 4])
def test_ids_that_floats_would_round_are_read_by_torch(largest: int) -> None:
    inputs = torch.randint(largest - 3, largest + 1, (61, 4))
    inputs[:16] = largest - 4
    rare = lambda own, x: own.layer((x == largest).float())  # noqa: E731
    task = task_of(lambda: Named(rare), inputs)
    assert LocalEngine(task, BLOCKS_OF_32).traits(make_run(0)).native == (largest <= 1 << 24)
