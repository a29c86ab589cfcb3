"""The order in which samples are read that stay in their file: neighbours on disk together, and yet mixed.

The samples are cut into pieces of neighbours. Chunks are dealt one piece from every stretch of the file in turn, so
that each chunk is a sample of the whole file, whatever it is sorted by. This order of pieces is one for a whole study.
A run begins at a piece of its own, another one each epoch, within the first chunk: so its chunks are cut elsewhere. And
it shuffles each chunk by itself. Runs that train side by side read the same one or two chunks, which come from the disk
once for all of them.

Shuffled once, data train as well as shuffled anew each epoch (Mishchenko et al. 2020, Random Reshuffling).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

PIECE_BYTES, PIECE_SAMPLES = 1 << 18, 1 << 12
CHUNK_BYTES, CHUNK_SAMPLES = 1 << 26, 1 << 18
"""The most that a piece and a chunk have: at 256 KiB a disk is as fast as in one go, and 64 MiB mix 256 such pieces."""

LEAST_PIECES = 64
"""Of a chunk, however large the samples are: fewer would hardly be shuffled."""


@dataclass(frozen=True, slots=True)
class Chunked:
    """`samples` cut into pieces of `length`, chunks of up to `width` pieces, in an order that `seed` sets."""

    samples: int
    length: int
    width: int
    seed: int

    @classmethod
    def of(cls, samples: int, sample_bytes: int, seed: int) -> Chunked:
        length = min(max(1, PIECE_BYTES // sample_bytes), PIECE_SAMPLES)
        chunk = min(CHUNK_BYTES // sample_bytes, CHUNK_SAMPLES)
        return cls(samples, length, max(LEAST_PIECES, chunk // length), seed)

    def order(self, seed: int) -> Callable[[int, int], Tensor]:
        """A run's own order of one epoch: the samples at the places from one number to another.

        What fits one chunk is in the order in which samples in memory are.
        """
        length = self.length
        count = -(-self.samples // length)
        chunks = -(-count // self.width)
        width = -(-count // chunks)  # all chunks alike, and not one small one at the end
        pieces = _deal(count, chunks, self.seed)
        start = seed % width if chunks > 1 else 0
        short = count * length - self.samples  # what the last piece lacks
        short_at = (int((pieces == count - 1).nonzero()) - start) % count
        ends = torch.arange(0, count + width, width).clamp(max=count)
        bounds = (ends * length - short * (ends > short_at)).tolist()
        known: dict[int, Tensor] = {}

        def chunk(number: int) -> Tensor:
            if number not in known:
                known.clear()
                numbers = torch.arange(number * width, min((number + 1) * width, count))
                own = pieces[(numbers + start) % count].sort().values
                found = (own[:, None] * length + torch.arange(length)).flatten()
                found = found[found < self.samples]
                draw = torch.Generator().manual_seed(seed + number)
                known[number] = found[torch.randperm(len(found), generator=draw)]
            return known[number]

        def part(low: int, high: int) -> Tensor:
            found, number = [], torch.searchsorted(torch.tensor(bounds), low, right=True).item() - 1
            while low < high:
                until = min(high, bounds[int(number) + 1])
                begin = bounds[int(number)]
                found.append(chunk(int(number))[low - begin : until - begin])
                low, number = until, number + 1
            return torch.cat(found)

        return part


@lru_cache(maxsize=8)
def _deal(pieces: int, chunks: int, seed: int) -> Tensor:
    """Chunk after chunk the pieces that it has."""
    draw = torch.Generator().manual_seed(seed)
    # (stretches, chunks): which chunk gets which piece of a stretch.
    chunk_of = torch.rand(-(-pieces // chunks), chunks, generator=draw).argsort(dim=1, stable=True).flatten()[:pieces]
    return torch.argsort(chunk_of + torch.rand(pieces, dtype=torch.float64, generator=draw), stable=True)
