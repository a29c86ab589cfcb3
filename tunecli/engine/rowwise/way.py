"""A block of rows whose model is a chain of layers with a rule."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from tunecli.data import Samples
from tunecli.data.samples import Inputs
from tunecli.engine.gradients import NO_SHAPE, Layout, Shape
from tunecli.engine.rowwise.chain import Chain
from tunecli.engine.rowwise.dropout import Dropout
from tunecli.engine.rowwise.layers import RULES, Elementwise, Layer, Linear, Weights
from tunecli.engine.rowwise.loss import loss_gradient
from tunecli.metrics import Loss


class Rowwise:
    """A block of B rows that share one chain. A sample's loss counts by how `present` it is."""

    def __init__(
        self, chain: Chain, layout: Layout, weights: Tensor, gradient: Tensor, loss: Loss, shape: Shape = NO_SHAPE
    ) -> None:
        values, gradients = layout.views(weights), layout.views(gradient)
        self._rows = len(weights)
        self._layers: list[Layer] = []
        self._trained: list[bool] = []
        self._dropouts: list[Dropout] = []
        for name, module in chain:
            if isinstance(module, nn.Dropout):
                self._dropouts.append(Dropout(module, len(self._layers)))
                self._layers.append(self._dropouts[-1])
                self._trained.append(False)
                continue
            names = {key: f"{name}.{key}".lstrip(".") for key, _ in module.named_parameters()}
            own = {key: gradients[full] for key, full in names.items() if full in gradients}
            shared = {key: p.detach().expand(len(weights), *p.shape) for key, p in module.named_parameters()}
            bound = Weights({key: values.get(full, shared[key]) for key, full in names.items()}, own)
            self._layers.append(RULES[type(module)](module, bound))
            self._trained.append(bool(own))
        self._first = self._trained.index(True)
        for before, after in pairwise(self._layers):
            if isinstance(before, Linear) and isinstance(after, Elementwise):
                after.take_over()
        self._loss = loss_gradient(loss, shape)

    def draw_by(self, keys: Tensor | None) -> None:
        """What the coming forward pass draws by (B, m), as `sample_keys` gives them; None draws nothing."""
        for dropout in self._dropouts:
            dropout.draw_by(keys)

    @torch.no_grad()
    def add_gradient(self, samples: Samples, present: Tensor) -> tuple[Tensor, None]:
        """Add to the gradient and return the loss sums (B,); inputs (B, m, *feature), targets and present (B, m).

        The second value as in Vmapped's.
        """
        losses, gradient = self._loss(self._forward(samples.inputs), samples.targets, present)
        for number in range(len(self._layers) - 1, self._first - 1, -1):
            further = self._layers[number].backward(gradient, number > self._first)
            gradient = gradient if further is None else further
        return (losses * present).sum(1), None

    @torch.no_grad()
    def outputs(self, inputs: Inputs, samples: int) -> Tensor:
        """(B, N, O) for inputs (N, *feature) of N samples, in evaluation mode."""
        assert isinstance(inputs, Tensor)
        self.draw_by(None)
        return self._forward(inputs.expand(self._rows, *inputs.shape))

    def _forward(self, inputs: Inputs) -> Tensor:
        assert isinstance(inputs, Tensor)  # a chain has one input
        outputs = inputs
        for layer in self._layers:
            outputs = layer.forward(outputs)
        return outputs
