"""A block of rows whose model's computation is recorded for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_leaves, tree_map

from tunecli.data import Samples
from tunecli.data.samples import Inputs
from tunecli.engine.forward import arguments, as_matrix, as_outputs, evaluating
from tunecli.engine.gradients import NO_SHAPE, Gradient, Layout, Shape
from tunecli.engine.rowwise.loss import loss_gradient
from tunecli.engine.rowwise.record import DECIDES, Unrecordable, record
from tunecli.engine.rowwise.rewrite import rewrite
from tunecli.metrics import Loss

Computed = Callable[..., tuple[Tensor]]


class Recorded:
    """What a model and its loss compute for the rows of a lane, recorded once for each shape of what they read.

    What forward does while it is recorded is fixed for good: it must change nothing of the module. `compiled`: what C
    of our own can do is done by it.
    """

    def __init__(self, module: nn.Module, layout: Layout, loss: Loss, *, compiled: bool = False) -> None:
        self._module, self.layout, self._loss, self._compiled = module, layout, loss, compiled
        self._computed: dict[Any, Computed] = {}

    def losses_and_gradient(
        self,
        weights: list[Tensor],
        samples: Samples,
        present: Tensor,
        shape: Shape,
        keys: Tensor | None,
        *,
        over: bool = False,
        apart: bool = False,
    ) -> Computed:
        """From weights, inputs, targets, present (B, m), what of a sample's gradient counts (B, m), the loss's shape,
        keys (B, m) if dropout is drawn, and gradients, which are added to or written `over` (and lie `apart`, or in
        rows), to the loss sums (B,). Raises Unrecordable.
        """
        known = "training", present.shape, keys is None, over, apart
        if known not in self._computed:
            targets, names = samples.targets, self.layout.names
            inputs = tree_map(torch.clone, samples.inputs)
            leaves = [own.detach().requires_grad_() for own in weights]
            loss_of, counts = loss_gradient(self._loss, shape, compiled=self._compiled), present.clone()

            def outputs(values: list[Tensor], inputs: Inputs) -> Tensor:
                found = self._call(dict(zip(names, values, strict=True)), inputs, present.shape[1])
                return found if self._loss.own else as_matrix(found)

            def computed() -> Sequence[Tensor]:
                with torch.enable_grad():
                    found: Tensor = vmap(outputs, randomness="different")(leaves, inputs)
                    losses, back = loss_of(found.detach(), targets, counts)
                    # `grad_outputs` would import sympy, for half a second, to check their shapes.
                    found.register_hook(lambda _: back)  # type: ignore[no-untyped-call]  # torch's own
                    gradients = torch.autograd.grad(found.sum(), leaves, allow_unused=True)
                return [(losses * present).sum(1), *gradients]

            given = [targets, present, counts, *shape.values(), *([] if keys is None else [keys])]
            gradients = [torch.empty_like(own) for own in weights]
            self._computed[known] = self._record(
                computed, [*leaves, *tree_leaves(inputs), *given], keys, gradients, over=over, apart=apart
            )
        return self._computed[known]

    def outputs(self, weights: list[Tensor], inputs: Inputs, samples: int) -> Computed:
        """From weights and inputs (B, N, *feature) to outputs (B, N, ...), in evaluation mode. Raises Unrecordable."""
        known = "evaluation", len(weights[0]), samples
        if known not in self._computed:
            names, inputs = self.layout.names, tree_map(torch.clone, inputs)

            def outputs(values: list[Tensor], inputs: Inputs) -> Tensor:
                return self._call(dict(zip(names, values, strict=True)), inputs, samples)

            with evaluating(self._module), torch.no_grad():
                read = [*weights, *tree_leaves(inputs)]
                self._computed[known] = self._record(
                    lambda: [vmap(outputs, randomness="different")(weights, inputs)], read
                )
        return self._computed[known]

    def _call(self, weights: dict[str, Tensor], inputs: Inputs, samples: int) -> Tensor:
        return as_outputs(functional_call(self._module, weights, *arguments(self._module, inputs)), samples)

    def _record(
        self,
        function: Callable[[], Sequence[Tensor]],
        read: list[Tensor],
        keys: Tensor | None = None,
        gradients: Sequence[Tensor] = (),
        *,
        over: bool = False,
        apart: bool = False,
    ) -> Computed:
        if any(map(_is_hooked, self._module.modules())):
            raise Unrecordable("it has hooks: what they do can stand in forward")
        before = _attributes(self._module)
        try:
            recorded = record(function, [*read, *gradients], keys)
        except RuntimeError as error:
            if "data-dependent" in str(error) or ".item()" in str(error):
                raise Unrecordable(DECIDES) from error
            raise
        changed = next((name for name, value in _attributes(self._module).items() if before.get(name) != value), None)
        if changed is not None:
            raise Unrecordable(f"its forward pass sets {changed}: keep nothing between its calls")
        rewrite(recorded.graph, len(gradients), over=over, apart=apart, compiled=self._compiled)
        recorded.recompile()
        computed: Computed = recorded.forward
        return computed


def _is_hooked(module: nn.Module) -> bool:
    """Whether calling the module does more than its forward says."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(hooks) or any(p._backward_hooks for p in module.parameters(recurse=False))


def _attributes(module: nn.Module) -> dict[str, str]:
    """Everything that a module keeps beside its weights and parts, by its name."""
    return {
        ".".join(filter(None, ("self", name, key))): repr(value)
        for name, part in module.named_modules()
        for key, value in vars(part).items()
        if not key.startswith("_") and key not in ("training", "forward")
    }


class Rowwise:
    """A block of B rows that share one model. A sample's loss counts by how `present` it is."""

    def __init__(self, recorded: Recorded, weights: Tensor, gradient: Gradient, shape: Shape = NO_SHAPE) -> None:
        self._recorded, self._shape, self._gradient = recorded, shape, gradient
        self._weights = list(recorded.layout.views(weights).values())
        self._keys: Tensor | None = None

    def draw_by(self, keys: Tensor | None) -> None:
        """What the coming forward pass draws by (B, m), as `sample_keys` gives them."""
        self._keys = keys

    @torch.no_grad()
    def add_gradient(
        self, samples: Samples, present: Tensor, share: Tensor | None = None, *, over: bool = False
    ) -> tuple[Tensor, None]:
        """Add the gradient of each row's loss sum, or its `share` (B,) of that, to what the row has, or write it `over`
        that; returns the loss sums (B,). Inputs (B, m, *feature), targets and present (B, m).

        The second value is what the sums count, None where that was known before.
        """
        keys = [] if self._keys is None else [self._keys]
        weights, shape = self._weights, self._shape
        how = {"over": over, "apart": self._gradient.apart}
        computed = self._recorded.losses_and_gradient(weights, samples, present, shape, self._keys, **how)
        counts = present if share is None else present * share[:, None]
        read = *tree_leaves(samples.inputs), samples.targets, present, counts, *self._shape.values(), *keys
        (losses,) = computed(*self._weights, *read, *self._gradient.views)
        if over:
            self._gradient.clear_filling()
        return losses, None

    @torch.no_grad()
    def outputs(self, inputs: Inputs, samples: int) -> Tensor:
        """(B, N, ...) for inputs (N, *feature) of N samples, in evaluation mode."""
        rows = len(self._weights[0])
        each = tree_map(lambda own: own.expand(rows, *own.shape), inputs)
        (found,) = self._recorded.outputs(self._weights, each, samples)(*self._weights, *tree_leaves(each))
        return found
