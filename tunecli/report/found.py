"""What was found in data, drawn for a person: columns and their kinds, classes, what is left out and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from tunecli.data import Data, held
from tunecli.report.console import VisibleConsole

NAMED = 6
"""How many levels or classes are named before they are only counted."""

_PREPARED = {"array": "standardized", "bytes": "bytes made 0 to 1", "pictures": "bytes made 0 to 1"}


def draw_found(data: Data, console: VisibleConsole) -> None:
    parts = (data.train, data.validation, data.test)
    split = ", ".join(f"{len(p):,} {n}" for p, n in zip(parts, ("train", "validation", "test"), strict=True))
    console.say(f"{data.name}: {sum(map(len, parts)):,} samples ({split})")
    console.say(f"{data.task}: {_target(data)}")
    columns = data.preprocessing.get("columns")
    if columns:
        console.print(_columns(columns))
    else:
        how = _PREPARED.get(str(data.preprocessing.get("kind")), "taken as they are")
        console.say(f"each of shape {data.features}, {how}")
    for notice in data.notices:
        console.say(notice, style="yellow")


def _target(data: Data) -> str:
    """The target's name, and its classes with their counts or its range."""
    import torch

    name = data.preprocessing.get("target", {}).get("name", "the target")
    targets = torch.cat([held(part, "looking at data").targets for part in (data.train, data.validation, data.test)])
    if not data.classes:
        low, high = (float(end) * data.target_scale + data.target_mean for end in (targets.min(), targets.max()))
        return f"{name} from {low:.6g} to {high:.6g}"
    counts = torch.bincount(targets, minlength=len(data.classes)).tolist()
    ranked = sorted(zip(data.classes, counts, strict=True), key=lambda pair: -pair[1])
    return f"{name} has {len(counts)} classes: {_some([f'{label} ({count:,})' for label, count in ranked])}"


def _columns(columns: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    for head in ("column", "kind", "holds"):
        table.add_column(head, overflow="fold")
    for column in columns:
        # To a model that embeds them categories are codes; to a person they stay what they are.
        kind = "category" if column["kind"] == "code" else str(column["kind"])
        table.add_row(Text(str(column["name"])), kind, Text(_holds(column)))
    return table


def _holds(column: Mapping[str, Any]) -> str:
    parts = []
    if "levels" in column:
        embedded = ", embedded" if column["kind"] == "code" else ""
        parts.append(f"{len(column['levels'])} values{embedded}: {_some(column['levels'])}")
    if "fill" in column:
        parts.append(f"median {column['fill']:.6g}")
    if "origin" in column:
        parts.append(f"from {column['origin'][:10]}")
    if column.get("missing"):
        parts.append("with gaps")
    return ", ".join(parts)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
