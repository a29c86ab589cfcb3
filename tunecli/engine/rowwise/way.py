"""A block of rows whose model's computation is recorded for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_leaves, tree_map

from tunecli.data import Samples
from tunecli.data.samples import Inputs
from tunecli.engine.attributes import attributes, changed, written
from tunecli.engine.batches import length_at_once
from tunecli.engine.compiler import has_functions
from tunecli.engine.forward import arguments, as_matrix, as_outputs, evaluating
from tunecli.engine.gradients import NO_SHAPE, Gradient, Layout, Shape
from tunecli.engine.rowwise.called import Unrecordable
from tunecli.engine.rowwise.layers import Layers
from tunecli.engine.rowwise.loss import loss_gradient
from tunecli.engine.rowwise.native import SHAPES, LaidOut, Rows, Steps, are_read, loss_number
from tunecli.engine.rowwise.network import layers_of
from tunecli.engine.rowwise.reader import Arguments
from tunecli.engine.rowwise.record import READS, Recording, record
from tunecli.engine.rowwise.rewrite import rewrite, simplify, stops_gradients
from tunecli.engine.rowwise.workspace import WHOLE, Network
from tunecli.metrics import Loss

Computed = Callable[..., tuple[Tensor]]


class Recorded:
    """What a model and its loss compute for the rows of a lane, recorded once for each shape of what they read.

    What forward does while it is recorded is fixed for good: it must change nothing of the module, but for the running
    `statistics`, of which each row has its own. `compiled`: what C of our own can do is done by it, and all of the
    model if it may be `native`, at most `cap` samples at once, the rows shared by so many `threads`.
    """

    def __init__(
        self,
        module: nn.Module,
        layout: Layout,
        loss: Loss,
        *,
        compiled: bool = False,
        native: bool = False,
        threads: int = 1,
        cap: int | None = None,
    ) -> None:
        self._module, self.layout, self._loss, self._compiled = module, layout, loss, compiled
        self._native, self._threads, self._cap = native, threads, cap
        self.statistics = Layout.of_statistics(module)
        self._computed: dict[Any, Computed] = {}
        self._networks: dict[Any, Network | None] = {}

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
            self._computed[known] = self._rewritten(
                computed, [*leaves, *tree_leaves(inputs), *given], keys, gradients, over=over, apart=apart
            )
        return self._computed[known]

    def network(
        self, weights: list[Tensor], inputs: Inputs, targets: Tensor | None, keys: Tensor | None
    ) -> Network | None:
        """What computes the model in C, if it may and knows all of its layers: for weights and statistics, inputs (B,
        m, *feature) and keys (B, m) as a step reads them, or without targets in evaluation mode. Raises
        Unrecordable."""
        first = weights[0]
        if not self._native or not has_functions(first.dtype) or not are_read(inputs, first.dtype):
            return None
        known = tree_leaves(inputs)[0].shape[1], targets is None, keys is None
        if known not in self._networks:
            loss = 0 if targets is None else loss_number(self._loss, first.dtype, targets)
            alike = {own.dtype for own in weights} == {first.dtype} and first[0].is_contiguous()
            self._networks[known] = None
            if alike and known[0] % WHOLE == 0 and loss is not None:
                batch, samples = known[0], length_at_once(known[0], self._cap)
                read = tree_map(lambda own: own[:, :samples], inputs)
                drawn = None if keys is None else keys[:, :samples]
                layers = self._layers(weights, read, drawn, samples, training=targets is not None)
                if layers is not None:
                    self._networks[known] = Network(layers, samples, batch, loss, first.dtype, self._threads)
        return self._networks[known]

    def _layers(
        self, weights: list[Tensor], inputs: Inputs, keys: Tensor | None, samples: int, *, training: bool
    ) -> Layers | None:
        """The layers of the model, recorded for two rows, however many a block has."""
        two, read, drawn = tree_map(_twice, (weights, inputs, keys))
        names, given = self._names, tree_leaves(read)

        def outputs(values: list[Tensor], inputs: Inputs) -> Tensor:
            found = self._call(dict(zip(names, values, strict=True)), inputs, samples)
            return as_matrix(found) if training else found

        # Nothing here has a gradient: with autograd on, it is seen where the model turns it off.
        with torch.set_grad_enabled(training), nullcontext() if training else evaluating(self._module):
            recording = self._record(
                lambda: [vmap(outputs, randomness="different")(two, read)],
                [*two, *given, *([] if drawn is None else [drawn])],
                drawn,
            )
        told = Arguments(len(self.layout.names), len(self.statistics.names), len(given))
        if training and stops_gradients(recording.graph, told.weights):
            return None
        simplify(recording.graph)
        return layers_of(recording, told, samples)

    @property
    def _names(self) -> tuple[str, ...]:
        return self.layout.names + self.statistics.names

    def outputs(self, weights: list[Tensor], inputs: Inputs, samples: int) -> Computed:
        """From weights, statistics and inputs (B, N, *feature) to outputs (B, N, ...), in evaluation mode. Raises
        Unrecordable."""
        known = "evaluation", len(weights[0]), samples
        if known not in self._computed:
            names, inputs = self._names, tree_map(torch.clone, inputs)

            def outputs(values: list[Tensor], inputs: Inputs) -> Tensor:
                return self._call(dict(zip(names, values, strict=True)), inputs, samples)

            with evaluating(self._module), torch.no_grad():
                read = [*weights, *tree_leaves(inputs)]
                self._computed[known] = self._rewritten(
                    lambda: [vmap(outputs, randomness="different")(weights, inputs)], read
                )
        return self._computed[known]

    def _call(self, weights: dict[str, Tensor], inputs: Inputs, samples: int) -> Tensor:
        return as_outputs(functional_call(self._module, weights, *arguments(self._module, inputs)), samples)

    def _rewritten(
        self,
        function: Callable[[], Sequence[Tensor]],
        read: list[Tensor],
        keys: Tensor | None = None,
        gradients: Sequence[Tensor] = (),
        *,
        over: bool = False,
        apart: bool = False,
    ) -> Computed:
        recording = self._record(function, [*read, *gradients], keys)
        rewrite(recording.graph, len(gradients), over=over, apart=apart, compiled=self._compiled)
        return recording.function()

    def _record(self, function: Callable[[], Sequence[Tensor]], read: list[Tensor], keys: Tensor | None) -> Recording:
        if any(map(_is_hooked, self._module.modules())):
            raise Unrecordable("it has hooks: what they do can stand in forward")
        before = written(attributes(self._module))
        try:
            recording = record(function, read, keys)
        except RuntimeError as error:
            if "data-dependent" in str(error) or ".item()" in str(error):
                raise Unrecordable(READS) from error
            raise
        for name in changed(self._module, before):
            raise Unrecordable(f"its forward pass sets self.{name}, which no checkpoint holds: register a buffer")
        return recording


def _twice(rows: Tensor | None) -> Tensor | None:
    """The first row, for two."""
    return None if rows is None else rows[:1].expand(2, *rows.shape[1:]).clone()


def _is_hooked(module: nn.Module) -> bool:
    """Whether calling the module does more than its forward says."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(hooks) or any(p._backward_hooks for p in module.parameters(recurse=False))


