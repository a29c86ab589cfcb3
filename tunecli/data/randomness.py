"""The randomness of a user's own code: drawn from global generators, so those are set for as long as it runs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python's, NumPy's and torch's generators start from `seed`; afterwards they go on where they were."""
    state, array_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            set_seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(state)
        np.random.set_state(array_state)


def set_seed(seed: int) -> None:
    """Start the generators that code on the CPU draws from; inside `seeded`, which restores them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
