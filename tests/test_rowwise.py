"""A model recorded for all rows gives the gradient that plain autograd gives each row by itself, or is not recorded."""

import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from tests.conftest import examples
from tunecli.data import Samples
from tunecli.engine import LocalEngine, Plan, Task
from tunecli.engine.compiler import can_compile
from tunecli.engine.gradients import Gradient, Layout
from tunecli.engine.rowwise import Drawing, Recorded, Rowwise, sample_keys
from tunecli.engine.rowwise.compiled import cross_entropy
from tunecli.metrics import LOSSES, METRICS, Loss
from tunecli.models import build
from tunecli.trial import Run

FEATURES, CLASSES = 6, 3
RULES = Plan("rules", cap=16, block_rows=8, threads=1)
RUN = Run(0, 0, {"optimizer": "adam"}, 1)


def activations() -> st.SearchStrategy[nn.Module]:
    plain = st.sampled_from([nn.ReLU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.Identity]).map(lambda kind: kind())
    shaped = st.floats(0.01, 0.9).flatmap(lambda a: st.sampled_from([nn.LeakyReLU(a), nn.ELU(a)]))
    return plain | shaped | st.sampled_from(["none", "tanh"]).map(lambda kind: nn.GELU(kind))


@st.composite
def chains(draw: st.DrawFn, outputs: int) -> nn.Module:
    """Layers that fit each other, nested here and there, some of them frozen."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    layers: list[nn.Module] = [nn.Flatten()] if draw(st.booleans()) else []
    width = FEATURES
    for _ in range(draw(st.integers(0, 3))):
        wider = draw(st.sampled_from([1, 5, 16, 20]))
        part: list[nn.Module] = [nn.Linear(width, wider, bias=draw(st.booleans()))]
        if draw(st.booleans()):
            part.append(nn.LayerNorm(wider, elementwise_affine=draw(st.booleans())))
        if wider % 4 == 0 and draw(st.booleans()):
            # Layers work on the last dimension, whatever stands before it.
            part += [nn.Unflatten(1, (4, wider // 4)), nn.Linear(wider // 4, 3), nn.Flatten()]
            wider = 12
        part.append(draw(activations()))
        layers += [nn.Sequential(*part)] if draw(st.booleans()) else part
        width = wider
    for layer in layers:
        layer.requires_grad_(draw(st.integers(0, 3)) > 0)
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def random_rows(module: nn.Module, rows: int) -> tuple[Layout, Tensor]:
    """`rows` models of one kind: the module with other trained weights in each row."""
    layout = Layout.of(module)
    row = layout.row(module)
    return layout, row + 0.3 * torch.randn(rows, layout.width, dtype=row.dtype)


def alone(
    module: nn.Module, layout: Layout, row: Tensor, samples: Samples, present: Tensor, loss: Loss, keys: Tensor
) -> Any:
    """Loss sum, gradient (P,) and outputs of one row by plain autograd, what dropout draws drawn for `keys` (m,)."""
    for name, view in layout.views(row[None]).items():
        module.get_parameter(name).data = view[0].clone()
    with Drawing(keys):
        outputs = module(samples.inputs).reshape(len(samples), -1)
    loss_sum = (loss.per_sample(outputs, samples.targets) * present).sum()
    module.zero_grad()
    loss_sum.backward()
    gradient = torch.zeros_like(row)
    for name, view in layout.views(gradient[None]).items():
        found = module.get_parameter(name).grad
        if found is not None:
            view[0].copy_(found)
    return loss_sum.detach(), gradient, outputs.detach()


def assert_equal_alone(
    module: nn.Module,
    samples: Samples,
    loss: Loss,
    rows: int,
    *,
    apart: bool = True,
    compiled: bool = False,
    native: bool = False,
) -> None:
    """Each of `rows` rows, on m samples of its own: samples (rows * m, ...). Its share of the gradient is added to what
    is there, or written over it. `native`: C computes all of the model."""
    layout, weights = random_rows(module, rows)
    before = torch.randn_like(weights)
    layout.filling(before).zero_()
    gradient = Gradient(layout, before.clone(), apart=apart)
    for row in range(rows):
        gradient.put(row, before[row])
    block = samples.take(torch.arange(len(samples)).view(rows, -1))
    present = torch.rand(rows, len(samples) // rows, dtype=weights.dtype)
    recorded = Recorded(module, layout, loss, compiled=compiled or native, native=native)
    way = Rowwise(recorded, weights, gradient)
    assert isinstance(samples.inputs, Tensor)
    some = 16 if native else 5
    shared = samples.inputs[:some]
    found_outputs = way.outputs(shared, some)
    keys = sample_keys(torch.arange(rows), torch.arange(len(samples)).view(rows, -1))
    way.draw_by(keys)
    assert way.is_native(block) is native
    shares = 1 / torch.arange(1.0, rows + 1, dtype=weights.dtype)
    found_losses, _ = way.add_gradient(block, present, shares)
    added = [gradient.row(row).clone() for row in range(rows)]
    way.add_gradient(block, present, shares, over=True)
    for row in range(rows):
        own = samples.take(torch.arange(len(samples)).view(rows, -1)[row])
        losses, expected, _ = alone(module, layout, weights[row], own, present[row], loss, keys[row])
        torch.testing.assert_close(found_losses[row], losses, rtol=1e-9, atol=1e-12, check_dtype=False)
        share = expected * shares[row]
        torch.testing.assert_close(added[row], before[row] + share, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(gradient.row(row), share, rtol=1e-9, atol=1e-12)
        given = module.eval()(shared).reshape(some, -1).detach()
        module.train()
        torch.testing.assert_close(found_outputs[row].reshape(some, -1), given, rtol=1e-9, atol=1e-12)


@examples(12)
@given(data=st.data(), loss=st.sampled_from(sorted(LOSSES)), rows=st.integers(1, 3), m=st.integers(5, 17))
def test_a_chain_has_the_gradient_of_plain_autograd(data: st.DataObject, loss: str, rows: int, m: int) -> None:
    own = LOSSES[loss]
    module = data.draw(chains(own.outputs(CLASSES))).double()
    inputs = torch.randn(rows * m, FEATURES, dtype=torch.float64)
    if own.task == "regression":
        targets = torch.randn(rows * m)
    else:
        targets = torch.randint(2 if own.one_output else CLASSES, (rows * m,))
    how = {"apart": data.draw(st.booleans()), "compiled": can_compile("cpu") and data.draw(st.booleans())}
    assert_equal_alone(module, Samples(inputs, targets), own, rows, **how)


class Graph(nn.Module):
    """Some of what people write between their layers, one step after the other; `steps` are drawn."""

    def __init__(self, steps: list[str], outputs: int, draws: bool) -> None:
        super().__init__()
        self.steps, self.width = steps, 12
        self.table, self.place = nn.Embedding(7, 5), nn.Parameter(torch.randn(1, 3, 4) / 3)
        self.first = nn.Linear(FEATURES - 1 + 5, self.width)
        self.layers = nn.ModuleList(nn.Linear(self.width, self.width, bias=i % 2 == 0) for i in range(len(steps)))
        self.norm, self.wider = nn.LayerNorm(self.width), nn.Linear(2 * self.width, self.width)
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.2 * draws, batch_first=True)
        self.dropout, self.p = nn.Dropout(0.3 * draws, inplace=True), 0.2 * draws
        self.scale, self.head = nn.Parameter(torch.ones(())), nn.Linear(self.width, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        codes = inputs[:, 0].abs().mul(2).long().clamp(max=6)
        x = self.first(torch.cat([inputs[:, 1:], self.table(codes)], dim=-1))
        for step, layer in zip(self.steps, self.layers, strict=True):
            x = getattr(self, step)(x, layer)
        found: Tensor = self.head(x)
        return found

    def residual(self, x: Tensor, layer: nn.Module) -> Tensor:
        return x + functional.gelu(layer(self.norm(x)))

    def added(self, x: Tensor, layer: nn.Module) -> Tensor:
        x = layer(x)
        x += self.scale * 2
        return x.relu_()

    def joined(self, x: Tensor, layer: nn.Module) -> Tensor:
        found: Tensor = self.wider(torch.cat([layer(x).sigmoid(), x], 1))
        return found

    def again(self, x: Tensor, layer: nn.Module) -> Tensor:
        found: Tensor = layer(torch.tanh(layer(x)))
        return found

    def dropped(self, x: Tensor, layer: nn.Module) -> Tensor:
        return functional.dropout(self.dropout(layer(x)), self.p, self.training)

    def attended(self, x: Tensor, layer: nn.Module) -> Tensor:
        tokens = layer(x).reshape(-1, 3, 4) + self.place
        found, _ = self.attention(tokens, tokens, tokens)
        return torch.flatten(found, 1)

    def attended_fast(self, x: Tensor, layer: nn.Module) -> Tensor:
        tokens = layer(x).view(len(x), 3, 4)
        found, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return x - found.mean(1).repeat(1, 3)

    def pooled(self, x: Tensor, layer: nn.Module) -> Tensor:
        tokens = layer(x).view(x.size(0), 4, 3)
        weights = tokens.softmax(1)
        return x * (tokens * weights).sum(1).repeat(1, 4)


STEPS = ["residual", "added", "joined", "again", "dropped", "attended", "attended_fast", "pooled"]


@examples(12)
@given(
    steps=st.lists(st.sampled_from(STEPS), max_size=4),
    draws=st.booleans(),
    frozen=st.sets(st.sampled_from(["table", "first", "layers", "norm", "attention"]), max_size=2),
    rows=st.integers(1, 3),
    m=st.sampled_from([5, 16]),
)
def test_a_graph_has_the_gradient_of_plain_autograd(
    steps: list[str], draws: bool, frozen: set[str], rows: int, m: int
) -> None:
    torch.manual_seed(0)
    module = Graph(steps, CLASSES, draws).double()
    for name in frozen:
        module.get_submodule(name).requires_grad_(False)
    samples = Samples(torch.randn(rows * m, FEATURES, dtype=torch.float64), torch.randint(CLASSES, (rows * m,)))
    assert_equal_alone(module, samples, LOSSES["cross_entropy"], rows)


@pytest.mark.parametrize("padding", [None, 2])
def test_embeddings_of_tokens_have_the_gradient_of_plain_autograd(padding: int | None) -> None:
    torch.manual_seed(0)
    table = nn.Embedding(9, 4, padding_idx=padding)
    module = nn.Sequential(table, nn.LayerNorm(4), nn.Flatten(), nn.Tanh(), nn.Linear(20, CLASSES)).double()
    samples = Samples(torch.randint(9, (3 * 16, 5)), torch.randint(CLASSES, (3 * 16,)))
    assert_equal_alone(module, samples, LOSSES["cross_entropy"], rows=3)


# Dropout.


def hashed(p: float, runs: int, samples: int, elements: int, epoch: int = 0) -> Tensor:
    """Which elements are kept, (runs, samples, elements)."""
    seeds = torch.tensor([Run(run, 0, {}, 1).seed("forward", epoch) & 0xFFFFFFFF for run in range(runs)])
    keys = sample_keys(seeds, torch.arange(samples).expand(runs, -1))

    def run(own: Tensor) -> Tensor:
        with Drawing(own):
            functional.dropout(torch.ones(samples, 3))
            return functional.dropout(torch.ones(samples, elements), p) > 0

    return torch.stack([run(own) for own in keys])


def assert_odds(found: Tensor, odds: float) -> None:
    """Within five standard deviations of what independent draws show."""
    own = found.double()
    assert abs(float(own.mean()) - odds) < 5 * (odds * (1 - odds) / own.numel()) ** 0.5


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_dropout_keeps_its_share_whatever_it_is_counted_over(p: float) -> None:
    kept = hashed(p, 40, 64, 128)
    odds = 1 - p
    assert_odds(kept, odds)
    # Neighbours agree as often as independent draws do: of elements, samples, runs and epochs, and four by four.
    for dim, size in enumerate(kept.shape):
        for far in (1, 2, 16):
            assert_odds(kept.narrow(dim, 0, size - far) & kept.narrow(dim, far, size - far), odds**2)
    assert_odds(kept & hashed(p, 40, 64, 128, epoch=1), odds**2)
    both = kept[:, :-1] & kept[:, 1:]
    assert_odds(both[..., :-1:2] & both[..., 1::2], odds**4)
    for dim in range(3):
        others = [own for own in range(3) if own != dim]
        share = kept.double().mean(others)
        assert float((share - odds).abs().max()) < 6 * (p * odds * len(share) / kept.numel()) ** 0.5


def test_dropout_does_not_depend_on_how_many_samples_are_read_at_once() -> None:
    """Whole batches of 48 as micro-batches of 16, of 48, and beside others: to rounding the same training."""

    def losses(cap: int, others: int) -> list[float]:
        task = make_task(lambda: nn.Sequential(nn.Linear(FEATURES, 9), nn.Dropout(0.4), nn.Linear(9, CLASSES)))
        engine = LocalEngine(task, Plan("rules", cap=cap, block_rows=8, threads=1))
        runs = [
            Run(number, 0, {"optimizer": "sgd", "learning_rate": 0.1, "batch_size": 24}, 3) for number in range(others)
        ]
        for run in runs:
            engine.start(run)
        return [engine.advance(math.inf)[0].train_loss for _ in range(3)]

    assert losses(16, 1) == losses(16, 5)
    assert losses(16, 1) == pytest.approx(losses(64, 1), rel=1e-5)


# Which models have them.


def make_task(make: Any, **more: Any) -> Task:
    def seeded(run: Run) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(run.seed("weights"))
            found: nn.Module = make()
            return found

    drawn = torch.Generator().manual_seed(0)
    train = Samples(torch.randn(24, FEATURES, generator=drawn), torch.randint(CLASSES, (24,), generator=drawn))
    defaults = {"train": train, "validation": train, "loss": LOSSES["cross_entropy"], "metric": METRICS["loss"]}
    return Task(**{**defaults, "classes": CLASSES, "build": seeded, **more})


class Own(nn.Module):
    """As people write it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(FEATURES, 8), nn.LayerNorm(8))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(x.size(0), -1)
        x = functional.relu(self.body(x), inplace=True)
        outputs: Tensor = self.head(torch.flatten(x, 1).tanh())
        return outputs


