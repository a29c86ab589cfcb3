"""The rules of the layers: forward and backward on (B, m, *feature), B rows with m samples each.

Nothing but single products, reductions within a row and elementwise operations, so that no row touches another and a
row's bits do not depend on its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

aten = torch.ops.aten

NARROW = 16
"""Outputs below this are computed as (B, O, m): batched products and the softmax after them fill their vectors then."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of one layer by their names in its module, (B, *shape) each, views of the block's rows.

    `gradients` are views of the gradient matrix; what is not trained is missing there, and the same in every row.
    """

    values: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]


SMALL = 4096
"""Weight gradients up to this many numbers a row are had as a product of their own and added: torch works off the
products that it adds into rows of a matrix one by one."""


class Layer(Protocol):
    def forward(self, inputs: Tensor) -> Tensor:
        """(B, m, *feature) -> (B, m, *feature); keeps what `backward` needs."""

    def backward(self, gradient: Tensor, further: bool) -> Tensor | None:
        """Add to the gradients of the weights; return that of the inputs where it is needed `further` down."""


class Linear:
    """y = x W^T + b; (B, m, *, in) -> (B, m, *, out)."""

    def __init__(self, module: nn.Linear, weights: Weights) -> None:
        self._weight, self._bias = weights.values["weight"], weights.values.get("bias")
        self._weight_gradient = weights.gradients.get("weight")
        self._bias_gradient = weights.gradients.get("bias")
        self._narrow = module.out_features < NARROW
        self._small = module.weight.numel() <= SMALL

    def forward(self, inputs: Tensor) -> Tensor:
        flat = inputs.reshape(len(inputs), -1, inputs.shape[-1])  # (B, m, in)
        self._inputs = flat
        outputs = self._narrow_product(flat) if self._narrow else self._product(flat)
        return outputs.view(*inputs.shape[:-1], -1) if inputs.dim() > 3 else outputs

    def _product(self, flat: Tensor) -> Tensor:
        turned = self._weight.transpose(1, 2)  # (B, in, out)
        return torch.bmm(flat, turned) if self._bias is None else torch.baddbmm(self._bias[:, None], flat, turned)

    def _narrow_product(self, flat: Tensor) -> Tensor:
        turned = flat.transpose(1, 2)  # (B, in, m)
        if self._bias is None:
            return torch.bmm(self._weight, turned).transpose(1, 2)
        return torch.baddbmm(self._bias[..., None], self._weight, turned).transpose(1, 2)

    def backward(self, gradient: Tensor, further: bool) -> Tensor | None:
        flat = gradient.reshape(len(gradient), -1, gradient.shape[-1])  # (B, m, out)
        if self._weight_gradient is not None:
            if self._small:
                self._weight_gradient.add_(torch.bmm(flat.transpose(1, 2), self._inputs))
            else:
                self._weight_gradient.baddbmm_(flat.transpose(1, 2), self._inputs)
        if self._bias_gradient is not None:
            self._bias_gradient.add_(flat.sum(1))
        if not further:
            return None
        return torch.bmm(flat, self._weight).view(*gradient.shape[:-1], -1)


class Embedding:
    """Rows of a table (B, V, E) at whole numbers (B, m, *) -> (B, m, *, E)."""

    def __init__(self, module: nn.Embedding, weights: Weights) -> None:
        self._table, self._gradient = weights.values["weight"], weights.gradients.get("weight")
        self._padding = module.padding_idx

    def forward(self, inputs: Tensor) -> Tensor:
        rows = torch.arange(len(inputs), device=inputs.device).view(-1, *[1] * (inputs.dim() - 1)).expand_as(inputs)
        self._index = rows, inputs
        return self._table[self._index]

    def backward(self, gradient: Tensor, further: bool) -> None:
        if self._gradient is None:
            return
        if self._padding is not None:
            gradient = gradient.masked_fill((self._index[1] == self._padding)[..., None], 0)
        self._gradient.index_put_(self._index, gradient, accumulate=True)


class LayerNorm:
    """Each sample brought to mean 0 and variance 1 over its last dimensions, scaled and shifted (Ba et al. 2016)."""

    def __init__(self, module: nn.LayerNorm, weights: Weights) -> None:
        self._shape, self._epsilon = list(module.normalized_shape), module.eps
        self._weight, self._bias = weights.values.get("weight"), weights.values.get("bias")
        self._weight_gradient = weights.gradients.get("weight")
        self._bias_gradient = weights.gradients.get("bias")

    def forward(self, inputs: Tensor) -> Tensor:
        self._inputs = inputs.contiguous()
        normal, self._mean, self._rstd = aten.native_layer_norm(self._inputs, self._shape, None, None, self._epsilon)
        self._normal = normal
        if self._weight is not None:
            normal = normal * self._beside(self._weight, inputs)
        outputs: Tensor = normal if self._bias is None else normal + self._beside(self._bias, inputs)
        return outputs

    def _beside(self, weight: Tensor, inputs: Tensor) -> Tensor:
        """A weight (B, *shape) as (B, 1, ..., *shape), to be broadcast over the samples."""
        return weight.view(len(weight), *[1] * (inputs.dim() - weight.dim()), *self._shape)

    def backward(self, gradient: Tensor, further: bool) -> Tensor | None:
        over = list(range(1, gradient.dim() - len(self._shape)))
        if self._weight_gradient is not None:
            self._weight_gradient.add_((gradient * self._normal).sum(over))
        if self._bias_gradient is not None:
            self._bias_gradient.add_(gradient.sum(over))
        if not further:
            return None
        if self._weight is not None:
            gradient = gradient * self._beside(self._weight, gradient)
        found: Tensor = aten.native_layer_norm_backward(
            gradient.contiguous(),
            self._inputs,
            self._shape,
            self._mean,
            self._rstd,
            None,
            None,
            [True, False, False],
        )[0]
        return found


class Elementwise:
    """An activation: `forward(x)`, and `backward(gradient, kept)` in the gradient's place.

    What is kept is its input or, for one that has an `in_place` form, its output.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        backward: Callable[[Tensor, Tensor], object],
        in_place: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._forward, self._backward, self._in_place = forward, backward, in_place

    def take_over(self) -> None:
        """Write over the inputs, which nobody else keeps."""
        self._forward = self._in_place or self._forward

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self._forward(inputs)
        self._kept = inputs if self._in_place is None else outputs
        return outputs

    def backward(self, gradient: Tensor, further: bool) -> Tensor | None:
        if further:
            self._backward(gradient, self._kept)
        return gradient


