"""What a graph can have computed in C of our own: windows by `images.c`, losses by `losses.c`."""

from __future__ import annotations

import ctypes
import math
from functools import cache

from torch import Tensor

from tunecli.engine.compiler import library
from tunecli.engine.rowwise import images
from tunecli.engine.rowwise.images import Windows, innermost, outermost


class WindowsOver(ctypes.Structure):
    """`struct windows` of the source."""

    _fields_ = (
        *((name, ctypes.c_ssize_t) for name in ("channels", "samples", "height", "width", "out_height", "out_width")),
        *((name, ctypes.c_ssize_t * 2) for name in ("kernel", "stride", "padding", "dilation")),
    )

    @property
    def unfolded(self) -> int:
        """How many numbers the windows of one sample have."""
        found: int = self.channels * self.kernel[0] * self.kernel[1] * self.out_height * self.out_width
        return found


@cache
def windows_over(shape: tuple[int, ...], windows: Windows) -> WindowsOver:
    """Windows over images of `shape` (m, C, H, W)."""
    samples, channels, *size = shape
    outputs = windows.outputs((size[0], size[1]))
    return WindowsOver(
        channels, samples, *size, *outputs, windows.kernel, windows.stride, windows.padding, windows.dilation
    )


def unfold(images: Tensor, windows: Windows) -> Tensor:
    rows, shape = len(images), images.shape[1:]
    pixels = innermost(images[:1] if images.stride(0) == 0 else images).contiguous()
    size = math.prod(windows.outputs((shape[2], shape[3]))) * shape[0]
    found = pixels.new_empty(len(pixels), shape[1] * math.prod(windows.kernel), size)
    how = ctypes.byref(windows_over(shape, windows))
    library(found.dtype).unfold(how, len(pixels), pixels.data_ptr(), found.data_ptr())
    return found if len(pixels) == rows else found.expand(rows, -1, -1)


def fold(unfolded: Tensor, windows: Windows, shape: tuple[int, ...]) -> Tensor:
    rows, samples, *each = shape
    unfolded = unfolded.contiguous()
    found = unfolded.new_empty(rows, *each, samples)
    how = ctypes.byref(windows_over(shape[1:], windows))
    library(found.dtype).fold(how, rows, unfolded.data_ptr(), found.data_ptr())
    return outermost(found)


def largest(inputs: Tensor, windows: Windows) -> Tensor:
    pixels = innermost(inputs).contiguous()
    rows, channels, *size, samples = pixels.shape
    found = pixels.new_empty(rows, channels, *windows.outputs((size[0], size[1])), samples)
    how = ctypes.byref(windows_over(inputs.shape[1:], windows))
    library(found.dtype).largest(how, rows, pixels.data_ptr(), found.data_ptr())
    return outermost(found)


def to_largest(gradient: Tensor, inputs: Tensor, outputs: Tensor, windows: Windows) -> Tensor:
    given, pixels, maxima = (innermost(own).contiguous() for own in (gradient, inputs, outputs))
    found = pixels.new_empty(pixels.shape)
    how = ctypes.byref(windows_over(inputs.shape[1:], windows))
    pointers = (own.data_ptr() for own in (given, pixels, maxima, found))
    library(found.dtype).to_largest(how, len(pixels), *pointers)
    return outermost(found)


class _Outputs(ctypes.Structure):
    """`struct outputs` of the source."""

    _fields_ = tuple((name, ctypes.c_ssize_t) for name in ("rows", "classes", "samples", "row", "class", "sample"))


def cross_entropy(outputs: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """outputs (B, m, C), targets and what each sample counts (B, m) -> (B, C + 1, m): the gradient, times what a sample
    counts, of each class, and the losses."""
    rows, samples, classes = outputs.shape
    targets, counts = targets.contiguous(), counts.contiguous()
    found = outputs.new_empty(rows, classes + 1, samples)
    by_row, by_sample, by_class = outputs.stride()
    how = ctypes.byref(_Outputs(rows, classes, samples, by_row, by_class, by_sample))
    pointers = (own.data_ptr() for own in (outputs, targets, counts, found))
    library(found.dtype).cross_entropy(how, None, *pointers)
    return found


COMPILED = {images.unfold: unfold, images.fold: fold, images.largest: largest, images.to_largest: to_largest}
"""The same to the bit, by what they stand for in a graph; only where a window holds NaN its gradient is another."""
