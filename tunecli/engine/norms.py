"""BatchNorm, which takes the statistics of a batch: what it keeps of them from one batch to the next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

BatchNorm = nn.modules.batchnorm._BatchNorm

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def batch_norms(module: nn.Module) -> Iterator[tuple[str, BatchNorm]]:
    """The layers of a module that take the statistics of a batch, by name."""
    for name, part in module.named_modules():
        if isinstance(part, BatchNorm):
            yield name, part


def running_statistics(module: nn.Module) -> dict[str, Tensor]:
    """Their buffers by name, of each layer its mean, its variance and of how many batches these are."""
    return {
        f"{name}.{own}".lstrip("."): getattr(part, own)
        for name, part in batch_norms(module)
        for own in _STATISTICS
        if getattr(part, own) is not None
    }


@contextmanager
def fixed_norms(module: nn.Module) -> Iterator[None]:
    """The module, whose norms take no statistics of a batch but go by those so far."""
    norms = [part for _, part in batch_norms(module) if part.training]
    for part in norms:
        part.eval()
    try:
        yield
    finally:
        for part in norms:
            part.train()
