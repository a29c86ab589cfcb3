"""A snapshot: a run's whole state as plain tensors and numbers, to go on from later, or elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from tunecli.engine.attributes import changed
from tunecli.engine.own import OwnStep
from tunecli.engine.schedule import Plateau

if TYPE_CHECKING:
    from tunecli.engine.lane import Slot


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run after `fidelity` whole ticks and some micro-steps of the next.

    `tensors` are on the CPU and its own; `numbers` are values of JSON. It holds for the task and the plan under which
    it was taken, on any slot of any engine.
    """

    fidelity: int
    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Partial:
    """Where a run stands in the middle of a tick: after `step` micro-steps, its `gradient` (P,) so far, and its `sums`:
    of losses, the norm of the last gradient, what a step counted in this batch and in this epoch."""

    step: int
    gradient: Tensor
    sums: tuple[float, ...]
    seconds: float


def take_snapshot(slot: Slot) -> Snapshot | None:
    """A copy of all that the run holds, or None where its optimizer or its model holds what is no plain value, or a
    step was left half done."""
    if slot.lane.is_torn(slot):
        return None
    tensors = {f"row.{name}": row for name, row in slot.lane.rows(slot).items()}
    tensors |= {f"best.{name}": buffer for name, buffer in slot.best_state.items()}
    tensors |= {f"own.{name}": own for name, own in _own_tensors(slot).items()}
    plateau = slot.plateau
    numbers: dict[str, Any] = {
        "updates": slot.updates,
        "seconds": slot.seconds,
        "best_metric": slot.best_metric,
        "plateau": [plateau.scale, plateau.best, plateau.worse],
    }
    partial = slot.lane.partial(slot)
    if partial is not None:
        tensors["gradient"] = partial.gradient
        numbers |= {"step": partial.step, "sums": list(partial.sums), "partial_seconds": partial.seconds}
    try:
        if isinstance(slot.rule.step, OwnStep):
            numbers["optimizer"] = _plain(slot.rule.step.state(), tensors, "optimizer")
        if slot.lane.micro is None and (kept := changed(slot.module, slot.attributes)):
            numbers["attributes"] = _plain(kept, tensors, "attributes")
    except TypeError:
        return None
    return Snapshot(slot.ticks, {name: own.detach().cpu().clone() for name, own in tensors.items()}, numbers)


def put_snapshot(slot: Slot, snapshot: Snapshot) -> None:
    """Have a slot that was just started go on from a snapshot of its run."""
    tensors, numbers = snapshot.tensors, snapshot.numbers
    like, rows = slot.rows["weights"], {**_statistics(slot, tensors), **_below("row.", tensors)}
    slot.rows = {name: row.to(like) for name, row in rows.items()}
    slot.best_state = _below("best.", tensors)
    mine = _own_tensors(slot)
    for name, own in _below("own.", tensors).items():
        _set_tensor(slot.module, name, mine.get(name), own)
    slot.ticks, slot.updates, slot.best_metric = snapshot.fidelity, numbers["updates"], numbers["best_metric"]
    slot.seconds, slot.plateau = numbers["seconds"], Plateau(*numbers["plateau"])
    if "step" in numbers:
        gradient = tensors["gradient"].to(slot.rows["weights"])
        slot.partial = Partial(numbers["step"], gradient, tuple(numbers["sums"]), numbers["partial_seconds"])
    if isinstance(slot.rule.step, OwnStep):
        slot.rule.step.load(_read_plain(numbers["optimizer"], tensors))
    device = slot.rows["weights"].device
    for name, value in (_read_plain(numbers["attributes"], tensors) if "attributes" in numbers else {}).items():
        owner, _, leaf = name.rpartition(".")
        setattr(slot.module.get_submodule(owner), leaf, tree_map_only(Tensor, lambda own: own.to(device), value))


def _statistics(slot: Slot, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What runs on in a row, of a run that had a module of its own: by an earlier version, before C trained it."""
    layout = None if slot.lane.recorded is None else slot.lane.recorded.statistics
    if layout is None or not layout.names or "row.statistics" in tensors:
        return {}
    begun = slot.rows["statistics"]
    found = {name: begun.clone() for name in ("statistics", "best_statistics")}
    for row, prefix in zip(found.values(), ("own.", "best."), strict=True):
        for own, view in layout.views(row[None]).items():
            view[0].copy_(tensors.get(prefix + own, view[0]))
    return found


def _own_tensors(slot: Slot) -> dict[str, Tensor]:
    """What the run's own module holds beside the weights it trains: buffers, and what a user's step may write to."""
    if slot.lane.micro is not None:
        return {}  # a module that rows share is without state
    found = dict(slot.module.named_buffers())
    if slot.lane.task.step is not None:
        found |= {name: p for name, p in slot.module.named_parameters() if name not in slot.lane.layout.names}
    return found


def _set_tensor(module: nn.Module, name: str, mine: Tensor | None, value: Tensor) -> None:
    if mine is not None and mine.shape == value.shape and mine.dtype == value.dtype:
        mine.detach().copy_(value)
        return
    owner, _, leaf = name.rpartition(".")  # a buffer that took another shape, or came into being, while it trained
    setattr(module.get_submodule(owner), leaf, value.clone() if mine is None else value.to(mine.device, copy=True))


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): own for name, own in tensors.items() if name.startswith(prefix)}


def _plain(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """A nest of dicts, lists, tuples, tensors and scalars as JSON, its tensors put aside by their names in it.

    Raises TypeError where it holds anything else.
    """
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[_key(key), _plain(own, tensors, f"{name}.{key}")] for key, own in value.items()]}
    if isinstance(value, list | tuple):
        parts = [_plain(own, tensors, f"{name}.{place}") for place, own in enumerate(value)]
        return {"list" if isinstance(value, list) else "tuple": parts}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}")


def _key(key: Any) -> int | str:
    if type(key) in (int, str):
        return key  # type: ignore[no-any-return]  # one of the two
    raise TypeError(f"{key!r} is no name")


def _read_plain(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, parts),) = value.items()
    if kind == "tensor":
        return tensors[parts].clone()
    if kind == "dict":
        return {key: _read_plain(own, tensors) for key, own in parts}
    found = (_read_plain(own, tensors) for own in parts)
    return list(found) if kind == "list" else tuple(found)