class Rowwise:
    """A block of B rows that share one model. A sample's loss counts by how `present` it is. Each row has running
    `statistics` (B, Q), where the model has any."""

    def __init__(
        self,
        recorded: Recorded,
        weights: Tensor,
        gradient: Gradient,
        shape: Shape = NO_SHAPE,
        statistics: Tensor | None = None,
    ) -> None:
        self._recorded, self._shape, self.gradient = recorded, shape, gradient
        self._weights = list(recorded.layout.views(weights).values())
        self._statistics = [] if statistics is None else list(recorded.statistics.views(statistics).values())
        self._keys: Tensor | None = None
        self._rows: dict[Network, Rows] = {}

    def draw_by(self, keys: Tensor | None) -> None:
        """What the coming forward pass draws by (B, m), as `sample_keys` gives them."""
        self._keys = keys

    @torch.no_grad()
    def add_gradient(
        self,
        samples: Samples,
        present: Tensor,
        share: Tensor | None = None,
        *,
        over: bool = False,
        real: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Add the gradient of each row's loss sum, or its `share` (B,) of that, to what the row has, or write it `over`
        that; returns the loss sums (B,). Inputs (B, m, *feature), targets and present (B, m), of which the first ones
        are `real` (B,), or all, and the others only fill.

        The second value is what the sums count, None where that was known before.
        """
        keys = [] if self._keys is None else [self._keys]
        weights, shape = self._weights, self._shape
        counts = present if share is None else present * share[:, None]
        rows = self._rows_of(samples)
        if rows is not None:
            real = torch.full((len(present),), present.shape[1]) if real is None else real
            losses = rows.add_gradient(samples.inputs, samples.targets, present, counts, self._keys, real, over=over)
            return losses, None
        how = {"over": over, "apart": self.gradient.apart}
        computed = self._recorded.losses_and_gradient(weights, samples, present, shape, self._keys, **how)
        read = *tree_leaves(samples.inputs), samples.targets, present, counts, *self._shape.values(), *keys
        (losses,) = computed(*self._weights, *read, *self.gradient.views)
        if over:
            self.gradient.clear_filling()
        return losses, None

    def is_native(self, samples: Samples) -> bool:
        """Whether C computes the gradient of all of the model, for samples as a step reads them."""
        return self._rows_of(samples) is not None

    def native_numbers(self, samples: Samples) -> int:
        """How many numbers C keeps of each of these samples; 0 where it does not compute the model."""
        rows = self._rows_of(samples)
        return 0 if rows is None else rows.network.numbers

    def _rows_of(self, samples: Samples) -> Rows | None:
        """What computes these rows in C, where it can, for samples as a step reads them."""
        known = self._shape.keys() <= SHAPES
        return self._by_network(samples.inputs, samples.targets, self._keys) if known else None

    def _by_network(self, inputs: Inputs, targets: Tensor | None, keys: Tensor | None) -> Rows | None:
        told = self._weights + self._statistics
        network = self._recorded.network(told, inputs, targets, keys)
        if network is not None and network not in self._rows:
            self._rows[network] = Rows(network, told, self.gradient.views, self._shape.get("label_smoothing"))
        return None if network is None else self._rows[network]

    def steps(self, samples: Samples, laid_out: LaidOut) -> Steps | None:
        """Many steps at once, see `Steps`; None where they cannot be had, or the samples are not as C reads them."""
        if samples.chunked is not None:
            return None
        parts, scaling = tree_leaves(samples.inputs), samples.scaling
        meanings = [None if scaling is None else scaling.of_bytes(own.dtype) for own in parts]
        if scaling is not None and any(own is None for own in meanings):
            return None
        if not all(own.is_contiguous() for own in (*parts, samples.targets)):
            return None
        self.draw_by(None if laid_out.keys is None else laid_out.keys[0])
        rows = self._rows_of(samples.take(laid_out.index[0]))
        return None if rows is None else Steps(rows, samples, laid_out, meanings)

    @torch.no_grad()
    def outputs(self, inputs: Inputs, samples: int) -> Tensor:
        """(B, N, ...) for inputs (N, *feature) of N samples, in evaluation mode."""
        rows = len(self._weights[0])
        each = tree_map(lambda own: own.expand(rows, *own.shape), inputs)
        if samples % WHOLE == 0:
            native = self._by_network(tree_map(lambda own: own[:, :WHOLE], each), None, None)
            if native is not None:
                return native.evaluate(inputs)
        told = self._weights + self._statistics
        (found,) = self._recorded.outputs(told, each, samples)(*told, *tree_leaves(each))
        return found
