"""Fine-tunings that are finished: kept with what they came to and what was asked for, to be found again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from tunecli import checkpoint
from tunecli.errors import CheckpointError
from tunecli.finetune import Finetuned

_TODAYS = ("study", "checkpoint", "saved", "earlier")
"""What is not kept of a result: where it lies, for a folder can be copied, and what this very call was about."""


def places_of(parent: Path, key: str) -> list[Path]:
    """The fine-tunings in `parent` that were asked for by this key, the latest last."""
    return [place for place in _numbered(parent) if _key_in(place) == key]


def next_place(parent: Path) -> Path:
    return parent / str(max((int(place.name) for place in _numbered(parent)), default=0) + 1)


def save(result: Finetuned, weights: Mapping[str, Tensor], manifest: Mapping[str, Any], key: str) -> None:
    """Write the checkpoint, and in its manifest what `load` makes the result of. Raises StorageError."""
    kept = {name: value for name, value in asdict(result).items() if name not in _TODAYS}
    checkpoint.save(result.checkpoint, weights, {**manifest, "asked": key, "result": kept})


def load(place: Path, study: str, saved: Path | None) -> tuple[Finetuned, dict[str, Tensor], Mapping[str, Any]]:
    """The result of an earlier call, its weights and its manifest. Raises CheckpointError."""
    weights, manifest = checkpoint.load(place)
    kept = {**manifest["result"], "trained": tuple(manifest["result"]["trained"])}
    return Finetuned(**kept, study=study, checkpoint=place, saved=saved, earlier=True), weights, manifest


def _numbered(parent: Path) -> list[Path]:
    return sorted((own for own in parent.glob("*") if own.name.isdigit()), key=lambda own: int(own.name))


def _key_in(place: Path) -> str | None:
    try:
        return checkpoint.load_manifest(place).get("asked")
    except CheckpointError:
        return None  # whatever it was, it is no more
