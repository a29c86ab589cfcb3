"""Bundled models, and a user's own `file.py:function`.

Only names here, so that a study file is checked without loading torch; `build` loads the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunecli.errors import ModelError, did_you_mean
from tunecli.source import call, is_function

if TYPE_CHECKING:
    from torch import nn

Features = tuple[Any, ...] | Mapping[str, Any]
"""The shape of one sample, or a tuple or a dict of the shapes of its inputs."""

BUNDLED: dict[str, frozenset[str]] = {
    "linear": frozenset(),
    "mlp": frozenset({"hidden", "activation", "dropout"}),
    "cnn": frozenset({"channels", "hidden", "dropout"}),
}
"""Each bundled model and the keys that it takes."""

EMBEDDING = frozenset({"linear", "mlp"})
"""Those that embed columns of category codes."""


def build(
    source: str,
    keys: Mapping[str, Any],
    *,
    base: Path,
    features: Features,
    outputs: int,
    seed: int,
    categories: tuple[int, ...] = (),
) -> nn.Module:
    """A new model with its initial weights drawn from `seed`; the process's random state is left as it was.

    A bundled model is told `features` (the shape of a sample), `outputs`, and `categories` (how many codes each of the
    last features has, where these are codes of categories); a user's function gets its keys alone.
    Raises ModelError, or SourceError from the user's function.
    """
    import torch
    from torch import nn

    from tunecli.models import bundled

    with torch.random.fork_rng():
        if not is_function(source):
            # They draw on the CPU; torch.manual_seed would tell every kind of GPU as well, for a millisecond a model.
            torch.default_generator.manual_seed(seed)
            _check_keys(source, keys)
            if isinstance(features, Mapping) or any(isinstance(size, tuple) for size in features):
                alone = len(features) == 1
                raise ModelError(
                    f"{source} takes one tensor, a sample has inputs of shapes {features}",
                    hint="return pairs (input, target), no dict; or write a model of your own"
                    if alone
                    else "write a model of your own that takes them all",
                )
            return bundled.build(source, keys, features, outputs, categories)
        torch.manual_seed(seed)
        model = call(source, keys, base)
    while isinstance(model, nn.DataParallel) or hasattr(model, "_orig_mod"):
        # What torch.compile wraps, too: how a model is computed is for the search to find out.
        model = model.module if isinstance(model, nn.DataParallel) else model._orig_mod
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{source} must return a torch.nn.Module, got {type(model).__name__}", hint="end it with `return model`"
        )
    if lazy := [name for name, own in model.named_parameters() if nn.parameter.is_lazy(own)]:
        raise ModelError(
            f"{source} returned a model whose weights have no shape yet: {lazy[0]}",
            hint="give the layer its sizes in the place of a lazy one, or call the model once before it is returned",
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(f"{source} returned a model without weights to train")
    return model


def _check_keys(source: str, keys: Mapping[str, Any]) -> None:
    if source not in BUNDLED:
        raise ModelError(f"unknown model {source!r}", hint=did_you_mean(source, BUNDLED))
    for key in keys:
        if key not in BUNDLED[source]:
            hint = did_you_mean(key, BUNDLED[source]) or "it takes none"
            raise ModelError(f"unknown key {key!r} of model {source!r}", hint=hint)
