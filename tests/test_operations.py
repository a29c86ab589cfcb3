"""What models are written with, computed in C: gradients and outputs are those of plain autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from tests.conftest import examples
from tests.test_engine import BLOCKS_OF_32, BY_TORCH, make_run, make_task, start, tick
from tests.test_native import assert_trained_in_c_as_by_torch
from tests.test_rowwise import assert_equal_alone
from tunecli.data import Samples
from tunecli.engine import LocalEngine
from tunecli.engine.compiler import can_compile
from tunecli.metrics import LOSSES

pytestmark = pytest.mark.skipif(not can_compile("cpu"), reason="there is no C compiler (cc)")

CLASSES, IMAGE = 3, (4, 6, 8)

weight_norm = nn.utils.parametrizations.weight_norm


class Between(nn.Module):
    """Something between a layer that is trained and one that reads all of what it gives."""

    def __init__(self, first: nn.Module, between: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.between = first, between
        width = self.between(self.first(torch.zeros(2, *shape))).flatten(1).shape[1]
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.between(self.first(x)).flatten(1))
        return found


def assert_is_that_of_autograd(first: nn.Module, between: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    module = Between(first, between, shape).double()
    inputs = torch.randn(32, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    samples = Samples(inputs, torch.randint(CLASSES, (32,)))
    assert_equal_alone(module, samples, LOSSES["cross_entropy"], 2, native=True)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sin": lambda x: torch.sin(9 * x),
    "cos": lambda x: torch.cos(-3 * x),
    "prelu": nn.PReLU(6),
    "selu": nn.SELU(),
    "log sigmoid": nn.LogSigmoid(),
    "softplus": nn.Softplus(beta=2.5),
    "softshrink": nn.Softshrink(0.3),
    "threshold": nn.Threshold(0.1, -2.0),
    "glu": nn.GLU(),
    "glu along channels": lambda x: functional.glu(x.unflatten(1, (3, 2)), 2),
    "alpha": lambda x: torch.add(x, x.exp(), alpha=0.3) - torch.sub(x.tanh(), x, alpha=2),
    "largest": lambda x: x.max(1).values[:, None] * x,
    "largest, kept": lambda x: x - x.max(-1, keepdim=True)[0],
    "largest of all": lambda x: x.unflatten(1, (2, 3)).relu().amax((1, 2))[:, None],
    "maxout": lambda x: x.view(len(x), -1, 2).max(-1).values,
    "masked": lambda x: x.masked_fill(x > 0.2, 3.0) + (x <= -0.1) * x + (x >= 0).float() * x.exp(),
    "masked twice": lambda x: x * ((x < 0.5) & ~(x < -0.5)) + x.masked_fill((x != 0).logical_not(), -1.0),
    "counted": lambda x: x.sum(1, keepdim=True) / (x > 0).sum(1, keepdim=True).clamp(min=1),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x.exp()) + torch.where(x.sin() < 0.1, x.cos(), 0.5),
    "where it is fixed": lambda x: torch.where(torch.arange(6) % 2 == 0, x.exp(), x),
    "where, of constants": lambda x: torch.where(x > 0, torch.zeros_like(x), torch.full_like(x, -2.0)) * x,
    "extremes": lambda x: torch.maximum(x, x.sin()) - torch.minimum(x.exp(), x.new_ones(6)) * torch.max(x, -x),
    "sign": lambda x: x.sign() * torch.log1p(x.abs()) + torch.expm1(x),
    "spread": lambda x: (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5),
    "variances": lambda x: x.unflatten(1, (2, 3)).var((1, 2), correction=0)[:, None] * x,
    "length": lambda x: x.norm(dim=1, keepdim=True) * functional.normalize(x.relu()),
    "running sum": lambda x: x.unflatten(1, (3, 2)).cumsum(1),
    "log of a sum": lambda x: torch.logsumexp(50 * x.unflatten(1, (2, 3)), 2),
    "some of them": lambda x: x[:, [0, 3, 5]].exp() * x[:, torch.tensor([1, 1, 2])],
    "pairs": lambda x: (x[:, :, None] * x[:, None])[:, torch.triu_indices(6, 6)[0], torch.triu_indices(6, 6)[1]],
    "selected": lambda x: x.index_select(1, torch.tensor([4, 2])),
    "a matrix before": lambda x: torch.arange(12.0, dtype=x.dtype).view(4, 3) @ x.view(-1, 3, 2),
    "cosine": lambda x: functional.cosine_similarity(x[:, None], x.sin()[:, None], dim=-1),
    "repeated": lambda x: x.repeat(1, 2) * torch.arange(12.0, dtype=x.dtype),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions_of_numbers(function: Callable[[Tensor], Tensor]) -> None:
    assert_is_that_of_autograd(nn.Linear(5, 6), function, (5,))


def test_the_gradient_of_the_largest_goes_to_all_that_are_or_to_the_first() -> None:
    """As torch has it for `amax` and for `max`."""
    for largest in (lambda x: x.amax(1), lambda x: x.max(1).values):
        assert_is_that_of_autograd(
            nn.Linear(5, 6), lambda x, own=largest: own(x.relu().clamp(max=0.1))[:, None] * x, (5,)
        )


def bilinear(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


PICTURES: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros around": nn.ZeroPad2d((1, 0, 2, 1)),
    "cut": nn.ZeroPad2d((-1, 2, 0, -2)),
    "a constant around": nn.ConstantPad2d(1, 0.7),
    "reflected": nn.ReflectionPad2d((1, 2, 0, 3)),
    "replicated": nn.ReplicationPad2d(2),
    "nearest": nn.Upsample(scale_factor=2),
    "nearest of any size": nn.Upsample(size=(5, 11)),
    "bilinear": nn.Upsample(scale_factor=2, mode="bilinear"),
    "bilinear, aligned": bilinear,
    "shuffled": nn.PixelShuffle(2),
    "rolled": lambda x: x.roll((-1, 2), (2, 3)) * x,
    "patches": nn.Unfold((3, 2), stride=(3, 2)),
    "unshuffled": nn.PixelUnshuffle(2),
    "channels shuffled": nn.ChannelShuffle(2),
    "average, padded": nn.AvgPool2d(3, 2, 1),
    "average, padded, of what is there": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "average, ceil": nn.AvgPool2d(3, 2, ceil_mode=True),
    "adaptive average": nn.AdaptiveAvgPool2d((4, 3)),
    "adaptive average, larger": nn.AdaptiveAvgPool2d((7, 9)),
    "largest, ceil": nn.MaxPool2d(3, 2, ceil_mode=True),
    "largest, ceil and padded": nn.MaxPool2d((3, 2), (4, 3), 1, ceil_mode=True),
    "adaptive largest": nn.AdaptiveMaxPool2d((3, 2)),
    "the largest": nn.AdaptiveMaxPool2d(1),
    "instance norm": nn.InstanceNorm2d(4),
    "instance norm, learned": nn.InstanceNorm2d(4, affine=True),
}


@pytest.mark.parametrize("function", PICTURES.values(), ids=PICTURES)
def test_what_is_done_to_pictures(function: Callable[[Tensor], Tensor]) -> None:
    assert_is_that_of_autograd(nn.Conv2d(2, 4, 1), function, (2, 6, 8))


SEQUENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros before": lambda x: functional.pad(x, (3, 0)),
    "reflected": nn.ReflectionPad1d(2),
    "replicated": nn.ReplicationPad1d((1, 3)),
    "nearest": nn.Upsample(scale_factor=2),
    "linear": nn.Upsample(size=13, mode="linear"),
    "the largest": nn.AdaptiveMaxPool1d(1),
    "adaptive largest": nn.AdaptiveMaxPool1d(3),
    "adaptive average": nn.AdaptiveAvgPool1d(4),
    "largest, ceil": nn.MaxPool1d(4, ceil_mode=True),
    "instance norm": nn.InstanceNorm1d(4, affine=True),
    "in groups": nn.Conv1d(4, 6, 3, padding=2, groups=2, bias=False),
    "transposed": nn.ConvTranspose1d(4, 3, 4, stride=2, padding=1),
}


@pytest.mark.parametrize("function", SEQUENCES.values(), ids=SEQUENCES)
def test_what_is_done_to_sequences(function: Callable[[Tensor], Tensor]) -> None:
    assert_is_that_of_autograd(nn.Conv1d(2, 4, 2), function, (2, 10))


@examples(25)
@given(
    kind=st.sampled_from([nn.Conv2d, nn.ConvTranspose2d]),
    groups=st.sampled_from([1, 2, 4]),
    of_group=st.sampled_from([1, 3]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    how=st.fixed_dictionaries(
        {
            "stride": st.integers(1, 3),
            "padding": st.integers(0, 1),
            "dilation": st.integers(1, 2),
            "bias": st.booleans(),
        }
    ),
    more=st.integers(0, 1),
    behind=st.booleans(),
)
def test_convolutions_in_groups_and_transposed_ones(
    kind: Any, groups: int, of_group: int, kernel: tuple[int, int], how: dict[str, Any], more: int, behind: bool
) -> None:
    """Also those that read the samples themselves, which have no gradient."""
    told = dict(how)
    if kind is nn.ConvTranspose2d and more < how["stride"]:
        told["output_padding"] = more
    own = kind(4, groups * of_group, kernel, groups=groups, **told)
    if behind:
        assert_is_that_of_autograd(nn.Sequential(nn.Conv2d(2, 4, 1), nn.Tanh(), own), torch.relu, (2, 6, 5))
    else:
        assert_is_that_of_autograd(own, torch.relu, (4, 6, 5))


class Chain(nn.Module):
    """Convolutions, some of which are frozen or normalized, with something between them, and what passes them by."""

    def __init__(self, parts: list[tuple[str, str, bool, bool]]) -> None:
        super().__init__()
        torch.manual_seed(len(parts))
        self.names = [name for name, *_ in parts]
        kinds: dict[str, Callable[[], nn.Module]] = {
            "plain": lambda: nn.Conv2d(4, 4, 3, padding=1),
            "in groups": lambda: nn.Conv2d(4, 4, 2, groups=2, padding=1),
            "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1, bias=False),
            "transposed": lambda: nn.ConvTranspose2d(4, 4, 2, stride=2),
            "normalized": lambda: weight_norm(nn.Conv2d(4, 4, 1)),
        }
        self.filters = nn.ModuleList(kinds[kind]() for _, kind, *_ in parts)
        for part, (_, _, frozen, _) in zip(self.filters, parts, strict=True):
            part.requires_grad_(not frozen)
        self.passes = [own for *_, own in parts]
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for name, part, passes in zip(self.names, self.filters, self.passes, strict=True):
            found = part(x)
            found = BETWEEN[name](found) if min(found.shape[2:]) > 3 else found.tanh()
            x = x.mean((2, 3), keepdim=True) * found + found if passes else found
            x = x[:, :, :9, :9]
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]  # a tensor


BETWEEN = {
    name: own for name, own in PICTURES.items() if name not in ("shuffled", "unshuffled", "patches", "adaptive largest")
}
BETWEEN = {name: own for name, own in BETWEEN.items() if "learned" not in name} | {
    "masked": lambda x: x.masked_fill(x > 0.5, 0.1) + torch.where(x < 0, x.exp(), x),
    "largest of all": lambda x: x * x.amax((2, 3), keepdim=True) - x.max(1, keepdim=True).values,
    "gated": lambda x: functional.glu(torch.cat([x, x.sin()], 1), 1),
    "centred": lambda x: (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True) + 0.1).sqrt(),
}


@examples(30)
@given(
    parts=st.lists(
        st.tuples(
            st.sampled_from(sorted(BETWEEN)),
            st.sampled_from(["plain", "in groups", "depthwise", "transposed", "normalized"]),
            st.booleans(),
            st.booleans(),
        ),
        min_size=1,
        max_size=4,
    ),
    rows=st.integers(1, 2),
)
def test_all_of_it_one_after_the_other(parts: list[tuple[str, str, bool, bool]], rows: int) -> None:
    module, inputs = Chain(parts).double(), torch.randn(16 * rows, 4, 6, 5, dtype=torch.float64)
    samples = Samples(inputs, torch.randint(CLASSES, (16 * rows,)))
    assert_equal_alone(module, samples, LOSSES["cross_entropy"], rows, native=True)


class Attending(nn.Module):
    """Words of which some are none, which nobody attends to, and of which no mean is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(9, 6, padding_idx=0), nn.Linear(6, CLASSES)
        layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, words: Tensor) -> Tensor:
        found = self.encoder(self.words(words), src_key_padding_mask=words == 0)
        there = (words != 0).unsqueeze(-1).to(found.dtype)
        return self.head((found * there).sum(1) / there.sum(1))  # type: ignore[no-any-return]  # a tensor


