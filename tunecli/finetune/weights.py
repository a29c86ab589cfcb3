"""A model made ready to be trained on: weights read, layers chosen. And weights written out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tunecli.errors import CheckpointError, StorageError, UsageError
from tunecli.models.head import is_within, parametrized

_SAVE_HINT = "save it with torch.save(model.state_dict(), FILE)"


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict saved by torch.save or as safetensors; nothing in the file is executed."""
    if not path.is_file():
        raise CheckpointError(f"no such file: {path}", hint=_SAVE_HINT)
    try:
        with warnings.catch_warnings(action="ignore"):
            found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except UnpicklingError as error:
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


def trained_layers(module: nn.Module, patterns: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the modules that train, by globs over module names; "head" is the last one, "all" are all but those
    that the model's own function has frozen."""
    names = parametrized(module)
    found: list[str] = []
    for pattern in patterns:
        if pattern == "all":
            matched = [name for name in names if _learns(module.get_submodule(name))] or names
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


def freeze(module: nn.Module, trained: Sequence[str]) -> None:
    """Let only the layers `trained` learn, of one that is frozen in part the rest. A frozen norm keeps its running
    statistics, in training mode too."""
    frozen = {id(own) for part in module.modules() if _learns(part) for own in part.parameters(recurse=False)}
    frozen -= {id(own) for own in module.parameters() if own.requires_grad}
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(any(is_within(name, layer) for layer in trained) and id(parameter) not in frozen)
    everything = all(parameter.requires_grad for parameter in module.parameters())
    for part in module.modules():
        learns = everything or any(parameter.requires_grad for parameter in part.parameters())
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and not learns:
            part.eval()
            # Module.train() walks over all parts; this one stays where it is.
            part.train = lambda mode=True, own=part: own  # type: ignore[method-assign,misc]


def _learns(part: nn.Module) -> bool:
    """Whether a module has parameters of its own that learn."""
    return any(own.requires_grad for own in part.parameters(recurse=False))


def save_state_dict(path: Path, weights: Mapping[str, Tensor]) -> None:
    try:
        torch.save(dict(weights), path)
    except (OSError, RuntimeError) as error:
        raise StorageError(f"cannot write {path}: {error}", hint="choose another file with --save") from error
