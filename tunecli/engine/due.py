"""Which rows of a block take an update at which micro-step: stretches of neighbours, never a mask."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring rows that are due and prepare their gradients alike: with l1, with a norm to be clipped to, with an
    average of their weights to keep. `last`: it is their last batch of the epoch."""

    rows: slice
    last: bool
    l1: bool
    clip: bool
    averages: bool


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring rows that are due and share a rule; `own` are their places among the rows of that rule."""

    rule: int
    own: slice
    rows: slice
    l2: bool


@dataclass(frozen=True, slots=True)
class Step:
    """What is updated after one micro-step: `spans` and `groups` cover the same rows, but for those in `each`, which
    are updated one by one."""

    spans: tuple[Span, ...]
    groups: tuple[Group, ...]
    each: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """What decides which neighbours a row is updated with. `rule` numbers the rules of a block, None for a row that is
    updated by itself."""

    rule: int | None
    l1: bool
    l2: bool
    clip: bool
    averages: bool


def lay_out(kinds: Sequence[Kind], due: Tensor, last: Tensor) -> list[Step | None]:
    """The update of each micro-step, None where no row is due, from due (S, K) and last (S, K)."""
    own, seen = [], [0] * len(kinds)
    for kind in kinds:
        rule = -1 if kind.rule is None else kind.rule
        own.append(seen[rule])
        seen[rule] += 1
    known: dict[tuple[tuple[bool, ...], tuple[bool, ...]], Step | None] = {}
    found = []
    for key in zip(map(tuple, due.tolist()), map(tuple, (due & last).tolist()), strict=True):
        if key not in known:
            known[key] = _lay_out(kinds, own, *key) if any(key[0]) else None
        found.append(known[key])
    return found


def _lay_out(kinds: Sequence[Kind], own: Sequence[int], due: tuple[bool, ...], last: tuple[bool, ...]) -> Step:
    def span_of(row: int) -> Hashable:
        kind = kinds[row]
        return due[row], last[row], kind.l1, kind.clip, kind.averages

    def group_of(row: int) -> Hashable:
        return due[row], kinds[row].rule, kinds[row].l2

    spans = (
        Span(rows, last[at := rows.start], kinds[at].l1, kinds[at].clip, kinds[at].averages)
        for rows in _stretches(len(kinds), span_of)
        if due[rows.start]
    )
    groups = (
        Group(rule, slice(own[rows.start], own[rows.stop - 1] + 1), rows, kinds[rows.start].l2)
        for rows in _stretches(len(kinds), group_of)
        if due[rows.start] and (rule := kinds[rows.start].rule) is not None
    )
    each = (row for row, kind in enumerate(kinds) if due[row] and kind.rule is None)
    return Step(tuple(spans), tuple(groups), tuple(each))


def _stretches(rows: int, key: Callable[[int], Hashable]) -> Iterator[slice]:
    """The longest stretches of neighbours with the same key."""
    for _, stretch in groupby(range(rows), key):
        first, *rest = stretch
        yield slice(first, (rest or [first])[-1] + 1)
