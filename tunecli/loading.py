"""How large libraries are imported."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Import torch, and what needs it, in this block, for the rest of the process.

    It comes in some hundred thousand objects. Python would look through them for garbage again and again while they
    arrive, and once more afterwards: half a second for nothing, and nothing of them is ever garbage.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
