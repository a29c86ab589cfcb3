"""The optimizers on (K, P) equal torch.optim's row by row, whatever the rows beside them do."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.conftest import examples
from tunecli.engine.gradients import Gradient, Layout
from tunecli.engine.rules import RULES
from tunecli.engine.schedule import rate_factors
from tunecli.engine.update import Coming, State, Trained, Updates
from tunecli.space import OPTIMIZERS, settings_of

STEPS, WEIGHTS = 50, 11
ONE_WEIGHT = Layout(("weight",), (torch.Size([WEIGHTS]),), (0,), WEIGHTS)
BELOW = 2
"""Rows of the state below the ones that are trained: nobody's."""

momenta = st.just(0.0) | st.floats(0.01, 0.99)
penalties = st.just(0.0) | st.floats(1e-6, 1e-2)


@st.composite
def points(draw: st.DrawFn, rule: str) -> dict[str, Any]:
    """Hparams of one run, as the space gives them: only what the optimizer reads."""
    point = {"learning_rate": draw(st.floats(1e-4, 0.3)), "l1": draw(penalties), "l2": draw(penalties)}
    if rule in ("sgd", "rmsprop", "muon"):
        point["momentum"] = draw(momenta)
    if rule == "sgd" and point["momentum"]:
        # torch allows the one or the other.
        point |= draw(st.fixed_dictionaries({"nesterov": st.booleans()}) | st.builds(dict, dampening=st.floats(0, 1)))
    if rule in ("adam", "adamw", "nadam", "radam", "adamax", "lion"):
        point |= {"beta1": draw(st.floats(0, 0.99)), "beta2": draw(st.floats(0.5, 0.9999))}
    return point


class Lion(torch.optim.Optimizer):
    """As the authors' own, of google/automl: torch has none."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                p.data.mul_(1 - group["lr"] * group["weight_decay"])
                average = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.add_(torch.sign(average * beta1 + p.grad * (1 - beta1)), alpha=-group["lr"])
                average.mul_(beta2).add_(p.grad, alpha=1 - beta2)


def torch_optimizer(rule: str, parameters: Any, point: dict[str, Any]) -> torch.optim.Optimizer:
    keys: dict[str, Any] = {"lr": point["learning_rate"], "weight_decay": point.get("l2", 0.0)}
    keys |= {name: point[name] for name in ("momentum", "nesterov", "dampening") if name in point}
    if "beta1" in point:
        keys["betas"] = (point["beta1"], point["beta2"])
    optimizers: dict[str, Any] = {
        "sgd": torch.optim.SGD,
        "adagrad": torch.optim.Adagrad,
        "rmsprop": torch.optim.RMSprop,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "nadam": torch.optim.NAdam,
        "radam": torch.optim.RAdam,
        "adamax": torch.optim.Adamax,
        "adadelta": torch.optim.Adadelta,
        "lion": Lion,
    }
    found: torch.optim.Optimizer = optimizers[rule](parameters, **keys)
    return found


def factors(schedules: list[str], numbers: Tensor, totals: Tensor) -> Tensor:
    settings = [settings_of({}, {"schedule": schedule}) for schedule in schedules]
    return rate_factors(settings, numbers, totals, torch.ones_like(totals), [1.0] * len(schedules))


def make_state(rows: int, dtype: torch.dtype, generator: torch.Generator, *, spared: bool = False) -> State:
    """Fresh rows, and BELOW them rows in the middle of some training."""
    weights, first, second = torch.randn(3, rows + BELOW, WEIGHTS, generator=generator, dtype=dtype)
    first[:rows], second[:rows] = 0, 0
    # Where weights may be spared, l1 and l2 take a mask, and no rule is fused.
    return State(weights, first, second, decay=torch.ones(WEIGHTS, dtype=dtype) if spared else None)


WAYS = [
    *((name, "rows") for name in RULES),
    *((name, "fused") for name, rule in RULES.items() if rule.fused),
    *((name, "compiled") for name, rule in RULES.items() if rule.compiled >= 0),
]
"""Each optimizer on all rows at once, and those that torch, or `update.c`, has for a row at a time as well."""


def train(
    rules: list[str],
    points: list[dict[str, Any]],
    state: State,
    means: Tensor,
    rates: Tensor,
    due: Tensor,
    *,
    compiled: bool,
) -> None:
    """Drive the first rows by mean gradients (S, K, P), where due (S, K), in two ticks."""
    numbers, rows = due.cumsum(0), len(points)
    trained = [Trained(RULES[rule], point) for rule, point in zip(rules, points, strict=True)]
    for tick in torch.arange(len(means)).chunk(2):
        gradient = Gradient(ONE_WEIGHT, torch.zeros_like(state.weights), apart=compiled)
        updates = Updates(state, gradient, trained, due[tick], torch.zeros_like(due[tick]))
        updates.begin(Coming(numbers[tick], rates[tick]))
        for step, number in enumerate(tick.tolist()):
            before = state.weights.clone(), state.first.clone(), state.second.clone()
            gradient.views[0][:rows] = means[number]
            written_over = updates.apply(step, torch.zeros(rows, dtype=torch.float64))
            assert written_over == bool(due[number].all())
            idle = torch.cat([~due[number], torch.ones(BELOW, dtype=torch.bool)])
            for old, new in zip(before, (state.weights, state.first, state.second), strict=True):
                assert torch.equal(old[idle], new[idle]), "a row that is not due comes back as it was"
            left = gradient.views[0][:rows][due[number]]
            assert written_over or not left.any(), "the gradients of those due are used up"


def test_every_optimizer_of_the_space_has_a_rule() -> None:
    assert set(RULES) == set(OPTIMIZERS)


@pytest.fixture
def float64() -> Iterator[None]:
    """torch keeps NAdam's product of momenta in the default dtype: in float32 it is good for 1e-8 alone."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("way", [way for way in WAYS if way[0] != "muon"], ids=str)
