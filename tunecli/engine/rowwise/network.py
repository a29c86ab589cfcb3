"""A model's forward pass as layers that `network.c` computes: how torch's operations are read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from tunecli.engine.rowwise import images
from tunecli.engine.rowwise.dropout import noise
from tunecli.engine.rowwise.images import Windows
from tunecli.engine.rowwise.layers import OWNER, Layer, Layers, Unread, demand, owners
from tunecli.engine.rowwise.lookup import looked_up
from tunecli.engine.rowwise.normed import normed
from tunecli.engine.rowwise.reader import (
    Arguments,
    Codes,
    Constant,
    Drawn,
    Found,
    Operation,
    Reader,
    Unfolded,
    Values,
    Weights,
    value_of,
)
from tunecli.engine.rowwise.record import Recording

aten = torch.ops.aten


def layers_of(recording: Recording, arguments: Arguments, samples: int) -> Layers | None:
    """The layers of a model whose forward pass was recorded for two rows, simplified, from its weights, running
    statistics, inputs (2, m, *feature) and keys, if any, to outputs (2, m, O); None where C has not all of them."""
    try:
        return Reader(_OPERATIONS, arguments, samples).layers(recording)
    except Unread:
        return None


# Products.


def _biased(reader: Reader, node: fx.Node, bias: Any, one: Any, other: Any) -> Values:
    return _multiplied(reader, node, one, other, bias)


def _multiplied(reader: Reader, node: fx.Node, one: Any, other: Any, bias: Any = None) -> Values:
    by = reader.found[other]
    if isinstance(by, Unfolded):
        return _convolved(reader, node, one, by, bias)
    if isinstance(by, Values):
        demand(bias is None)
        return _product(reader, reader.index(one), by.index)
    return _linear(reader, reader.index(one), reader.weights_of(other), -1 if bias is None else reader.whole(bias))


def _linear(reader: Reader, index: Tensor, table: Tensor, bias: int) -> Values:
    """(2, K, I) times (2, I, O), or as many times each as the weights are repeated."""
    shape, copies = index.shape, table.reshape(2, -1, *table.shape[1:])
    demand(torch.equal(copies, copies[:, :1].expand_as(copies)) and (bias < 0 or copies.shape[1] == 1))
    index, table = index.reshape(2, -1, shape[2]), copies[:, 0]
    of = owners(index)
    demand(torch.equal(of, of[:, :, :1].expand_as(of)))
    lines, (inputs, outputs) = reader.lines.read(index), table.shape[1:]
    # Whether the numbers of an input follow one another, as in `x @ weight`.
    turned = min(inputs, outputs) > 1 and int(table[0, 0, 1] - table[0, 0, 0]) == 1
    weight = reader.whole_of(table if turned else table.transpose(1, 2))
    sizes = len(lines) // inputs, inputs, outputs, int(turned)
    layer = Layer("linear", (lines,), sizes[0] * outputs, weight, bias, sizes=sizes)
    found = reader.lines.emit(layer, of[:, :, :1].expand(-1, -1, outputs))
    return Values(found.view(*shape[:2], outputs))


def _by_fixed(reader: Reader, node: fx.Node, one: Any, other: Any) -> Values:
    """What samples (2 * K, I) of both rows have times a matrix (I, O) that is not trained."""
    index, by = reader.index(one), reader.found[other]
    demand(isinstance(by, Constant))
    found = _linear(reader, index.view(2, -1, index.shape[1]), reader.fix(by.index).index, -1)
    return Values(found.index.flatten(0, 1))


def _product(reader: Reader, one: Tensor, other: Tensor) -> Values:
    """(Z, I, K) times (Z, K, J), of which each sample has as many as the other."""
    of = owners(one)[:, :1, :1]
    demand(torch.equal(owners(one), of.expand_as(one)) and torch.equal(owners(other), of.expand_as(other)))
    reads = reader.lines.read(one), reader.lines.read(other)
    (_, height, inner), width = one.shape, other.shape[2]
    sizes = len(reads[0]) // (height * inner), height, inner, width
    layer = Layer("product", reads, sizes[0] * height * width, sizes=sizes)
    return reader.emit(layer, of.expand(-1, height, width))


def _unfolded(reader: Reader, node: fx.Node, given: Any, windows: Any) -> Unfolded:
    index = reader.index(given)
    demand(index.dim() == 5 and reader.lines.order(owners(index)) is None)
    return Unfolded(reader.lines.read(index), Windows(*windows), tuple(index.shape[1:]))


def _convolved(reader: Reader, node: fx.Node, filters: Any, read: Unfolded, bias: Any) -> Values:
    rows, channels, places = value_of(node).shape
    weight, biases = reader.whole(filters), -1 if bias is None else reader.whole(bias)
    outputs = channels * places // reader.samples
    layer = Layer("convolution", (read.lines,), outputs, weight, biases, windows=read.windows, shape=read.shape)
    of = torch.arange(rows * reader.samples).view(rows, 1, 1, -1)
    return reader.emit(layer, of.expand(-1, channels, places // reader.samples, -1).reshape(value_of(node).shape))


def _largest(reader: Reader, node: fx.Node, given: Any, windows: Any) -> Values:
    read, found = _unfolded(reader, node, given, windows), value_of(node)
    layer = Layer("pooling", (read.lines,), found[0, 0].numel(), windows=read.windows, shape=read.shape)
    return reader.emit(layer, reader.samples_of(found.shape))


# Tables, by whole numbers among the inputs.


MOST_ROWS = 1 << 24
"""Of a table: their numbers are exact in single precision."""


def _copied(reader: Reader, node: fx.Node, given: Any, *, dtype: torch.dtype) -> Found:
    codes = reader.found[given]
    if isinstance(codes, Codes):
        demand(not codes.cut and dtype in (torch.int64, torch.int32, torch.float32, torch.float64))
        return Values(codes.index) if dtype.is_floating_point else codes
    demand(dtype == torch.int64)
    return Codes(reader.index(given), cut=True)


def _looked_up(reader: Reader, node: fx.Node, tables: Any, given: Any, padding: int | None) -> Found:
    codes = reader.found[given]
    if isinstance(codes, Constant):  # the places of a sequence, say
        index = reader.weights_of(tables)
        return Weights(torch.stack([own[places.long()] for own, places in zip(index, codes.index, strict=True)]))
    demand(isinstance(codes, Codes))
    weight, (rows, width) = reader.whole(tables), value_of(tables).shape[1:]
    demand(rows <= MOST_ROWS)
    lines, of = reader.lines.read(codes.index), owners(codes.index)
    sizes = rows, width, -1 if padding is None else padding
    layer = Layer("embedding", (lines,), len(lines) * width, weight, sizes=sizes)
    return reader.emit(layer, of[..., None].expand(*of.shape, width))


# Sums and products of numbers, with others or with weights.


def _added(reader: Reader, node: fx.Node, one: Any, other: Any) -> Found:
    if not isinstance(other, fx.Node):
        return _scaled(reader, node, one, 1.0, other)
    one, other = _sorted(reader, one, other)
    return _joined(reader, "add", "shift", reader.index(one), reader.found[other])


def _subtracted(reader: Reader, node: fx.Node, one: Any, other: Any) -> Found:
    if not isinstance(other, fx.Node):
        return _scaled(reader, node, one, 1.0, -other)
    if isinstance(reader.found[one], Values):
        return _joined(reader, "add", "shift", reader.index(one), reader.found[other], scale=-1.0)
    return _joined(reader, "add", "shift", _scaled(reader, node, other, -1.0).index, reader.found[one])


def _times(reader: Reader, node: fx.Node, one: Any, other: Any) -> Found:
    if not isinstance(other, fx.Node):
        return _scaled(reader, node, one, other)
    one, other = _sorted(reader, one, other)
    return _joined(reader, "multiply", "weigh", reader.index(one), reader.found[other])


def _divided(reader: Reader, node: fx.Node, one: Any, by: Any) -> Found:
    if not isinstance(by, fx.Node):
        return _scaled(reader, node, one, 1 / by)
    found = reader.found[by]
    if isinstance(found, Constant):
        return _told(reader, "weigh", reader.index(one), 1 / found.index)
    return _joined(reader, "multiply", "weigh", _each(reader, "reciprocal", by).index, reader.found[one])


def _power(reader: Reader, node: fx.Node, given: Any, exponent: float) -> Found:
    if exponent in _ROOTS:
        return _each(reader, _ROOTS[exponent], given)
    demand(exponent in (2, 3))
    square = _joined(reader, "multiply", "weigh", reader.index(given), reader.found[given])
    return square if exponent == 2 else _joined(reader, "multiply", "weigh", square.index, reader.found[given])


_ROOTS = {0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}


def _masked(reader: Reader, node: fx.Node, given: Any, mask: Any, value: float) -> Values:
    """Whatever stands where a constant mask does."""
    found = reader.found[mask]
    demand(isinstance(found, Constant))
    kept = _told(reader, "weigh", reader.index(given), torch.where(found.index, 0.0, 1.0))
    return _told(reader, "shift", kept.index, torch.where(found.index, value, 0.0))


def _sorted(reader: Reader, one: Any, other: Any) -> tuple[Any, Any]:
    """Lines first."""
    return (one, other) if isinstance(reader.found[one], Values) else (other, one)


def _joined(reader: Reader, kind: str, by_weights: str, index: Tensor, by: Found, scale: float = 1.0) -> Values:
    """What lines and something else give, times a scale, either repeated to have one shape."""
    if isinstance(by, Constant):
        return _told(reader, by_weights, index, by.index * scale)
    if isinstance(by, Drawn):
        demand(kind == "multiply")
        return _dropped(reader, index, by)
    demand(isinstance(by, Values | Weights))
    index, beside = _alike(index, by.index)
    if isinstance(by, Weights):
        return reader.weighed(by_weights, index, beside, scale)
    of, lines = owners(index), reader.lines.read(index)
    demand(torch.equal(of, owners(beside)))
    return reader.emit(Layer(kind, (lines, reader.lines.read(beside)), len(lines), scale=scale), of)


def _told(reader: Reader, kind: str, index: Tensor, values: Tensor) -> Values:
    """Lines that are weighed or shifted by constants."""
    demand(values.is_floating_point())
    index, values = _alike(index, values)
    of, lines = owners(index), reader.lines.read(index)
    return reader.emit(Layer(kind, (lines,), len(lines), values=reader.lines.of_samples(of, values).clone()), of)


def _scaled(reader: Reader, node: fx.Node, given: Any, scale: Any = 1.0, shift: Any = 0.0) -> Any:
    found = reader.found.get(given)
    if isinstance(found, Drawn):
        demand(shift == 0)
        return replace(found, scale=found.scale * scale)
    return _each(reader, "scale", given, scale=float(scale), shift=float(shift))


def _each(reader: Reader, kind: str, given: Any, scale: float = 1.0, shift: float = 0.0) -> Values:
    """A layer that makes one number of one."""
    index = reader.index(given)
    lines = reader.lines.read(index)
    return reader.emit(Layer(kind, (lines,), len(lines), scale=scale, shift=shift), owners(index))


# Dropout.


def _noise(
    reader: Reader, node: fx.Node, keys: Any, elements: Any, odds: float, shape: Any, axis: int, dtype: Any
) -> Drawn:
    drawn = reader.found[elements]
    demand(isinstance(drawn, Constant))
    numbers = reader.lines.numbered(range(drawn.index.numel()))
    if axis != 1:
        others = [size for place, size in enumerate(shape) if place not in (0, axis)]
        return Drawn(numbers.view(2, reader.samples, *others).movedim(1, axis), drawn.index, odds)
    return Drawn(numbers.view(shape), drawn.index, odds)


def _dropped(reader: Reader, index: Tensor, by: Drawn) -> Values:
    index, drawn = _alike(index, by.index)
    of, lines, dropped = owners(index), reader.lines.read(index), round((1 - by.odds) * 2**32)
    demand(dropped < 2**32 and torch.equal(of, owners(drawn)))
    elements = by.elements[reader.lines.of_samples(of, drawn % OWNER)].to(torch.int32)
    return reader.emit(Layer("dropout", (lines,), len(lines), scale=by.scale, dropped=dropped, elements=elements), of)


# Groups of numbers.


def _grouped(reader: Reader, kind: str, index: Tensor, dims: int = 1, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """A layer whose groups are the last dimensions of what it reads; a sum has one number of each."""
    lines, of = reader.lines.read(index), owners(index)
    grouped = of.flatten(index.dim() - dims)
    demand(torch.equal(grouped, grouped[..., :1].expand_as(grouped)))
    sizes = len(lines) // grouped.shape[-1], grouped.shape[-1]
    outputs, of = (sizes[0], grouped[..., 0]) if kind == "sum" else (len(lines), of)
    return reader.lines.emit(Layer(kind, (lines,), outputs, sizes=sizes, scale=scale, shift=shift), of)


def _softmax(kind: str, *, safe: bool = False) -> Operation:
    def read(reader: Reader, node: fx.Node, given: Any, dim: int, to_float: bool = False) -> Values:
        demand(not to_float)
        return Values(_grouped(reader, kind, reader.index(given).movedim(dim, -1), shift=float(safe)).movedim(-1, dim))

    return read


def _layer_norm(
    reader: Reader, node: fx.Node, given: Any, shape: Any, weight: Any, bias: Any, eps: float
) -> list[Values]:
    demand(weight is None and bias is None)
    return [Values(_grouped(reader, "normalize", reader.index(given), len(shape), shift=eps))]


def _group_norm(reader: Reader, node: fx.Node, given: Any, weight: Any, bias: Any, *sizes: Any) -> list[Values]:
    samples, channels, places, groups, eps = sizes
    demand(weight is None and bias is None)
    index = reader.index(given)
    grouped = index.reshape(samples, groups, channels // groups * places)
    return [Values(_grouped(reader, "normalize", grouped, shift=eps).view(index.shape))]


def _batch_norm(
    reader: Reader, node: fx.Node, given: Any, mean: Any, variance: Any, batches: Any, weight: Any, bias: Any, *how: Any
) -> Values:
    """Of (2, N, C, ...), where N are all samples of a row, each as often as the others."""
    fixed, momentum, epsilon = how
    index = reader.index(given).movedim(2, 1)
    of = owners(index)
    demand(torch.equal(of, of[:, :1].expand_as(of)))
    demand(torch.equal(of[:, 0].flatten(1) // reader.samples, torch.arange(2)[:, None].expand(2, of[0, 0].numel())))
    kept = [reader.whole(own) for own in (mean, variance, batches)]
    demand(kept == [*range(kept[0], kept[0] + 3)])
    weight, bias = (-1 if own is None else reader.whole(own) for own in (weight, bias))
    lines, channels = reader.lines.read(index), index.shape[1]
    sizes = channels, len(lines) // channels, kept[0], int(fixed)
    layer = Layer("batch_norm", (lines,), len(lines), weight, bias, sizes=sizes, scale=momentum, shift=epsilon)
    return Values(reader.lines.emit(layer, of).movedim(1, 2))


def _mean(reader: Reader, node: fx.Node, given: Any, dims: Any, keep: bool = False) -> Values:
    return _summed(reader, node, given, dims, keep, mean=True)


def _summed(reader: Reader, node: fx.Node, given: Any, dims: Any, keep: bool = False, *, mean: bool = False) -> Values:
    index = reader.index(given)
    moved = index.movedim([*dims], [*range(-len(dims), 0)])
    scale = 1 / math.prod(moved.shape[-len(dims) :]) if mean else 1.0
    return Values(_grouped(reader, "sum", moved, len(dims), scale).reshape(value_of(node).shape))


def _average_pool(reader: Reader, node: fx.Node, given: Any, kernel: Any, stride: Any = (), *more: Any) -> Values:
    demand(all(own in ([0], [0, 0], False) for own in more[:2]))  # no padding, none at the end
    size, steps = images.pair(tuple(kernel)), images.pair(tuple(stride or kernel))
    windows = reader.index(given).unfold(-2, size[0], steps[0]).unfold(-2, size[1], steps[1])
    return Values(_grouped(reader, "sum", windows, 2, 1 / math.prod(size)))


def _adaptive_pool(reader: Reader, node: fx.Node, given: Any, outputs: Sequence[int]) -> Values:
    size = value_of(given).shape[-2:]
    demand(not any(one % own for one, own in zip(size, outputs, strict=True)))
    return _average_pool(reader, node, given, [one // own for one, own in zip(size, outputs, strict=True)])


def _alike(one: Tensor, other: Tensor) -> list[Tensor]:
    """Both of one shape, repeated."""
    return list(torch.broadcast_tensors(one, other))  # type: ignore[no-untyped-call]  # torch's own


def _function(kind: str) -> Operation:
    return lambda reader, node, given: _each(reader, kind, given)


def _gelu(reader: Reader, node: fx.Node, given: Any, *, approximate: str = "none") -> Values:
    return _each(reader, "gelu" if approximate == "none" else "gelu_tanh", given)


def _softplus(reader: Reader, node: fx.Node, given: Any, beta: float = 1.0, threshold: float = 20.0) -> Values:
    demand(beta == 1 and threshold >= 20)  # above which torch's is x itself, and ours is to rounding
    return _each(reader, "softplus", given)


def _hardtanh(reader: Reader, node: fx.Node, given: Any, low: float = -1.0, high: float = 1.0) -> Values:
    return _each(reader, "hardtanh", given, low, high)


def _clamp(reader: Reader, node: fx.Node, given: Any, low: float | None = None, high: float | None = None) -> Values:
    return _each(reader, "clamp", given, -math.inf if low is None else low, math.inf if high is None else high)


def _leaky_relu(reader: Reader, node: fx.Node, given: Any, slope: float = 0.01) -> Values:
    return _each(reader, "leaky_relu", given, float(slope))


def _elu(reader: Reader, node: fx.Node, given: Any, alpha: float = 1.0, *scales: float) -> Values:
    demand(all(own == 1 for own in scales))
    return _each(reader, "elu", given, float(alpha))


_FUNCTIONS = (
    *("relu", "tanh", "sigmoid", "silu", "mish", "hardswish"),
    *("exp", "log", "sqrt", "rsqrt", "reciprocal", "abs"),
)
_OPERATIONS: dict[Any, Operation] = {
    aten._to_copy.default: _copied,
    looked_up: _looked_up,
    aten.baddbmm.default: _biased,
    aten.bmm.default: _multiplied,
    aten.mm.default: _by_fixed,
    images.unfold: _unfolded,
    images.largest: _largest,
    normed: _batch_norm,
    noise: _noise,
    aten.add.Tensor: _added,
    aten.add.Scalar: _added,
    aten.sub.Tensor: _subtracted,
    aten.sub.Scalar: _subtracted,
    aten.mul.Tensor: _times,
    aten.mul.Scalar: _times,
    aten.div.Tensor: _divided,
    aten.div.Scalar: _divided,
    aten.neg.default: lambda reader, node, given: _scaled(reader, node, given, -1.0),
    aten.rsub.Scalar: lambda reader, node, given, of: _scaled(reader, node, given, -1.0, of),
    aten._softmax.default: _softmax("softmax"),
    aten._safe_softmax.default: _softmax("softmax", safe=True),
    aten._log_softmax.default: _softmax("log_softmax"),
    aten.native_layer_norm.default: _layer_norm,
    aten.native_group_norm.default: _group_norm,
    aten.sum.dim_IntList: _summed,
    aten.mean.dim: _mean,
    aten.avg_pool2d.default: _average_pool,
    aten._adaptive_avg_pool2d.default: _adaptive_pool,
    aten.leaky_relu.default: _leaky_relu,
    aten.elu.default: _elu,
    aten.gelu.default: _gelu,
    aten.softplus.default: _softplus,
    aten.hardtanh.default: _hardtanh,
    aten.clamp.default: _clamp,
    aten.clamp_min.default: _clamp,
    aten.pow.Tensor_Scalar: _power,
    aten.masked_fill.Scalar: _masked,
    **{getattr(aten, kind).default: _function(kind) for kind in _FUNCTIONS},
}
