"""How a study is computed: by a written rule, or by what was measured where the study is long enough."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tunecli.engine import LOOPED, Plan, choose_plan, tried
from tunecli.engine.calibration import Timing, best
from tunecli.engine.compiler import can_compile
from tunecli.engine.plan import choose_plan_for_gpu, rivals
from tunecli.search import Opened, planning, search
from tunecli.study import Study

AT_ONCE = Plan("rules", cap=16, block_rows=8, threads=1)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, in which all studies are long enough to be measured, and torch trains all models."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(planning, "LONG_SECONDS", 0.0)
    monkeypatch.setattr(tried, "NATIVE_WEIGHTS", 0)
    return tmp_path / "cache"


def opened(study: Study, folder: Path, trials: int | None = None) -> Opened:
    """How a search begins; it goes on until so many trials have ended, or to its end."""
    ended = 0

    def stop() -> bool:
        return trials is not None and ended >= trials

    found: Iterator[object] = search(study, folder, stop=stop)
    first = next(event for event in found if isinstance(event, Opened))
    for _ in found:
        ended += 1
    return first


def test_micro_batches_are_no_smaller_than_the_smallest_batch_needs() -> None:
    caps = [choose_plan(1000, window=32, smallest_batch=size).cap for size in (1, 16, 32, 100, 256)]
    assert caps == [16, 16, 32, 64, 64]


def test_a_wide_model_or_one_trial_at_a_time_is_computed_one_after_another() -> None:
    assert choose_plan(10**6, window=32).way == "looped"
    assert choose_plan(1000, window=1, convolves=True) == LOOPED
    assert choose_plan(1000, window=8, convolves=True).way == "rules"
    assert str(choose_plan(1000, window=1)) == "trials one after another, 1 thread"
    assert choose_plan(1000, window=2).way == "rules"
    assert choose_plan(1000, window=2) == Plan("rules", cap=64, block_rows=8, threads=1)


def test_a_wide_model_gets_the_cores_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler gives a job some of a node's cores: a thread for each of the others would only be in the way."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {5, 9, 11})
    assert choose_plan(10**6, window=32).threads == 3
    measured = rivals(LOOPED, window=1, largest_batch=32, blocks=1, looped=True)
    assert [plan.threads for plan in measured] == [1, 3]


def test_each_core_can_have_a_block_of_its_own() -> None:
    heights = {window: choose_plan(1000, window, blocks=2).block_rows for window in (8, 16, 32, 64)}
    assert heights == {8: 8, 16: 8, 32: 16, 64: 32}
    assert choose_plan(1000, window=64, blocks=8).block_rows == 8
    assert choose_plan(1000, window=12).block_rows == 16, "one block where nobody shares"


def test_a_gpu_computes_as_many_trials_at_once_as_it_holds() -> None:
    assert choose_plan_for_gpu(10_000, window=64, smallest_batch=16, memory=8 << 30) == Plan("rules", 16, 64, 1)
    heights = [choose_plan_for_gpu(weights, 48, 32, 8 << 30).block_rows for weights in (10**4, 10**7, 4 * 10**7)]
    assert heights == [64, 8, 2]
    assert choose_plan_for_gpu(10**8, window=64, smallest_batch=16, memory=8 << 30) == LOOPED
    assert choose_plan_for_gpu(10_000, window=1, smallest_batch=16, memory=8 << 30) == LOOPED


def test_what_is_measured_begins_with_the_written_plan_and_has_none_twice() -> None:
    for written in (AT_ONCE, LOOPED):
        plans = rivals(written, 8, 256, 1, looped=False)
        assert plans[0] == written
        assert len(set(plans)) == len(plans)
    assert {plan.way for plan in rivals(LOOPED, 8, 256, 1, looped=True)} == {"looped"}


@pytest.mark.parametrize(("rival", "chosen"), [(0.5, LOOPED), (0.97, AT_ONCE), (2.0, AT_ONCE), (float("inf"), AT_ONCE)])
def test_the_written_plan_stays_unless_another_is_clearly_faster(rival: float, chosen: Plan) -> None:
    assert best([Timing(AT_ONCE, 1.0), Timing(LOOPED, rival)]) == chosen


def test_a_short_study_is_not_measured(question: Callable[..., Study], tmp_path: Path) -> None:
    assert opened(question(window=8), tmp_path / "short").timings == ()


def test_what_was_measured_serves_the_next_study_of_its_shape(
    question: Callable[..., Study], tmp_path: Path, cache: Path
) -> None:
    first = opened(question(name="first", window=8), tmp_path / "first")
    compiled = can_compile("cpu")
    assert {timing.plan for timing in first.timings} >= {replace(own, compiled=compiled) for own in (AT_ONCE, LOOPED)}
    (file,) = cache.rglob("*.json")
    written = file.read_bytes()
    again = opened(question(name="again", seed=1, window=8), tmp_path / "again")
    assert (again.plan, list(again.timings)) == (first.plan, list(first.timings))
    assert file.read_bytes() == written, "nothing is measured anew"
    opened(question(name="wider", window=8, model={"source": "mlp", "hidden": [9]}), tmp_path / "wider")
    assert len(list(cache.rglob("*.json"))) == 2, "another shape has measurements of its own"


@pytest.mark.skipif(not can_compile("cpu"), reason="there is no C compiler (cc)")
def test_a_model_that_c_trains_is_planned_by_rule(
    question: Callable[..., Study], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row after the other, by whichever plan: two of eighteen seconds went into that."""
    monkeypatch.setattr(tried, "NATIVE_WEIGHTS", 1000)
    narrow = opened(question(name="narrow", window=8), tmp_path / "narrow", trials=0)
    assert narrow.native
    assert not narrow.timings
    wide = question(name="wide", window=8, model={"source": "mlp", "hidden": [200]})
    assert opened(wide, tmp_path / "wide", trials=0).timings


