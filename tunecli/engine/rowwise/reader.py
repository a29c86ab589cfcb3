"""Reads a recorded graph of torch's operations as layers that C has.

What only moves numbers about is no layer: torch does it to the numbers of the lines instead of the values, and what is
found there says which lines the next layer reads.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from tunecli.engine.rowwise.images import Windows
from tunecli.engine.rowwise.layers import ALL, OWNER, Layer, Layers, Lines, Part, Unread, demand, is_of_all, owners
from tunecli.engine.rowwise.lookup import looked_up
from tunecli.engine.rowwise.record import Recording

aten = torch.ops.aten


# What a node of the graph computes, by an index that has its shape.


@dataclass(frozen=True, slots=True)
class Values:
    """Of samples: see `Lines`."""

    index: Tensor


@dataclass(frozen=True, slots=True)
class Weights:
    """The number of each value among all weights of a row, and its row times OWNER."""

    index: Tensor


@dataclass(frozen=True, slots=True)
class Constant:
    index: Tensor
    """The values themselves."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Ones and zeros: by which of its `elements` each value of a sample is drawn, and what it is multiplied by."""

    index: Tensor
    elements: Tensor
    odds: float
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Codes:
    """Whole numbers of lines, or what stands before the point of `cut` ones."""

    index: Tensor
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Mask:
    """Ones and zeros of lines, as truth values."""

    index: Tensor


@dataclass(frozen=True, slots=True)
class Unfolded:
    """Windows over an image's lines."""

    lines: range
    windows: Windows
    shape: tuple[int, ...]


Found = Any
"""One of these, or several."""


class Arguments(NamedTuple):
    """How many weights a graph begins with, how many running statistics and inputs follow."""

    weights: int
    statistics: int
    inputs: int


