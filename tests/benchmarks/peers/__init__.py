"""The same search in Ray Tune and Syne Tune, which live in an environment of their own: `make bench-peers`."""

from __future__ import annotations

import numpy as np
import torch

from tests.benchmarks.plain import Split


def split_of(path: str) -> Split:
    """The tensors that `save_split` wrote."""
    with np.load(path) as arrays:
        return Split(*(torch.from_numpy(arrays[name]) for name in Split._fields))


def save_split(split: Split, path: str) -> None:
    np.savez(path, **{name: tensor.numpy() for name, tensor in split._asdict().items()})