@pytest.mark.parametrize("spoiled", [b"", b"{", b"[]", b'{"timings": 3}', b'{"timings": [{"plan": {}}]}'])
def test_a_spoiled_cache_is_measured_anew(
    spoiled: bytes, question: Callable[..., Study], tmp_path: Path, cache: Path
) -> None:
    opened(question(name="first", window=8), tmp_path / "first", trials=0)
    (file,) = cache.rglob("*.json")
    file.write_bytes(spoiled)
    assert opened(question(name="again", window=8), tmp_path / "again", trials=0).timings
    assert file.read_bytes() != spoiled


def test_a_cache_that_cannot_be_written_is_done_without(
    question: Callable[..., Study], tmp_path: Path, cache: Path
) -> None:
    cache.write_text("a file where a folder should be")
    assert opened(question(window=8), tmp_path / "study", trials=0).timings


def test_a_study_keeps_the_plan_it_was_begun_with(
    question: Callable[..., Study], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = question(window=8, trials=20)
    first = opened(study, tmp_path / "study", trials=3)
    (file,) = cache.rglob("*.json")
    file.unlink()
    later = opened(study, tmp_path / "study")
    assert (later.plan, later.timings) == (first.plan, ())


@pytest.mark.parametrize("refused", ["== 3", "!= 8"])
def test_a_point_that_the_model_refuses_is_measured_around(
    refused: str, question: Callable[..., Study], tmp_path: Path, cache: Path
) -> None:
    (tmp_path / "own.py").write_text(
        f"""
from torch import nn
def model(width):
    if width {refused}:
        raise ValueError("no such width")
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))
"""
    )
    widths = {"model.width": [4, 3, 8]}
    study = question(base=tmp_path, model={"source": "own.py:model"}, space=widths, window=8)
    timings = opened(study, tmp_path / "study", trials=0).timings
    assert any(timing.seconds < float("inf") for timing in timings)
