"""The way to a gradient for a block of rows: the model's computation recorded for all of them, and rewritten.

Recorded through vmap and autograd, it is right for any model that vmap can follow; rewritten, its products and sums are
those that one would write by hand for a block of rows. What cannot be recorded is looped.
"""

from tunecli.engine.rowwise.called import InCAlone, Unrecordable
from tunecli.engine.rowwise.dropout import Drawing, sample_keys
from tunecli.engine.rowwise.native import LaidOut, Steps
from tunecli.engine.rowwise.way import Recorded, Rowwise

__all__ = ["Drawing", "InCAlone", "LaidOut", "Recorded", "Rowwise", "Steps", "Unrecordable", "sample_keys"]
