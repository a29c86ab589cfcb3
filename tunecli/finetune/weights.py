"""A model made ready to be trained on: weights read, a new head put in, layers chosen. And weights written out."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tunecli.errors import CheckpointError, InputError, StorageError, UsageError
from tunecli.trial import derive_seed

_SAVE_HINT = "save it with torch.save(model.state_dict(), FILE)"


def head_name(module: nn.Module) -> str:
    """The name of the last module that has weights of its own."""
    return _parametrized(module)[-1]


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict saved by torch.save or as safetensors; nothing in the file is executed."""
    if not path.is_file():
        raise CheckpointError(f"no such file: {path}", hint=_SAVE_HINT)
    try:
        with warnings.catch_warnings(action="ignore"):
            found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message says how to have the code run all the same.
        raise CheckpointError(
            f"{path} cannot be read as weights: it is no file of tensors alone, and code in a file is never run",
            hint=_SAVE_HINT,
        ) from error
    except Exception as error:  # torch and safetensors raise many kinds for a file that is not theirs
        raise CheckpointError(
            f"{path} cannot be read as weights: {(str(error) or type(error).__name__).splitlines()[0]}", hint=_SAVE_HINT
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise CheckpointError(f"{path} holds no state dict", hint=_SAVE_HINT)
    return dict(found)


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
    return fresh is not None and _is_within(name, fresh)


def trained_layers(module: nn.Module, patterns: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the modules that train, by globs over module names; "head" is the last one, "all" is all."""
    names = _parametrized(module)
    found: list[str] = []
    for pattern in patterns:
        if pattern == "all":
            matched = names
        elif pattern == "head" and "head" not in names:
            matched = [names[-1]]
        else:
            matched = [name for name in names if fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")]
        if not matched:
            raise UsageError(
                f"no layer of the model matches {pattern!r}", hint=f"its layers: {', '.join(names)}; or head, all"
            )
        found += [name for name in matched if name not in found]
    return tuple(found)


def _parametrized(module: nn.Module) -> list[str]:
    return [name for name, part in module.named_modules() if next(part.parameters(recurse=False), None) is not None]


def freeze(module: nn.Module, trained: Sequence[str]) -> None:
    """Let only the layers `trained` learn. A frozen norm keeps its running statistics, in training mode too."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(any(_is_within(name, layer) for layer in trained))
    everything = all(parameter.requires_grad for parameter in module.parameters())
    for part in module.modules():
        learns = everything or any(parameter.requires_grad for parameter in part.parameters())
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and not learns:
            part.eval()
            # Module.train() walks over all parts; this one stays where it is.
            part.train = lambda mode=True, own=part: own  # type: ignore[method-assign,misc]


def has_other_head(module: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    """Whether the weights' last layer is the module's but for the number of its outputs."""
    head = head_name(module)
    pairs = [(weights[n], own) for n, own in module.state_dict().items() if _is_within(n, head) and n in weights]
    return any(found.shape != own.shape for found, own in pairs) and all(
        found.shape[1:] == own.shape[1:] for found, own in pairs
    )


def _is_within(parameter: str, module: str) -> bool:
    return parameter.startswith(f"{module}.") if module else "." not in parameter


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


def save_state_dict(path: Path, weights: Mapping[str, Tensor]) -> None:
    try:
        torch.save(dict(weights), path)
    except (OSError, RuntimeError) as error:
        raise StorageError(f"cannot write {path}: {error}", hint="choose another file with --save") from error
