"""A model's forward pass as layers that `network.c` computes: how torch's operations are read."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from tunecli.engine.rowwise.choices import CHOICES
from tunecli.engine.rowwise.dropout import noise
from tunecli.engine.rowwise.elementwise import ELEMENTWISE
from tunecli.engine.rowwise.layers import OWNER, Layer, Layers, Unread, demand, is_of_all, owners
from tunecli.engine.rowwise.normed import normed
from tunecli.engine.rowwise.pictures import PICTURES, convolved
from tunecli.engine.rowwise.pieces import combined, each, group, join, together
from tunecli.engine.rowwise.reader import (
    Arguments,
    Codes,
    Constant,
    Drawn,
    Found,
    Mask,
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
    by, of = reader.found[other], reader.found[one]
    if isinstance(by, Values) and isinstance(of, Weights | Constant) and not is_of_all(by.index):
        demand(bias is None)
        return Values(_turned(reader, of, by.index))
    if isinstance(by, Unfolded):
        return convolved(reader, node, one, by, bias)
    if isinstance(by, Values) and not (is_of_all(by.index) and len(by.index) == 2):
        found = _product(reader, reader.index(one), by.index)
        return found if bias is None else Values(combined(reader, "add", found.index, reader.found[bias]))
    return _linear(reader, reader.index(one), reader.weights_of(other), -1 if bias is None else reader.whole(bias))


def _turned(reader: Reader, one: Weights | Constant, index: Tensor) -> Tensor:
    """A matrix (I, K) times what samples have, (Z, K, J), as that times the matrix."""
    if isinstance(one, Constant):
        demand(torch.equal(one.index, one.index[:1].expand_as(one.index)))
        one = reader.fix(one.index[0])
    return _linear(reader, index.transpose(1, 2), one.index.transpose(1, 2), -1).index.transpose(1, 2)


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
    firsts = together(reader, one[:, :1, :1], other[:, :1, :1])
    demand(all(torch.equal(owners(own), owners(own)[:, :1, :1].expand_as(own)) for own in (one, other)))
    of = owners(firsts[0])
    one, other = (own % OWNER + of * OWNER for own in (one, other))
    reads = reader.lines.read(one), reader.lines.read(other)
    (_, height, inner), width = one.shape, other.shape[2]
    sizes = len(reads[0]) // (height * inner), height, inner, width
    layer = Layer("product", reads, sizes[0] * height * width, sizes=sizes)
    return reader.emit(layer, of.expand(-1, height, width))


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


# Groups of numbers.


def _softmax(kind: str, *, safe: bool = False) -> Operation:
    def read(reader: Reader, node: fx.Node, given: Any, dim: int, to_float: bool = False) -> Values:
        demand(not to_float)
        return Values(group(reader, kind, reader.index(given).movedim(dim, -1), shift=float(safe)).movedim(-1, dim))

    return read


def _layer_norm(
    reader: Reader, node: fx.Node, given: Any, shape: Any, weight: Any, bias: Any, eps: float
) -> list[Values]:
    demand(weight is None and bias is None)
    return [Values(group(reader, "normalize", reader.index(given), len(shape), shift=eps))]


def _group_norm(reader: Reader, node: fx.Node, given: Any, weight: Any, bias: Any, *sizes: Any) -> list[Values]:
    samples, channels, places, groups, eps = sizes
    demand(weight is None and bias is None)
    index = reader.index(given)
    grouped = index.reshape(samples, groups, channels // groups * places)
    return [Values(group(reader, "normalize", grouped, shift=eps).view(index.shape))]


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
    demand(not any(own is not None and isinstance(reader.found[own], Values) for own in (weight, bias)))
    weight, bias = (-1 if own is None else reader.whole(own) for own in (weight, bias))
    lines, channels = reader.lines.read(index), index.shape[1]
    sizes = channels, len(lines) // channels, kept[0], int(fixed)
    layer = Layer("batch_norm", (lines,), len(lines), weight, bias, sizes=sizes, scale=momentum, shift=epsilon)
    return Values(reader.lines.emit(layer, of).movedim(1, 2))


def _mean(reader: Reader, node: fx.Node, given: Any, dims: Any, keep: bool = False) -> Found:
    return _summed(reader, node, given, dims, keep, mean=True)


def _summed(
    reader: Reader, node: fx.Node, given: Any, dims: Any, keep: bool = False, *, mean: bool = False, **how: Any
) -> Found:
    found = reader.found[given]
    index = found.index if isinstance(found, Mask | Codes) else reader.index(given)
    moved = index.movedim([*dims], [*range(-len(dims), 0)])
    scale = 1 / math.prod(moved.shape[-len(dims) :]) if mean else 1.0
    counted = group(reader, "sum", moved, len(dims), scale).reshape(value_of(node).shape)
    return Codes(counted) if isinstance(found, Mask | Codes) else Values(counted)


def _spread(power: float) -> Operation:
    """The variance, or the standard deviation: of what is all the same that has no gradient."""

    def read(
        reader: Reader,
        node: fx.Node,
        given: Any,
        dims: Any = None,
        *,
        correction: float | None = None,
        keepdim: bool = False,
    ) -> Values:
        demand(bool(dims))
        moved = reader.index(given).movedim([*dims], [*range(-len(dims), 0)]).flatten(-len(dims))
        count, less = moved.shape[-1], 1.0 if correction is None else float(correction)
        mean = group(reader, "sum", moved, scale=1 / count).unsqueeze(-1)
        off = join(reader, "add", moved, mean, -1.0)
        found = group(reader, "sum", join(reader, "multiply", off, off), scale=1 / (count - less))
        found = found if power == 1 else each(reader, "sqrt", found, shift=1.0)
        return Values(found.reshape(value_of(node).shape))

    return read


def _running_sum(reader: Reader, node: fx.Node, given: Any, dim: int) -> Values:
    index = reader.index(given).movedim(dim, -1)
    matrix = torch.ones(index.shape[-1], index.shape[-1], dtype=torch.float64).triu()
    found = _linear(reader, index.reshape(2, -1, len(matrix)), reader.fix(matrix).index, -1).index
    return Values(found.view(index.shape).movedim(-1, dim))


def _log_of_sum(reader: Reader, node: fx.Node, given: Any, dims: Any, keep: bool = False) -> Values:
    moved = reader.index(given).movedim([*dims], [*range(-len(dims), 0)]).flatten(-len(dims))
    largest, kind = group(reader, "maximum", moved), torch.finfo(value_of(node).dtype)
    most = each(reader, "clamp", largest, kind.min, kind.max)  # of -inf alone, too, from which nothing is subtracted
    shares = each(reader, "exp", join(reader, "add", moved, most.unsqueeze(-1), -1.0))
    total = each(reader, "clamp", group(reader, "sum", shares), kind.tiny, math.inf)
    found = join(reader, "add", each(reader, "log", total), most)
    found = join(reader, "mask", found, each(reader, "equal", largest, shift=-math.inf), -math.inf)
    return Values(found.reshape(value_of(node).shape))


def _norm(
    reader: Reader, node: fx.Node, given: Any, order: float = 2, dims: Any = None, keep: bool = False, **how: Any
) -> Values:
    """The length of vectors; of one that is zero it has no gradient."""
    demand(order == 2 and bool(dims))
    index = reader.index(given)
    moved = join(reader, "multiply", index, index).movedim([*dims], [*range(-len(dims), 0)])
    return Values(each(reader, "sqrt", group(reader, "sum", moved, len(dims)), shift=1.0).reshape(value_of(node).shape))


def _maximum(reader: Reader, node: fx.Node, given: Any, dim: int, keep: bool = False) -> list[Values]:
    """The gradient goes to one, which the second of what torch gives tells of."""
    found = group(reader, "maximum", reader.index(given).movedim(dim, -1))
    return [Values(found.unsqueeze(dim) if keep else found)]


def _maximum_of(reader: Reader, node: fx.Node, given: Any, dims: Any = (), keep: bool = False) -> Values:
    index = reader.index(given)
    moved = index.movedim([*dims], [*range(-len(dims), 0)])
    return Values(group(reader, "maximum", moved, len(dims), shift=1.0).reshape(value_of(node).shape))


_OPERATIONS: dict[Any, Operation] = {
    **CHOICES,
    **ELEMENTWISE,
    **PICTURES,
    aten.baddbmm.default: _biased,
    aten.bmm.default: _multiplied,
    aten.mm.default: _by_fixed,
    normed: _batch_norm,
    noise: _noise,
    aten._softmax.default: _softmax("softmax"),
    aten._safe_softmax.default: _softmax("softmax", safe=True),
    aten._log_softmax.default: _softmax("log_softmax"),
    aten.native_layer_norm.default: _layer_norm,
    aten.native_group_norm.default: _group_norm,
    aten.sum.dim_IntList: _summed,
    aten.mean.dim: _mean,
    aten.linalg_vector_norm.default: _norm,
    aten.var.correction: _spread(1),
    aten.std.correction: _spread(0.5),
    aten.cumsum.default: _running_sum,
    aten.logsumexp.default: _log_of_sum,
    aten.max.dim: _maximum,
    aten.amax.default: _maximum_of,
}
