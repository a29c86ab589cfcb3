"""Which device an engine computes on, and how its process keeps memory."""

from __future__ import annotations

import ctypes
import gc
import re

import torch

from tunecli.errors import UsageError


def resolve_device(name: str) -> str:
    """The device that `name` means here: "auto" is the first GPU where there is one. Raises UsageError."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}", hint="auto, cpu, cuda or cuda:1") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UsageError(
            f"no device {name!r} here: torch sees {count} GPU{'' if count == 1 else 's'}", hint="--device cpu"
        )
    if device.type not in ("cpu", "cuda"):
        # Losses are summed in float64, which Apple's GPUs do not have.
        raise UsageError(f"device {name!r} is not supported", hint="auto, cpu, cuda or cuda:1")
    return name


def gpu_memory(device: str) -> int | None:
    """The bytes of a GPU, free or not; None for the CPU."""
    return int(torch.cuda.mem_get_info(device)[1]) if device.startswith("cuda") else None


_SAY_SO = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED", "bad_alloc")
"""Words of torch and of the libraries below it, which have no exception of their own for it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, on any device, or comes of one that does."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _SAY_SO):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


def out_of_memory(error: BaseException) -> str:
    """`out of memory (3.20 GiB at once)`, where an error says how much could not be had."""
    text = str(error)
    if (told := re.search(r"allocate ([\d.]+ [KMGT]iB)", text)) is not None:
        return f"out of memory ({told[1]} at once)"
    told = re.search(r"allocate (\d+) bytes", text)
    if told is None:
        return "out of memory"
    size = int(told[1]) / 2**20
    return f"out of memory ({f'{size:,.1f} MiB' if size < 1024 else f'{size / 1024:,.1f} GiB'} at once)"


def release_memory() -> None:
    """Give back what nothing refers to any more, to a GPU's other users too."""
    gc.collect()
    torch.cuda.empty_cache()  # without a GPU, nothing


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES, LARGEST_KEPT, LARGEST_KEPT_ONCE = 1 << 28, 1 << 30, 1 << 25
"""How much freed memory glibc may keep, and the largest tensor that it gives kept memory (before 2.36: the second)."""


def keep_memory() -> None:
    """Let the process keep the memory of freed tensors for the next ones, where its allocator is glibc's.

    By default a tensor above a few hundred kilobytes goes back to the system when it is freed, and the next one has
    every page of it zeroed anew: a third of the time of a step of a small convolutional network.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another system's, or another allocator
        return
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT) or mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_ONCE)
