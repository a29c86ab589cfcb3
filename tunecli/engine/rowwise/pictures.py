"""Operations on images and their windows, as layers that `network.c` computes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from tunecli.engine.rowwise import images
from tunecli.engine.rowwise.functional import in_groups, transposed
from tunecli.engine.rowwise.images import Pair, Windows
from tunecli.engine.rowwise.layers import Layer, demand, owners
from tunecli.engine.rowwise.pieces import constant, group, told
from tunecli.engine.rowwise.reader import Operation, Reader, Unfolded, Values, value_of

aten = torch.ops.aten

MOST_BLENDED = 1 << 22
"""Of an image's pixels times those of what is blended of them: a matrix that is looked through once."""


def unfolded(reader: Reader, node: fx.Node, given: Any, windows: Any) -> Unfolded:
    index = reader.index(given)
    demand(index.dim() == 5 and reader.lines.order(owners(index)) is None)
    return Unfolded(reader.lines.read(index), Windows(*windows), tuple(index.shape[1:]))


def convolved(reader: Reader, node: fx.Node, filters: Any, read: Unfolded, bias: Any) -> Values:
    rows, channels, places = value_of(node).shape
    weight, biases = reader.whole(filters), -1 if bias is None else reader.whole(bias)
    outputs, over = channels * places // reader.samples, (read.windows, read.shape)
    layer = Layer("convolution", (read.lines,), outputs, weight, biases, (1, channels), *over)
    of = torch.arange(rows * reader.samples).view(rows, 1, 1, -1)
    return reader.emit(layer, of.expand(-1, channels, places // reader.samples, -1).reshape(value_of(node).shape))


def _in_groups(reader: Reader, node: fx.Node, given: Any, filters: Any, bias: Any, windows: Any, groups: int) -> Values:
    read, found = unfolded(reader, node, given, windows), value_of(node).shape
    weight, biases = reader.whole(filters), -1 if bias is None else reader.whole(bias)
    samples, channels, *size = read.shape
    over = read.windows, (samples, channels // groups, *size)
    layer = Layer("convolution", (read.lines,), found[2:].numel(), weight, biases, (groups, found[2]), *over)
    return reader.emit(layer, reader.samples_of(found))


def _transposed(
    reader: Reader, node: fx.Node, given: Any, filters: Any, bias: Any, windows: Any, more: Pair, groups: int
) -> Values:
    read, found = unfolded(reader, node, given, windows), value_of(node).shape
    weight, biases = reader.whole(filters), -1 if bias is None else reader.whole(bias)
    demand(read.windows.outputs((found[3], found[4])) == read.shape[2:])
    over = read.windows, (reader.samples, found[2] // groups, *found[3:])
    layer = Layer("transposed", (read.lines,), found[2:].numel(), weight, biases, (groups, read.shape[1]), *over)
    return reader.emit(layer, reader.samples_of(found))


def _largest(reader: Reader, node: fx.Node, given: Any, windows: Any) -> Values:
    read, found = unfolded(reader, node, given, windows), value_of(node)
    layer = Layer("pooling", (read.lines,), found[0, 0].numel(), windows=read.windows, shape=read.shape)
    return reader.emit(layer, reader.samples_of(found.shape))


def _average_pool(reader: Reader, node: fx.Node, given: Any, kernel: Any, stride: Any = (), *more: Any) -> Values:
    if not all(own in ([0], [0, 0], False) for own in more[:2]):  # padding, or windows beyond the end
        return _blended(reader, node, given, kernel, stride, *more)
    size, steps = images.pair(tuple(kernel)), images.pair(tuple(stride or kernel))
    windows = reader.index(given).unfold(-2, size[0], steps[0]).unfold(-2, size[1], steps[1])
    return Values(group(reader, "sum", windows, 2, 1 / math.prod(size)))


def _adaptive_pool(reader: Reader, node: fx.Node, given: Any, outputs: Sequence[int]) -> Values:
    size = value_of(given).shape[-2:]
    if any(one % own for one, own in zip(size, outputs, strict=True)):
        return _blended(reader, node, given, outputs)
    return _average_pool(reader, node, given, [one // own for one, own in zip(size, outputs, strict=True)])


def _blended(reader: Reader, node: fx.Node, given: Any, *how: Any) -> Values:
    """Each pixel as a sum of others, each times a number that is the same for all images: what an operation makes of
    images of a single one says which."""
    index, found = reader.index(given), value_of(node)
    dims = 1 if node.target in _ALONG_A_LINE else 2
    size, outputs = index.shape[-dims:], found.shape[-dims:]
    pixels = size.numel()
    demand(pixels * outputs.numel() <= MOST_BLENDED)
    target: Any = node.target
    ones = torch.eye(pixels, dtype=torch.float64).view(pixels, 1, *size)
    shares = target(ones, *how, **node.kwargs).view(pixels, -1).T  # (outputs, pixels)
    count = max(1, int((shares != 0).sum(1).max()))
    factors, places = shares.abs().topk(count, 1)
    factors = shares.gather(1, places)
    read = index.flatten(-dims)[..., places]
    return Values(group(reader, "sum", told(reader, "weigh", read, factors)).view(found.shape))


def _placed(reader: Reader, node: fx.Node, given: Any, *how: Any) -> Values:
    """Each pixel is another one: which, an operation on their numbers says."""
    index, found = reader.index(given), value_of(node)
    dims = 1 if node.target in _ALONG_A_LINE else 2
    size, target = index.shape[-dims:], node.target
    assert callable(target)
    numbers = torch.arange(1, size.numel() + 1, dtype=torch.float64).view(1, 1, *size)
    places = target(numbers, *how, **node.kwargs).long().flatten() - 1
    demand(bool((places >= 0).all()))
    return Values(index.flatten(-dims)[..., places].reshape(found.shape))


def _padded(reader: Reader, node: fx.Node, given: Any, around: Sequence[int], value: float = 0.0) -> Values:
    index, beyond = reader.index(given), constant(reader, float(value))
    padded, of = aten.constant_pad_nd(index, around, -1), owners(index)
    for dim in range(len(around) // 2):
        own = of.narrow(-1 - dim, 0, 1)
        demand(torch.equal(of, own.expand_as(of)))
        of = own.expand(*[-1] * (of.dim() - 1 - dim), padded.shape[-1 - dim], *padded.shape[of.dim() - dim :])
    return Values(torch.where(padded < 0, beyond[of], padded))


_ALONG_A_LINE = (
    aten.upsample_linear1d.default,
    aten.upsample_nearest1d.default,
    aten.reflection_pad1d.default,
    aten.replication_pad1d.default,
)
PICTURES: dict[Any, Operation] = {
    images.unfold: unfolded,
    images.largest: _largest,
    in_groups: _in_groups,
    transposed: _transposed,
    aten.avg_pool2d.default: _average_pool,
    aten._adaptive_avg_pool2d.default: _adaptive_pool,
    aten.constant_pad_nd.default: _padded,
    aten.upsample_bilinear2d.default: _blended,
    aten.im2col.default: _placed,
    aten.upsample_nearest2d.default: _placed,
    aten.reflection_pad2d.default: _placed,
    aten.replication_pad2d.default: _placed,
    **dict.fromkeys(_ALONG_A_LINE, _placed),
    aten.upsample_linear1d.default: _blended,
}
