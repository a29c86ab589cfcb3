"""What `network.c` computes: the kinds of layers, and the lines that they read and give.

Every number that a sample has on its way through a model is a line, which holds that number of all samples: first the
inputs', then each layer's outputs, one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tunecli.engine.rowwise.images import Windows

KINDS = (
    "linear",
    "convolution",
    "transposed",
    "embedding",
    "product",
    "pooling",
    "gather",
    "derive",
    "constant",
    "add",
    "multiply",
    "mask",
    "weigh",
    "shift",
    "normalize",
    "softmax",
    "log_softmax",
    "sum",
    "maximum",
    "batch_norm",
    "dropout",
    "scale",
    "relu",
    "leaky_relu",
    "elu",
    "tanh",
    "sigmoid",
    "silu",
    "gelu",
    "gelu_tanh",
    "mish",
    "softplus",
    "hardswish",
    "clamp",
    "hardtanh",
    "exp",
    "log",
    "sqrt",
    "rsqrt",
    "reciprocal",
    "abs",
    "sin",
    "cos",
    "equal",
    "above",
)
"""Of layers, in the order of the source."""

MOST_LINES = 1 << 19
"""A model that has more is left to torch: its lines, and their gradients, are far from the core anyway."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of so many `outputs` of a sample, the lines that it `reads`, and the places of its weights.

    `sizes`: tokens, inputs and outputs of "linear", and 1 where its weight is (inputs, outputs); groups and filters of
    a "convolution", or of one that is "transposed"; of "product" (H, I, K) times (H, K, J) -> (H, I, J); rows of an
    "embedding", how many numbers each has, and which one is padding or -1; of "normalize", "sum", "maximum" and both
    kinds of softmax how many groups there are, of how many numbers; how many numbers a weight has by which lines are
    weighed or shifted; of "batch_norm" its channels, how many numbers a sample has of each, the place of its running
    means, which variances and the number of batches follow, and 1 where it goes by these.

    `windows` lie over images of a `shape` (m, C, H, W), those that a group of filters reads; over the outputs of what
    is transposed. `scale` and `shift`: what numbers are multiplied by, and what is added; the slope below zero; a
    momentum, and what is added to a variance; the bounds of "clamp" and "hardtanh", of which the first alone has a
    gradient at them; what stands where there is a "mask", which is read second; what numbers are "equal" to or "above";
    a softmax of -inf alone is 0 where it is shifted, and the gradient of a shifted "maximum" goes to all that are.

    By `elements` dropout draws, `dropped` of 2**32 times a zero; a gather finds its lines; others find their numbers in
    `weight`, or are told the `values` themselves. What they "derive" from weights is a weight of other layers.
    """

    kind: str
    reads: tuple[range, ...]
    outputs: int
    weight: int = -1
    bias: int = -1
    sizes: tuple[int, ...] = ()
    windows: Windows | None = None
    shape: tuple[int, ...] = ()
    scale: float = 1.0
    shift: float = 0.0
    dropped: int = 0
    elements: Tensor | None = None
    values: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """So many numbers of the weight at the place `of`, from one on."""

    of: int
    begin: int
    count: int


@dataclass(frozen=True, slots=True)
class Layers:
    """All of a model: `inputs` numbers of a sample, and its outputs in their `shape`, of a sample too.

    Behind its weights and running statistics there are `more` weights: parts of others, those that are fixed, as all
    rows have them, and what a layer derives from others, by its number. The places of those that learn are `trained`,
    and `unused` where no layer has them.
    """

    layers: list[Layer]
    inputs: int
    shape: tuple[int, ...]
    trained: frozenset[int] = frozenset()
    more: tuple[Tensor | Part | int, ...] = ()
    unused: tuple[int, ...] = ()


class Unread(Exception):
    """Something in a model is no layer of these kinds."""


def demand(so: bool) -> None:
    if not so:
        raise Unread


OWNER = 1 << 40
"""Times this, a sample of all rows stands above the number of a line: an index has both, in the place of each value."""

ALL = 1 << 20
"""What is made of weights alone all samples of a row have: it stands there in the place of the first row's, one more in
that of the second's."""


def owners(index: Tensor) -> Tensor:
    """The sample of each value, all rows' one after the other; or ALL of them."""
    return index // OWNER


