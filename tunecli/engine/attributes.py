"""What a module keeps in attributes of Python, beside its weights, buffers and parts."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

_OF_EVERY_MODULE = frozenset((*vars(nn.Module()), "forward", "train"))
_EMPTY = nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict
"""Classes of torch that keep nothing of their own."""


def attributes(module: nn.Module) -> dict[str, Any]:
    """Everything that a module keeps so, and what its parts do, by its name: `calls`, `body.calls`."""
    held = {id(own) for own in (*module.parameters(), *module.buffers())}
    return {
        ".".join(filter(None, (name, key))): value
        for name, part in module.named_modules()
        for key, value in vars(part).items()
        if key not in _OF_EVERY_MODULE
        and not (key.startswith("_") and _is_torchs(part))  # an nn.LSTM has other names of its weights there
        and not any(id(own) in held for own in tree_leaves(value))  # and so may a user's
    }


def _is_torchs(part: nn.Module) -> bool:
    return any(kind.__module__.startswith("torch.") for kind in type(part).__mro__ if kind not in _EMPTY)


def written(values: Mapping[str, Any]) -> dict[str, str]:
    """Each as Python writes it: what was changed in place differs from what was written before."""
    once: dict[int, str] = {}  # the parts of a large model may all keep its one configuration
    return {name: once.get(id(value)) or once.setdefault(id(value), _write(value)) for name, value in values.items()}


def _write(value: Any) -> str:
    return repr(tree_map(_in_full, value))


def _in_full(own: Any) -> Any:
    """What Python writes in short, or by its address alone: the numbers of a tensor, the state of a generator."""
    if isinstance(own, Tensor):
        with suppress(RuntimeError, TypeError):  # of a sparse one, or of one that a transformation of torch made
            numbers = own.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            return own.dtype, own.shape, hashlib.sha256(numbers.tobytes()).hexdigest()
    if isinstance(own, torch.Generator):
        return _in_full(own.get_state())
    if isinstance(own, random.Random):
        return own.getstate()
    if isinstance(own, np.random.Generator):
        return own.bit_generator.state
    return own


def changed(module: nn.Module, before: Mapping[str, str]) -> dict[str, Any]:
    """The attributes that are not what was `written` of them before."""
    now = attributes(module)
    return {name: now[name] for name, own in written(now).items() if before.get(name) != own}
