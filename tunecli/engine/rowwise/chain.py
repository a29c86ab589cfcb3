"""A model taken apart into a chain of layers that have a rule: an nn.Sequential, or a user's own module, traced."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from itertools import chain as joined
from itertools import pairwise
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from tunecli.engine.rowwise.layers import has_rule

Chain = tuple[tuple[str, nn.Module], ...]
"""The layers in their order, each with its name in the model: "" where it has no module there, as `x.relu()`."""


def find_chain(module: nn.Module) -> Chain | None:
    """The model as a chain, or None where it is something else, or has a layer without a rule."""
    parameters = [p for _, p in module.named_parameters(remove_duplicate=False)]
    if len(parameters) != len(set(parameters)) or any(map(_is_changed, module.modules())):
        return None
    found = _unfold(module) or _trace(module)
    if found is None or not all(has_rule(layer) for _, layer in found):
        return None
    with_weights = [layer for _, layer in found if next(layer.parameters(), None) is not None]
    return found if len(with_weights) == len(set(with_weights)) else None


def _is_changed(module: nn.Module) -> bool:
    """Whether calling the module does more than its class says: a hook on it or its weights, or a patched forward."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    on_weights = (p._backward_hooks for p in module.parameters(recurse=False))
    return any(hooks) or any(on_weights) or "forward" in vars(module)


def _unfold(module: nn.Module, name: str = "") -> Chain | None:
    """A Sequential, or several within each other, without tracing."""
    if has_rule(module):
        return ((name, module),)
    if type(module) is nn.Identity:
        return ()
    if type(module) is not nn.Sequential:
        return None
    parts = [_unfold(part, f"{name}.{key}".lstrip(".")) for key, part in module.named_children()]
    return None if any(part is None for part in parts) else tuple(joined.from_iterable(filter(None, parts)))


def _trace(module: nn.Module) -> Chain | None:
    """A module of a user's own whose forward is one straight line, found by torch.fx.

    What forward does once it is traced is fixed for good. So it must be the same in training and in evaluation, and
    must change nothing of the module.
    """
    before = list(_attributes(module))
    was_training = module.training
    try:
        training = _straight(fx.symbolic_trace(module.train()))
        evaluation = _straight(fx.symbolic_trace(module.eval()))
    except Exception:  # whatever a user's forward meets under a tracer, there are other ways
        return None
    finally:
        module.train(was_training)
    if training is None or evaluation is None or before != list(_attributes(module)):
        return None
    same = [(name, repr(layer)) for name, layer in training] == [(name, repr(layer)) for name, layer in evaluation]
    return training if same else None


def _attributes(module: nn.Module) -> Iterator[tuple[str, str, str]]:
    """Everything that a module keeps beside its weights and parts."""
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            if not key.startswith("_") and key != "training":
                yield name, key, repr(value)


def _straight(graph: fx.GraphModule) -> Chain | None:
    """The layers of a traced module, if each reads what the one before it gives and nothing else."""
    found: list[tuple[str, nn.Module]] = []
    nodes = [node for node in graph.graph.nodes if not _is_size(node)]
    if [node.op for node in nodes].count("placeholder") != 1:
        return None
    for before, node in pairwise(nodes):
        if node.op == "output":
            return tuple(found) if node.args[0] is before else None
        read = [own for own in node.all_input_nodes if not _is_size(own)]
        layer = _layer(graph, node) if read == [before] and node.args and node.args[0] is before else None
        if layer is None:
            return None
        if type(layer) is not nn.Identity:
            found.append((str(node.target) if node.op == "call_module" else "", layer))
    return None


def _is_size(node: fx.Node) -> bool:
    """`len(x)`, `x.size(0)`, `x.shape` and `x.shape[0]`: numbers on the way to a view."""
    if node.op == "call_method":
        return node.target == "size"
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] == "shape"
    of_size = isinstance(node.args[0], fx.Node) and _is_size(node.args[0]) if node.args else False
    return node.op == "call_function" and (node.target is len or (node.target is operator.getitem and of_size))


def _layer(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that a node of the graph calls, or one that does the same."""
    more, named = node.args[1:], dict(node.kwargs)
    if node.op == "call_module":
        return graph.get_submodule(str(node.target)) if not more and not named else None
    named.pop("inplace", None)
    if _is_lone_output(node):
        return nn.Identity()  # (N, 1) -> (N,), of which the engine makes (N, 1) again
    if node.target in _VIEWS:
        # (N, *feature) -> (N, -1); that it keeps the samples apart is seen when the chain is tried.
        return nn.Flatten() if not named and len(more) == 2 else None
    make = _CALLS.get(node.target)
    if make is None:
        return None
    return make(*more, **named)


def _is_lone_output(node: fx.Node) -> bool:
    """`x.squeeze(-1)` or `x[:, 0]` at the very end."""
    if [user.op for user in node.users] != ["output"]:
        return False
    first = node.target is operator.getitem and node.args[1] == (slice(None), 0)
    return first or (node.target in ("squeeze", torch.squeeze) and node.args[1:] in ((-1,), (1,)))


_VIEWS = ("view", "reshape")

_CALLS: dict[Any, Callable[..., nn.Module]] = {
    **dict.fromkeys((torch.relu, functional.relu, "relu", "relu_"), nn.ReLU),
    **dict.fromkeys((torch.tanh, functional.tanh, "tanh"), nn.Tanh),
    **dict.fromkeys((torch.sigmoid, functional.sigmoid, "sigmoid"), nn.Sigmoid),
    functional.gelu: nn.GELU,
    functional.silu: nn.SiLU,
    functional.leaky_relu: nn.LeakyReLU,
    functional.elu: nn.ELU,
    **dict.fromkeys((torch.flatten, "flatten"), lambda start_dim=0, end_dim=-1: nn.Flatten(start_dim, end_dim)),
}
"""Functions and methods of a tensor by the module that does the same with the same arguments."""
