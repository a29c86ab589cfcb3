"""Operations that make one number of one or two, as layers that `network.c` computes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from tunecli.engine.rowwise.layers import demand, is_of_all, owners
from tunecli.engine.rowwise.pieces import alike, combined, constant, each, group, join, together, told
from tunecli.engine.rowwise.reader import Codes, Constant, Drawn, Found, Mask, Operation, Reader, Values, value_of

aten = torch.ops.aten


# Sums and products of numbers, with others or with weights.


def _added(reader: Reader, node: fx.Node, one: Any, other: Any, *, alpha: float = 1.0) -> Found:
    if not isinstance(other, fx.Node):
        return _scaled(reader, node, one, 1.0, other * alpha)
    if alpha == 1:
        one, other = _sorted(reader, one, other)
    return Values(combined(reader, "add", reader.index(one), reader.found[other], alpha))


def _subtracted(reader: Reader, node: fx.Node, one: Any, other: Any, *, alpha: float = 1.0) -> Found:
    if isinstance(other, fx.Node) and not isinstance(reader.found[one], Values):
        demand(alpha == 1)
        return Values(combined(reader, "add", each(reader, "scale", reader.index(other), -1.0), reader.found[one]))
    return _added(reader, node, one, other, alpha=-alpha)


def _times(reader: Reader, node: fx.Node, one: Any, other: Any) -> Found:
    if not isinstance(other, fx.Node):
        return _scaled(reader, node, one, other)
    one, other = _sorted(reader, one, other)
    return Values(combined(reader, "multiply", reader.index(one), reader.found[other]))


def _divided(reader: Reader, node: fx.Node, one: Any, other: Any) -> Found:
    if not isinstance(other, fx.Node):
        return _scaled(reader, node, one, 1 / other)
    found = reader.found[other]
    if isinstance(found, Constant):
        return Values(told(reader, "weigh", reader.index(one), 1 / found.index))
    return Values(combined(reader, "multiply", each(reader, "reciprocal", reader.index(other)), reader.found[one]))


def _power(reader: Reader, node: fx.Node, given: Any, exponent: float) -> Found:
    index = reader.index(given)
    if exponent in _ROOTS:
        return Values(each(reader, _ROOTS[exponent], index))
    demand(exponent in (1, 2, 3))
    found = index
    for _ in range(int(exponent) - 1):
        found = join(reader, "multiply", found, index)
    return Values(found)


_ROOTS = {0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}


def _sorted(reader: Reader, one: Any, other: Any) -> tuple[Any, Any]:
    """Lines first, constants last."""
    first, second = reader.found[one], reader.found[other]
    keep = isinstance(first, Values) or (isinstance(second, Constant) and not isinstance(first, Constant))
    return (one, other) if keep else (other, one)


def _scaled(reader: Reader, node: fx.Node, given: Any, scale: Any = 1.0, shift: Any = 0.0) -> Any:
    found = reader.found.get(given)
    if isinstance(found, Drawn):
        demand(shift == 0)
        return replace(found, scale=found.scale * scale)
    if isinstance(found, Codes):  # those of few bits would wrap round
        demand(not found.cut and value_of(node).dtype == torch.int64)
        return Codes(each(reader, "scale", found.index, float(scale), float(shift)))
    return Values(each(reader, "scale", reader.index(given), float(scale), float(shift)))


# Masks.


def _compared(kind: str, sign: float = 1.0, *, denied: bool = False) -> Operation:
    """Whether lines times a sign are equal to a number times that, or above it; or whether they are not."""

    def read(reader: Reader, node: fx.Node, given: Any, number: float) -> Found:
        found = reader.found[given]
        demand(isinstance(found, Values | Codes) and not getattr(found, "cut", False))
        index = found.index if sign > 0 else each(reader, "scale", found.index, sign)
        return Mask(_denied(reader, each(reader, kind, index, shift=sign * number), denied))

    return read


def _compared_to(reader: Reader, node: fx.Node, given: Any, others: Any) -> Found:
    """Whether lines are equal to constants, one for each: the numbers of classes, say."""
    found, by = reader.found[given], reader.found[others]
    demand(isinstance(found, Values | Codes) and not getattr(found, "cut", False) and isinstance(by, Constant))
    return Mask(each(reader, "equal", told(reader, "shift", found.index, -by.index.double())))


def _denied(reader: Reader, index: Any, denied: bool) -> Any:
    return each(reader, "scale", index, -1.0, 1.0) if denied else index


def _not(reader: Reader, node: fx.Node, given: Any) -> Found:
    found = reader.found[given]
    demand(isinstance(found, Mask))
    return Mask(_denied(reader, found.index, True))


def _both(reader: Reader, node: fx.Node, one: Any, other: Any) -> Found:
    found = reader.found[one], reader.found[other]
    demand(all(isinstance(own, Mask) for own in found))
    return Mask(join(reader, "multiply", found[0].index, found[1].index))


def _masked(reader: Reader, node: fx.Node, given: Any, mask: Any, value: float) -> Found:
    """Whatever stands where a mask does."""
    found, index = reader.found[mask], reader.index(given)
    if isinstance(found, Mask):
        return Values(join(reader, "mask", index, found.index, float(value)))
    demand(isinstance(found, Constant))
    demand(not is_of_all(index))
    index, hidden = alike(index, found.index)
    return Values(torch.where(hidden, constant(reader, float(value))[owners(index)], index))


def _where(reader: Reader, node: fx.Node, mask: Any, one: Any, other: Any) -> Values:
    """The sum of either where it stands, and of zeros."""
    found, size = reader.found[mask], value_of(node).shape
    first, second = reader.index_in(one, size), reader.index_in(other, size)
    if isinstance(found, Constant):
        first, second = together(reader, first.expand(size), second.expand(size))
        return Values(torch.where(found.index, first, second))
    demand(isinstance(found, Mask))
    first = join(reader, "mask", first, _denied(reader, found.index, True), 0.0)
    second = join(reader, "mask", second, found.index, 0.0)
    return Values(join(reader, "add", first, second))


def _extreme(sign: float) -> Operation:
    """The larger of two numbers, or the smaller one; of equal ones both have half of the gradient."""

    def read(reader: Reader, node: fx.Node, one: Any, other: Any) -> Values:
        size = value_of(node).shape
        both = torch.stack([reader.index_in(own, size).expand(size) for own in (one, other)], -1)
        if sign > 0:
            return Values(group(reader, "maximum", both, shift=1.0))
        found = group(reader, "maximum", each(reader, "scale", both, -1.0), shift=1.0)
        return Values(each(reader, "scale", found, -1.0))

    return read


def _filled(value: float) -> Operation:
    """A constant in the shape of something else."""

    def read(reader: Reader, node: fx.Node, *given: Any, **how: Any) -> Found:
        return Constant(torch.full_like(value_of(node), value))

    return read


def _filled_by(reader: Reader, node: fx.Node, *given: Any, **how: Any) -> Found:
    return Constant(torch.full_like(value_of(node), given[-1]))


def _sign(reader: Reader, node: fx.Node, given: Any) -> Values:
    index = reader.index(given)
    above, below = (each(reader, "above", own) for own in (index, each(reader, "scale", index, -1.0)))
    return Values(join(reader, "add", above, below, -1.0))


def _beside_one(kind: str, before: float, behind: float) -> Operation:
    """A function of what is so much more, or so much more than it."""

    def read(reader: Reader, node: fx.Node, given: Any) -> Values:
        index = reader.index(given)
        index = each(reader, "scale", index, 1.0, before) if before else index
        found = each(reader, kind, index)
        return Values(each(reader, "scale", found, 1.0, behind) if behind else found)

    return read


def _clamp_to(reader: Reader, node: fx.Node, given: Any, low: Any) -> Found:
    found = reader.found[low]
    demand(isinstance(found, Constant) and found.index.numel() == 1)
    return _clamp(reader, node, given, float(found.index))


def _threshold(reader: Reader, node: fx.Node, given: Any, bound: float, value: float) -> Values:
    index = reader.index(given)
    below = _denied(reader, each(reader, "above", index, shift=bound), True)
    return Values(join(reader, "mask", index, below, float(value)))


# Functions of one number.


def _function(kind: str) -> Operation:
    return lambda reader, node, given: Values(each(reader, kind, reader.index(given)))


def _gelu(reader: Reader, node: fx.Node, given: Any, *, approximate: str = "none") -> Values:
    return Values(each(reader, "gelu" if approximate == "none" else "gelu_tanh", reader.index(given)))


def _softplus(reader: Reader, node: fx.Node, given: Any, beta: float = 1.0, threshold: float = 20.0) -> Values:
    demand(threshold >= 20)  # above which torch's is x itself, and ours is to rounding
    found = reader.index(given) if beta == 1 else each(reader, "scale", reader.index(given), float(beta))
    found = each(reader, "softplus", found)
    return Values(found if beta == 1 else each(reader, "scale", found, 1 / beta))


def _log_sigmoid(reader: Reader, node: fx.Node, given: Any) -> list[Values]:
    found = each(reader, "softplus", each(reader, "scale", reader.index(given), -1.0))
    return [Values(each(reader, "scale", found, -1.0))]


def _hardtanh(reader: Reader, node: fx.Node, given: Any, low: float = -1.0, high: float = 1.0) -> Values:
    return Values(each(reader, "hardtanh", reader.index(given), low, high))


def _hardsigmoid(reader: Reader, node: fx.Node, given: Any) -> Values:
    return Values(each(reader, "hardtanh", each(reader, "scale", reader.index(given), 1 / 6, 0.5), 0.0, 1.0))


def _clamp(reader: Reader, node: fx.Node, given: Any, low: float | None = None, high: float | None = None) -> Found:
    found = reader.found[given]
    bounds = -math.inf if low is None else low, math.inf if high is None else high
    if isinstance(found, Codes):
        demand(not found.cut)
        return Codes(each(reader, "clamp", found.index, *bounds))
    return Values(each(reader, "clamp", reader.index(given), *bounds))


def _softshrink(reader: Reader, node: fx.Node, given: Any, bound: float = 0.5) -> Values:
    index = reader.index(given)
    return Values(join(reader, "add", index, each(reader, "clamp", index, -bound, bound), -1.0))


def _leaky_relu(reader: Reader, node: fx.Node, given: Any, slope: float = 0.01) -> Values:
    return Values(each(reader, "leaky_relu", reader.index(given), float(slope)))


def _prelu(reader: Reader, node: fx.Node, given: Any, slope: Any) -> Values:
    index = reader.index(given)
    above = each(reader, "relu", index)
    below = combined(reader, "multiply", join(reader, "add", index, above, -1.0), reader.found[slope])
    return Values(join(reader, "add", above, below))


def _elu(reader: Reader, node: fx.Node, given: Any, alpha: float = 1.0, *scales: float) -> Values:
    scale, below = (*scales, 1.0, 1.0)[:2]
    demand(below == 1)
    found = each(reader, "elu", reader.index(given), float(alpha))
    return Values(found if scale == 1 else each(reader, "scale", found, float(scale)))


def _celu(reader: Reader, node: fx.Node, given: Any, alpha: float = 1.0) -> Values:
    found = each(reader, "elu", each(reader, "scale", reader.index(given), 1 / alpha))
    return Values(each(reader, "scale", found, float(alpha)))


def _glu(reader: Reader, node: fx.Node, given: Any, dim: int = -1) -> Values:
    one, other = reader.index(given).chunk(2, dim)
    return Values(join(reader, "multiply", one, each(reader, "sigmoid", other)))


_FUNCTIONS = (
    *("relu", "tanh", "sigmoid", "silu", "mish", "hardswish"),
    *("exp", "log", "sqrt", "rsqrt", "reciprocal", "abs", "sin", "cos"),
)
ELEMENTWISE: dict[Any, Operation] = {
    aten.add.Tensor: _added,
    aten.add.Scalar: _added,
    aten.sub.Tensor: _subtracted,
    aten.sub.Scalar: _subtracted,
    aten.mul.Tensor: _times,
    aten.mul.Scalar: _times,
    aten.div.Tensor: _divided,
    aten.div.Scalar: _divided,
    aten.pow.Tensor_Scalar: _power,
    aten.neg.default: lambda reader, node, given: _scaled(reader, node, given, -1.0),
    aten.rsub.Scalar: lambda reader, node, given, of: _scaled(reader, node, given, -1.0, of),
    aten.eq.Scalar: _compared("equal"),
    aten.ne.Scalar: _compared("equal", denied=True),
    aten.gt.Scalar: _compared("above"),
    aten.le.Scalar: _compared("above", denied=True),
    aten.lt.Scalar: _compared("above", -1.0),
    aten.ge.Scalar: _compared("above", -1.0, denied=True),
    aten.logical_not.default: _not,
    aten.bitwise_not.default: _not,
    aten.logical_and.default: _both,
    aten.bitwise_and.Tensor: _both,
    aten.masked_fill.Scalar: _masked,
    aten.where.self: _where,
    aten.maximum.default: _extreme(1.0),
    aten.minimum.default: _extreme(-1.0),
    aten.eq.Tensor: _compared_to,
    aten.sign.default: _sign,
    aten.sgn.default: _sign,
    aten.log1p.default: _beside_one("log", 1.0, 0.0),
    aten.expm1.default: _beside_one("exp", 0.0, -1.0),
    aten.full_like.default: _filled_by,
    aten.new_full.default: _filled_by,
    aten.new_zeros.default: _filled(0.0),
    aten.new_ones.default: _filled(1.0),
    aten.zeros_like.default: _filled(0.0),
    aten.ones_like.default: _filled(1.0),
    aten.threshold.default: _threshold,
    aten.gelu.default: _gelu,
    aten.softplus.default: _softplus,
    aten.log_sigmoid_forward.default: _log_sigmoid,
    aten.hardtanh.default: _hardtanh,
    aten.hardsigmoid.default: _hardsigmoid,
    aten.clamp.default: _clamp,
    aten.clamp_min.default: _clamp,
    aten.clamp_min.Tensor: _clamp_to,
    aten.softshrink.default: _softshrink,
    aten.leaky_relu.default: _leaky_relu,
    aten._prelu_kernel.default: _prelu,
    aten.elu.default: _elu,
    aten.celu.default: _celu,
    aten.glu.default: _glu,
    **{getattr(aten, kind).default: _function(kind) for kind in _FUNCTIONS},
}