class OneOfThem(nn.Module):
    """Numbers of words as zeros and a one."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(63, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        found: Tensor = self.head(functional.one_hot(words, 9).to(self.head.weight.dtype).flatten(1))
        return found


class LastOf(nn.Module):
    """What a recurrent layer knows after the last of the words."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.words = how, nn.Embedding(9, 6, padding_idx=0)
        self.memory, self.head = nn.GRU(6, 4, batch_first=True), nn.Linear(4, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        found, lengths = self.memory(self.words(words))[0], (words != 0).sum(1)
        own = {
            "index": lambda: found[torch.arange(len(words)), lengths - 1],
            "backwards": lambda: found[torch.arange(len(words)), -lengths.clamp(min=1), :2].repeat(1, 2),
            "gather": lambda: found.gather(1, (lengths - 1).view(-1, 1, 1).expand(-1, -1, found.shape[2])).squeeze(1),
        }[self.how]()
        return self.head(own)  # type: ignore[no-any-return]  # a tensor


class Bag(nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.words, self.head = nn.EmbeddingBag(9, 6, mode=mode), nn.Linear(6, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.words(words))  # type: ignore[no-any-return]  # a tensor


@pytest.mark.parametrize(
    "make",
    [
        *(Attending, OneOfThem, lambda: Bag("mean"), lambda: Bag("sum")),
        *(lambda: LastOf("index"), lambda: LastOf("backwards"), lambda: LastOf("gather")),
    ],
    ids=["padding", "one hot", "mean of a bag", "sum of a bag", "last one", "last one backwards", "last one gathered"],
)
def test_words(make: Callable[[], nn.Module]) -> None:
    words = torch.randint(0, 9, (32, 7))
    words[:, 0] = words[:, 0].clamp(min=1)  # of no word at all torch makes no number
    samples = Samples(words, torch.randint(CLASSES, (32,)))
    assert_equal_alone(make().double(), samples, LOSSES["cross_entropy"], 2, native=True)


class Derived(nn.Module):
    """Weights of layers that are made of others."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.head = how, nn.Linear(8, CLASSES)
        self.matrix, self.other, self.length = (nn.Parameter(torch.randn(*own)) for own in ((8, 6), (8, 6), (1, 8)))
        self.narrow = nn.Parameter(torch.randn(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        matrix, other = self.matrix, self.other
        found = {
            "normalized": lambda: 3 * functional.linear(functional.normalize(x), functional.normalize(matrix)),
            "squared": lambda: (x @ matrix.T).pow(2) - x.pow(2) @ (other**2).T,
            "distances": lambda: ((x.unsqueeze(1) - matrix) ** 2).sum(-1).sqrt() / self.length.exp(),
            "merged": lambda: functional.linear(x, matrix + self.narrow @ self.narrow.T @ other),
            "twice": lambda: functional.linear(functional.linear(x, w := matrix.tanh()) @ w, w),
            "in parts": lambda: functional.linear(x, torch.cat([matrix[:3].exp(), other[3:].sigmoid()])),
            "gated": lambda: (x @ matrix.T) * self.length.sigmoid() + self.length.softmax(-1),
            "before": lambda: (matrix @ x[:, :, None] * self.length.T)[:, :, 0],
            "looked up": lambda: (x @ matrix.T) * self.length[0, torch.arange(8).flip(0) // 2],
            "masked": lambda: functional.linear(x, matrix * (torch.arange(48).view(8, 6) % 3 > 0)),
        }[self.how]()
        return self.head(found)  # type: ignore[no-any-return]  # a tensor


@pytest.mark.parametrize(
    "how",
    ["normalized", "squared", "distances", "merged", "twice", "in parts", "gated", "masked", "before", "looked up"],
)
def test_weights_that_are_made_of_others(how: str) -> None:
    torch.manual_seed(0)
    module, inputs = Derived(how), torch.randn(32, 6, dtype=torch.float64)
    with torch.no_grad():
        inputs[3] = 0.0 if how == "normalized" else inputs[3]  # whose length has no gradient
    samples = Samples(inputs, torch.randint(CLASSES, (32,)))
    assert_equal_alone(module.double(), samples, LOSSES["cross_entropy"], 2, native=True)


def test_weights_may_be_normalized() -> None:
    """As torch's own does, of whatever layers."""
    cut = type("Cut", (nn.Module,), {"forward": lambda _, x: x[:, :, :-2]})
    convolutions = [weight_norm(nn.Conv1d(width, 4, 3, padding=2)) for width in (2, 4)]
    first, second = (nn.Sequential(own, cut(), nn.ReLU(), nn.Dropout(0.2)) for own in convolutions)
    assert_is_that_of_autograd(nn.Sequential(first, second), torch.tanh, (2, 9))
    wide = weight_norm(nn.Linear(5, 6), dim=None), nn.Tanh(), weight_norm(nn.Linear(6, 4))
    assert_is_that_of_autograd(nn.Sequential(*wide), torch.tanh, (5,))
    back = weight_norm(nn.ConvTranspose2d(4, 3, 2, 2)), nn.Conv2d(3, 3, 3, groups=3)
    assert_is_that_of_autograd(nn.Sequential(nn.Conv2d(2, 4, 1), *back), torch.tanh, (2, 4, 4))


def test_weights_made_of_others_in_a_batch_that_is_read_in_parts() -> None:
    """Its statistics are those of all parts, and each part makes the weights anew."""

    def make() -> nn.Module:
        layers = weight_norm(nn.Linear(8, 6)), nn.BatchNorm1d(6), nn.ReLU(), weight_norm(nn.Linear(6, CLASSES))
        return nn.Sequential(*layers)

    assert_trained_in_c_as_by_torch(make, torch.randn(61, 8))


def test_many_numbers_made_of_weights_are_left_to_torch() -> None:
    """Each sample would make them anew."""
    make = lambda: nn.Sequential(weight_norm(nn.Linear(200, 200)), nn.Linear(200, CLASSES))  # noqa: E731
    assert not LocalEngine(make_task(make, features=(200,)), BLOCKS_OF_32).traits(make_run(0)).native


class ByFunction(nn.Module):
    """No module tells what its convolution is like."""

    def __init__(self) -> None:
        super().__init__()
        self.filters, self.head = nn.Parameter(torch.randn(4, 1, 3, 3)), nn.Linear(96, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(functional.conv2d(x, self.filters, groups=4).flatten(1))
        return found


@pytest.mark.parametrize(
    "make",
    [lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(96, CLASSES)), ByFunction],
    ids=["module", "function"],
)
def test_convolutions_that_c_alone_has_are_looped_without_it(make: Callable[[], nn.Module]) -> None:
    """In half precision too."""
    task, run = make_task(make, features=IMAGE), make_run(0, batch_size=16)
    assert LocalEngine(task, BLOCKS_OF_32).traits(run).native
    in_half = make_run(0, batch_size=16, settings={"precision": "bf16"})
    for engine, own in ((LocalEngine(task, BY_TORCH), run), (LocalEngine(task, BLOCKS_OF_32), in_half)):
        assert engine.traits(own).looped_because == "such convolutions are faster one by one"
        assert tick(start(engine, [own]), [own])[0].failure is None
