"""Worker processes: the same trials and values for any number of them, whatever becomes of them."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.conftest import Command, Question
from tunecli.engine import Plan, child, staff
from tunecli.engine.pace import Pace
from tunecli.engine.template import forked as forked_template
from tunecli.engine.worker import Worker
from tunecli.errors import ModelError
from tunecli.sampler.ahead import Ahead
from tunecli.search import Ended, Event, Noticed, Opened, crew, fit, planning, search
from tunecli.search.crew import Crew, spared
from tunecli.search.forecast import Forecast
from tunecli.store import read
from tunecli.study import Study
from tunecli.trial import Measurement, Run, State, Trial


def timeless(folder: Path) -> list[Trial]:
    """All that a study found, but for its seconds."""
    return [
        replace(trial, seconds=0.0, curve=tuple(replace(own, seconds=0.0) for own in trial.curve))
        for trial in read(folder / "study.db").trials
    ]


def children(pid: int) -> list[int]:
    return [int(own) for own in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def forked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `forked`, in the middle of the search: a test's own functions, which cannot be sent, need not be."""
    monkeypatch.setattr(child, "CONTEXT", multiprocessing.get_context("fork"))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


MODEL = """
import os, torch
from torch import nn

def model(hidden, inject=""):
    return Net(hidden, inject)

class Net(nn.Module):
    def __init__(self, hidden, inject):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, 3))
        self.inject = inject
        self.register_buffer("seen", torch.zeros(()))  # which has it called for each trial

    def forward(self, inputs):
        self.seen += self.training
        if self.training and self.inject and len(inputs) == 32:
            exec(self.inject)
        return self.layers(inputs)
"""


STEP = """
from torch import nn

def model():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

def step(model, batch):
    inputs, targets = batch
    return nn.functional.cross_entropy(model(inputs), targets, reduction="sum"), len(targets)
"""


@pytest.fixture
def own(question: Question, tmp_path: Path) -> Callable[..., Study]:
    """A study of a model of one's own, trained row by row, which can be made to do harm in training."""

    def make(**more: Any) -> Study:
        (tmp_path / "model.py").write_text(MODEL)
        inject = more.pop("inject", "")
        space = {"model.hidden": [4, 6], "batch_size": 32, "model.inject": inject}
        model = {"source": "model.py:model"}
        return question(base=tmp_path, model=model, space=space, **{"trials": 6, "pruner": "none"} | more)

    return make


def run(study: Study, folder: Path, **options: Any) -> list[Event]:
    return list(search(study, folder, **options))


def test_a_study_is_bitwise_the_same_in_workers(question: Question, tmp_path: Path) -> None:
    study = question(window=8, trials=12)
    for workers in (1, 2):
        run(study, tmp_path / str(workers), workers=workers)
    assert timeless(tmp_path / "1") == timeless(tmp_path / "2")
    kept = [read(tmp_path / str(workers) / "study.db").kept for workers in (1, 2)]
    assert kept[0] == kept[1] != {}
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("window", [3, 8], ids=["one by one", "in blocks"])
def test_a_study_is_bitwise_the_same_for_any_number_of_workers(question: Question, tmp_path: Path, window: int) -> None:
    study = question(window=window, trials=12)
    for workers in (1, 2, 3):
        run(study, tmp_path / str(workers), workers=workers)
    assert timeless(tmp_path / "1") == timeless(tmp_path / "2") == timeless(tmp_path / "3")


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("pruner", ["asha", "none"])
def test_proposals_made_while_workers_train_are_those_made_after(
    question: Question, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pruner: str
) -> None:
    made: list[int] = []

    def prepare(self: Ahead, number: int, *asked: Any) -> None:
        made.append(number)
        own(self, number, *asked)

    own = Ahead.prepare
    monkeypatch.setattr(Ahead, "prepare", prepare)
    study = question(window=8, trials=40, pruner=pruner)
    tries: list[dict[str, Any]] = [{"optimizer": "sgd"}, {"learning_rate": 1e-3}]
    run(study, tmp_path / "1", tries=tries)
    assert not made  # one process gains nothing by it
    run(study, tmp_path / "2", workers=2, tries=tries)
    assert made
    assert timeless(tmp_path / "1") == timeless(tmp_path / "2")


