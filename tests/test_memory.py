"""Where memory runs out: less is computed at once from then on, and a trial that does not fit alone fails alone."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import Command, Question
from tests.test_engine import make_run, make_task, shown, start, tick
from tunecli.data import Samples, samples
from tunecli.engine import LocalEngine, Plan, child
from tunecli.engine.lane import Lane
from tunecli.engine.rowwise import Rowwise
from tunecli.engine.update import Updates
from tunecli.errors import OutOfMemory
from tunecli.search import Noticed, search
from tunecli.store import Record, read
from tunecli.trial import State

SITES: dict[str, tuple[Any, str]] = {
    "gather": (Samples, "take"),
    "gradient": (Rowwise, "add_gradient"),
    "update": (Updates, "apply"),
}
"""Where a step may run out of memory: it has read nothing, or written a gradient, or updated weights by then."""


def run_short(patch: pytest.MonkeyPatch, *, rows: int, after: int = 0, site: str = "gather") -> None:
    """Let a step be computed for so many trials at once and no more, once it was computed so often for more."""
    left = after
    patch.setattr(samples, "AHEAD", 1)  # each step gathers for itself,
    patch.setattr(Rowwise, "steps", lambda *_: None)  # and is taken by itself
    owner, name = SITES[site]
    does = getattr(owner, name)

    def rows_of(self: Any, *args: Any) -> int:
        if site == "gather":
            return 0 if isinstance(args[0], slice) or args[0].dim() < 2 else int(args[0].shape[-2])
        return len(self._weights[0]) if site == "gradient" else len(self._gradient)

    def runs_short(self: Any, *args: Any, **keys: Any) -> Any:
        nonlocal left
        found = does(self, *args, **keys)
        if rows_of(self, *args) > rows:
            left -= 1
            if left < 0:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has ...")
        return found

    patch.setattr(owner, name, runs_short)


def run(study: Any, folder: Path, *, workers: int = 1, ticks: float = float("inf")) -> tuple[Record, list[str]]:
    """Search to its end, or for so many ticks; what is recorded then, and what was told on the way."""
    told = []
    seen = 0.0

    def stop() -> bool:
        return seen >= ticks

    for event in search(study, folder, workers=workers, stop=stop):
        if isinstance(event, Noticed):
            told.append(event.text)
        seen = getattr(event, "tick", seen)
    return read(folder / "study.db"), told


def values(record: Record) -> list[Any]:
    return [(t.number, t.state, t.hparams, [(m.train_loss, m.metric) for m in t.curve]) for t in record.trials]


@pytest.fixture(scope="module")
def wide(question: Question) -> Any:
    """A study whose plan is to compute 16 trials at once."""
    return question(window=16, trials=18, space={"batch_size": [32, 64]}, train={"metric": "loss", "epochs": 3})


@pytest.fixture(scope="module")
def plain(wide: Any, tmp_path_factory: pytest.TempPathFactory) -> Record:
    """What that study comes to where there is memory enough."""
    return run(wide, tmp_path_factory.mktemp("plain") / "study")[0]


@pytest.mark.parametrize(("site", "after"), [("gather", 0), ("gather", 7), ("gradient", 7), ("update", 7)])
def test_blocks_are_halved_until_they_fit_and_it_is_said_once(
    site: str, after: int, plain: Record, wide: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plain.plan["block_rows"] == 16
    run_short(monkeypatch, rows=4, after=after, site=site)
    short, told = run(wide, tmp_path / "short")
    assert told == ["memory ran out: up to 4 trials at once from now on, not 16"]
    assert short.plan == {**plain.plan, "block_rows": 4}
    assert values(short) == values(plain), "to the bit"


def test_a_search_that_goes_on_keeps_the_smaller_blocks_and_comes_to_the_same(
    wide: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_short(monkeypatch, rows=8)
    whole, _ = run(wide, tmp_path / "whole")
    run(wide, tmp_path / "parts", ticks=3)
    monkeypatch.undo()
    parts, told = run(wide, tmp_path / "parts")
    assert (parts.plan, told) == (whole.plan, [])
    assert values(parts) == values(whole)


def test_workers_halve_their_blocks_together(wide: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "CONTEXT", multiprocessing.get_context("fork"))
    run_short(monkeypatch, rows=4)
    alone, _ = run(wide, tmp_path / "alone")
    shared, told = run(wide, tmp_path / "shared", workers=2)
    assert told == ["memory ran out: up to 4 trials at once from now on, not 16"]
    assert values(shared) == values(alone)


@pytest.fixture
def gathering(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Tensor], bool], list[int]], None]:
    """Has memory run out in every process but some that are `able`, where what is gathered does not fit."""
    monkeypatch.setattr(child, "CONTEXT", multiprocessing.get_context("fork"))
    monkeypatch.setattr(Rowwise, "steps", lambda *_: None)
    take = Samples.take

    def arrange(fits: Callable[[Tensor], bool], able: list[int]) -> None:
        def runs_short(self: Samples, index: Any) -> Samples:
            if able and os.getpid() not in able and not isinstance(index, slice) and not fits(index):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has ...")
            return take(self, index)

        monkeypatch.setattr(Samples, "take", runs_short)

    return arrange


def kill_all_workers_once(study: Any, folder: Path, able: list[int]) -> list[str]:
    """Search with two workers, which are killed after two ticks; those that take over are not among the `able`."""
    told = []
    for event in search(study, folder, workers=2):
        told += [event.text] if isinstance(event, Noticed) else []
        if not able and getattr(event, "tick", 0) == 2:
            able += [os.getpid(), *(own.pid or 0 for own in multiprocessing.active_children())]
            for pid in able[1:]:  # all of them: no trial may go to one that has the memory
                os.kill(pid, signal.SIGKILL)
    return told


def test_memory_can_run_out_while_trials_of_a_worker_that_died_are_trained_again(
    wide: Any, plain: Record, tmp_path: Path, gathering: Callable[..., None]
) -> None:
    able: list[int] = []
    gathering(lambda index: index.shape[-2] <= 2, able)
    *killed, last = kill_all_workers_once(wide, tmp_path / "study", able)
    assert killed
    assert all(own.startswith("a worker process was killed by SIGKILL; its ") for own in killed)
    assert last == "memory ran out: up to 2 trials at once from now on, not 16"
    assert values(read(tmp_path / "study" / "study.db")) == values(plain)


def test_trials_that_fail_while_they_are_trained_again_are_not_waited_for(
    wide: Any, tmp_path: Path, gathering: Callable[..., None]
) -> None:
    able: list[int] = []
    gathering(lambda index: index.dim() < 3, able)  # one of these trials would fit, and never does
    kill_all_workers_once(wide, tmp_path / "study", able)
    failed = [own for own in read(tmp_path / "study" / "study.db").trials if own.state is State.FAILED]
    assert failed
    assert all("out of memory" in str(own.reason) for own in failed)


MODEL = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(FEATURES)
        self.last = nn.Linear(FEATURES, CLASSES)
        self.register_buffer("calls", torch.zeros(()))  # which has trials computed one after another

    def forward(self, x):
        self.calls += 1
        if len(x) > MOST[self.training]:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(x)}.00 MiB. GPU 0 has ...")
        return self.last(self.norm(x))

MOST = {True: TRAINED, False: EVALUATED}

def model():
    return Model()
"""