@examples(15)
@given(data=st.data(), seed=st.integers(0, 2**32), rows=st.integers(1, 4))
def test_a_row_is_trained_as_by_torch_at_its_own_pace(
    way: tuple[str, str], data: st.DataObject, seed: int, rows: int
) -> None:
    rule, how = way
    own = [data.draw(points(rule)) for _ in range(rows)]
    generator = torch.Generator().manual_seed(seed)
    spared = how == "rows" or (how == "compiled" and data.draw(st.booleans()))
    state = make_state(rows, torch.float64, generator, spared=spared)
    share_due = data.draw(st.sampled_from([0.3, 1.0]))
    check_against_torch([rule] * rows, own, state, generator, share_due=share_due, compiled=how == "compiled")


@pytest.mark.usefixtures("float64")
@examples(25)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_neighbours_with_other_optimizers_are_trained_side_by_side(data: st.DataObject, seed: int) -> None:
    rules = data.draw(st.lists(st.sampled_from([rule for rule in RULES if rule != "muon"]), min_size=2, max_size=8))
    own = [data.draw(points(rule)) for rule in rules]
    generator = torch.Generator().manual_seed(seed)
    state = make_state(len(rules), torch.float64, generator, spared=data.draw(st.booleans()))
    check_against_torch(rules, own, state, generator, share_due=0.5, compiled=data.draw(st.booleans()))


def check_against_torch(
    rules: list[str],
    own: list[dict[str, Any]],
    state: State,
    generator: torch.Generator,
    *,
    share_due: float,
    compiled: bool,
) -> None:
    """Train rows by random gradients, each at its own pace, and its twin by torch.optim."""
    rows = len(rules)
    initial = state.weights[:rows].clone()
    mean = torch.randn(STEPS, rows, WEIGHTS, generator=generator, dtype=torch.float64)
    rates = torch.rand(STEPS, rows, generator=generator, dtype=torch.float64)
    due = torch.rand(STEPS, rows, generator=generator) < share_due
    train(rules, own, state, mean, rates, due, compiled=compiled)
    for row, (rule, point) in enumerate(zip(rules, own, strict=True)):
        weight = nn.Parameter(initial[row].clone())
        optimizer = torch_optimizer(rule, [weight], point)
        for step in range(STEPS):
            if due[step, row]:
                optimizer.param_groups[0]["lr"] = point["learning_rate"] * float(rates[step, row])
                weight.grad = mean[step, row] + point["l1"] * weight.detach().sign()
                optimizer.step()
        torch.testing.assert_close(state.weights[row], weight.detach(), rtol=1e-9, atol=1e-12)


