"""Convolutions as `network.c` computes them: by which number of an image each weight of a filter is multiplied.

An image with zeros around it has the numbers of all windows already, and they lie the same way for each window.
Unfolded they would be nine times as many for a kernel of 3x3, and far from the core.
"""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from tunecli.engine.rowwise.compiled import WindowsOver, windows_over
from tunecli.engine.rowwise.images import Windows
from tunecli.engine.rowwise.layers import Layer


class Taps(ctypes.Structure):
    """`struct taps` of the source, over padded images. It keeps the tensors that it tells of."""

    _fields_ = (
        *((name, ctypes.c_ssize_t) for name in ("count", "stripes")),
        *((name, ctypes.c_void_p) for name in ("of", "starts")),
    )

    def __init__(self, over: WindowsOver, weights: Tensor, stripe: int) -> None:
        """`weights` are the numbers of a filter's, by channel and place of the kernel; a `stripe` has so many."""
        height, width = _padded(over)
        (down, right), (below, beside) = over.dilation, over.stride
        pixels = _places((over.channels, height * width), (over.kernel[0], down * width), (over.kernel[1], right))
        outputs = _places((over.out_height, below * width), (over.out_width, beside)) * over.samples
        self._of = torch.stack([weights, pixels * over.samples], 1)
        self._starts = (outputs[:, None] + torch.arange(0, over.samples, stripe)).flatten()
        super().__init__(len(self._of), len(self._starts), self._of.data_ptr(), self._starts.data_ptr())


def taps_of(layer: Layer, stripe: int) -> Taps:
    """Of a convolution."""
    over = windows_of(layer)
    return Taps(over, torch.arange(over.channels * math.prod(over.kernel)), stripe)


def taps_back(layer: Layer, over: WindowsOver, stripe: int) -> Taps:
    """The same `over` the gradient of its outputs, of the weights of its first channel in all filters."""
    weights = torch.arange(over.channels * layer.shape[1] * math.prod(over.kernel))
    return Taps(over, weights.view(over.channels, layer.shape[1], -1)[:, 0].flip(1).flatten(), stripe)


def windows_of(layer: Layer) -> WindowsOver:
    """Those of a convolution over its images."""
    assert layer.windows is not None
    return windows_over(layer.shape, layer.windows)


def windows_back(layer: Layer) -> WindowsOver | None:
    """Those over the gradient of a convolution's outputs: by the same filters, turned round, they give the gradient of
    its images. There are none where windows step over pixels."""
    assert layer.windows is not None
    kernel, stride, padding, dilation = layer.windows
    top, left = (d * (k - 1) - p for k, p, d in zip(kernel, padding, dilation, strict=True))
    if stride != (1, 1) or min(top, left) < 0:
        return None
    over = windows_of(layer)
    groups, filters = layer.sizes
    shape = over.samples, filters // groups, over.out_height, over.out_width
    return windows_over(shape, Windows(kernel, stride, (top, left), dilation))


def padded_numbers(over: WindowsOver) -> int:
    """How many numbers the images have with zeros around them; none where they need no zeros."""
    found: int = over.samples * over.channels * math.prod(_padded(over))
    return found if any(over.padding) else 0


def _padded(over: WindowsOver) -> tuple[int, int]:
    return over.height + 2 * over.padding[0], over.width + 2 * over.padding[1]


def _places(*axes: tuple[int, int]) -> Tensor:
    """So many steps of a length along each axis: how far they lead, those of the last axis one after the other."""
    found = torch.zeros(1, dtype=torch.int64)
    for count, length in axes:
        found = (found[:, None] + torch.arange(count) * length).flatten()
    return found
