"""Layers that follow one another, found in a recorded forward pass: such a chain is computed by `chain.c`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from tunecli.engine.rowwise import images
from tunecli.engine.rowwise.dropout import noise
from tunecli.engine.rowwise.images import Windows

aten = torch.ops.aten

KINDS = (
    "linear",
    "convolution",
    "pooling",
    "dropout",
    "relu",
    "leaky_relu",
    "tanh",
    "sigmoid",
    "silu",
    "gelu",
)
"""Of layers, in the order of the source."""

_ELEMENTWISE = {
    aten.relu.default: "relu",
    aten.tanh.default: "tanh",
    aten.sigmoid.default: "sigmoid",
    aten.silu.default: "silu",
    aten.gelu.default: "gelu",
}


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of `inputs` and `outputs` numbers of a sample, with the places of its weights. `windows` lie over images
    of a `shape` (m, C, H, W). `scale` is a slope below zero, or what dropout keeps is multiplied by; of 2**32 draws by
    its `elements` so many are `dropped`."""

    kind: str
    inputs: int
    outputs: int
    weight: int = -1
    bias: int = -1
    windows: Windows | None = None
    shape: tuple[int, ...] = ()
    scale: float = 0.0
    dropped: int = 0
    elements: Tensor | None = None


class _NoChain(Exception):
    """Something in the graph is no layer of a chain."""


def layers_of(recorded: fx.GraphModule, weights: int, samples: int) -> list[Layer] | None:
    """The layers of a model whose forward pass was recorded, simplified, from its weights, inputs (B, m, *feature) and
    keys, if any, to outputs (B, m, O); None where they are no chain, or others than `KINDS`."""
    try:
        return list(_Reader(recorded, weights, samples).layers())
    except _NoChain:
        return None


class _Reader:
    """Reads a graph from its inputs on, each node of which has one reader."""

    def __init__(self, recorded: fx.GraphModule, weights: int, samples: int) -> None:
        self._recorded, self._samples = recorded, samples
        given = [node for node in recorded.graph.nodes if node.op == "placeholder"]
        self._weights = {node: place for place, node in enumerate(given[:weights])}
        self._inputs, self._keys = given[weights], given[weights + 1 :]
        self._rows = len(_value(self._inputs))

    def layers(self) -> Iterator[Layer]:
        self._demand(all(len(node.users) == 1 for node in self._weights))
        node = self._inputs
        while (reader := self._reader(node)).op != "output":
            if reader.target is aten.reshape.default:
                self._numbers(reader)
                node = reader
                continue
            layer, node = self._layer(node, reader)
            yield layer
        self._demand(reader.args == ((node,),))

    def _layer(self, node: fx.Node, reader: fx.Node) -> tuple[Layer, fx.Node]:
        """The layer that reads a node, and the node of its outputs."""
        if reader.target is images.unfold:
            return self._convolution(node, reader)
        size, args = self._numbers(node), _args(reader)
        outputs = self._numbers(reader)
        if reader.target in _PRODUCTS:
            *bias, read, turned = args
            self._demand(read is node and _is(turned, aten.transpose.int) and {1, 2} == set(_args(turned)[1:]))
            return Layer("linear", size, outputs, *self._places(_args(turned)[0], bias)), reader
        if reader.target is images.largest:
            return self._windows("pooling", node, reader, reader), reader
        self._demand(outputs == size)
        if reader.target in _ELEMENTWISE and not reader.kwargs:
            return Layer(_ELEMENTWISE[reader.target], size, size), reader
        if reader.target is aten.leaky_relu.default:
            return Layer("leaky_relu", size, size, scale=float(args[1] if len(args) > 1 else 0.01)), reader
        self._demand(reader.target is aten.mul.Tensor and args[0] is node)
        return self._dropout(args[1], size), reader

    def _convolution(self, node: fx.Node, unfold: fx.Node) -> tuple[Layer, fx.Node]:
        product = self._reader(unfold)
        self._demand(product.target in _PRODUCTS)
        *bias, weight, read = _args(product)
        shaped = self._reader(product)
        turned = self._reader(shaped)
        self._demand(read is unfold and shaped.target is aten.reshape.default)
        self._demand(turned.target is aten.permute.default and list(_args(turned)[1]) == [0, 4, 1, 2, 3])
        return self._windows("convolution", node, unfold, turned, *self._places(weight, bias)), turned

    def _windows(self, kind: str, node: fx.Node, reader: fx.Node, outputs: fx.Node, *places: int) -> Layer:
        read, windows = _args(reader)
        self._demand(read is node and _value(node).dim() == 5)
        sizes = self._numbers(node), self._numbers(outputs)
        weight, bias = places or (-1, -1)
        return Layer(kind, *sizes, weight, bias, windows=Windows(*windows), shape=tuple(_value(node).shape[1:]))

    def _dropout(self, drawn: Any, size: int) -> Layer:
        self._demand(_is(drawn, aten.div.Scalar) and _is(_args(drawn)[0], noise))
        noised, over = _args(drawn)
        keys, elements, odds, shape, axis, _ = _args(noised)
        constant = getattr(self._recorded, elements.target, None)
        dropped = round((1 - odds) * 2**32)
        self._demand(keys in self._keys and over == odds and dropped < 2**32)
        self._demand(axis == 1 and tuple(shape[:2]) == (self._rows, self._samples))
        if constant is None or constant.numel() != size:
            raise _NoChain
        return Layer("dropout", size, size, scale=1 / odds, dropped=dropped, elements=constant.to(torch.int32))

    def _reader(self, node: fx.Node) -> fx.Node:
        self._demand(len(node.users) == 1)
        return next(iter(node.users))

    def _numbers(self, node: fx.Node) -> int:
        """How many numbers a node has of a sample; its rows and samples come first."""
        found = node.meta.get("value")  # nothing where it computes several tensors
        if found is None or found.shape[:2] != (self._rows, self._samples):
            raise _NoChain
        return math.prod(found.shape[2:])

    def _places(self, weight: Any, bias: list[Any]) -> tuple[int, int]:
        """Which weights these nodes are, in whatever shape; -1 is none."""
        found = [self._place(own) for own in (weight, *bias)]
        return (found[0], found[1]) if bias else (found[0], -1)

    def _place(self, node: Any) -> int:
        while _is(node, aten.reshape.default) or _is(node, aten.unsqueeze.default):
            node = _args(node)[0]
        self._demand(node in self._weights)
        return self._weights[node]

    def _demand(self, so: bool) -> None:
        if not so:
            raise _NoChain


_PRODUCTS = (aten.baddbmm.default, aten.bmm.default)


def _is(node: Any, target: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is target


def _args(node: fx.Node) -> Any:
    return node.args


def _value(node: fx.Node) -> Tensor:
    value: Tensor = node.meta["value"]
    return value
