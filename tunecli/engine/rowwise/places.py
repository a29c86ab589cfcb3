"""Where the lines of a network lie: an activation's over those that it reads, where nobody needs these any more."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from tunecli.engine.rowwise.layers import Layer

_BY_OUTPUTS = frozenset(("relu", "elu", "tanh", "sigmoid", "exp", "sqrt", "rsqrt", "reciprocal"))
"""Layers whose gradient is had from what they give alone."""

_BY_INPUTS = frozenset(
    (
        *("linear", "convolution", "transposed", "embedding", "product", "add", "multiply", "weigh", "shift", "sum"),
        "batch_norm",
    )
)
"""And those that do without."""


def places_of(layers: Sequence[Layer], inputs: int) -> tuple[Tensor, int]:
    """The place of each line, in lines, and where they end."""
    ends = [*accumulate((layer.outputs for layer in layers), initial=inputs)]
    places, read, end = torch.arange(ends[-1]), torch.zeros(ends[-1], dtype=torch.int64), inputs
    for layer in layers:
        for lines in layer.reads:
            read[lines.start : lines.stop] += 1
        if layer.kind == "gather":
            assert layer.elements is not None
            read.index_add_(0, layer.elements.long(), torch.ones(layer.outputs, dtype=torch.int64))
    spared = {
        range(start, stop)
        for layer, start, stop in zip(layers, ends, ends[1:], strict=False)
        if layer.kind in _BY_INPUTS and bool((read[start:stop] == 1).all())
    }
    for layer, start, stop in zip(layers, ends, ends[1:], strict=False):
        if layer.kind in _BY_OUTPUTS and layer.reads[0] in spared:
            places[start:stop] = places[layer.reads[0].start : layer.reads[0].stop]
        else:
            places[start:stop] = torch.arange(end, end + layer.outputs)
            end += layer.outputs
    return places, end
