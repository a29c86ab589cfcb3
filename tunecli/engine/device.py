"""Which device an engine computes on."""

from __future__ import annotations

import torch

from tunecli.errors import UsageError


def resolve_device(name: str) -> str:
    """The device that `name` means here: "auto" is the first GPU where there is one. Raises UsageError."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}", hint="auto, cpu, cuda or cuda:1") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UsageError(
            f"no device {name!r} here: torch sees {count} GPU{'' if count == 1 else 's'}", hint="--device cpu"
        )
    if device.type not in ("cpu", "cuda"):
        # Losses are summed in float64, which Apple's GPUs do not have.
        raise UsageError(f"device {name!r} is not supported", hint="auto, cpu, cuda or cuda:1")
    return name