class Reshaped:
    """Flatten and Unflatten: another view of each sample's numbers."""

    def __init__(self, view: Callable[[Tensor], Tensor]) -> None:
        self._view = view

    def forward(self, inputs: Tensor) -> Tensor:
        self._shape = inputs.shape
        return self._view(inputs)

    def backward(self, gradient: Tensor, further: bool) -> Tensor | None:
        return gradient.reshape(self._shape) if further else None


def _elementwise(module: Any, weights: Weights) -> Layer:
    """torch's own forward and backward kernels, without the graph."""
    if type(module) is nn.ReLU:
        back = aten.threshold_backward.grad_input
        return Elementwise(torch.relu, lambda g, y: back(g, y, 0, grad_input=g), torch.relu_)
    if type(module) is nn.Tanh:
        back = aten.tanh_backward.grad_input
        return Elementwise(torch.tanh, lambda g, y: back(g, y, grad_input=g), torch.tanh_)
    if type(module) is nn.Sigmoid:
        back = aten.sigmoid_backward.grad_input
        return Elementwise(torch.sigmoid, lambda g, y: back(g, y, grad_input=g), torch.sigmoid_)
    if type(module) is nn.SiLU:
        back = aten.silu_backward.grad_input
        return Elementwise(aten.silu, lambda g, x: back(g, x, grad_input=g))
    if type(module) is nn.GELU:
        kind, back = module.approximate, aten.gelu_backward.grad_input
        return Elementwise(
            lambda x: aten.gelu(x, approximate=kind), lambda g, x: back(g, x, approximate=kind, grad_input=g)
        )
    if type(module) is nn.LeakyReLU:
        slope, back = module.negative_slope, aten.leaky_relu_backward.grad_input
        return Elementwise(lambda x: aten.leaky_relu(x, slope), lambda g, x: back(g, x, slope, False, grad_input=g))
    alpha, back = module.alpha, aten.elu_backward.grad_input
    return Elementwise(lambda x: aten.elu(x, alpha), lambda g, x: back(g, alpha, 1, 1, False, x, grad_input=g))


def _flatten(module: nn.Flatten, weights: Weights) -> Layer:
    # A dimension counted from the front stands one further back behind the rows.
    first, last = (dim + 1 if dim >= 0 else dim for dim in (module.start_dim, module.end_dim))
    return Reshaped(lambda x: x.flatten(first, last))


def _unflatten(module: nn.Unflatten, weights: Weights) -> Layer:
    dim, shape = int(module.dim), tuple(module.unflattened_size)
    # Tensor.unflatten is untyped in torch.
    return Reshaped(lambda x: torch.unflatten(x, dim + 1 if dim >= 0 else dim, shape))


RULES: dict[type[nn.Module], Callable[[Any, Weights], Layer]] = {
    nn.Linear: Linear,
    nn.Embedding: Embedding,
    nn.LayerNorm: LayerNorm,
    nn.Flatten: _flatten,
    nn.Unflatten: _unflatten,
    **dict.fromkeys((nn.ReLU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.GELU, nn.LeakyReLU, nn.ELU), _elementwise),
}
"""The layers that have a rule; a subclass has none, its forward may be another."""


def has_rule(module: nn.Module) -> bool:
    if type(module) is nn.Dropout:
        return True
    if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.scale_grad_by_freq or module.sparse):
        return False
    if isinstance(module, nn.Flatten) and module.start_dim == 0:
        return False
    return type(module) in RULES
