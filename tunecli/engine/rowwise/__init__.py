"""The third way to a gradient: row-wise rules, every layer of a chain computed for all rows of a block at once.

A rule is a layer's forward and backward pass written by hand on (B, m, ...): its products are batched ones, and its
backward pass adds straight into the gradient matrix. What has no rule here goes through vmap, or is looped.
"""

from tunecli.engine.rowwise.chain import Chain, find_chain
from tunecli.engine.rowwise.dropout import sample_keys
from tunecli.engine.rowwise.way import Rowwise

__all__ = ["Chain", "Rowwise", "find_chain", "sample_keys"]
