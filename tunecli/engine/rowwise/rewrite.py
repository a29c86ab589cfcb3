"""A recorded graph with less work: what vmap and autograd write for every case, as one writes it by hand for this one.

Each step keeps what the graph computes, to rounding. They are sound because nothing in the graph writes in place until
the last two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from tunecli.engine.compiler import has_functions
from tunecli.engine.rowwise.compiled import COMPILED

aten = torch.ops.aten

NARROW = 16
"""Products with fewer columns are computed transposed: they and the softmax after them fill their vectors then."""

SMALL = 4096
"""Weight gradients up to this many numbers a row are had as a product of their own and added: torch works off the
products that it adds into rows of a matrix one by one, but not where the gradients of each weight lie together."""


def rewrite(
    graph: fx.Graph, gradients: int, *, over: bool = False, apart: bool = False, compiled: bool = False
) -> None:
    """Simplify a graph that `record` gave. Its last `gradients` outputs are added to as many last arguments instead, or
    written `over` them; these lie `apart`, or in the rows of a matrix. What can be `compiled` is called in C."""
    simplify(graph)
    _simplified(graph, _turn_product, _drop_idle)
    _add_gradients(graph, gradients, over=over, apart=apart)
    for node in list(graph.nodes):
        _write_over(graph, node)
    for node in graph.nodes:
        if compiled and node.target in COMPILED and has_functions(_value(node).dtype):
            node.target = COMPILED[node.target]
        node.target = _DIRECT.get(node.target, node.target)
        node.meta.clear()
    graph.lint()


def simplify(graph: fx.Graph) -> None:
    """Drop from a recorded graph what computes nothing, and make one product of a product and its bias."""
    _simplified(graph, _drop_idle, _add_bias_in_product, _drop_idle)


def stops_gradients(graph: fx.Graph, weights: int) -> bool:
    """Whether a forward pass has a gradient of its own somewhere behind its first arguments, so many `weights`: by
    `detach`, `no_grad` or an autograd.Function.

    Few samples need not show it: past a clamp of what is never that large, say. What is no more than a product or a
    view, which our own convolutions hide from autograd too, would show.
    """
    behind = set([*graph.nodes][:weights])
    for node in graph.nodes:
        if behind.isdisjoint(node.all_input_nodes):
            continue
        behind.add(node)
        followed = node.meta.get("followed", True) or node.target in (*_VIEWS, *_ALWAYS_SEEN)
        if node.target is aten.detach.default or not followed:
            return True
    return False


def _simplified(graph: fx.Graph, *steps: Callable[[fx.Graph, fx.Node], None]) -> None:
    for step in steps:
        for node in list(graph.nodes):
            step(graph, node)
        graph.eliminate_dead_code()


def _value(node: fx.Node) -> Tensor:
    value: Tensor = node.meta["value"]
    return value


def _first(node: fx.Node) -> fx.Node:
    """What an operation on one tensor reads."""
    first = node.args[0]
    assert isinstance(first, fx.Node)
    return first


def _insert(graph: fx.Graph, before: fx.Node, target: Any, *args: Any) -> fx.Node:
    """A new node, what it computes computed once, for its shape."""
    with graph.inserting_before(before):
        node = graph.call_function(target, args)
    node.meta["value"] = target(*fx.node.map_arg(args, _value))
    return node


_VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)
_ALWAYS_SEEN = (
    aten.bmm.default,
    aten.baddbmm.default,
    aten.permute.default,
    aten.unsqueeze.default,
    aten.clone.default,
)
_SAME = (aten.detach.default, aten.alias.default, aten.clone.default)


def _drop_idle(graph: fx.Graph, node: fx.Node) -> None:
    """What gives back what it is given is dropped; a view of a view is one view; transposed twice is not transposed."""
    source = node.args[0] if node.args else None
    if node.op != "call_function" or not isinstance(source, fx.Node) or "value" not in node.meta:
        return
    value, target = _value(node), node.target
    if target in _VIEWS:
        # A reshape, which copies where a view cannot be: what it reads may be laid out otherwise than was recorded.
        while source.target in _VIEWS:
            source = _first(source)
        if _value(source).shape != value.shape:
            source = _insert(graph, node, aten.reshape.default, source, list(value.shape))
        node.replace_all_uses_with(source)
    elif (
        target in _SAME
        or (target is aten.permute.default and _keeps_order(node))
        or (target is aten.expand.default and _value(source).shape == value.shape)
        or (target is aten.mul.Scalar and node.args[1] == 1 and _value(source).dtype == value.dtype)
    ):
        node.replace_all_uses_with(source)
    elif target is aten.transpose.int and _transposes(source, *node.args[1:]):
        node.replace_all_uses_with(_first(source))


def _keeps_order(node: fx.Node) -> bool:
    """Whether a node that permutes dimensions leaves each where it is."""
    dims: Any = node.args[1]
    return [own % len(dims) for own in dims] == list(range(len(dims)))


def _transposes(node: fx.Node, first: Any, second: Any) -> bool:
    """Whether a node exchanges these two dimensions."""
    if node.target is not aten.transpose.int:
        return False
    dims = _value(node).dim()
    return {int(own) % dims for own in node.args[1:]} == {first % dims, second % dims}  # type: ignore[arg-type]  # ints


def _add_bias_in_product(graph: fx.Graph, node: fx.Node) -> None:
    """bmm(a, b) + bias as one baddbmm."""
    args: Any = node.args
    if node.target is not aten.add.Tensor or node.kwargs or not all(isinstance(own, fx.Node) for own in args):
        return
    for product, bias in (args, args[::-1]):
        if product.target is not aten.bmm.default or len(product.users) > 1:
            continue
        (rows, height, columns), given = _value(product).shape, _value(bias)
        fits = given.shape == (rows, 1, columns) and _value(node).shape == (rows, height, columns)
        if fits and given.dtype == _value(product).dtype:
            node.replace_all_uses_with(_insert(graph, node, aten.baddbmm.default, bias, *product.args))
            return


def _turn_product(graph: fx.Graph, node: fx.Node) -> None:
    """A product of which only the transpose is read, or a narrow one, is computed transposed."""
    if node.target not in (aten.bmm.default, aten.baddbmm.default):
        return
    _, height, width = _value(node).shape
    if not width < NARROW <= height and not all(_transposes(user, 1, 2) for user in node.users):
        return
    *bias, left, right = (_transposed(graph, node, own) for own in node.args)
    turned = _insert(graph, node, node.target, *bias, right, left)
    node.replace_all_uses_with(_insert(graph, node, aten.transpose.int, turned, 1, 2))


def _transposed(graph: fx.Graph, before: fx.Node, node: Any) -> fx.Node:
    return _first(node) if _transposes(node, 1, 2) else _insert(graph, before, aten.transpose.int, node, 1, 2)


def _add_gradients(graph: fx.Graph, gradients: int, *, over: bool, apart: bool) -> None:
    """The last outputs are added to the last arguments, or written over them, and are outputs no more."""
    *_, output = graph.nodes
    (found,) = output.args
    kept = len(found) - gradients
    places = [node for node in graph.nodes if node.op == "placeholder"][-gradients:] if gradients else []
    for place, addend in zip(places, found[kept:], strict=True):
        with graph.inserting_before(output):
            if addend is None:
                if over:
                    graph.call_method("zero_", (place,))
                continue
            at_once = apart or _value(place)[0].numel() > SMALL
            if at_once and addend.target is aten.bmm.default and len(addend.users) == 1:
                graph.call_method("baddbmm_", (place, *addend.args), {"beta": 0} if over else {})
            else:
                graph.call_method("copy_" if over else "add_", (place, addend))
    output.args = (found[:kept],)
    for node in reversed(graph.nodes):  # not what adds: it has no users either
        if node.op == "call_function" and not node.users:
            graph.erase_node(node)


def _write_over(graph: fx.Graph, node: fx.Node) -> None:
    """Elementwise operations write over what nobody else reads."""
    if node.target not in _IN_PLACE and node.target not in _BACKWARD:
        return
    places = [place for place, own in enumerate(node.args[:2]) if isinstance(own, fx.Node) and _is_free(own, node)]
    if node.target in _BACKWARD and places[:1] == [0]:
        name = "grad_input"
        node.target = getattr(node.target.overloadpacket, name)  # type: ignore[union-attr]  # an operation of torch
        node.kwargs = {**node.kwargs, name: node.args[0]}
    elif node.target in _IN_PLACE and places and (places[0] == 0 or node.target in _EITHER) and not node.kwargs:
        if places[0] == 1:
            node.args = node.args[::-1]
        node.op, node.target = "call_method", _IN_PLACE[node.target]


def _is_free(source: fx.Node, node: fx.Node) -> bool:
    """Whether a node may write over what another computes: memory of its own, of the same kind, that it alone reads."""
    if _value(source).shape != _value(node).shape or _value(source).dtype != _value(node).dtype:
        return False
    while len(source.users) == 1 and source.target in (aten.reshape.default, aten.transpose.int):
        source = _first(source)
    return len(source.users) == 1 and (source.target in _ALLOCATING or source.op == "call_method")


_EITHER = {aten.add.Tensor: "add_", aten.mul.Tensor: "mul_"}
_IN_PLACE: dict[Any, str] = {
    **_EITHER,
    aten.sub.Tensor: "sub_",
    aten.relu.default: "relu_",
    aten.tanh.default: "tanh_",
    aten.sigmoid.default: "sigmoid_",
    aten.exp.default: "exp_",
    aten.scatter_add.default: "scatter_add_",
    aten.mul.Scalar: "mul_",
    aten.div.Scalar: "div_",
}
_BACKWARD = tuple(
    getattr(aten, f"{name}_backward").default
    for name in ("threshold", "tanh", "sigmoid", "silu", "gelu", "leaky_relu", "elu")
)
_ALLOCATING = (
    aten.bmm.default,
    aten.baddbmm.default,
    *_IN_PLACE,
    *_BACKWARD,
    *(
        getattr(aten, f"{name}_backward").grad_input
        for name in ("threshold", "tanh", "sigmoid", "silu", "gelu", "leaky_relu", "elu")
    ),
)

_DIRECT: dict[Any, Callable[..., Any]] = {
    aten.bmm.default: torch.bmm,
    aten.baddbmm.default: torch.baddbmm,
    aten.reshape.default: torch.reshape,
    aten.transpose.int: torch.transpose,
    aten.relu.default: torch.relu,
    aten.mul.Tensor: torch.mul,
    aten.add.Tensor: torch.add,
    aten.sum.dim_IntList: torch.sum,
    aten.exp.default: torch.exp,
    aten.gather.default: torch.gather,
    aten.unsqueeze.default: torch.unsqueeze,
    aten.select.int: torch.select,
}
"""The functions behind operations, which are called in half the time."""