def is_of_all(index: Tensor) -> bool:
    """Whether these are values that all samples of a row have."""
    return bool((index >= ALL * OWNER).all())


MOST_OF_ALL = 1 << 12
"""So many lines all samples may have: each of them has its own, though they are the same. Where a layer's weight is
normalized, which takes five times its numbers, C takes 0.7 of the time of torch for 256 of a Linear and a quarter more
for 512; for a convolution 0.8 for 768 and twice as much for 3072."""


class Lines:
    """The layers of a model, found one after the other, and the lines that samples have in the place of values.

    An index is a tensor of the shape of the values: whatever moves values about does the same to an index.
    """

    def __init__(self, samples: int) -> None:
        self._samples = samples  # of all rows
        self.layers: list[Layer] = []
        self._starts: list[int] = []
        self._end = self._of_all = 0
        self._gathered: dict[bytes, range] = {}

    def inputs(self, shape: torch.Size) -> Tensor:
        """The index of inputs, sample by sample; of several one after the other."""
        first, self._end = self._end, self._end + shape.numel() // self._samples
        return self.numbered(range(first, self._end)).view(shape)

    def read(self, index: Tensor) -> range:
        """The lines that a sample has in the place of some values, one after the other; gathered, where they lie
        otherwise."""
        lines = self.of_samples(owners(index), index % OWNER)
        first, count = int(lines[0]), len(lines)
        above = next((start for start in self._starts if start > first), self._end)
        if first + count <= above and torch.equal(lines, torch.arange(first, first + count)):
            return range(first, first + count)
        known = lines.numpy().tobytes()
        if known not in self._gathered:
            self._gathered[known] = self._add(Layer("gather", (), count, elements=lines.to(torch.int32)))
        return self._gathered[known]

    def emit(self, layer: Layer, of: Tensor) -> Tensor:
        """The index of a new layer's outputs, in the place of which stand the samples that they are `of`."""
        lines, order = self._add(layer), self.order(of)
        if is_of_all(of * OWNER):
            self._of_all += len(lines)
            demand(self._of_all <= MOST_OF_ALL)
        numbers = self._numbered(lines, self._owners(of))
        if order is not None:
            numbers = torch.empty_like(numbers).index_copy_(0, order, numbers)
        return numbers.view(of.shape)

    def finish(self, index: Tensor) -> Layers:
        """All layers, of which the last one gives these values (B, m, *shape)."""
        demand(self.order(owners(index)) is None)
        lines = self.read(index)
        if not self._starts or lines != range(self._starts[-1], self._end):
            self._add(Layer("gather", (), len(lines), elements=torch.tensor(lines, dtype=torch.int32)))
        return Layers(self.layers, self._starts[0], tuple(index.shape[2:]))

    def of_samples(self, of: Tensor, numbers: Tensor) -> Tensor:
        """Of numbers in the place of values those of each sample, which are the same for all."""
        order, each = self.order(of), numbers.flatten()
        found = (each if order is None else each[order]).view(len(self._owners(of)), -1)
        demand(torch.equal(found, found[:1].expand_as(found)))
        return found[0]

    def order(self, of: Tensor) -> Tensor | None:
        """In which places the first sample's values are, the second's, ...; None where they follow one another."""
        flat, all_owners = of.flatten(), self._owners(of)
        expected = all_owners.repeat_interleave(of.numel() // len(all_owners))
        if torch.equal(flat, expected):
            return None
        order = flat.argsort(stable=True)
        demand(torch.equal(flat[order], expected))
        return order

    def numbered(self, lines: range) -> Tensor:
        """These lines of each sample, one sample after the other."""
        return self._numbered(lines, torch.arange(self._samples))

    def _numbered(self, lines: range, of: Tensor) -> Tensor:
        return (of[:, None] * OWNER + torch.tensor(lines, dtype=torch.int64)).flatten()

    def _owners(self, of: Tensor) -> Tensor:
        """All samples, or what stands for those of each row."""
        return ALL + torch.arange(2) if is_of_all(of * OWNER) else torch.arange(self._samples)

    def _add(self, layer: Layer) -> range:
        lines = range(self._end, self._end + layer.outputs)
        demand(lines.stop <= MOST_LINES)
        self.layers.append(layer)
        self._starts.append(lines.start)
        self._end = lines.stop
        return lines
