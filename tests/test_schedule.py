"""Schedules equal torch.optim.lr_scheduler's, stepped as its users step them; stopping early, decided by the curve."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import lr_scheduler as theirs

from tests.conftest import examples
from tunecli.engine.schedule import Plateau, rate_factors, warmup_updates
from tunecli.space import SCHEDULES, settings_of
from tunecli.stopping import reason_to_stop
from tunecli.trial import Measurement, Value


def own_factors(own: dict[str, Value], total: int, length: int) -> list[float]:
    """The factors of all updates of one run, asked for in two ticks."""
    numbers = torch.arange(1, total + 1)[:, None]
    parts = [
        rate_factors([settings_of({}, own)], part, torch.tensor([total]), torch.tensor([length]), [1.0])
        for part in numbers.split(-(-total // 2))
    ]
    found: list[float] = torch.cat(parts)[:, 0].tolist()
    return found


def torch_factors(own: dict[str, Any], total: int, length: int) -> list[float]:
    """What torch's schedulers do with a learning rate of 1."""
    own = settings_of({}, own)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    warm = round(own["warmup"] * total)
    make: dict[str, Any] = {
        "constant": lambda: theirs.ConstantLR(optimizer, 1.0),
        "cosine": lambda: theirs.CosineAnnealingLR(optimizer, total - warm),
        "one_cycle": lambda: theirs.OneCycleLR(
            optimizer,
            1.0,
            total - warm,
            pct_start=own["one_cycle_pct_start"],
            div_factor=own["one_cycle_div_factor"],
            final_div_factor=own["one_cycle_final_div_factor"],
            cycle_momentum=False,
        ),
        "exponential": lambda: theirs.ExponentialLR(optimizer, own["exponential_gamma"]),
        "step": lambda: theirs.StepLR(optimizer, own["step_epochs"], own["step_gamma"]),
    }
    each_epoch = own["schedule"] in ("exponential", "step")
    found = [(number + 1) / warm for number in range(warm)]
    scheduler = make[own["schedule"]]()
    for done in range(total - warm):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if not each_epoch or (done + 1) % length == 0:
            scheduler.step()
    return found


recipes = st.fixed_dictionaries(
    {
        "schedule": st.sampled_from([name for name in SCHEDULES if name != "plateau"]),
        "warmup": st.just(0.0) | st.floats(0, 0.6),
        "exponential_gamma": st.floats(0.1, 1.0),
        "step_gamma": st.floats(0.0, 1.0),
        "step_epochs": st.integers(1, 4),
        "one_cycle_pct_start": st.floats(0.1, 0.9),
        "one_cycle_div_factor": st.floats(1, 100),
        "one_cycle_final_div_factor": st.floats(1, 1e5),
    }
)


@pytest.mark.filterwarnings("ignore:Detected call of")
@examples(30)
@given(own=recipes, epochs=st.integers(3, 12), length=st.integers(5, 20))
def test_a_schedule_equals_torchs(own: dict[str, Value], epochs: int, length: int) -> None:
    total = epochs * length
    found, expected = own_factors(own, total, length), torch_factors(own, total, length)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_warmup_is_torchs_linear_one_before_the_schedule() -> None:
    """As SequentialLR joins them: ten updates of warmup, then a cosine over the other thirty."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    parts: list[Any] = [theirs.LinearLR(optimizer, 0.1, total_iters=9), theirs.CosineAnnealingLR(optimizer, 30)]
    joined = theirs.SequentialLR(optimizer, parts, milestones=[10])
    expected = []
    for _ in range(40):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        joined.step()
    assert own_factors({"schedule": "cosine", "warmup": 0.25}, 40, 10) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("total", [1, 2, 3])
def test_the_shortest_runs_have_a_rate(schedule: str, total: int) -> None:
    for warmup in (0.0, 0.5, 0.99):
        found = own_factors({"schedule": schedule, "warmup": warmup}, total, 1)
        assert all(0 <= factor <= 1 for factor in found)


@examples(20)
@given(own=st.lists(recipes, min_size=2, max_size=5), seed=st.integers(0, 1000))
def test_a_runs_rates_do_not_depend_on_its_neighbours(own: list[dict[str, Value]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 30, (len(own),), generator=generator)
    numbers = torch.randint(0, 300, (7, len(own)), generator=generator)
    every = [settings_of({}, each) for each in own]

    def factors(picked: list[int]) -> Tensor:
        chosen = [every[place] for place in picked]
        return rate_factors(chosen, numbers[:, picked], lengths[picked] * 10, lengths[picked], [0.5] * len(picked))

    together = factors(list(range(len(own))))
    assert all(torch.equal(together[:, [place]], factors([place])) for place in range(len(own)))


@examples(30)
@given(
    metrics=st.lists(st.sampled_from([0.1, 0.5, 0.50001, 0.7, 0.9, -0.3]), min_size=1, max_size=30),
    patience=st.integers(0, 3),
    factor=st.floats(0.0, 0.9),
    direction=st.sampled_from(["minimize", "maximize"]),
)
def test_a_plateau_equals_torchs(metrics: list[float], patience: int, factor: float, direction: str) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
    expected = theirs.ReduceLROnPlateau(optimizer, direction[:3], factor=factor, patience=patience)  # type: ignore[arg-type]
    found, own = Plateau(), settings_of({}, {"plateau_patience": patience, "plateau_factor": factor})
    for metric in metrics:
        expected.step(metric)
        found.see(metric, direction, own, 1e-3)
        assert 1e-3 * found.scale == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)


def test_warmup_is_a_share_of_all_updates() -> None:
    assert warmup_updates(settings_of({}, {"warmup": 0.1}), 230) == 23


# Stopping early.


def curve(metrics: list[float], losses: list[float] | None = None, norm: float = 1.0) -> list[Measurement]:
    losses = losses or [1.0 / (tick + 1) for tick in range(len(metrics))]
    pairs = zip(losses, metrics, strict=True)
    return [Measurement(0, tick, loss, loss, metric, norm, 0.1) for tick, (loss, metric) in enumerate(pairs, start=1)]


@pytest.mark.parametrize(
    ("metrics", "own", "reason"),
    [
        ([0.5, 0.6, 0.6, 0.5], {"patience": 2}, "no better metric for 2 epochs"),
        ([0.5, 0.6, 0.6], {"patience": 2}, None),
        ([0.5, 0.6, 0.6, 0.7], {"patience": 2}, None),
        ([0.9, 0.1, 0.1, 0.1], {"patience": 0}, None),
        ([0.5, 0.5], {}, None),
    ],
)
def test_patience_counts_epochs_without_a_better_metric(
    metrics: list[float], own: dict[str, Value], reason: str | None
) -> None:
    assert reason_to_stop(curve(metrics), settings_of({}, own), "maximize") == reason


def test_a_run_stops_where_its_training_loss_no_longer_changes() -> None:
    own = settings_of({"loss_tolerance": 0.01}, {})
    assert reason_to_stop(curve([1.0], [0.5]), own, "maximize") is None
    assert reason_to_stop(curve([1.0] * 2, [0.5, 0.48]), own, "maximize") is None
    found = reason_to_stop(curve([1.0] * 3, [0.5, 0.48, 0.485]), own, "maximize")
    assert found == "converged: the training loss changed by 0.005"


def test_a_run_stops_where_its_gradient_is_small() -> None:
    own = settings_of({"gradient_tolerance": 0.5}, {})
    assert reason_to_stop(curve([1.0], norm=0.6), own, "maximize") is None
    assert reason_to_stop(curve([1.0], norm=0.4), own, "maximize") == "converged: the gradient norm is 0.4"
