"""The head of a model, its last layer: found, replaced by one for other classes; and weights put into a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from tunecli.errors import CheckpointError, InputError
from tunecli.trial import derive_seed


def head_name(module: nn.Module) -> str:
    """The name of the last module that has weights of its own."""
    return parametrized(module)[-1]


def parametrized(module: nn.Module) -> list[str]:
    return [name for name, part in module.named_modules() if next(part.parameters(recurse=False), None) is not None]


def has_other_head(module: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    """Whether the weights' last layer is the module's but for the number of its outputs."""
    head = head_name(module)
    pairs = [(weights[n], own) for n, own in module.state_dict().items() if is_within(n, head) and n in weights]
    return any(found.shape != own.shape for found, own in pairs) and all(
        found.shape[1:] == own.shape[1:] for found, own in pairs
    )


def replace_head(module: nn.Module, outputs: int, seed: int) -> None:
    """Put a new last layer with `outputs` outputs in the place of the old one, its weights drawn from `seed`."""
    name = head_name(module)
    old = module.get_submodule(name)
    if not isinstance(old, nn.Linear):
        raise InputError(
            f"the last layer {name!r} is a {type(old).__name__}: other classes need a Linear to replace",
            hint="end the model with nn.Linear",
        )
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, 0, "head"))
        head = nn.Linear(old.in_features, outputs, bias=old.bias is not None, dtype=old.weight.dtype)
    parent, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(parent), attribute, head)


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], *, fresh: str | None, where: Path | None) -> None:
    """Load `weights` into the module; those of its layer `fresh` stay as they are. Raises CheckpointError."""
    own = {name: tensor for name, tensor in module.state_dict().items() if not _is_fresh(name, fresh)}
    weights = {name: tensor for name, tensor in weights.items() if not _is_fresh(name, fresh)}
    unknown = [name for name in weights if name not in own]
    missing = [name for name in own if name not in weights]
    other = [
        f"{name} is {tuple(weights[name].shape)}, the model's {tuple(own[name].shape)}"
        for name in weights
        if name in own and weights[name].shape != own[name].shape
    ]
    faults = other + [f"{name} is not in the model" for name in unknown] + [f"{name} is missing" for name in missing]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise CheckpointError(
            f"{where or 'the checkpoint'} does not fit the model: {'; '.join(faults[:3])}{more}",
            hint="the model must be the one whose weights were saved",
        )
    module.load_state_dict(dict(weights), strict=fresh is None)


def _is_fresh(name: str, fresh: str | None) -> bool:
    return fresh is not None and is_within(name, fresh)


def is_within(parameter: str, module: str) -> bool:
    return parameter.startswith(f"{module}.") if module else "." not in parameter
