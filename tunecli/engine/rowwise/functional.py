"""Functions of torch as a model calls them, made of what there are rules for: by these they are recorded.

What C alone has is one node of the graph, computed here as torch does for its shape and its values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tunecli.engine.rowwise import lookup
from tunecli.engine.rowwise.called import InCAlone, called
from tunecli.engine.rowwise.images import Convolution, Largest, Pair, Windows, by_rows, pair

# Convolutions, of images that lie as torch has them: (m, C, H, W).


def _convolved_alone(images: Tensor, filters: Tensor, bias: Tensor | None, windows: Windows) -> Tensor:
    return torch.conv2d(images, filters, bias, windows.stride, windows.padding, windows.dilation)


def _largest_alone(images: Tensor, windows: Windows) -> Tensor:
    return torch.max_pool2d(images, windows.kernel, windows.stride, windows.padding)


def in_groups(images: Tensor, filters: Tensor, bias: Tensor | None, windows: Windows, groups: int) -> Tensor:
    """Rows of images (B, m, C, H, W), filters (B, O, C / groups, kh, kw) and biases (B, O) -> (B, m, O, Ho, Wo)."""
    biases = [None] * len(filters) if bias is None else list(bias)
    how = windows.stride, windows.padding, windows.dilation, groups
    rows = zip(images, filters, biases, strict=True)
    return torch.stack([torch.conv2d(own, by, more, *how) for own, by, more in rows])


def transposed(
    images: Tensor, filters: Tensor, bias: Tensor | None, windows: Windows, more: Pair, groups: int
) -> Tensor:
    """Rows of images (B, m, C, H, W), filters (B, C, O / groups, kh, kw) and biases (B, O) -> (B, m, O, Ho, Wo), over
    which the `windows` lie, at the end `more` pixels."""
    biases = [None] * len(filters) if bias is None else list(bias)
    how: Any = windows.stride, windows.padding, more, groups, windows.dilation
    rows = zip(images, filters, biases, strict=True)
    return torch.stack([torch.conv_transpose2d(own, by, added, *how) for own, by, added in rows])


def _in_c(function: Callable[..., Tensor]) -> Any:
    """The same for vmap, as a node of the graph that is recorded, whose gradient C alone has."""

    class InC(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Tensor:
            return called(function, *arguments)

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Any:
            raise InCAlone("such convolutions have a gradient in C alone")

    def alone(*arguments: Any) -> Tensor:
        return function(*(own[None] if isinstance(own, Tensor) else own for own in arguments))[0]

    return by_rows(InC, alone)


_CONVOLVED, _POOLED = by_rows(Convolution, _convolved_alone), by_rows(Largest, _largest_alone)
_IN_GROUPS, _TRANSPOSED = _in_c(in_groups), _in_c(transposed)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """torch's own, of samples (m, C, H, W); where it is unlike the usual it is left to vmap."""
    kernel, dilated = pair(weight.shape[2:]), pair(dilation)
    around = [d * (k - 1) for k, d in zip(kernel, dilated, strict=True)]
    if padding == "same":
        padding = (around[0] // 2, around[1] // 2) if not any(own % 2 for own in around) else None
    elif padding == "valid":
        padding = 0
    if padding is None or input.dim() != 4:
        return torch.conv2d(input, weight, bias, stride, "same" if padding is None else padding, dilation, groups)
    windows = Windows(kernel, pair(stride), pair(padding), dilated)
    found: Tensor
    if groups == 1:
        found = _CONVOLVED.apply(input, weight, bias, windows)
    else:
        found = _IN_GROUPS.apply(input, weight, bias, windows, groups)
    return found


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """As `conv2d`, of samples (m, C, L): of images that are one pixel high."""
    if input.dim() != 3:
        return torch.conv1d(input, weight, bias, stride, padding, dilation, groups)
    around = padding if isinstance(padding, str) else _beside(0, padding)
    images, filters = input.unsqueeze(2), weight.unsqueeze(2)
    return conv2d(images, filters, bias, _beside(1, stride), around, _beside(1, dilation), groups).squeeze(2)


def _beside(first: int, second: Any) -> Pair:
    return first, second if isinstance(second, int) else second[0]


def max_pool1d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """As `conv1d`."""
    how = _beside(1, kernel_size), _beside(1, stride or kernel_size), _beside(0, padding), _beside(1, dilation)
    found = max_pool2d(input.unsqueeze(-2), *how, ceil_mode, return_indices)
    return tuple(own.squeeze(-2) for own in found) if return_indices else found.squeeze(-2)


def max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """As `conv2d`."""
    steps = pair(stride if stride else kernel_size)
    if return_indices or pair(dilation) != (1, 1) or input.dim() != 4:
        found = functional.max_pool2d_with_indices(input, kernel_size, steps, padding, dilation, ceil_mode)
        return found if return_indices else found[0]
    windows = Windows(pair(kernel_size), steps, pair(padding))
    if ceil_mode:
        below, beside = (_left_over(windows, input.shape[axis + 2], axis) for axis in (0, 1))
        input = functional.pad(input, (0, beside, 0, below), value=-math.inf)
    return _POOLED.apply(input, windows)


def _left_over(windows: Windows, length: int, axis: int) -> int:
    """By how much the last window reaches beyond an image that is so long, where one begins on it that does."""
    kernel, stride, padding = (own[axis] for own in windows[:3])
    more = -(length + 2 * padding - kernel) % stride
    begins = length + 2 * padding - kernel + more < length + padding
    return more if begins else 0


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """As `conv2d`."""
    if input.dim() != 4:
        return torch.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    windows = Windows(pair(weight.shape[2:]), pair(stride), pair(padding), pair(dilation))
    found: Tensor = _TRANSPOSED.apply(input, weight, bias, windows, pair(output_padding), groups)
    return found


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """As `conv1d`."""
    if input.dim() != 3:
        return torch.conv_transpose1d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    how = _beside(1, stride), _beside(0, padding), _beside(0, output_padding), groups, _beside(1, dilation)
    return conv_transpose2d(input.unsqueeze(2), weight.unsqueeze(2), bias, *how).squeeze(2)


# Pools, norms and tables.


def adaptive_max_pool2d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """torch's own, by windows of one size where there are such."""
    height, width = input.shape[-2:]
    size = (output_size, output_size) if isinstance(output_size, int) else output_size
    outputs = height if size[0] is None else size[0], width if size[1] is None else size[1]
    if return_indices or height % outputs[0] or width % outputs[1]:
        found = torch._C._nn.adaptive_max_pool2d(input, outputs)
        return found if return_indices else found[0]
    return max_pool2d(input, (height // outputs[0], width // outputs[1]))


def adaptive_max_pool1d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """As `adaptive_max_pool2d`."""
    if return_indices:
        return torch.adaptive_max_pool1d(input, output_size)
    size = output_size if isinstance(output_size, int) else output_size[0]
    return adaptive_max_pool2d(input.unsqueeze(-2), (1, size)).squeeze(-2)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """torch's own, of each channel of a sample what `layer_norm` is, where it keeps no statistics."""
    if running_mean is not None or running_var is not None or not use_input_stats:
        told = running_mean, running_var, weight, bias, use_input_stats, momentum, eps
        return torch.instance_norm(input, *told, False)
    found = functional.layer_norm(input, input.shape[2:], eps=eps)
    shape = -1, *[1] * (input.dim() - 2)
    found = found if weight is None else found * weight.view(shape)
    return found if bias is None else found + bias.view(shape)


_BAG = functional.embedding_bag


def embedding_bag(input: Tensor, weight: Tensor, *more: Any, **how: Any) -> Tensor:
    """torch's own, of bags of one length what `embedding` is and a sum."""
    names = "offsets", "max_norm", "norm_type", "scale_grad_by_freq", "mode", "sparse", "per_sample_weights"
    told = {"mode": "mean", **dict(zip((*names, "include_last_offset", "padding_idx"), more, strict=False)), **how}
    plain = all(told.get(name) is None for name in ("offsets", "max_norm", "per_sample_weights", "padding_idx"))
    if input.dim() != 2 or not plain or told.get("scale_grad_by_freq") or told["mode"] == "max":
        return _BAG(input, weight, *more, **how)
    found = lookup.embedding(input, weight)
    return found.mean(1) if told["mode"] == "mean" else found.sum(1)


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch's own, which under vmap copies the weights for each token where the inputs are transposed."""
    flat = inputs.reshape(-1, inputs.shape[-1])
    outputs = flat @ weight.t() if bias is None else torch.addmm(bias, flat, weight.t())
    return outputs.view(*inputs.shape[:-1], len(weight))


def weight_norm(direction: Tensor, length: Tensor, dim: int) -> Tensor:
    """torch's own, for which vmap has no rule."""
    dims = [own for own in range(direction.dim()) if own != dim % direction.dim()] if dim != -1 else None
    found: Tensor = direction * (length / torch.linalg.vector_norm(direction, dim=dims, keepdim=True))
    return found


FUNCTIONS: dict[str, Any] = {
    own.__name__: own
    for own in (
        *(linear, conv1d, conv2d, conv_transpose1d, conv_transpose2d, lookup.embedding, embedding_bag, instance_norm),
        *(max_pool1d, max_pool2d, adaptive_max_pool1d, adaptive_max_pool2d),
    )
}
"""By their names in torch.nn.functional."""
