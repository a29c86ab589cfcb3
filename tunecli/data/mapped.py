"""Arrays that stay in their file: memory-mapped, and read when samples are taken."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

SHARE = 0.25
"""Of the memory: inputs that take more of it stay in their file, unless data.stream says otherwise."""

PIECE, RECENT = 1 << 18, 1 << 10
"""Bytes that are asked for where a few of them are wanted, and how many such pieces are taken to be in memory still."""

AT_ONCE = 1 << 24
"""Bytes that are read at once where a file is gone through: 16 MiB."""

Array = np.ndarray[Any, Any]


def streams(wish: bool | None, size: int) -> bool:
    """Whether inputs of `size` bytes stay in their file: as `data.stream` says, else where they take a quarter of the
    memory of this machine, or of what its control group may have."""
    return size > SHARE * _memory() if wish is None else wish


def _memory() -> int:
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # not there, or "max"
            found = min(found, int(Path("/sys/fs/cgroup", limit).read_text()))
    return found


@dataclass(frozen=True, slots=True)
class Stored:
    """Where an array lies in a file, in C order from a byte on."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, array: Array) -> Stored | None:
        """Where a memory-mapped array lies, or a part of one; None for any other, and for one in another order."""
        whole = array
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        if not isinstance(whole, np.memmap) or whole.filename is None or not array.flags.c_contiguous:
            return None
        begin = array.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
        return cls(Path(whole.filename), whole.offset + begin, array.shape, array.dtype.str)

    @property
    def size(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def open(self) -> Array:
        """Copied where it is written to: nothing that a model does to its inputs reaches the file."""
        if self.size == 0:
            return np.empty(self.shape, self.dtype)
        return np.memmap(self.path, self.dtype, "c", self.offset, self.shape)


class _Scattered:
    """An array in a file of which rows are read here and there: from the disk come the pieces they lie in, whole.

    By itself the system reads ahead as the device is set up, some megabytes for each row: with memory for little more
    than the pieces in use that was sixty times the file.
    """

    def __init__(self, stored: Stored) -> None:
        skipped = stored.offset % mmap.ALLOCATIONGRANULARITY
        with stored.path.open("rb") as file:
            length, begin = stored.size + skipped, stored.offset - skipped
            self._map = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=begin)
        self._map.madvise(mmap.MADV_RANDOM)
        self._array: Array = np.ndarray(stored.shape, stored.dtype, self._map, skipped)
        self._skipped, self._row = skipped, stored.size // stored.shape[0]
        self._recent: dict[int, None] = {}

    def take(self, places: Array) -> Array:
        begins = self._skipped + places * self._row
        wanted = {*(begins // PIECE).tolist(), *((begins + self._row - 1) // PIECE).tolist()}
        for piece in sorted(wanted - self._recent.keys()):
            self._ask(piece)
        return np.take(self._array, places, axis=0)

    def _ask(self, piece: int) -> None:
        self._map.madvise(mmap.MADV_WILLNEED, piece * PIECE, min(PIECE, len(self._map) - piece * PIECE))
        self._recent[piece] = None
        if len(self._recent) > RECENT:
            del self._recent[next(iter(self._recent))]


class Mapped:
    """Rows of arrays in files, (N, *feature), in the place of a tensor of them: they are read when they are taken.

    A part is an array, and which of its rows (None: all) in their order.
    """

    def __init__(self, parts: Sequence[tuple[Stored, Array | None]], device: torch.device | None = None) -> None:
        self._parts, self._device = tuple(parts), device
        self._arrays = [stored.open() for stored, _ in parts]
        self._scattered = [_Scattered(stored) if stored.size else None for stored, _ in parts]
        lengths = [len(a) if rows is None else len(rows) for a, (_, rows) in zip(self._arrays, parts, strict=True)]
        self._ends = np.cumsum(lengths)

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process, which opens the files itself."""
        return Mapped, (self._parts, self._device)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self), *self._arrays[0].shape[1:]

    @property
    def dtype(self) -> torch.dtype:
        """Of what is taken."""
        return as_tensor(np.empty(0, self._arrays[0].dtype)).dtype

    @property
    def sample_bytes(self) -> int:
        """What a sample takes in its file."""
        return max(1, math.prod(self.shape[1:]) * self._arrays[0].itemsize)

    def dim(self) -> int:
        return len(self.shape)

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def take(self, index: Tensor | slice) -> Tensor:
        """The rows of an index of any shape, (..., *feature), read now."""
        in_order = isinstance(index, slice)
        if isinstance(index, slice):
            index = torch.arange(*index.indices(len(self)))
        places = index.flatten().cpu().numpy()
        if len(self._parts) == 1:
            found = self._read(0, places, in_order)
        else:
            part_of = np.searchsorted(self._ends, places, side="right")
            found = np.empty((len(places), *self.shape[1:]), self._arrays[0].dtype)
            for part in np.unique(part_of).tolist():
                begin = int(self._ends[part - 1]) if part else 0
                found[part_of == part] = self._read(part, places[part_of == part] - begin, in_order)
        taken = as_tensor(found).view(*index.shape, *self.shape[1:])
        return taken if self._device is None else taken.to(self._device)

    def _read(self, part: int, places: Array, in_order: bool) -> Array:
        rows, scattered = self._parts[part][1], self._scattered[part]
        wanted = places if rows is None else rows[places]
        if in_order or scattered is None:
            return np.asarray(np.take(self._arrays[part], wanted, axis=0))
        return scattered.take(wanted)

    def rows(self, index: Tensor | slice) -> Mapped:
        """Some of the rows, still in their files."""
        if isinstance(index, slice):
            index = torch.arange(*index.indices(len(self)))
        ((stored, rows),) = self._parts
        places = index.cpu().numpy()
        return Mapped([(stored, places if rows is None else rows[places])], self._device)

    def chunks(self) -> Iterator[Tensor]:
        """All rows, some at a time."""
        length = max(1, AT_ONCE // self.sample_bytes)
        return (self.take(slice(low, low + length)) for low in range(0, len(self), length))

    def to(self, device: torch.device) -> Mapped:
        return Mapped(self._parts, device)

    def join(self, other: Mapped) -> Mapped:
        """These rows, then the other ones."""
        return Mapped([*self._parts, *other._parts], self._device)


def as_tensor(values: Array) -> Tensor:
    """As they are, except that float64 from NumPy becomes torch's default float32, as in every training script."""
    # torch reads neither foreign byte order nor the read-only arrays that pandas hands out.
    tensor = torch.from_numpy(np.require(values, values.dtype.newbyteorder("="), ["C", "W"]))
    return tensor.to(torch.get_default_dtype()) if values.dtype.kind == "f" else tensor
