"""What a function of tensors does, recorded once as a graph of torch's own operations.

The function is called through vmap and autograd, so the graph holds the forward and the backward pass of all rows, and
neither of the two is paid for again. torch's make_fx records the same, and imports its compiler for two seconds first.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tunecli.engine.norms import BatchNorm
from tunecli.engine.rowwise import normed
from tunecli.engine.rowwise.called import Unrecordable
from tunecli.engine.rowwise.dropout import noise, which_draw
from tunecli.engine.rowwise.functional import FUNCTIONS, weight_norm
from tunecli.engine.rowwise.recurrent import in_steps

aten = torch.ops.aten


READS = "its forward pass reads a tensor's value (if, float, print): use torch.where"
WRITES = "its forward pass writes into part of a tensor: use torch.cat"
STALE = "its forward pass reads a tensor after writing into part of it: use torch.cat"


class Recording(NamedTuple):
    """A graph of torch's operations, and the constants that it reads."""

    graph: fx.Graph
    constants: nn.Module

    def function(self) -> Callable[..., Any]:
        found: Callable[..., Any] = fx.GraphModule(self.constants, self.graph).forward
        return found


def record(function: Callable[[], Sequence[Tensor]], arguments: Sequence[Tensor], keys: Tensor | None) -> Recording:
    """What `function` does with `arguments`: a graph without writing in place, from them to a tuple of tensors. What
    depends on none of them is a constant of the graph. `meta["value"]` of a node is what was computed, and
    `meta["followed"]` whether autograd would have followed.

    Whoever decides by values decides for good: vmap, which forbids it, should be inside. Dropout is drawn by `keys`
    (B, m), one of the arguments; anything else that draws raises Unrecordable.
    """
    recorder = _Recorder(keys)
    for number, argument in enumerate(arguments):
        recorder.bind(argument, recorder.graph.placeholder(f"argument_{number}"))
    with recorder, _in_plain_operations():
        found = function()
    recorder.graph.output(tuple(recorder.node(own) for own in found))
    return Recording(recorder.graph, recorder.constants)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    def __init__(self, keys: Tensor | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.graph, self.constants = fx.Graph(), nn.Module()
        self._keys, self._drawn, self._paused = keys, 0, False
        self._nodes: dict[int, fx.Node] = {}
        self._sharing: dict[int, list[Tensor]] = {}  # by storage; kept, so that no two tensors have one address
        self._stale: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """torch's own way to say that its compiler need not be imported to be told to leave this alone."""
        return False

    def bind(self, tensor: Tensor, node: fx.Node) -> None:
        """The tensor is what `node` computes."""
        self._nodes[id(tensor)] = node
        self._sharing.setdefault(_storage(tensor), []).append(tensor)
        node.meta["value"] = tensor

    def node(self, value: Any) -> Any:
        """The node that computes a tensor; anything else is what it is."""
        if not isinstance(value, Tensor):
            return value
        if id(value) in self._stale:
            raise Unrecordable(STALE)
        if id(value) not in self._nodes:
            name = f"constant_{len(self._nodes)}"
            self.constants.register_buffer(name, value.detach())
            self.bind(value, self.graph.get_attr(name))
        return self._nodes[id(value)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded in func.tags:
            return self._draw(func, args)
        if not any(isinstance(own, Tensor) and id(own) in self._nodes for own in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        if torch.Tag.data_dependent_output in func.tags:
            raise Unrecordable(READS)
        if torch.Tag.dynamic_output_shape in func.tags and not _picks(func, args):
            raise Unrecordable(READS)
        if func._schema.is_mutable:
            return self._write(func, args, kwargs)
        node = self.graph.call_function(func, *tree_map(self.node, (args, kwargs)))
        node.meta["followed"] = torch.is_grad_enabled()
        found = func(*args, **kwargs)
        if isinstance(found, Tensor):
            self.bind(found, node)
            return found
        for place, part in enumerate(found):
            if isinstance(part, Tensor):
                self.bind(part, self.graph.call_function(operator.getitem, (node, place)))
        return found

    def call(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """Call a function of our own, which writes into nothing that it is given, as one node of the graph."""
        node = self.graph.call_function(function, tree_map(self.node, arguments))
        self._paused = True
        try:
            found = function(*arguments)
        finally:
            self._paused = False
        self.bind(found, node)
        return found

    def _write(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        """An operation in place, recorded as the one that returns the same, of which every other view is one now."""
        written, name = args[0], func.overloadpacket.__name__
        plain = getattr(getattr(aten, name.removesuffix("_"), None), func._overloadname, None)
        if plain is None or not isinstance(written, Tensor) or id(written) not in self._nodes:
            raise Unrecordable(WRITES)
        node = self.graph.call_function(plain, *tree_map(self.node, (args, kwargs)))
        func(*args, **kwargs)
        for other in list(self._sharing[_storage(written)]):
            if not _is_reshaped(other, written):
                self._stale.add(id(other))
                continue
            view = node if other is written else self.graph.call_function(_RESHAPE, (node, list(other.shape)))
            self._nodes[id(other)], view.meta["value"] = view, other
        return written

    def _draw(self, func: Any, args: Any) -> Any:
        """Dropout, whose ones and zeros come from the hash and not from a generator."""
        if self._keys is None:
            raise Unrecordable("it draws in evaluation too: F.dropout needs training=self.training")
        drawn = which_draw(func, args, self._keys, self._drawn)
        if drawn is None:
            name = func.overloadpacket.__name__.rstrip("_")
            raise Unrecordable(f"it draws by {name}: only dropout is drawn for all trials at once")
        self._drawn += 1
        like = args[0]
        how = drawn.odds, drawn.shape, drawn.axis, like.dtype
        kept = noise(self._keys, drawn.elements, *how)
        node = self.graph.call_function(noise, (self.node(self._keys), self.node(drawn.elements), *how))
        if func is aten.bernoulli_.float:
            kept = like.copy_(kept)
        self.bind(kept, node)
        if func is aten.native_dropout.default:
            with self:
                return like * kept / drawn.odds, kept.bool()
        return kept


def _picks(func: Any, args: Any) -> bool:
    """Whether an operation takes what stands at places, as many as there are, and not where something is true."""
    return func is aten.index.Tensor and all(own is None or own.dtype in (torch.int64, torch.int32) for own in args[1])


_RESHAPE = aten.reshape.default


def _is_reshaped(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors that share memory have the same numbers in the same order."""
    if tensor.storage_offset() != other.storage_offset() or tensor.numel() != other.numel():
        return False
    alike = tensor.shape == other.shape and tensor.stride() == other.stride()
    return alike or (tensor.is_contiguous() and other.is_contiguous())


def _storage(tensor: Tensor) -> int:
    found: int = tensor.untyped_storage()._cdata  # where it has no memory (a device that has none) its address is 0
    return found


@contextmanager
def _in_plain_operations() -> Iterator[None]:
    """Layers as products and sums, for which vmap has rules: attention unfused, one product for each Linear."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            sdpa_kernel(SDPBackend.MATH),
            in_steps(),
            patch.multiple(functional, **FUNCTIONS),
            patch.object(BatchNorm, "forward", normed.forward),
            patch.object(torch, "_weight_norm", weight_norm),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