class Reader:
    """Reads a graph from its arguments on."""

    def __init__(self, operations: Mapping[Any, Operation], arguments: Arguments, samples: int) -> None:
        self._operations, self._given, self.samples = operations, arguments, samples
        self.lines = Lines(2 * samples)
        # Where each weight begins among all numbers, and how many it has; then statistics, then what is `more`.
        self.weights: list[tuple[int, int]] = []
        self._more: list[Tensor | Part | int] = []
        self._end = 0
        self.found: dict[fx.Node, Found] = {}

    def layers(self, recording: Recording) -> Layers:
        for node in recording.graph.nodes:
            if node.op == "placeholder":
                self.found[node] = self._argument(node)
            elif node.op == "get_attr":
                self.found[node] = Constant(recording.constants.get_buffer(str(node.target)))
            elif node.op == "call_function":
                self.found[node] = self._call(node)
        (outputs,) = recording.graph.output_node().args
        found = self.lines.finish(self.index(outputs[0]))  # type: ignore[index]  # a tuple
        # Of one that is both, each gradient would be written over the other.
        demand(all(own.weight < 0 or own.weight != own.bias for own in found.layers))
        used = {own for layer in found.layers for own in (layer.weight, layer.bias)}
        demand(used.isdisjoint(range(self._given.weights, sum(self._given[:2]))))
        in_parts = {own.of for own in self._parts.values()}
        demand(all(place not in used and self._are_all(place) for place in in_parts))
        trained = {*range(self._given.weights)} | {p for p, own in self._parts.items() if own.of < self._given.weights}
        trained |= {len(self.weights) - len(self._more) + n for n, own in enumerate(self._more) if isinstance(own, int)}
        unused = tuple(sorted({*range(self._given.weights)} - used - in_parts))
        return replace(found, trained=frozenset(trained), more=tuple(self._more), unused=unused)

    @property
    def _parts(self) -> dict[int, Part]:
        """The weights that are parts of others, by their places."""
        first = len(self.weights) - len(self._more)
        return {first + place: own for place, own in enumerate(self._more) if isinstance(own, Part)}

    def _are_all(self, place: int) -> bool:
        """Whether the parts of a weight have each of its numbers once."""
        end = 0
        for own in sorted((own for own in self._parts.values() if own.of == place), key=lambda own: own.begin):
            if own.begin != end:
                return False
            end += own.count
        return end == self.weights[place][1]

    def _argument(self, node: fx.Node) -> Found:
        value, place = value_of(node), len(self.found) - sum(self._given[:2])
        if place < 0:
            return self._numbered(value.shape)
        if place >= self._given.inputs:
            return None  # the keys
        demand(value.shape[:2] == (2, self.samples))
        index = self.lines.inputs(value.shape)
        return Values(index) if value.is_floating_point() else Codes(index)

    def _numbered(self, shape: torch.Size) -> Weights:
        """One more weight, (2, *shape)."""
        count, begin = shape[1:].numel(), self._end
        self.weights.append((begin, count))
        self._end += count
        return Weights((torch.arange(2)[:, None] * OWNER + begin + torch.arange(count)).view(shape))

    def _call(self, node: fx.Node) -> Found:
        args: Any = node.args
        if node.target is operator.getitem:
            return self.found[args[0]][args[1]]
        if node.target in _MOVES:
            return self._moved(node)
        operation = self._operations.get(node.target)
        if operation is None:
            raise Unread
        value = node.meta.get("value")  # of an operation that gives several it is not known
        if node.target in _BY_CODES or (value is not None and not value.is_floating_point()):
            return operation(self, node, *args, **node.kwargs)
        return self._as_numbers(operation, node)

    def _as_numbers(self, operation: Operation, node: fx.Node) -> Found:
        """What an operation gives that makes other numbers of whole ones."""
        codes = {own: found for own in node.all_input_nodes if isinstance(found := self.found[own], Codes | Mask)}
        demand(not any(isinstance(own, Codes) and own.cut for own in codes.values()))
        self.found |= {own: Values(found.index) for own, found in codes.items()}
        found = operation(self, node, *node.args, **node.kwargs)
        self.found |= codes
        return found

    def _moved(self, node: fx.Node) -> Found:
        """What torch makes of the values, made of their numbers."""
        given = [self.found[own] for own in node.all_input_nodes]
        demand(all(isinstance(own, Values | Weights | Constant | Drawn | Codes | Mask) for own in given))
        if len({*map(type, given)}) > 1:  # a learned token before those of the inputs
            given = [Values(self.index(own)) for own in node.all_input_nodes]
        demand(len(given) == 1 or not isinstance(given[0], Drawn | Codes | Mask))
        target: Any = node.target
        index = target(*fx.node.map_arg(node.args, lambda own: self.found[own].index), **node.kwargs)
        own = given[0]
        return replace(own, index=index) if isinstance(index, Tensor) else [replace(own, index=one) for one in index]

    def index(self, node: Any) -> Tensor:
        """That of lines; of what is the same for all samples too, which is a layer of its own then."""
        found = self.found.get(node)
        if isinstance(found, Constant | Weights):
            self.found[node] = found = self._repeated(found)
        if not isinstance(found, Values):
            raise Unread
        return found.index

    def index_in(self, node: Any, shape: Sequence[int]) -> Tensor:
        """The same, where it may be repeated to a shape; of a constant all of it is."""
        found = self.found.get(node)
        if isinstance(found, Constant) and found.index.shape != torch.Size(shape):
            values = found.index.expand(shape)
            return self._repeated(Constant(values if values.is_floating_point() else values.double())).index
        return self.index(node)

    def _repeated(self, found: Constant | Weights) -> Values:
        """Values (2, m, ...) that all samples have, or (2, ...) that are of all of them, as lines."""
        index = found.index
        if index.shape[:2] == (2, self.samples) and torch.equal(index, index[:, :1].expand_as(index)):
            of = self.samples_of(index.shape)
            each = of[0, 0].numel()
        else:
            demand(len(index) == 2 and isinstance(found, Weights))
            of = (ALL + torch.arange(2)).view(2, *[1] * (index.dim() - 1)).expand(index.shape)
            each = of[0].numel()
        if isinstance(found, Constant):
            demand(index.is_floating_point())
            values = self.lines.of_samples(of, index).clone()
            return self.emit(Layer("constant", (), len(values), values=values), of)
        nothing = Layer("constant", (), each, values=torch.zeros(each))
        return self.weighed("shift", self.lines.emit(nothing, of), index)

    def samples_of(self, shape: Sequence[int]) -> Tensor:
        """The sample of each value of such a shape (2, m, ...)."""
        samples = torch.arange(2 * self.samples).view(2, self.samples, *[1] * (len(shape) - 2))
        return samples.expand(*shape)

    def weighed(self, kind: str, index: Tensor, weights: Tensor, scale: float = 1.0) -> Values:
        """Lines that are weighed or shifted by numbers of one weight, times a scale, in the places of their values."""
        of, lines = owners(index), self.lines.read(index)
        demand(torch.equal(self.rows_of(of), weights // OWNER))
        place, numbers = self._numbers(self.lines.of_samples(of, weights % OWNER))
        how = Layer(kind, (lines,), len(lines), place, sizes=self.weights[place][1:], scale=scale, elements=numbers)
        return self.emit(how, of)

    def rows_of(self, of: Tensor) -> Tensor:
        """The row of each owner."""
        return torch.where(of >= ALL, of - ALL, of // self.samples)

    def emit(self, layer: Layer, of: Tensor) -> Values:
        return Values(self.lines.emit(layer, of))

    def whole(self, node: Any) -> int:
        """Which weight this is, all of it, its numbers in their order; or what is fixed, the same for all rows."""
        return self.whole_of(self.weights_of(node))

    def whole_of(self, index: Tensor) -> int:
        begin, count = int(index.flatten()[0]), index[0].numel()
        numbers = torch.arange(begin, begin + count)
        demand(torch.equal(index.reshape(2, -1), torch.stack([numbers, numbers + OWNER])))
        if (begin, count) not in self.weights:
            of = self._weight_at(begin)
            first, length = self.weights[of]
            demand(begin + count <= first + length)
            self._more.append(Part(of, begin - first, count))
            self.weights.append((begin, count))
        return self.weights.index((begin, count))

    def weights_of(self, node: Any) -> Tensor:
        found = self.found.get(node)
        if isinstance(found, Constant):
            values = found.index
            demand(len(values) == 2 and torch.equal(values[0], values[1]))
            found = self.found[node] = self.fix(values[0])
        if isinstance(found, Values) and is_of_all(found.index):
            found = self.found[node] = self._derived(found.index)
        if not isinstance(found, Weights):
            raise Unread
        return found.index

    def _derived(self, index: Tensor) -> Weights:
        """One more weight, which a layer makes of others."""
        flat = index.flatten(1)
        demand(len(flat) == 2 and torch.equal(flat[0] % OWNER, flat[1] % OWNER))
        order = flat[0].argsort(stable=True)  # they may be read transposed
        read = self.lines.read(flat[:, order])
        self._more.append(len(self.lines.layers))
        self.lines.emit(Layer("derive", (read,), 0, sizes=(len(order),)), index.new_empty(0))
        numbers = self._numbered(flat.shape).index
        return Weights(numbers[:, order.argsort()].view(index.shape))

    def fix(self, values: Tensor) -> Weights:
        """One more weight, which is not trained and the same for both rows."""
        demand(values.is_floating_point())
        self._more.append(values.clone())
        return self._numbered(torch.Size((2, *values.shape)))

    def _numbers(self, numbers: Tensor) -> tuple[int, Tensor]:
        """Which weight all of these are numbers of, and where in it."""
        place = self._weight_at(int(numbers[0]))
        found = numbers - self.weights[place][0]
        demand(bool(((found >= 0) & (found < self.weights[place][1])).all()))
        return place, found.to(torch.int32)

    def _weight_at(self, number: int) -> int:
        """Which weight has this one of all numbers: all of it, for those come before their parts."""
        return next(p for p, (begin, count) in enumerate(self.weights) if begin <= number < begin + count)


Operation = Callable[..., Found]
"""Of a reader, a node and its arguments: what the node computes."""


def value_of(node: fx.Node) -> Tensor:
    """What was computed while the graph was recorded."""
    value: Tensor = node.meta["value"]
    return value


_BY_CODES = {
    looked_up,
    aten._to_copy.default,
    aten.masked_fill.Scalar,
    aten.where.self,
    aten.index.Tensor,
    aten.gather.default,
}
"""Operations that read whole numbers, or truth values, as such."""

_MOVES = {
    aten.reshape.default,
    aten.transpose.int,
    aten.permute.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.expand.default,
    aten.repeat.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.cat.default,
    aten.stack.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.unbind.int,
    aten.flip.default,
    aten.roll.default,
    aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default,
    aten.channel_shuffle.default,
    aten.t.default,
}