@pytest.mark.usefixtures("forked")
def test_a_search_goes_on_with_another_number_of_workers(question: Question, tmp_path: Path) -> None:
    study = question(trials=12)
    run(study, tmp_path / "whole")
    for workers in (1, 3, 2):

        def stop(start: float = time.monotonic()) -> bool:
            return time.monotonic() - start > 0.3

        run(study, tmp_path / "parts", workers=workers, stop=stop)
    run(study, tmp_path / "parts")
    assert timeless(tmp_path / "parts") == timeless(tmp_path / "whole")


@pytest.fixture
def _by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no C compiler: what our own C trains gets no workers by itself."""
    monkeypatch.setattr(fit, "can_compile", lambda device: False)
    monkeypatch.setattr(planning, "can_compile", lambda device: False)


@pytest.mark.usefixtures("forked")
def test_a_long_search_whose_rows_all_cores_share_goes_on_in_this_process(
    question: Question, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "SPAWNED_REPAYS_SECONDS", 0.0)
    monkeypatch.setattr(crew, "cores", lambda: 2)
    monkeypatch.setattr(fit, "cores", lambda: 2)
    study = question(trials=12, train={"epochs": 6})
    events = run(study, tmp_path / "here", workers=None)
    assert [event.native for event in events if isinstance(event, Opened)] == [True]
    assert not any(isinstance(event, Noticed) for event in events)
    monkeypatch.setattr(fit, "cores", lambda: 1)
    run(study, tmp_path / "one")
    assert timeless(tmp_path / "here") == timeless(tmp_path / "one")


@pytest.mark.usefixtures("forked", "_by_torch")
def test_a_long_search_starts_workers_by_itself_and_hands_its_trials_over(
    question: Question, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = question(trials=12, train={"epochs": 6})
    run(study, tmp_path / "one")
    assert not any(isinstance(event, Noticed) for event in run(study, tmp_path / "short", workers=None))
    monkeypatch.setattr(crew, "SPAWNED_REPAYS_SECONDS", 0.0)
    monkeypatch.setattr(crew, "cores", lambda: 2)
    working = []
    events = []
    for event in search(study, tmp_path / "long", workers=None):
        events.append(event)
        working.append(len(multiprocessing.active_children()))
    told = [event.text for event in events if isinstance(event, Noticed)]
    assert told == ["2 worker processes take over, which changes no result"]
    assert working[0] == 0
    assert max(working) == 2
    assert timeless(tmp_path / "long") == timeless(tmp_path / "one") == timeless(tmp_path / "short")


@pytest.mark.usefixtures("forked")
def test_a_model_that_trains_trial_by_trial_gets_workers_for_a_small_window(
    question: Question, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text(STEP)
    monkeypatch.setattr(crew, "SPAWNED_REPAYS_SECONDS", 0.0)
    monkeypatch.setattr(crew, "cores", lambda: 2)
    train = {"epochs": 6, "step": "own.py:step"}
    study = question(base=tmp_path, model={"source": "own.py:model"}, train=train, trials=8, window=2, pruner="none")
    events = run(study, tmp_path / "s", workers=None)
    (opened,) = [event for event in events if isinstance(event, Opened)]
    assert opened.looped_because
    assert opened.plan.block_rows >= 2
    told = [event.text for event in events if isinstance(event, Noticed)]
    assert told == ["2 worker processes take over, which changes no result"]


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("harm", ["os._exit(9)", "raise ValueError('only there')"])
def test_a_trial_that_no_worker_can_take_over_goes_on_where_it_is(
    question: Question, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    source = STEP.replace(
        "def model():", f"import os\ndef model(kind):\n    if kind == 1 and os.getpid() != PID: {harm}"
    )
    (tmp_path / "own.py").write_text(source.replace("PID", str(os.getpid())))
    monkeypatch.setattr(crew, "SPAWNED_REPAYS_SECONDS", 0.0)
    monkeypatch.setattr(crew, "cores", lambda: 2)
    space = {"model.kind": [1, 2], "batch_size": 32}
    study = question(base=tmp_path, model={"source": "own.py:model"}, space=space, trials=2, window=2, pruner="none")
    run(study, tmp_path / "s", workers=None, tries=[{"model.kind": 1}])
    run(study, tmp_path / "alone", tries=[{"model.kind": 1}])
    assert timeless(tmp_path / "s") == timeless(tmp_path / "alone")


@pytest.mark.usefixtures("forked_here", "_by_torch")
def test_a_search_goes_on_alone_where_no_worker_can_make_its_engine(
    question: Question, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(announce: Any) -> Any:
        raise ModelError("the model is broken now")

    monkeypatch.setattr(crew, "engine_of", lambda *given: make)
    monkeypatch.setattr(crew, "SPAWNED_REPAYS_SECONDS", 0.0)
    monkeypatch.setattr(crew, "cores", lambda: 2)
    study = question(trials=4, window=4, train={"epochs": 40}, pruner="none")
    told = [event.text for event in run(study, tmp_path / "s", workers=None) if isinstance(event, Noticed)]
    assert told[1:] == ["no worker process can be started: the model is broken now", "this process goes on alone"]
    assert {trial.state for trial in timeless(tmp_path / "s")} == {State.COMPLETE}


@pytest.mark.usefixtures("forked")
def test_what_a_model_prints_in_a_worker_is_printed_by_the_search(
    own: Callable[..., Study], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    study = own(inject="import os; print('in', os.getpid()); os.write(1, b'past us')", trials=4)
    run(study, tmp_path / "study", workers=2)
    out, _ = capfd.readouterr()
    printed = out.splitlines()
    assert len(set(printed) - {f"in {os.getpid()}"}) == 2
    assert sum(line != f"in {os.getpid()}" for line in printed) == 2  # each once, though it prints at every step


@pytest.mark.usefixtures("forked")
def test_no_more_workers_are_started_than_have_a_trial_each(question: Question, tmp_path: Path) -> None:
    study = question(trials=4, window=2)
    events = run(study, tmp_path / "s", workers=20)
    assert [event.workers for event in events if isinstance(event, Opened)] == [2]
    told = [event.text for event in events if isinstance(event, Noticed)]
    assert told == ["--workers 20: 2 are enough, 2 trials are in flight at a time"]
    events = run(replace(study).with_trials(5), tmp_path / "s", workers=20)
    assert [event.workers for event in events if isinstance(event, Opened)] == [0]
    told = [event.text for event in events if isinstance(event, Noticed)]
    assert told == ["--workers 20: 1 is enough, only 1 trial is left"]


def kill_one(events: Iterator[Event], tick: int, meanwhile: Callable[[], None] = lambda: None) -> list[str]:
    """What a search tells of which a worker is killed, and after what else is done."""
    told, killed = [], False
    for event in events:
        told += [event.text] if isinstance(event, Noticed) else []
        if not killed and getattr(event, "tick", 0) >= tick:
            killed = True
            meanwhile()
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    return told


@pytest.mark.usefixtures("forked")
def test_a_worker_that_is_started_later_does_not_load_what_was_edited_since(
    own: Callable[..., Study], tmp_path: Path
) -> None:
    study, file = own(trials=8, window=4, train={"epochs": 30}), tmp_path / "model.py"
    run(study, tmp_path / "whole")
    edited = MODEL.replace("nn.ReLU()", "nn.Tanh()")
    told = kill_one(search(study, tmp_path / "s", workers=2), 2, lambda: file.write_text(edited) and None)
    assert told[0].startswith("a worker process was killed by SIGKILL; its 2 trials go on in another")
    assert told[1:] == ["no worker process can be started: model.py has changed since this search loaded it"]
    assert timeless(tmp_path / "s") == timeless(tmp_path / "whole")


@pytest.mark.usefixtures("forked_here")
@pytest.mark.parametrize("left", [0, 1], ids=["none", "one"])
def test_trials_go_on_where_they_can_when_no_other_worker_can_be_started(
    question: Question, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    flag = tmp_path / "flag"
    employed: Callable[..., Any] = crew.engine_of

    def engine_of(*given: Any) -> Callable[..., Any]:
        def make(announce: Any) -> Any:
            if flag.exists() and os.getpid() not in able:
                raise MemoryError("cannot allocate")
            able.append(os.getpid())
            return made(announce)

        able, made = [os.getpid()], employed(*given)
        return make

    def break_down() -> None:
        flag.touch()
        for other in multiprocessing.active_children()[1 + left :]:
            os.kill(other.pid or 0, signal.SIGKILL)

    study = question(trials=12, window=6, train={"epochs": 12})
    run(study, tmp_path / "whole")
    monkeypatch.setattr(crew, "engine_of", engine_of)
    told = kill_one(search(study, tmp_path / "s", workers=2), 4, break_down)
    cause = "no worker process can be started: the last one ended with MemoryError: cannot allocate"
    assert sum(own.startswith(cause) for own in told) == 1
    assert ("this process goes on alone" in told) == (left == 0)
    assert timeless(tmp_path / "s") == timeless(tmp_path / "whole")
    assert not multiprocessing.active_children()


def seen(trial: int, ticks: int, seconds: float = 1.0) -> tuple[Measurement, ...]:
    return tuple(Measurement(trial, tick, 1.0, 1.0, 0.5, 1.0, seconds) for tick in range(1, ticks + 1))


def come(forecast: Forecast, number: int, state: State, ticks: int, seconds: float = 1.0) -> Trial:
    """A trial that has come so far, of which the forecast was told in each tick."""
    curve = seen(number, ticks, seconds)
    trial = Trial(number, state, {}, start_tick=1, curve=curve)
    for tick in range(1, ticks):
        forecast.see(replace(trial, state=State.RUNNING, curve=curve[:tick]))
    forecast.see(trial)
    return trial


def test_what_is_left_is_forecast_from_how_far_trials_came() -> None:
    forecast = Forecast(epochs=100)
    assert forecast.seconds_left([], 92) == 0, "nothing was seen"
    come(forecast, 0, State.COMPLETE, 100, 0.1)
    assert forecast.seconds_left([], 92) == pytest.approx(92 * 100 * 0.1)
    flight = [Trial(1, State.RUNNING, {}, start_tick=1, curve=seen(1, 40))]
    assert forecast.seconds_left(flight, 0) == pytest.approx(60 * 0.1)


def test_those_still_in_flight_count_as_far_as_they_came() -> None:
    """Kaplan and Meier 1958: half of the trials end at tick 1, and of those that have ended none was longer."""
    forecast = Forecast(epochs=9)
    for number in range(4):
        come(forecast, number, State.PRUNED, 1)
    flight = [come(forecast, number, State.RUNNING, 5) for number in range(4, 8)]
    assert forecast.seconds_left(flight, 0) == pytest.approx(4 * 4), "nobody has ended where they go"
    assert forecast.seconds_left([], 10) == pytest.approx(10 * (1 + 0.5 * 8))
    come(forecast, 9, State.PRUNED, 2)
    survive = [1, 5 / 9, 4 / 9]  # past ticks 0, 1 and 2; none of those that came further has ended
    assert forecast.seconds_left([], 10) == pytest.approx(10 * (survive[0] + survive[1] + 7 * survive[2]))


def test_when_a_search_ends_is_said_once_a_trial_has_ended_and_by_its_own_pace() -> None:
    forecast = Forecast(epochs=100)
    flight = [come(forecast, number, State.RUNNING, 30) for number in range(2)]
    assert forecast.remaining(flight, 90, 60.0) is None, "they may all end in the next tick"
    come(forecast, 2, State.PRUNED, 30)
    assert forecast.remaining(flight, 0, 0.9) is None, "what was seen is too little"
    # Of three at tick 30 one ended there; two that go on have 70 ticks left, at 90 ticks in 45 seconds.
    assert forecast.remaining(flight, 0, 45.0) == pytest.approx(2 * 70 * 0.5)
    assert forecast.remaining([], 3, 45.0) == pytest.approx(3 * (30 + 70 * 2 / 3) * 0.5)


def test_what_is_left_is_not_forecast_from_less_than_a_quarter_of_a_second() -> None:
    forecast = Forecast(epochs=100)
    flight = [come(forecast, 0, State.RUNNING, 2, 0.1)]
    assert forecast.seconds_left(flight, 1000) == 0
    flight = [come(forecast, 1, State.RUNNING, 1, 0.1)]
    assert forecast.seconds_left(flight, 1) == pytest.approx(0.1 * (99 + 100)), "where none has ended all may go on"


def test_workers_that_are_forked_repay_their_start_far_sooner(
    question: Question, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "cores", lambda: 4)
    study, anything = question(window=64, trials=100), cast(Any, None)
    plan = Plan("rules", cap=32, block_rows=16, threads=2)

    def fitted(device: str = "cpu", native: bool = False) -> Any:
        return SimpleNamespace(engine=None, plan=plan, device=device, looped_because=None, native=native)

    with forked_template() as template:
        forked, spawned = (Crew(study, anything, fitted(), own, [].append) for own in (template, None))
        assert [forked.repaid(seconds) for seconds in (1.0, 4.0, 20.0)] == [0, 2, 2]
        assert [spawned.repaid(seconds) for seconds in (1.0, 4.0, 20.0)] == [0, 0, 2]
        few = study.with_window(3)
        assert Crew(few, anything, fitted(), template, [].append).repaid(20.0) == 0, "two rows take as long as three"
        in_c = Crew(study, anything, fitted(native=True), template, [].append)
        assert in_c.repaid(1000.0) == 0, "every core shares the rows as it is"
        on_a_gpu = Crew(study, anything, fitted("cuda"), template, [].append)
        assert on_a_gpu.repaid(1e6) == 0


def test_workers_spare_less_than_their_share_of_rows_that_are_computed_at_once() -> None:
    """A step of n rows takes as long as 4 + n of them would, and 1.3 times that where other cores compute too."""

    def took(alone: int, shared: int) -> float:
        return pytest.approx(10 - 10 * 1.3 * shared / alone)  # type: ignore[no-any-return]

    assert spared(10, rows=64, block_rows=32, workers=2) == took(2 * 36, 36), "a block each, of two"
    assert spared(10, rows=12, block_rows=32, workers=2) == took(16, 10), "half of a block each"
    assert spared(10, rows=8, block_rows=1, workers=4) == took(8 * 5, 2 * 5), "trials one after another"
    assert spared(10, rows=5, block_rows=1, workers=2) == took(5 * 5, 3 * 5), "of which one trains three"
    assert spared(10, rows=3, block_rows=32, workers=2) < 0, "two take almost as long as three"


def test_a_run_goes_where_runs_are_like_it_and_no_worker_gets_more_than_its_share() -> None:
    def run(trial: int, optimizer: str, batch_size: int = 32) -> Run:
        return Run(trial, 0, {"optimizer": optimizer, "batch_size": batch_size}, 1)

    def worker(*runs: Run) -> Worker:
        return Worker(cast(Any, None), runs)

    pace = Pace()
    sgd, adam = worker(run(0, "sgd")), worker(run(1, "adam"), run(2, "adam"))
    assert pace.choose(run(3, "sgd"), (sgd, adam), window=6) is sgd
    assert pace.choose(run(3, "adam"), (sgd, adam), window=6) is adam
    assert pace.choose(run(3, "adam"), (sgd, adam), window=4) is sgd, "the other has its share"
    for own in (*sgd.runs.values(), *adam.runs.values()):
        pace.learn(own, 4.0 if own.hparams["optimizer"] == "sgd" else 1.0)
    assert pace.freest((sgd, adam)) is adam, "two that take a second have less to do than one that takes four"
    adam.reviving = {1}
    assert pace.choose(run(3, "adam"), (sgd, adam), window=6) is sgd, "what was lost is trained again first"


def test_what_was_recorded_before_tells_where_trials_end() -> None:
    """A search that goes on knows how far trials come; how long they train for a tick it sees anew."""
    earlier = [Trial(number, State.PRUNED, {}, start_tick=1, curve=seen(number, 3, 9.0)) for number in range(5)]
    forecast = Forecast(100, [*earlier, Trial(5, State.RUNNING, {}, start_tick=1, curve=seen(5, 1, 9.0))])
    flight = [Trial(5, State.RUNNING, {}, start_tick=1, curve=(*seen(5, 1, 9.0), *seen(5, 2)[1:]))]
    forecast.see(flight[0])
    assert forecast.ending(flight) == 1
    assert forecast.seconds_left(flight, 10) == pytest.approx(1 + 10 * 3)


def test_as_many_are_expected_to_end_as_did_at_their_fidelity() -> None:
    forecast = Forecast(epochs=9)
    flight = [Trial(number, State.RUNNING, {}, start_tick=1, curve=seen(number, 2)) for number in range(4)]
    assert forecast.ending(flight) == 0, "nothing was seen"
    for number in range(6):
        state = State.PRUNED if number % 2 else State.RUNNING
        forecast.see(Trial(number, state, {}, start_tick=1, curve=seen(number, 3)))
    assert forecast.ending(flight) == 2
    late = Trial(9, State.RUNNING, {}, start_tick=1, curve=seen(9, 8))
    assert forecast.ending([late, *flight[:1]]) == 2, "the last epoch"


def test_a_search_tells_its_forecast_which_trials_ended(
    question: Question, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Trial] = []
    monkeypatch.setattr(Forecast, "see", lambda self, trial: told.append(trial))
    run(question(trials=4), tmp_path / "s", workers=None)
    assert sorted(trial.number for trial in told if trial.state.ended) == [0, 1, 2, 3]
    assert len(told) == sum(trial.fidelity for trial in timeless(tmp_path / "s"))


@pytest.mark.usefixtures("forked")
def test_a_worker_that_is_killed_costs_nothing_but_time(question: Question, tmp_path: Path) -> None:
    study = question(trials=16)  # of which some are left when the last one dies
    run(study, tmp_path / "whole")
    told, killed = [], 0
    for event in search(study, tmp_path / "killed", workers=2):
        told += [event.text] if isinstance(event, Noticed) else []
        if getattr(event, "tick", 0) >= 2 * (killed + 1) and killed < 3:
            os.kill(multiprocessing.active_children()[killed % 2].pid or 0, signal.SIGKILL)
            killed += 1
    assert len(told) == killed == 3
    assert all(own.startswith("a worker process was killed by SIGKILL") for own in told)
    assert timeless(tmp_path / "killed") == timeless(tmp_path / "whole")
    assert not multiprocessing.active_children(), "and none is left"


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(
    ("inject", "cause"),
    [
        ("os._exit(7)", "ended with exit code 7"),
        ("os.kill(os.getpid(), 9)", "was killed by SIGKILL"),
        ("raise KeyboardInterrupt", "ended with KeyboardInterrupt"),
    ],
)
def test_a_trial_that_ends_its_process_fails_and_no_other(
    own: Callable[..., Study], tmp_path: Path, inject: str, cause: str
) -> None:
    fine, study = own(trials=4), own(inject=["", inject], trials=4)
    harm = [{"model.inject": inject, "model.hidden": 6}]
    events = run(study, tmp_path / "found", workers=2, tries=harm)
    trials = timeless(tmp_path / "found")
    bad = [trial for trial in trials if trial.hparams["model.inject"]]
    assert len(bad) >= 1
    for trial in bad:
        assert trial.state is State.FAILED
        assert (trial.reason or "").startswith(f"its worker process {cause}")
    assert sum(isinstance(event, Noticed) for event in events) == staff.MOST_DEATHS * len(bad)
    assert {trial.state for trial in trials if trial not in bad} == {State.COMPLETE}
    # The first trial is torch's defaults in both studies.
    run(fine, tmp_path / "fine")
    assert trials[0].curve == timeless(tmp_path / "fine")[0].curve


@pytest.mark.usefixtures("forked")
def test_a_trial_that_ends_its_process_while_it_is_started_fails_and_no_other(
    question: Question, tmp_path: Path
) -> None:
    """Others that the same worker was to start, or had started, are started again."""
    harm = "os._exit(9) if os.getpid() != PID else exit('in the search')"
    source = STEP.replace("def model():", f"import os\ndef model(kind):\n    if kind == 1: {harm}")
    (tmp_path / "own.py").write_text(source.replace("PID", str(os.getpid())))
    space = {"model.kind": [1, 2], "batch_size": 32}
    model = {"source": "own.py:model"}
    study = question(base=tmp_path, model=model, space=space, trials=14, window=6, pruner="none", sampler="random")
    tries = [{"model.kind": 2}]
    events = run(study, tmp_path / "two", workers=2, tries=tries)
    found = timeless(tmp_path / "two")
    bad = [trial for trial in found if trial.hparams["model.kind"] == 1]
    assert 2 < len(bad) < 12
    for trial in bad:
        assert trial.reason == "its worker process ended with exit code 9 while it was started"
        assert (trial.state, trial.end_tick) == (State.FAILED, trial.start_tick - 1)
    assert sum(isinstance(event, Noticed) for event in events) == staff.MOST_DEATHS * len(bad)
    run(study, tmp_path / "one", tries=tries)
    alone = [replace(trial, reason=found[trial.number].reason) for trial in timeless(tmp_path / "one")]
    assert alone == found


@pytest.mark.usefixtures("forked")
def test_a_trial_that_is_given_up_while_it_is_trained_again_has_failed(
    own: Callable[..., Study], tmp_path: Path
) -> None:
    flag, ticks, began = tmp_path / "harm", [0], time.monotonic()
    study = own(
        trials=4,
        inject=f"if os.path.exists({str(flag)!r}) and self.layers[0].out_features == 6: os._exit(7)",
        train={"epochs": 8},
    )
    wide = [{"model.hidden": 6}]
    for event in search(study, tmp_path / "s", workers=2, stop=lambda: ticks[-1] >= 3, tries=wide):
        ticks.append(getattr(event, "tick", 0))
    shutil.rmtree(tmp_path / "s" / "snapshots")
    flag.touch()
    events = run(study, tmp_path / "s", workers=2, stop=lambda: time.monotonic() - began > 20)
    assert isinstance(events[-1], Ended)
    assert events[-1].how == "done"
    reasons = [trial.reason or "" for trial in timeless(tmp_path / "s") if trial.state is State.FAILED]
    assert reasons
    assert all("ended with exit code 7" in reason for reason in reasons)


@pytest.mark.usefixtures("forked")
def test_a_trial_that_ends_its_process_while_its_model_is_built_again_fails_and_no_other(
    question: Question, tmp_path: Path
) -> None:
    """All workers are killed, and one of their models cannot be built a second time."""
    flag, began = tmp_path / "harm", time.monotonic()
    harm = f"os._exit(9) if os.path.exists({str(flag)!r}) and os.getpid() != {os.getpid()} else None"
    (tmp_path / "own.py").write_text(
        STEP.replace("def model():", f"import os\ndef model(kind):\n    if kind == 1: {harm}")
    )
    model, space = {"source": "own.py:model"}, {"model.kind": [1, 2], "batch_size": 32}
    more: dict[str, Any] = {"trials": 4, "window": 4, "pruner": "none", "sampler": "random", "train": {"epochs": 8}}
    study = question(base=tmp_path, model=model, space=space, **more)
    tries = [{"model.kind": 1}, {"model.kind": 2}, {"model.kind": 2}]

    def break_down() -> None:
        flag.touch()
        os.kill(multiprocessing.active_children()[1].pid or 0, signal.SIGKILL)

    events = search(study, tmp_path / "s", workers=2, tries=tries, stop=lambda: time.monotonic() - began > 60)
    kill_one(events, 3, break_down)
    reasons = {trial.hparams["model.kind"]: trial.reason for trial in timeless(tmp_path / "s")}
    assert "ended with exit code 9" in (reasons[1] or "")
    assert reasons[2] is None


def test_no_worker_outlives_its_search(tmp_path: Path) -> None:
    """kill -9 of the search itself: its workers are in the middle of an endless step, and end all the same."""
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "study.toml").write_text(
        'name = "s"\ndata = {source = "iris"}\n'
        'model = {source = "model.py:model", hidden = 4, inject = "while 1: pass"}\n'
        "space = {batch_size = 32}\nsearch = {trials = 4}\n"
    )
    command = [sys.executable, "-m", "tunecli", "search", "study.toml", "--workers", "2"]
    started = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    workers: list[int] = []
    while len(workers) < 2 or not all(seconds(pid) > 0.1 for pid in workers):
        assert started.poll() is None
        time.sleep(0.1)
        forked_by = [pid for pid in children(started.pid) if b"tunecli" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        workers = [pid for template in forked_by for pid in children(template)]
    started.kill()
    started.wait()
    until = time.monotonic() + 20
    while any(map(alive, [*forked_by, *workers])):
        assert time.monotonic() < until
        time.sleep(0.05)


def seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / os.sysconf("SC_CLK_TCK")


def test_a_wrong_number_of_workers_is_one_clear_line(tunecli: Command, tmp_path: Path) -> None:
    for given in ("0", "-1", "many"):
        done = tunecli("search", "digits", "--workers", given)
        assert done.code == 2
        assert "--workers" in done.complaint[0]
    (tmp_path / "script.py").write_text("def objective(trial): return 1.0")
    done = tunecli("search", "script.py:objective", "--workers", "2")
    assert done.code == 2
    assert "--window" in done.complaint[1]


@pytest.mark.usefixtures("forked")
def test_a_dataset_is_read_in_the_workers_too_and_its_function_called_once(question: Question, tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text(
        textwrap.dedent("""
            import torch
            from torch.utils.data import Dataset

            class Own(Dataset):
                def __init__(self): self.x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
                def __len__(self): return 60
                def __getitem__(self, place): return self.x[place] + 0.1 * torch.rand(4), int(self.x[place, 0] > 0)

            def data():
                with open("CALLS", "a") as file: file.write("called\\n")
                return Own()
        """).replace("CALLS", str(tmp_path / "calls"))
    )
    study = question(base=tmp_path, data={"source": "data.py:data"}, trials=4, train={"epochs": 2})
    run(study, tmp_path / "one")
    run(study, tmp_path / "two", workers=2)
    assert timeless(tmp_path / "one") == timeless(tmp_path / "two")
    assert (tmp_path / "calls").read_text().count("called") == 2