class Residual(Own):
    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        outputs: Tensor = self.head(x + x.tanh())
        return outputs


class Counting(Own):
    """Changes with every call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class Training(Own):
    """Another model in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.body(x).relu() if self.training else self.body(x).tanh())
        return outputs


class Scaled(Own):
    """A weight of its own beside its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


class Twice(Own):
    """A layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.again(self.again(self.body(x)).tanh()))
        return outputs


class Doubled(nn.Linear):
    """A layer of a user's own that only looks like torch's."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def hooked() -> nn.Module:
    module = Own()
    module.head.register_forward_hook(lambda module, inputs, outputs: outputs * 2)
    return module


def patched() -> nn.Module:
    module = Own()
    module.head.forward = lambda x: functional.linear(x, module.head.weight)  # type: ignore[method-assign]
    return module


def tied() -> nn.Module:
    module = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES))
    module[1].weight = module[0].weight
    return module


def normed() -> nn.Module:
    module = Own()
    torch.nn.utils.parametrizations.weight_norm(module.head)
    return module


class Dropping(Own):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.dropout(self.body(x).relu()))
        return outputs


class Noisy(Dropping):
    """Draws what no layer of torch's draws."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.1 * torch.randn_like(x))  # this


def build_mlp(source: str) -> nn.Module:
    return build(source, {}, base=Path(), features=(FEATURES,), outputs=CLASSES, seed=0)


