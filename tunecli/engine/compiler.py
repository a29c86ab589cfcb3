"""What C of our own computes: its functions, as `tunecli.building` has them built."""

from __future__ import annotations

from contextlib import suppress
from ctypes import c_int, c_ssize_t, c_void_p
from functools import cache
from typing import Any

import torch

from tunecli import building

FUNCTIONS = {
    "update": (c_void_p, c_ssize_t, c_void_p, c_void_p, c_int),
    "unfold": (c_void_p, c_ssize_t, c_void_p, c_void_p),
    "fold": (c_void_p, c_ssize_t, c_void_p, c_void_p),
    "largest": (c_void_p, c_ssize_t, c_void_p, c_void_p),
    "cross_entropy": (c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),
    "to_largest": (c_void_p, c_ssize_t, c_void_p, c_void_p, c_void_p, c_void_p),
    "learn_step": (c_void_p, c_void_p, c_void_p, c_void_p, c_int, c_ssize_t),
    "evaluate": (c_void_p, c_void_p, c_ssize_t, c_void_p, c_void_p, c_ssize_t),
    "begin_training": (c_void_p,),
    "is_taken": (c_void_p,),
    "end_sharing": (c_void_p,),
}
"""What the sources define, and what it is given."""

RETURNED = {"begin_training": c_void_p, "is_taken": c_int}
"""What it returns, where it is anything."""

_KINDS = {torch.float32: "float", torch.float64: "double"}


def can_compile(device: str) -> bool:
    """Whether a plan may compute in C here, with weights in float32."""
    return is_compiled(torch.float32, torch.device(device))


def is_compiled(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether such tensors are computed with in C where a plan says so. It takes a moment the first time."""
    return device.type == "cpu" and has_functions(dtype)


def has_functions(dtype: torch.dtype) -> bool:
    """Whether there are functions for numbers of this kind."""
    return dtype in _KINDS and library(dtype) is not None


@cache
def library(dtype: torch.dtype) -> Any:
    """The functions of our sources for such tensors; None where they cannot be built."""
    found = building.load(_KINDS[dtype])
    if found is None:
        return None
    with suppress(AttributeError):
        for name, arguments in FUNCTIONS.items():
            function = getattr(found, name)
            function.argtypes, function.restype = arguments, RETURNED.get(name)
        return found
    return None