@pytest.fixture
def own(question: Question, tmp_path: Path) -> Callable[..., Any]:
    """A study of a model that runs out of memory on more samples than it says."""

    def make(trained: int = 1000, evaluated: int = 10000, features: int = 4, classes: int = 3, **more: Any) -> Any:
        numbers = {"TRAINED": trained, "EVALUATED": evaluated, "FEATURES": features, "CLASSES": classes}
        text = MODEL
        for name, number in numbers.items():
            text = text.replace(name, str(number))
        file = tmp_path / f"own_{trained}_{evaluated}.py"
        file.write_text(text)
        return question(base=tmp_path, model={"source": f"{file.name}:model"}, pruner="none", **more)

    return make


def test_a_trial_that_does_not_fit_alone_fails_and_its_neighbours_do_not_notice(
    own: Callable[..., Any], tmp_path: Path
) -> None:
    plain, _ = run(own(sampler="random"), tmp_path / "plain")
    short, told = run(own(trained=50, sampler="random"), tmp_path / "short")
    assert told == []
    full = [trial for trial in short.trials if trial.hparams["batch_size"] == "full"]
    assert full
    for trial in full:
        reason = "out of memory (120.00 MiB at once): a smaller batch_size or model needs less"
        assert (trial.state, trial.reason) == (State.FAILED, reason)
    beside = [trial.number for trial in short.trials if trial not in full]
    assert [values(short)[number] for number in beside] == [values(plain)[number] for number in beside]


