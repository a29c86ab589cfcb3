"""A function of our own in a graph that is being recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode


class Unrecordable(Exception):
    """A graph would not do what the function does; the message says why, of a model's forward pass."""


class InCAlone(Unrecordable):
    """A gradient that is had for many rows by C of our own, and else by the model itself."""


def called(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """What a function gives, which the graph that is being recorded is to call as it stands."""
    recorder: Any = _get_current_dispatch_mode()
    found: Tensor = recorder.call(function, *arguments)
    return found
