"""Two ways from weights (B, P) to gradients (B, P): all rows of a block at once by vmap, or one row by its module.

Both add to the gradient the sum over samples, so a batch can be read in parts. The forward pass is mapped over the rows
with `torch.func.vmap` and differentiated by plain autograd: rows do not touch each other, so the gradient of the sum of
their losses is each row's own, and functorch's second transform is not paid for.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from tunecli.data import Samples, each
from tunecli.data.samples import Inputs
from tunecli.engine.forward import arguments, as_matrix, call, evaluating
from tunecli.metrics import Loss

# Without this MKL's batched products round by where a matrix lies in memory, so by slot: a weight's gradient (33, 5) of
# slot 1 differs from slot 0's. It costs nothing measurable, and counts only if set before MKL's first product.
os.environ.setdefault("MKL_CBWR", "AUTO")

ALIGN = 64
"""Rows are this many weights apart, or a multiple: each starts on a cache line and a whole vector."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each trained weight of a module lies in a row of P numbers; `width` is P, filled up with zeros."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    offsets: tuple[int, ...]
    width: int

    @classmethod
    def of(cls, module: nn.Module) -> Layout:
        trained = [(name, p.shape) for name, p in module.named_parameters() if p.requires_grad]
        offsets, width = [], 0
        for _, shape in trained:
            offsets.append(width)
            width += math.prod(shape)
        return cls(
            tuple(name for name, _ in trained),
            tuple(shape for _, shape in trained),
            tuple(offsets),
            -(-width // ALIGN) * ALIGN,
        )

    def views(self, matrix: Tensor) -> dict[str, Tensor]:
        """name -> (K, *shape), each a view of the matrix (K, P)."""
        return {
            name: matrix[:, offset : offset + math.prod(shape)].view(matrix.shape[0], *shape)
            for name, shape, offset in zip(self.names, self.shapes, self.offsets, strict=True)
        }

    def row(self, module: nn.Module) -> Tensor:
        """The trained weights of a module as one row (P,)."""
        parameters = dict(module.named_parameters())
        first = parameters[self.names[0]]
        row = torch.zeros(self.width, dtype=first.dtype, device=first.device)
        for name, view in self.views(row[None]).items():
            view[0].copy_(parameters[name].detach())
        return row

    def matrices(self) -> tuple[tuple[int, int, int], ...]:
        """(offset, rows, columns) of each weight of two dimensions."""
        return tuple(
            (offset, *shape) for offset, shape in zip(self.offsets, self.shapes, strict=True) if len(shape) == 2
        )

    def decay_mask(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """(P,): 1 for matrices and filters, 0 for biases and the weights of norms, which have one dimension."""
        mask = torch.zeros(self.width, device=device, dtype=dtype)
        for view in (
            v for v, shape in zip(self.views(mask[None]).values(), self.shapes, strict=True) if len(shape) > 1
        ):
            view.fill_(1)
        return mask


class Vmapped:
    """A block of B rows that share one module without state. A sample's loss counts by how `present` it is."""

    def __init__(
        self, module: nn.Module, layout: Layout, weights: Tensor, gradient: Tensor, loss: Loss, weighted: bool
    ) -> None:
        self._module = module
        # Autograd's leaves alias the matrix: an update in place is seen by the next forward pass without a copy.
        self._leaves = {name: view.detach().requires_grad_() for name, view in layout.views(weights).items()}
        self._gradients = list(layout.views(gradient).values())
        self._per_sample = loss.per_sample

        def losses(weights: dict[str, Tensor], inputs: Inputs, targets: Tensor, present: Tensor) -> Tensor:
            outputs = as_matrix(functional_call(module, weights, *arguments(module, inputs)), targets.shape[0])
            return (self._per_sample(outputs, targets) * present).sum()

        def outputs(weights: dict[str, Tensor], inputs: Inputs, samples: int) -> Tensor:
            return as_matrix(functional_call(module, weights, *arguments(module, inputs)), samples)

        self._losses = vmap(losses)
        self._outputs = vmap(outputs, in_dims=(0, None, None))

    def add_gradient(self, inputs: Inputs, targets: Tensor, present: Tensor) -> Tensor:
        """Add to the gradient and return the loss sums (B,); inputs (B, m, *feature), targets and present (B, m)."""
        losses: Tensor = self._losses(self._leaves, inputs, targets, present)
        found = torch.autograd.grad(losses.sum(), list(self._leaves.values()), allow_unused=True)
        for gradient, addend in zip(self._gradients, found, strict=True):
            if addend is not None:
                gradient.add_(addend)
        return losses.detach()

    def outputs(self, inputs: Inputs, samples: int) -> Tensor:
        """(B, N, O) for inputs (N, *feature) of N samples, in evaluation mode."""
        with torch.no_grad(), evaluating(self._module):
            found: Tensor = self._outputs(self._leaves, inputs, samples)
        return found


class Looped:
    """A block of one row: a module of its own whose parameters are views of it."""

    def __init__(
        self, module: nn.Module, layout: Layout, weights: Tensor, gradient: Tensor, loss: Loss, weighted: bool
    ) -> None:
        self._module, self._weighted = module, weighted
        self._per_sample = loss.per_sample
        parameters = dict(module.named_parameters())
        gradients = layout.views(gradient)
        for name, view in layout.views(weights).items():
            parameters[name].data = view[0]
            parameters[name].grad = gradients[name][0]

    def add_gradient(self, inputs: Inputs, targets: Tensor, present: Tensor) -> Tensor:
        """As Vmapped's, for B = 1; the samples that only fill are left out by the caller."""
        outputs = as_matrix(call(self._module, each(lambda part: part[0], inputs)), targets.shape[1])
        losses = self._per_sample(outputs, targets[0])
        loss = (losses * present[0] if self._weighted else losses).sum()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        return loss.detach()[None]

    def outputs(self, inputs: Inputs, samples: int) -> Tensor:
        with torch.no_grad(), evaluating(self._module):
            return as_matrix(call(self._module, inputs), samples)[None]


Way = Vmapped | Looped


@dataclass(frozen=True, slots=True)
class Traits:
    """What a model allows. `looped_because` is None where its rows can be computed at once."""

    looped_because: str | None
    stochastic: bool
    mixes_samples: bool


def traits(module: nn.Module, twin: nn.Module, samples: Samples, loss: Loss) -> Traits:
    """What a model does, found by trying it on a few samples, an even number of them.

    `twin` is the same model built from another seed: what neither trains must be the same in both to be shared.
    Raises ModelError where the model does not fit its data.
    """
    module.train()
    whole, half = samples.inputs, len(samples) // 2
    halves = samples.take(slice(0, half)).inputs, samples.take(slice(half, None)).inputs
    state = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        first = as_matrix(call(module, whole), len(samples))
        second = as_matrix(call(module, whole), len(samples))
        stochastic = not torch.equal(first, second)
        mixes = stateful = False
        if not stochastic:
            parts = torch.cat([as_matrix(call(module, part), half) for part in halves])
            mixes = not torch.allclose(first, parts, rtol=1e-3, atol=1e-4)
        stateful = any(not torch.equal(state[name], buffer) for name, buffer in module.named_buffers())
    for name, buffer in module.named_buffers():
        buffer.copy_(state[name])
    mixes = mixes or any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())
    if stochastic:
        return Traits("dropout", True, mixes)
    if mixes or stateful:
        return Traits("samples of a batch depend on each other", False, True)
    if any(isinstance(part, nn.RNNBase | nn.modules.conv._ConvNd) for part in module.modules()):
        return Traits("convolutions and recurrent layers are faster one by one", False, False)
    own, other = module.state_dict(), twin.state_dict()
    trained = {name for name, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}
    if any(not torch.equal(own[name], other[name]) for name in own.keys() - trained):
        return Traits("its frozen weights differ from trial to trial", False, False)
    return Traits(_vmap_fails(module, samples, loss), False, False)


def _vmap_fails(module: nn.Module, samples: Samples, loss: Loss) -> str | None:
    """Why vmap does not give this model's gradient, or None where it does."""
    layout = Layout.of(module)
    row = layout.row(module)
    gradient, expected = torch.zeros(2, layout.width).to(row), torch.zeros(1, layout.width).to(row)
    present = torch.ones(2, len(samples)).to(row)
    twice = samples.take(torch.arange(len(samples)).repeat(2, 1))
    try:
        way = Vmapped(module, layout, row.repeat(2, 1), gradient, loss, weighted=False)
        way.add_gradient(twice.inputs, twice.targets, present)
        way.outputs(samples.inputs, len(samples))
    except Exception as error:  # whatever a user's forward meets under vmap, the loop still works
        return f"vmap cannot follow its forward pass ({type(error).__name__})"
    parameters = [p for p in module.parameters() if p.requires_grad]
    losses = loss.per_sample(as_matrix(call(module, samples.inputs), len(samples)), samples.targets).sum()
    found = torch.autograd.grad(losses, parameters, allow_unused=True)
    for view, addend in zip(layout.views(expected).values(), found, strict=True):
        if addend is not None:
            view[0].copy_(addend)
    agree = torch.allclose(gradient, expected.expand(2, -1), rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    return None if agree else "vmap gives another gradient"
