"""Models that people write: their gradient in C, by rules, by plain vmap, and one trial after another.

    python -m tests.benchmarks.graphs [MODEL ...] [--rows 32] [--sizes 16 64] [--write]

A gradient of one trial, in microseconds of CPU time on one thread; the sides take turns, A B A B, on the same weights
and samples:

    C        the engine's where there is a compiler: all layers of a row, one row after the other
    rules    the engine's where there is none: the computation of all rows, recorded and rewritten
    vmap     torch.func.vmap of the model and plain autograd behind it, as torch's documentation has it for ensembles
    looped   a module after the other, as the engine does where a model allows nothing else
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from tests.benchmarks import results
from tunecli.data import Samples
from tunecli.engine.compiler import can_compile
from tunecli.engine.gradients import Gradient, Layout, Looped
from tunecli.engine.rowwise import Recorded, Rowwise, sample_keys
from tunecli.metrics import LOSSES

ROUNDS, CALLS, CLASSES = 7, 10, 10
LOSS = LOSSES["cross_entropy"]
WAYS = ("C", "rules", "vmap", "looped")


class Perceptron(nn.Module):
    """Two layers and F.relu."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(64, 128), nn.Linear(128, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.head(functional.relu(self.first(inputs)))
        return found


class Residual(nn.Module):
    """Two blocks, each with a LayerNorm before it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(64, 64), nn.Linear(64, CLASSES)
        blocks = (nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)) for _ in range(2))
        self.norms, self.blocks = nn.ModuleList(nn.LayerNorm(64) for _ in range(2)), nn.ModuleList(blocks)

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.first(inputs)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        found: Tensor = self.head(x)
        return found


class Tabular(nn.Module):
    """Ten numbers and four categories, embedded and joined."""

    CODES = (5, 12, 40, 100)

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(codes, 8) for codes in self.CODES)
        self.first, self.second, self.head = nn.Linear(42, 128), nn.Linear(128, 64), nn.Linear(64, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        vectors = [table(inputs[:, 10 + place].long()) for place, table in enumerate(self.tables)]
        x = torch.cat([inputs[:, :10], *vectors], dim=1)
        found: Tensor = self.head(functional.relu(self.second(functional.relu(self.first(x)))))
        return found


class Transformer(nn.Module):
    """One layer over eight tokens, with a learned place."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(8, 32), nn.Parameter(torch.randn(1, 8, 32) / 10)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=dropout, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(32, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.head(self.encoder(self.embed(inputs.view(-1, 8, 8)) + self.place).mean(1))
        return found


class Pooling(nn.Module):
    """Twenty tokens, pooled by attention."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.score, self.head = nn.Embedding(200, 32), nn.Linear(32, 1), nn.Linear(32, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        vectors = self.table(tokens)
        found: Tensor = self.head((self.score(vectors).softmax(1) * vectors).sum(1))
        return found


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, 64)


def table(*shape: int) -> Tensor:
    return torch.cat([torch.randn(*shape, 10), *(torch.randint(own, (*shape, 1)) for own in Tabular.CODES)], dim=-1)


def tokens(*shape: int) -> Tensor:
    return torch.randint(200, (*shape, 20))


ZOO: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor]]] = {
    "mlp": (Perceptron, numbers),
    "residual": (Residual, numbers),
    "tabular": (Tabular, table),
    "transformer": (Transformer, numbers),
    "transformer dropout": (lambda: Transformer(0.1), numbers),
    "attention pooling": (Pooling, tokens),
}


def sides(name: str, rows: int, m: int) -> dict[str, Callable[[], object]]:
    """A gradient of all rows, by each way that the model allows."""
    torch.manual_seed(0)
    make, draw = ZOO[name]
    module, samples = make(), Samples(draw(rows, m), torch.randint(CLASSES, (rows, m)))
    layout, present = Layout.of(module), torch.ones(rows, m)
    weights = layout.row(module) + 0.05 * torch.randn(rows, layout.width)
    gradient = Gradient(layout, torch.zeros_like(weights), apart=can_compile("cpu"))
    ways = {
        side: Rowwise(Recorded(module, layout, LOSS, compiled=own, native=own), weights, gradient)
        for side, own in (("C", True), ("rules", False))
    }
    alone = [Gradient(layout, torch.zeros(1, layout.width)) for _ in range(rows)]
    loops = [Looped(deepcopy(module), layout, weights[k : k + 1], alone[k], LOSS, False) for k in range(rows)]
    parts = [samples.take(torch.tensor(row)) for row in range(rows)]
    if "dropout" in name:
        for way in ways.values():
            way.draw_by(sample_keys(torch.arange(rows), torch.arange(rows * m).view(rows, m)))
    found: dict[str, Callable[[], object]] = {
        side: partial(way.add_gradient, samples, present)
        for side, way in ways.items()
        if side == "rules" or way.is_native(samples)
    }
    found |= {
        "looped": lambda: [own.add_gradient(part, present[0]) for own, part in zip(loops, parts, strict=True)],
    }
    if "dropout" not in name:
        found["vmap"] = plain_vmap(module, layout, weights, samples)
    return found


def plain_vmap(module: nn.Module, layout: Layout, weights: Tensor, samples: Samples) -> Callable[[], object]:
    leaves = {name: view.detach().requires_grad_() for name, view in layout.views(weights).items()}
    gradients = layout.views(torch.zeros_like(weights)).values()

    def loss(values: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(module, values, (inputs,)), targets, reduction="sum")

    def add_gradient() -> None:
        losses = vmap(loss)(leaves, samples.inputs, samples.targets)
        for own, addend in zip(gradients, torch.autograd.grad(losses.sum(), list(leaves.values())), strict=True):
            own.add_(addend)

    return add_gradient


def measure(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each way, the median of rounds in which they take turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(ROUNDS + 1):
        for name, way in ways.items():
            began = time.process_time()
            for _ in range(CALLS):
                way()
            if number:
                times[name].append((time.process_time() - began) / CALLS)
    return {name: statistics.median(own) for name, own in times.items()}


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("models", nargs="*", default=[])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--sizes", type=int, nargs="*", default=[16, 64])
    given = parser.parse_args()
    torch.set_num_threads(1)
    cells: list[list[str]] = []
    for name in given.models or ZOO:
        for m in given.sizes:
            found = {way: seconds / given.rows * 1e6 for way, seconds in measure(sides(name, given.rows, m)).items()}
            shown = [f"{found[way]:.0f}" if way in found else "" for way in WAYS]
            over = [f"{found[way] / min(found.values()):.2f}" if way in found else "" for way in WAYS[1:]]
            cells.append([name, str(m), *shown, *over])
            print(*cells[-1], flush=True)
    head = ["model", "samples", *WAYS, *(f"{way} / best" for way in WAYS[1:])]
    how = f"""
    Microseconds of CPU time for a gradient of one trial, {given.rows} trials, on one thread. vmap is torch's for an
    ensemble; it cannot draw dropout that depends on the run alone.
    """
    results.show("Graphs: models that people write", how, results.table(head, cells), write=given.write)


if __name__ == "__main__":
    main()