def test_fewer_samples_are_evaluated_at_once_where_more_do_not_fit(own: Callable[..., Any], tmp_path: Path) -> None:
    data = {"source": "digits", "split": [1, 8, 1]}
    study = own(evaluated=300, features=64, classes=10, data=data, trials=3, space={"batch_size": [32]})
    short, told = run(study, tmp_path / "short")
    assert told == ["memory ran out: 256 samples evaluated at once from now on, not 1024"]
    assert short.plan["evaluated"] == 256
    assert all(trial.state is State.COMPLETE for trial in short.trials)


def test_a_model_that_is_too_large_among_others_fails_and_the_others_are_computed_as_before(
    question: Question, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = question(window=8, trials=8, pruner="none", sampler="random", space={"model.hidden": [[8], [9]]})
    plain, _ = run(study, tmp_path / "plain")
    add_gradient = Rowwise.add_gradient

    def short(self: Rowwise, samples: Samples, present: Tensor, *more: Any, **keys: Any) -> tuple[Tensor, None]:
        if any(9 in weight.shape for weight in self._weights) and len(present) != 2:  # as it is tried
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"
            )
        return add_gradient(self, samples, present, *more, **keys)

    monkeypatch.setattr(Rowwise, "steps", lambda *_: None)
    monkeypatch.setattr(Rowwise, "add_gradient", short)
    found, told = run(study, tmp_path / "short")
    assert (found.plan, told) == (plain.plan, [])
    for trial, own, other in zip(found.trials, values(found), values(plain), strict=True):
        if trial.hparams["model.hidden"] == (9,):
            assert (trial.state, trial.reason) == (
                State.FAILED,
                "out of memory: a smaller batch_size or model needs less",
            )
        else:
            assert own == other


def test_memory_can_run_out_while_rows_are_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """All runs can be taken out, also those whose matrices were moved in part."""
    plan = Plan("rules", cap=16, block_rows=8, threads=1)
    task, runs = make_task(), [make_run(trial, batch_size=16) for trial in range(10)]
    engine, plain = LocalEngine(task, plan), LocalEngine(task, plan)
    for own in (engine, plain):
        start(own, runs[:6])
        tick(own, runs[:6])
        start(own, runs[6:])
    zeros, left = torch.zeros, 2

    def short(*size: Any, **more: Any) -> Tensor:
        nonlocal left
        left -= size[:1] == (12,)
        if left < 0:
            raise MemoryError
        return zeros(*size, **more)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros", short)
        with pytest.raises(OutOfMemory) as caught:
            tick(engine, runs)
    assert caught.value.of == "block_rows"
    other = LocalEngine(task, plan)
    for run in runs:
        snapshot = engine.snapshot(run)
        assert snapshot is not None
        other.restore(run, snapshot)
    assert [shown(own) for own in tick(other, runs)] == [shown(own) for own in tick(plain, runs)]


def test_trials_that_do_not_fit_together_at_all_end_the_search_with_a_hint(
    tunecli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lane, "begin_tick", lambda self: torch.empty(1 << 60))
    done = tunecli("search", "iris", "--trials", "8", "--window", "8", "--workers", "1")
    assert done.code == 3
    message, hint = done.complaint
    assert message.startswith("8 trials in flight do not fit into memory together: out of memory (")
    assert hint == "begin anew with fewer at a time: --fresh, and a smaller search.window"


def test_data_that_do_not_fit_on_a_device_are_one_clear_line(tunecli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Samples, "to", lambda self, device: torch.empty(1 << 60))
    done = tunecli("search", "iris", "--trials", "8", "--workers", "1")
    assert done.code == 3
    message, hint = done.complaint
    assert message.startswith("the data do not fit into the memory of cpu: out of memory (")
    assert "Dataset" in hint
