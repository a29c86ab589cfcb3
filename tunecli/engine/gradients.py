"""From weights (B, P) to gradients (B, P): one row by its module. The way for all rows of a block is in `rowwise`.

Each adds to the gradient the sum over samples, so a batch can be read in parts.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tunecli.data import Samples
from tunecli.data.samples import Inputs
from tunecli.engine.forward import as_matrix, as_outputs, call, evaluating
from tunecli.engine.functions import Step
from tunecli.engine.norms import running_statistics
from tunecli.metrics import Loss

# Without this MKL's batched products round by where a matrix lies in memory, so by slot: a weight's gradient (33, 5) of
# slot 1 differs from slot 0's. It costs nothing measurable, and counts only if set before MKL's first product.
os.environ.setdefault("MKL_CBWR", "AUTO")

ALIGN = 64
"""Rows are this many weights apart, or a multiple: each starts on a cache line and a whole vector."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each trained weight of a module, or each of its running statistics, lies in a row of P numbers; `width` is
    P, filled up with zeros.

    `channels_last` are the filters whose channels lie side by side, a pixel after the other.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    offsets: tuple[int, ...]
    width: int
    channels_last: frozenset[str] = frozenset()

    @classmethod
    def of(cls, module: nn.Module, *, channels_last: bool = False) -> Layout:
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        return cls._of(trained, frozenset(name for name, _ in filters(module)) if channels_last else frozenset())

    @classmethod
    def of_statistics(cls, module: nn.Module) -> Layout:
        """Where each of a module's running statistics lies in a row of its own, of no width if it has none."""
        return cls._of(running_statistics(module), frozenset())

    @classmethod
    def _of(cls, tensors: Mapping[str, Tensor], channels_last: frozenset[str]) -> Layout:
        trained = [(name, own.shape) for name, own in tensors.items()]
        offsets, width = [], 0
        for _, shape in trained:
            offsets.append(width)
            width += math.prod(shape)
        return cls(
            tuple(name for name, _ in trained),
            tuple(shape for _, shape in trained),
            tuple(offsets),
            -(-width // ALIGN) * ALIGN,
            channels_last,
        )

    def views(self, matrix: Tensor) -> dict[str, Tensor]:
        """name -> (K, *shape), each a view of the matrix (K, P)."""
        found = {}
        for name, shape, offset in zip(self.names, self.shapes, self.offsets, strict=True):
            part = matrix[:, offset : offset + math.prod(shape)]
            if name in self.channels_last:
                outputs, channels, *pixels = shape
                found[name] = part.view(len(matrix), outputs, *pixels, channels).movedim(-1, 2)
            else:
                found[name] = part.view(len(matrix), *shape)
        return found

    def filling(self, matrix: Tensor) -> Tensor:
        """What no weight has of a matrix (K, P), at the end of its rows."""
        return matrix[:, self.offsets[-1] + math.prod(self.shapes[-1]) :]

    def row(self, module: nn.Module) -> Tensor:
        """The trained weights of a module, or its statistics, as one row (P,)."""
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        first = tensors[self.names[0]]
        row = torch.zeros(self.width, dtype=first.dtype, device=first.device)
        for name, view in self.views(row[None]).items():
            view[0].copy_(tensors[name].detach())
        return row

    def pieces(self) -> list[tuple[int, int]]:
        """(offset, length) of each weight."""
        return [(offset, math.prod(shape)) for offset, shape in zip(self.offsets, self.shapes, strict=True)]

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


class Gradient:
    """What a block has of its gradients, in its memory (B, P): of each weight `views` (B, *shape).

    They lie in a matrix of rows, as weights do; or `apart`, one weight of all rows after the other: then products can
    be added to them at once, where torch adds into rows of a matrix one by one.
    """

    def __init__(self, layout: Layout, memory: Tensor, *, apart: bool = False) -> None:
        self.memory, self.apart = memory, apart
        self.pieces = layout.pieces()
        rows, flat = len(memory), memory.view(-1)
        of_row = [(shape, rows * offset) for shape, offset in zip(layout.shapes, layout.offsets, strict=True)]
        cut = [flat[low : low + rows * math.prod(shape)].view(rows, *shape) for shape, low in of_row]
        # A single row is the same either way, and its filters may have their channels last.
        self._cut = apart and rows > 1
        self.views = cut if self._cut else list(layout.views(memory).values())
        self._filling = layout.filling(memory)

    def __len__(self) -> int:
        return len(self.memory)

    def row(self, row: int) -> Tensor:
        """(P,), as the weights of a row are laid out."""
        if not self._cut:
            return self.memory[row]
        found = torch.zeros_like(self.memory[row])
        for (offset, length), view in zip(self.pieces, self.views, strict=True):
            found[offset : offset + length] = view[row].flatten()
        return found

    def put(self, row: int, values: Tensor) -> None:
        """Have a row be these (P,)."""
        if not self._cut:
            self.memory[row] = values
            return
        for (offset, length), view in zip(self.pieces, self.views, strict=True):
            view[row] = values[offset : offset + length].view(view.shape[1:])

    def zero_row(self, row: int) -> None:
        self.put(row, torch.zeros_like(self.memory[0]))

    def clear_filling(self) -> None:
        """Have zeros where no weight lies: what was written over may be anything."""
        if not self.apart:
            self._filling.zero_()


def filters(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The filters of a module's convolutions over images, by name: those that torch can keep channels last."""
    return [
        (f"{name}.weight".lstrip("."), part.weight)
        for name, part in module.named_modules()
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d)
    ]


Shape = dict[str, Tensor]
"""What shapes the loss of each row, (B,) by the name of the hparam: label smoothing, say."""

NO_SHAPE: Shape = {}


def sample_losses(loss: Loss, outputs: Tensor, targets: Tensor, shape: Shape = NO_SHAPE) -> Tensor:
    """(N,) from outputs as a model gives them: a user's own loss knows their shape, for the others they are (N, O).

    `shape` is what shapes the loss of this row, () each.
    """
    return loss.per_sample(outputs if loss.own else as_matrix(outputs), targets, **shape)


class Looped:
    """A block of one row: a module of its own whose parameters are views of it."""

    def __init__(
        self,
        module: nn.Module,
        layout: Layout,
        weights: Tensor,
        gradient: Gradient,
        loss: Loss | Step,
        weighted: bool,
        shape: Shape = NO_SHAPE,
    ) -> None:
        self._module, self._loss, self._weighted = module, loss, weighted
        self._shape = {name: column[0] for name, column in shape.items()}
        parameters = dict(module.named_parameters())
        self._parameters = [parameters[name] for name in layout.names]
        self._gradient = gradient
        self._gradients = [view[0] for view in gradient.views]
        self._left: list[Tensor] | None = None
        for parameter, view in zip(self._parameters, layout.views(weights).values(), strict=True):
            parameter.data = view[0]

    def add_gradient(
        self, samples: Samples, present: Tensor, share: Tensor | None = None, *, over: bool = False, leave: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """As Rowwise's, for B = 1, with inputs (m, *feature) and without the samples that only fill.

        What a user's step counts (1,) is known only now. With `leave` what would be written over the row may be left
        where autograd made it, for `take_left`.
        """
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = None if over else gradient
        count: Tensor | None = None
        if isinstance(self._loss, Step):
            loss, counted = self._loss(self._module, samples.batch())
            count = counted[None]
        else:
            outputs = as_outputs(call(self._module, samples.inputs), present.shape[0])
            losses = sample_losses(self._loss, outputs, samples.targets, self._shape)
            loss = (losses * present if self._weighted else losses).sum()
        loss.backward(None if share is None else share[0].to(loss))  # type: ignore[no-untyped-call]  # torch's own
        if over and not (leave and self._leave()):
            self._write_over()
        return loss.detach()[None], count

    def _leave(self) -> bool:
        """Whether the gradients of all parameters are as their places in the row are: then nothing is copied."""
        found = [
            new
            for parameter, own in zip(self._parameters, self._gradients, strict=True)
            if (new := parameter.grad) is not None
            and not new.is_sparse
            and (new.stride(), new.dtype) == (own.stride(), own.dtype)
        ]
        self._left = found if len(found) == len(self._parameters) else None
        return self._left is not None

    def take_left(self) -> list[Tensor] | None:
        """The gradients that were left where autograd made them, of each weight one; None where the row has them."""
        left, self._left = self._left, None
        return left

    def _write_over(self) -> None:
        """Put the gradients that autograd has made into the row: adding them to zeros would take twice as long."""
        found = [(own, p.grad) for own, p in zip(self._gradients, self._parameters, strict=True) if p.grad is not None]
        dense = [new.to_dense() if new.is_sparse else new for _, new in found]  # an embedding's may be sparse
        torch._foreach_copy_([own for own, _ in found], dense)
        self._gradient.clear_filling()
        for own, parameter in zip(self._gradients, self._parameters, strict=True):
            if parameter.grad is None:
                own.zero_()
            parameter.grad = own

    def outputs(self, inputs: Inputs, samples: int) -> Tensor:
        with torch.no_grad(), evaluating(self._module):
            return as_outputs(call(self._module, inputs), samples)[None]