@examples(15)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_muon_trains_matrices_as_by_torch_and_the_rest_by_adamw(data: st.DataObject, seed: int) -> None:
    """A model with a wide and a tall matrix, biases, and a filter of four dimensions."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(5, 9), nn.Conv2d(1, 2, 2), nn.Linear(9, 3)).double()
    point = data.draw(points("muon"))
    layout = Layout.of(module)
    row = layout.row(module)
    state = State(row[None].clone(), torch.zeros(1, len(row)).double(), torch.zeros(1, len(row)).double())
    state.matrices = layout.matrices()
    matrices = [p for p in module.parameters() if p.dim() == 2]
    others = [p for p in module.parameters() if p.dim() != 2]
    keys = {"lr": point["learning_rate"], "weight_decay": point["l2"]}
    optimizers = torch.optim.Muon(matrices, momentum=point["momentum"], **keys), torch.optim.AdamW(others, **keys)
    ones = torch.ones(10, 1, dtype=torch.int64)
    gradient = Gradient(layout, torch.zeros(1, len(row)).double())
    updates = Updates(state, gradient, [Trained(RULES["muon"], point)], ones > 0, ones == 0)
    updates.begin(Coming(ones.cumsum(0), ones))
    for step in range(10):
        gradient.memory.copy_(torch.randn(1, len(row)))
        for name, view in zip(layout.names, gradient.views, strict=True):
            parameter = module.get_parameter(name)
            parameter.grad = view[0] + point["l1"] * parameter.detach().sign()
        for optimizer in optimizers:
            optimizer.step()
        updates.apply(step, torch.zeros(1))
    found = layout.views(state.weights)
    for name, parameter in module.named_parameters():
        # A product of one matrix and a product of several round differently, now and then: in each of the ten steps by
        # a unit or two in the last place of bfloat16, 2**-8, of an update whose entries are at most about 1.
        atol = point["learning_rate"] * 10 * 2**-7 if parameter.dim() == 2 else 1e-12
        torch.testing.assert_close(found[name][0], parameter.detach(), rtol=1e-9, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("way", WAYS, ids=str)
@examples(6)
@given(data=st.data(), seed=st.integers(0, 2**32), rows=st.integers(2, 40))
def test_the_bits_of_a_row_do_not_depend_on_its_place(
    way: tuple[str, str], dtype: torch.dtype, data: st.DataObject, seed: int, rows: int
) -> None:
    """In the middle of a long run: bias corrections are powers with large exponents."""
    rule, how = way
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(rows, 6, generator=generator).tolist()
    names = ("learning_rate", "momentum", "beta1", "beta2", "l1", "l2")
    own: list[dict[str, Any]] = [dict(zip(names, values, strict=True)) for values in uniform]
    done = torch.randint(0, 5000, (rows,), generator=generator)
    steps = 3
    numbers = done + torch.arange(1, steps + 1)[:, None]  # (S, K)
    rates = factors(["cosine"] * rows, numbers, done * 2 + steps)
    gradients = torch.randn(steps, rows, WEIGHTS, generator=generator, dtype=dtype)
    start = make_state(rows, dtype, generator)
    start.first, start.second = torch.randn(2, rows, WEIGHTS, generator=generator, dtype=dtype)

    def trained(picked: list[int]) -> Tensor:
        places = torch.tensor(picked)
        decay = torch.ones(WEIGHTS, dtype=dtype) if how == "rows" else None
        state = State(start.weights[places], start.first[places], start.second[places].abs(), decay)
        state.first = state.first.abs() if rule == "adadelta" else state.first  # squares
        state.matrices = ((1, 2, 3), (7, 2, 2))
        gradient = Gradient(ONE_WEIGHT, torch.zeros_like(state.weights), apart=how == "compiled")
        every = torch.ones(steps, len(picked), dtype=torch.bool)
        trained = [Trained(RULES[rule], own[i]) for i in picked]
        updates = Updates(state, gradient, trained, every, ~every)
        updates.begin(Coming(numbers[:, picked], rates[:, picked]))
        for step in range(steps):
            gradient.views[0][:] = gradients[step, picked]
            updates.apply(step, torch.zeros(len(picked), dtype=torch.float64))
        return torch.stack([state.weights, state.first, state.second], dim=1)  # (K, 3, P)

    crowd = data.draw(st.permutations(range(rows)))
    alone = torch.cat([trained([row]) for row in crowd])
    assert torch.equal(trained(crowd), alone)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_spared_weights_do_not_decay(rule: str, compiled: bool) -> None:
    """`decay_biases = false`: l1 and l2 hold for matrices, not for biases and norms."""
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    layout = Layout.of(module)
    weights = layout.row(module).repeat(2, 1) + 0.5
    decay = layout.decay_mask(weights.device, weights.dtype)
    state = State(weights.clone(), torch.zeros_like(weights), torch.zeros_like(weights), decay)
    ones = torch.ones(1, 2, dtype=torch.int64)
    told = {"learning_rate": 0.1, "l1": 0.1, "l2": 0.1}
    gradient = Gradient(layout, torch.zeros_like(weights), apart=compiled)
    updates = Updates(state, gradient, [Trained(RULES[rule], told)] * 2, ones > 0, ones > 0)
    updates.begin(Coming(ones, ones))
    updates.apply(0, torch.zeros(2, dtype=torch.float64))
    before, after = layout.views(weights), layout.views(state.weights)
    for name in layout.names:
        spared = name.endswith("bias") or name.startswith("1.")
        assert torch.equal(before[name], after[name]) == spared, name