class Transformed(nn.Module):
    """Samples in the second dimension, as torch's layers have them unless told otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.TransformerEncoderLayer(2, 1, 5, dropout=0.1), nn.Linear(2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.layer(x.view(-1, 3, 2).transpose(0, 1)).mean(0))
        return found


@pytest.mark.parametrize(
    "make",
    [
        Own,
        Residual,
        Training,
        Scaled,
        Twice,
        Dropping,
        Transformed,
        lambda: Graph(STEPS, CLASSES, draws=True),
        lambda: Doubled(FEATURES, CLASSES),
        patched,
        tied,
        normed,
        lambda: nn.Sequential(nn.Linear(FEATURES, 8), nn.Mish(), nn.Linear(8, CLASSES)),
        lambda: build_mlp("linear"),
        lambda: build_mlp("mlp"),
    ],
)
def test_a_model_that_people_write_is_computed_for_many_trials_at_once(make: Any) -> None:
    assert LocalEngine(make_task(make), RULES).traits(RUN).looped_because is None


class Writing(Own):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        hidden[:, 0] = 0
        outputs: Tensor = self.head(hidden.exp() + hidden)  # this
        return outputs


class Always(Own):
    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(functional.dropout(self.body(x), 0.1))  # this
        return outputs


class Deciding(Own):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.head.weight.sum() > 0 else -x)  # this


@pytest.mark.parametrize(
    ("make", "because"),
    [
        (Noisy, "LINE: it draws by randn_like: only dropout is drawn for all trials at once"),
        (Always, "LINE: it draws in evaluation too: F.dropout needs training=self.training"),
        (Counting, "its forward pass sets self.calls, which no checkpoint holds: register a buffer"),
        (
            Deciding,
            "LINE: its forward pass reads a tensor's value (if, float, print): use torch.where",
        ),
        (hooked, "it has hooks: what they do can stand in forward"),
        (Writing, "LINE: its forward pass reads a tensor after writing into part of it: use torch.cat"),
    ],
)
def test_a_model_that_a_graph_would_not_repeat_is_looped_and_its_user_told_what_to_change(
    make: Any, because: str
) -> None:
    if because.startswith("LINE"):
        lines, first = inspect.getsourcelines(make.forward)
        (place,) = [number for number, line in enumerate(lines, first) if "# this" in line]
        because = because.replace("LINE", f"test_rowwise.py:{place}")
    assert LocalEngine(make_task(make), RULES).traits(RUN).looped_because == because


def test_a_regression_may_give_one_number_a_sample() -> None:
    class Lone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(FEATURES, 1)

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.head(x).squeeze(-1)
            return outputs

    samples = Samples(torch.randn(24, FEATURES), torch.randn(24))
    task = make_task(Lone, train=samples, validation=samples, loss=LOSSES["mse"], metric=METRICS["mse"], classes=0)
    assert LocalEngine(task, RULES).traits(RUN).looped_because is None


@pytest.mark.skipif(not can_compile("cpu"), reason="there is no C compiler (cc)")
@examples(30)
@given(
    rows=st.integers(1, 3),
    samples=st.sampled_from([1, 5, 16, 40]),
    classes=st.integers(2, 40),
    scale=st.sampled_from([0.0, 1.0, 30.0, 1e4]),
    innermost=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_cross_entropy_in_c_is_that_of_torch(
    rows: int, samples: int, classes: int, scale: float, innermost: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    outputs = scale * torch.randn(rows, classes, samples, dtype=dtype)
    targets, counts = torch.randint(classes, (rows, samples)), torch.rand(rows, samples, dtype=dtype)
    leaf = outputs.double().requires_grad_()
    losses = functional.cross_entropy(leaf, targets, reduction="none")
    (gradient,) = torch.autograd.grad((losses * counts).sum(), leaf)
    laid_out = outputs.transpose(1, 2) if innermost else outputs.transpose(1, 2).contiguous()
    found = cross_entropy(laid_out, targets, counts).double()
    near = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(found[:, -1], losses.detach(), **near)
    torch.testing.assert_close(found[:, :-1], gradient, **near)


@pytest.mark.skipif(not can_compile("cpu"), reason="there is no C compiler (cc)")
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_cross_entropy_in_c_of_what_is_no_number_is_none_either(value: float) -> None:
    outputs = torch.zeros(2, 17, 3)
    outputs[1, 16, 2] = value
    losses = cross_entropy(outputs, torch.zeros(2, 17, dtype=torch.int64), torch.ones(2, 17))[:, -1]
    assert losses.isfinite().tolist() == [[True] * 17, [True] * 16 + [False]]


def test_infinite_weights_of_one_row_do_not_reach_the_next() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4), nn.Flatten(), nn.GELU(), nn.Linear(20, CLASSES))
    layout, weights = random_rows(module, 3)
    samples = Samples(torch.randint(9, (3, 16, 5)), torch.randint(CLASSES, (3, 16)))
    ones, recorded = torch.ones(3, 16), Recorded(module, layout, LOSSES["cross_entropy"])

    def gradients(value: float) -> Tensor:
        rows = weights.clone()
        rows[1] *= value
        found = Gradient(layout, torch.zeros_like(rows))
        Rowwise(recorded, rows, found).add_gradient(samples, ones)
        return found.memory

    calm, wild = gradients(1.0), gradients(math.inf)
    assert not wild[1].isfinite().all()
    assert torch.equal(calm[::2], wild[::2])


@pytest.mark.parametrize("make", [lambda: Graph(STEPS, CLASSES, draws=True), Transformed])
def test_a_graph_is_bitwise_the_same_alone_and_beside_any_neighbours(make: Any) -> None:
    """In slot 0, and in the last of a block, beside rows of other weights."""

    def trained(*trials: int) -> list[tuple[float, float]]:
        engine = LocalEngine(make_task(make), RULES)
        hparams = {"optimizer": "adam", "learning_rate": 0.01, "batch_size": 7}
        for trial in trials:
            engine.start(Run(trial, 0, hparams, 2))
        measured = [own for _ in range(2) for own in engine.advance(math.inf) if own.trial == 7]
        return [(own.train_loss, own.validation_loss) for own in measured]

    assert trained(*range(8)) == trained(7)
