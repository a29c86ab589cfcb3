"""How a model is called, and what it gives: one input, several, or a dict in; a tensor out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, update_wrapper
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from tunecli.data.samples import Inputs
from tunecli.errors import ModelError


def arguments(module: nn.Module, inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What forward is called with: `model(x)`, `model(a, b)` for a tuple, and for a dict what its signature takes.

    That is `model(**inputs)` where the keys are names of its parameters, as in Hugging Face's models, and
    `model(inputs)` where it takes one dict. Raises ModelError where it can take neither.
    """
    if isinstance(inputs, tuple):
        return inputs, {}
    if not isinstance(inputs, dict):
        return (inputs,), {}
    return ((), inputs) if _takes_names(type(module).forward, tuple(inputs)) else ((inputs,), {})


@lru_cache(maxsize=256)
def _takes_names(forward: Callable[..., Any], names: tuple[str, ...]) -> bool:
    signature = inspect.signature(forward)
    if _binds(signature, dict.fromkeys(names)):
        return True
    parameters = list(signature.parameters)[1:]
    shared = [name for name in names if name in parameters]
    if shared or not _binds(signature, {}, None):
        raise ModelError(
            f"forward takes {', '.join(parameters) or 'nothing'}, a sample has {', '.join(names)}",
            hint="name forward's parameters as the keys of the inputs, or take them all as one dict",
        )
    return False


def _binds(signature: inspect.Signature, named: Mapping[str, Any], *placed: Any) -> bool:
    try:
        signature.bind(None, *placed, **named)  # the first one is self
    except TypeError:
        return False
    return True


def call(module: nn.Module, inputs: Inputs) -> Any:
    """What the module makes of the inputs of some samples."""
    args, kwargs = arguments(module, inputs)
    return module(*args, **kwargs)


def as_outputs(outputs: Any, samples: int) -> Tensor:
    """What a model returned for N samples as a tensor (N, ...); of a Hugging Face output its logits."""
    outputs = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", outputs)
    if not isinstance(outputs, Tensor):
        raise ModelError(
            f"a model must return a tensor, got {type(outputs).__name__}", hint="return the outputs alone from forward"
        )
    if outputs.shape[:1] != (samples,):
        raise _wrong_shape(outputs, samples)
    return outputs


def as_matrix(outputs: Tensor) -> Tensor:
    """Outputs (N, ...) as (N, O), which bundled losses and metrics take; one number a sample may come as (N,)."""
    if outputs.dim() > 2:
        raise _wrong_shape(outputs, len(outputs))
    return outputs if outputs.dim() == 2 else outputs[:, None]


def _wrong_shape(outputs: Tensor, samples: int) -> ModelError:
    return ModelError(
        f"a model must return (samples, outputs), here ({samples}, ...), got {tuple(outputs.shape)}",
        hint="flatten the outputs of each sample at the end of forward",
    )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode, then back in training mode."""
    module.eval()
    try:
        yield
    finally:
        module.train()


def forward_in_bfloat16(module: nn.Module, device: torch.device) -> None:
    """Let the module compute its forward pass, and so its backward, under torch.autocast in bfloat16.

    Its weights and gradients stay as they are, and so does the loss: outputs come back in float32.
    """
    plain = module.forward

    def forward(*args: Any, **keys: Any) -> Any:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            outputs = plain(*args, **keys)
        return tree_map(_widened, outputs)

    module.forward = update_wrapper(forward, plain)  # whose signature says how it is called


def _widened(outputs: Any) -> Any:
    return outputs.float() if isinstance(outputs, Tensor) and outputs.dtype == torch.bfloat16 else outputs


def watch(parts: Sequence[nn.Module], see: Callable[..., None], forward: Callable[[], object]) -> None:
    """Have `see` called as a forward hook of some parts of a module while `forward` calls it, without gradients."""
    hooks = [part.register_forward_hook(see) for part in parts]
    try:
        if hooks:
            with torch.no_grad():
                forward()
    finally:
        for hook in hooks:
            hook.remove()
