"""Convolutions and pooling of small images, for all rows at once: on (B, m, C, H, W), B rows with m samples each.

In memory the samples lie innermost, (B, C, H, W, m), as cuda-convnet had them: every pass but the first runs over whole
vectors however small an image and however few its channels are, and a convolution is one product for all samples of a
row. vmap would make it a grouped convolution, of which oneDNN works off one image and group after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tunecli.engine.forward import watch
from tunecli.engine.rowwise.called import called

SMALL = 4096
"""Numbers that the windows of a sample are unfolded into, up to which a convolution by rules beats one by oneDNN."""

SMALL_IN_C = 131_072
"""And up to which one in C does, a row after the other: it takes 0.6 of the time at 74,000 and 0.5 to 1.0 at 147,000,
least where filters are few; with AVX2, where torch has that too, 0.9 and 0.7 to 1.2."""


Pair = tuple[int, int]


def pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else tuple(value)


class Windows(NamedTuple):
    """Where a kernel lies over an image (H, W) at each place of its outputs (Ho, Wo)."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair = (1, 1)

    def outputs(self, size: Pair) -> Pair:
        """(Ho, Wo) for an image (H, W)."""
        ends = zip(size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in ends)
        return height, width

    def unfold(self, images: Tensor) -> Tensor:
        """(B, C, H, W, m) -> (B, C, kh, kw, Ho, Wo, m), a copy; zeros around the images."""
        rows, channels, *size, samples = images.shape
        if any(self.padding):
            (top, left), (height, width) = self.padding, size
            padded = images.new_zeros(rows, channels, height + 2 * top, width + 2 * left, samples)
            padded[:, :, top : top + height, left : left + width] = images
        else:
            padded = images.contiguous()
        by_row, by_channel, down, right, _ = padded.stride()
        steps = self.dilation[0] * down, self.dilation[1] * right, self.stride[0] * down, self.stride[1] * right
        shape = rows, channels, *self.kernel, *self.outputs((size[0], size[1])), samples
        return padded.as_strided(shape, (by_row, by_channel, *steps, 1)).clone(memory_format=torch.contiguous_format)

    def places(self, size: Pair) -> Iterator[tuple[Pair, tuple[slice, slice], tuple[slice, slice]]]:
        """Each place (i, j) of the kernel, the outputs where it lies on the image, and the pixels under it there."""
        outputs = self.outputs(size)
        for i in range(self.kernel[0]):
            for j in range(self.kernel[1]):
                down, right = (self._along(axis, at, size[axis], outputs[axis]) for axis, at in ((0, i), (1, j)))
                yield (i, j), (down[0], right[0]), (down[1], right[1])

    def _along(self, axis: int, at: int, length: int, outputs: int) -> tuple[slice, slice]:
        stride, first = self.stride[axis], at * self.dilation[axis] - self.padding[axis]
        low = max(0, math.ceil(-first / stride))
        high = max(low, min(outputs, (length - 1 - first) // stride + 1))
        return slice(low, high), slice(low * stride + first, max(0, (high - 1) * stride + first + 1), stride)


def innermost(images: Tensor) -> Tensor:
    """(B, m, C, H, W) -> (B, C, H, W, m), which is how it lies in memory unless it comes from outside."""
    return images.permute(0, 2, 3, 4, 1)


def outermost(images: Tensor) -> Tensor:
    """(B, C, H, W, m) -> (B, m, C, H, W), another view of it."""
    return images.permute(0, 4, 1, 2, 3)


# What a graph calls as it stands; nothing that these return shares memory with what they read.


def unfold(images: Tensor, windows: Windows) -> Tensor:
    """(B, m, C, H, W) -> (B, C * kh * kw, Ho * Wo * m); where all rows read the same images it is done once."""
    shared = images[:1] if images.stride(0) == 0 else images
    found = windows.unfold(innermost(shared))
    return found.view(len(shared), math.prod(found.shape[1:4]), -1).expand(len(images), -1, -1)


def fold(unfolded: Tensor, windows: Windows, shape: tuple[int, ...]) -> Tensor:
    """The sum of what lies at each pixel: images of `shape` (B, m, C, H, W)."""
    rows, samples, channels, height, width = shape
    split = unfolded.view(rows, channels, *windows.kernel, *windows.outputs((height, width)), samples)
    found = unfolded.new_zeros(rows, channels, height, width, samples)
    for (i, j), outputs, pixels in windows.places((height, width)):
        found[:, :, *pixels] += split[:, :, i, j, *outputs]
    return outermost(found)


def largest(inputs: Tensor, windows: Windows) -> Tensor:
    """The largest pixel of each window."""
    images, size = innermost(inputs), (inputs.shape[3], inputs.shape[4])
    found = images.new_full((*images.shape[:2], *windows.outputs(size), images.shape[4]), -math.inf)
    for _, outputs, pixels in windows.places(size):
        torch.maximum(found[:, :, *outputs], images[:, :, *pixels], out=found[:, :, *outputs])
    return outermost(found)


def to_largest(gradient: Tensor, inputs: Tensor, outputs: Tensor, windows: Windows) -> Tensor:
    """The gradient of `largest`: of equal pixels it goes to the first, as in torch."""
    left = innermost(gradient).clone(memory_format=torch.contiguous_format)
    images, maxima = innermost(inputs), innermost(outputs)
    found = torch.zeros_like(images, memory_format=torch.contiguous_format)
    *others, (_, last_places, last_pixels) = windows.places((images.shape[2], images.shape[3]))
    for _, places, pixels in others:
        # As numbers and not as truth values, of which torch makes numbers one by one.
        given = torch.empty_like(left[:, :, *places])
        torch.eq(images[:, :, *pixels], maxima[:, :, *places], out=given)
        given.mul_(left[:, :, *places])
        left[:, :, *places] -= given
        found[:, :, *pixels] += given
    found[:, :, *last_pixels] += left[:, :, *last_places]
    return outermost(found)


# The same for autograd, and how vmap comes to it.


class Convolution(torch.autograd.Function):
    """Rows of images, filters (B, O, C, kh, kw) and biases (B, O) or None -> (B, m, O, Ho, Wo)."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, filters: Tensor, bias: Tensor | None, windows: Windows) -> Tensor:
        unfolded = called(unfold, images, windows)
        ctx.save_for_backward(unfolded, filters)
        ctx.windows, ctx.shape = windows, tuple(images.shape)
        matrices = filters.reshape(*filters.shape[:2], -1)
        found = torch.bmm(matrices, unfolded) if bias is None else torch.baddbmm(bias[..., None], matrices, unfolded)
        rows, samples, _, *size = images.shape
        return outermost(found.view(rows, filters.shape[1], *windows.outputs((size[0], size[1])), samples))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        unfolded, filters = ctx.saved_tensors
        flat = innermost(gradients[0]).reshape(*filters.shape[:2], -1)  # (B, O, Ho * Wo * m)
        # Autocast, which has the products of the forward pass in bf16, is off in the backward pass.
        kind, matrices = filters.dtype, filters.reshape(*filters.shape[:2], -1).to(flat.dtype)
        of_images = of_filters = None
        if ctx.needs_input_grad[0]:
            spread = torch.bmm(matrices.transpose(1, 2), flat)
            of_images = called(fold, spread, ctx.windows, ctx.shape).to(unfolded.dtype)
        if ctx.needs_input_grad[1]:
            of_filters = torch.bmm(flat, unfolded.to(flat.dtype).transpose(1, 2)).view(filters.shape).to(kind)
        return of_images, of_filters, flat.sum(2).to(kind) if ctx.needs_input_grad[2] else None, None


class Largest(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, windows: Windows) -> Tensor:
        found = called(largest, images, windows)
        ctx.save_for_backward(images, found)
        ctx.windows = windows
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return called(to_largest, gradients[0], *ctx.saved_tensors, ctx.windows), None


def by_rows(rows: Any, alone: Callable[..., Tensor]) -> Any:
    """A function of samples whose vmap is `rows`."""

    class ByRows(torch.autograd.Function):
        @staticmethod
        def forward(*arguments: Any) -> Tensor:
            return alone(*arguments)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

        @staticmethod
        def vmap(info: Any, in_dims: Any, *arguments: Any) -> tuple[Tensor, int]:
            def first(own: Any, dim: int | None) -> Any:
                if not isinstance(own, Tensor):
                    return own
                return own.expand(info.batch_size, *own.shape) if dim is None else own.movedim(dim, 0)

            # Of a tuple of numbers vmap gives a tuple of dimensions.
            found: Tensor = rows.apply(*(first(own, dim) for own, dim in zip(arguments, in_dims, strict=True)))
            # A copy may be written into, as by nn.ReLU(inplace=True), a view may not; rewriting drops it again.
            return found.clone(), 0

    return ByRows


def unfolded_numbers(module: nn.Module, forward: Callable[[], object], *, in_c: bool) -> float:
    """Into how many numbers the windows of a sample are unfolded where most are; 0 for a model that convolves nothing,
    infinite for one whose convolutions are of another kind: some of them C alone has. `forward` calls the model.
    """
    found = [0.0]

    def see(part: nn.modules.conv._ConvNd, given: tuple[Tensor, ...], outputs: Tensor) -> None:
        channels, over = part.in_channels, outputs
        if part.transposed:
            channels, over = part.out_channels, given[0]
        found.append(channels // part.groups * math.prod(part.kernel_size) * math.prod(over.shape[2:]))

    convolving = [part for part in module.modules() if isinstance(part, nn.modules.conv._ConvNd)]
    plain = (part for part in convolving if part.groups == 1 and not part.transposed)
    if any(isinstance(p, nn.Conv3d | nn.ConvTranspose3d) for p in convolving) or (
        set(convolving) - {*plain} and not in_c
    ):
        return math.inf
    watch(convolving, see, forward)
    return max(found)
