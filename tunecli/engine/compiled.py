"""The updates of `update.c`, and what they are told of a block's rows."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from tunecli.engine.compiler import library

NUMBERS = {
    name: number
    for number, name in enumerate(("sgd", "adagrad", "rmsprop", "adam", "nadam", "radam", "adamax", "adadelta", "lion"))
}
"""The optimizers that are compiled, by their places in `RULES` of the source."""

TOLD = (
    "momentum",
    "dampening",
    "nesterov",
    "beta1",
    "beta2",
    "l1",
    "l2",
    "decoupled",
    "clip_norm",
    "ema_decay",
)
"""What a row is told, in the order of `struct hparams` of the source; `decoupled` is 1 where l2 shrinks the weights."""


class Compiled:
    """The updates of the first K rows of a block, of those among them whose rule has a number in `NUMBERS`: `rules`
    are these, and -1 for the others; `told` (K, len(TOLD)). `due` and `last` (S, K) as `Updates` has them.

    `pieces` are where in a row each weight lies, (offset, length), and `gradients` (K, length) theirs.
    """

    def __init__(
        self,
        rules: Sequence[int],
        told: Sequence[Sequence[float]],
        due: Tensor,
        last: Tensor,
        pieces: Sequence[tuple[int, int]],
        gradients: Sequence[Tensor],
        **matrices: Tensor | None,
    ) -> None:
        weights = matrices["weights"]
        assert weights is not None
        self._update = library(weights.dtype).update
        self._pieces = (_Piece * len(pieces))(*(_Piece(*own) for own in pieces))
        self._gradients = gradients
        self._pointed: Sequence[Tensor] = ()
        self._rows = _Rows(
            rows=len(rules), width=weights.shape[1], count=len(pieces), pieces=ctypes.addressof(self._pieces)
        )
        self._kept: dict[str, Tensor | None] = {}
        self._point(
            **matrices,
            rules=torch.tensor(rules, dtype=torch.int32),
            hparams=torch.tensor(told, dtype=torch.float64),
            due=due.to(torch.uint8),
            last=last.to(torch.uint8),
            products=torch.zeros(len(rules), dtype=torch.float64),
            known=torch.full((len(rules),), -1),
        )
        self._address = ctypes.addressof(self._rows)

    def _point(self, **tensors: Tensor | None) -> None:
        """Tell where tensors lie, which are kept for that."""
        for name, own in tensors.items():
            found = None if own is None else own.contiguous()
            assert own is None or name not in ("weights", "first", "second", "average") or found is own
            self._kept[name] = found
            setattr(self._rows, name, None if found is None else found.data_ptr())

    def _read(self, gradients: Sequence[Tensor]) -> None:
        """Have the gradients be read from there, (K, length) each."""
        if gradients is not self._pointed:
            for piece, own in zip(self._pieces, gradients, strict=True):
                piece.gradient = own.data_ptr()
            self._pointed = gradients

    def begin(self, rates: Tensor, numbers: Tensor) -> None:
        """The learning rates and the numbers of the coming updates, from 1, (S, K) each."""
        self._point(rates=rates.double(), numbers=numbers.long())

    def address(self) -> int:
        """Where all of this is told, `struct rows`, the gradients where they belong."""
        self._read(self._gradients)
        return self._address

    def apply(
        self, step: int, norm: Tensor, count: Tensor | None, elsewhere: Sequence[Tensor] | None = None, *, whole: bool
    ) -> None:
        """Update the rows that are due. `norm` and `count` (K,) in float64, as `Updates.apply` has them.

        The gradients are in `elsewhere` if that is given.
        """
        assert norm.dtype == torch.float64
        self._read(self._gradients if elsewhere is None else elsewhere)
        self._update(self._address, step, norm.data_ptr(), None if count is None else count.data_ptr(), whole)
        if elsewhere is not None:
            self._pointed = ()  # which are not kept beyond the update


class _Piece(ctypes.Structure):
    """`struct piece` of the source."""

    _fields_ = (("offset", ctypes.c_ssize_t), ("length", ctypes.c_ssize_t), ("gradient", ctypes.c_void_p))


class _Rows(ctypes.Structure):
    """`struct rows` of the source."""

    _fields_ = (
        *((name, ctypes.c_ssize_t) for name in ("rows", "width", "count")),
        ("pieces", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in ("rules", "due", "last", "hparams", "rates", "numbers")),
        *((name, ctypes.c_void_p) for name in ("products", "known")),
        *((name, ctypes.c_void_p) for name in ("weights", "first", "second", "average", "decay")),
    )
