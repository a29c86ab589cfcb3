"""The updates of `update.c`: built by the machine's own C compiler, once, and kept in the user's cache.

torch.compile would need the same compiler, eight seconds for each shape, and a second to import; this takes a third of
a second for all of them.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from tunecli.engine.device import processor
from tunecli.files import cache_folder, make_folder

SOURCE = Path(__file__).with_name("update.c")
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
"""None of them changes what is computed: no product is contracted with a sum, and nothing is reordered."""

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

_KINDS = {torch.float32: "float", torch.float64: "double"}


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
        self._update = library(weights.dtype)
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


def can_compile(device: str) -> bool:
    """Whether a plan may have compiled updates here, of weights in float32."""
    return is_compiled(torch.float32, torch.device(device))


def is_compiled(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether updates of such tensors are compiled where a plan says so. It takes a moment the first time."""
    return device.type == "cpu" and dtype in _KINDS and library(dtype) is not None


@cache
def library(dtype: torch.dtype) -> Any:
    """The function `update` for such tensors; None where there is no compiler, or none whose work can be loaded.

    `CC` says which compiler, as everywhere; where that one does not work no other is tried.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    with suppress(OSError, ValueError, subprocess.SubprocessError, AttributeError):
        update = _loaded([*shlex.split(compiler), *FLAGS, f"-DREAL={_KINDS[dtype]}"]).update
        update.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
        update.restype = None
        return update
    return None


def _loaded(command: list[str]) -> ctypes.CDLL:
    """What a compiler makes of the source, kept for the next time where it can be. Raises OSError, SubprocessError.

    What is kept has its own digest in its name: half of a library can be loaded, and then ends the process.
    """
    made_of = repr((command, _instructions(), SOURCE.read_text()))
    name = _digest(made_of.encode())
    with suppress(OSError):
        for kept in cache_folder("compiled").glob(f"{name}-*.so"):
            if kept.stem == f"{name}-{_digest(kept.read_bytes())}":
                return ctypes.CDLL(str(kept))
    with _scratch() as scratch:
        built = Path(scratch, "update.so")
        subprocess.run([*command, "-o", str(built), str(SOURCE), "-lm"], check=True, capture_output=True, timeout=60)
        with suppress(OSError):
            built = built.rename(cache_folder("compiled") / f"{name}-{_digest(built.read_bytes())}.so")
        return ctypes.CDLL(str(built))


def _scratch() -> TemporaryDirectory[str]:
    """A folder to build in, for a moment: beside what is kept, for not every /tmp allows that programs are loaded."""
    with suppress(OSError):
        make_folder(cache_folder("compiled"))
        return TemporaryDirectory(dir=cache_folder("compiled"))
    return TemporaryDirectory()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _instructions() -> str:
    """What a CPU can do: one that only has the same name may not know all instructions of what was built here."""
    with suppress(OSError):
        first, _, _ = Path("/proc/cpuinfo").read_text().partition("\n\n")
        lines = {line.partition(":")[0].strip(): line for line in first.splitlines()}
        return "\n".join(lines[key] for key in _TELLING if key in lines)
    return processor()


_TELLING = ("vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features")
"""Lines of /proc/cpuinfo, of x86 and of ARM."""
