"""The loop: the same study, however often it is interrupted, and what it leaves behind."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from torch import nn

from tunecli import checkpoint
from tunecli import data as data_room
from tunecli.engine import child
from tunecli.errors import InputError, ModelError, SourceError, StorageError, UsageError
from tunecli.given import shown
from tunecli.search import Changed, Differed, Ended, Event, Noticed, Opened, Progress, search
from tunecli.search import loop as search_room
from tunecli.space import build_space
from tunecli.store import Store, hold, is_held, read, writer
from tunecli.study import Study, make_study, read_study
from tunecli.trial import State, Trial

Question = Callable[..., Study]


class Crash(BaseException):
    """The process ends here."""


def run(study: Study, folder: Path, **options: Any) -> list[Event]:
    return list(search(study, folder, **options))


def ending(study: Study, folder: Path, **options: Any) -> Ended:
    last = run(study, folder, **options)[-1]
    assert isinstance(last, Ended)
    return last


def trials(folder: Path) -> tuple[Trial, ...]:
    return read(folder / "study.db").trials


def answer(folder: Path) -> tuple[list[Trial], dict[int, str], list[str]]:
    """All that a study has to show: trials but for their seconds, the hashes of the kept weights, and their folders."""
    record = read(folder / "study.db")
    timeless = [
        replace(trial, seconds=0.0, curve=tuple(replace(own, seconds=0.0) for own in trial.curve))
        for trial in record.trials
    ]
    return timeless, dict(record.kept), sorted(own.name for own in (folder / "checkpoints").iterdir())


def finish(question: Question, tmp_path_factory: pytest.TempPathFactory, window: int) -> tuple[Study, Path]:
    study, folder = question(window=window), tmp_path_factory.mktemp("finished") / "tiny"
    assert ending(study, folder).how == "done"
    return study, folder


@pytest.fixture(scope="module")
def finished(question: Question, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """A study that was searched in one go, and the folder of its results; to be looked at, never written."""
    return finish(question, tmp_path_factory, window=3)


@pytest.fixture(scope="module", params=[3, 8], ids=["one by one", "in blocks"])
def either(request: pytest.FixtureRequest, question: Question, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same for each of the two ways in which an engine works the slots off."""
    return finish(question, tmp_path_factory, window=request.param)


# What a search finds


def test_one_seed_gives_one_search_and_another_seed_another(
    either: tuple[Study, Path], question: Question, tmp_path: Path
) -> None:
    study, folder = either
    run(study, tmp_path / "again")
    assert answer(tmp_path / "again") == answer(folder)
    run(replace(study, seed=1), tmp_path / "other")
    others = trials(tmp_path / "other")
    # The first trial is torch's defaults in every study.
    assert all(one.hparams != other.hparams for one, other in zip(trials(folder)[1:], others[1:], strict=True))


def test_every_trial_ends_with_the_first_best_value_of_its_curve(finished: tuple[Study, Path]) -> None:
    study, folder = finished
    found = trials(folder)
    assert [trial.number for trial in found] == list(range(study.search.trials))
    assert {trial.state for trial in found} == {State.COMPLETE, State.PRUNED}
    for trial in found:
        metrics = [own.metric for own in trial.curve]
        assert trial.value == max(metrics)
        assert trial.best_tick == metrics.index(max(metrics)) + 1
        assert [own.fidelity for own in trial.curve] == list(range(1, len(metrics) + 1))
        assert trial.end_tick == trial.start_tick + len(metrics) - 1
        assert (trial.state is State.COMPLETE) == (len(metrics) == study.train.epochs)
        assert (trial.reason is not None) == (trial.state is State.PRUNED)


def in_flight(found: Sequence[Trial], tick: int) -> list[Trial]:
    return [trial for trial in found if trial.start_tick <= tick <= (trial.end_tick or 0)]


def most_in_flight(found: Sequence[Trial]) -> int:
    return max(len(in_flight(found, trial.start_tick)) for trial in found)


def test_a_window_of_trials_is_in_flight_and_a_freed_slot_is_refilled_in_the_next_tick(
    finished: tuple[Study, Path],
) -> None:
    study, folder = finished
    found = trials(folder)
    assert most_in_flight(found) == study.window
    for tick in range(1, max(trial.end_tick or 0 for trial in found) + 1):
        waiting = [trial for trial in found if trial.start_tick > tick]
        assert len(in_flight(found, tick)) == study.window or not waiting


def test_all_values_of_a_tick_count_before_any_trial_is_pruned(either: tuple[Study, Path]) -> None:
    study, folder = either
    found = trials(folder)
    decided = 0
    for trial in found:
        for rung in (1, 2):
            if trial.fidelity < rung:
                continue
            tick, own = trial.start_tick + rung - 1, trial.curve[rung - 1].metric
            reached = [
                t.curve[rung - 1].metric for t in found if t.fidelity >= rung and t.start_tick + rung - 1 <= tick
            ]
            best_half = sorted(reached, reverse=True)[: max(1, len(reached) // study.search.reduction_factor)]
            assert (trial.state is State.PRUNED and trial.fidelity == rung) == (own < best_half[-1])
            decided += own < best_half[-1]
    assert decided == sum(trial.state is State.PRUNED for trial in found) > 0


def test_events_tell_what_is_stored(question: Question, tmp_path: Path) -> None:
    first, *progress, last = run(question(), tmp_path)
    assert isinstance(first, Opened)
    assert (first.metric, first.direction, first.done, first.device) == ("accuracy", "maximize", 0, "cpu")
    assert first.weights == 4 * 8 + 8 + 8 * 3 + 3
    assert all(isinstance(event, Progress) for event in progress)
    assert isinstance(last, Ended)
    found = trials(tmp_path)
    assert last.progress.counts[State.COMPLETE] == sum(trial.state is State.COMPLETE for trial in found)
    assert last.progress.counts[State.RUNNING] == 0
    assert last.progress.tick == max(trial.end_tick or 0 for trial in found)
    # The best by Optuna's own account; ties go to the lower number.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    theirs = optuna.load_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="tiny")
    assert last.progress.best is not None
    assert last.progress.best.value == theirs.best_value
    assert last.progress.best.number == min(
        trial.number for trial in found if trial.state is State.COMPLETE and trial.value == theirs.best_value
    )


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_a_window_of_one_prunes_as_optuna_does(question: Question, tmp_path: Path, metric: str) -> None:
    study = question(window=1, train={"metric": metric, "epochs": 5})
    run(study, tmp_path)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    direction = "maximize" if metric == "accuracy" else "minimize"
    theirs = optuna.create_study(direction=direction, pruner=pruner)
    found = trials(tmp_path)
    assert {trial.state for trial in found} == {State.COMPLETE, State.PRUNED}
    for ours in found:
        trial = theirs.ask()
        for own in ours.curve:
            trial.report(own.metric, own.fidelity)
            pruned = own.fidelity < 5 and trial.should_prune()
            assert pruned == (ours.state is State.PRUNED and own.fidelity == ours.fidelity)
        theirs.tell(trial, state=optuna.trial.TrialState.FAIL)


PRUNERS: dict[str, dict[str, Any]] = {
    "hyperband": {},
    "median": {"startup_trials": 2, "min_ticks": 1},
    "percentile": {"startup_trials": 2, "min_ticks": 1},
    "patient": {"patience": 0},
}


@pytest.mark.parametrize("pruner", PRUNERS)
def test_every_pruner_decides_the_same_however_often_a_search_is_stopped(
    question: Question, tmp_path: Path, pruner: str
) -> None:
    jumpy = {"learning_rate": {"low": 0.1, "high": 1.0}}
    study = question(pruner=pruner, train={"epochs": 6}, trials=12, space=jumpy, **PRUNERS[pruner])
    run(study, tmp_path / "whole")
    assert {trial.state for trial in trials(tmp_path / "whole")} == {State.COMPLETE, State.PRUNED}

    def attempt(number: int) -> bool:
        calls = iter(range(10_000))
        return ending(study, tmp_path / "often", stop=lambda: next(calls) >= 5 * number).how == "done"

    assert until_done(attempt) > 3
    assert answer(tmp_path / "often") == answer(tmp_path / "whole")


def test_no_pruner_prunes_none(question: Question, tmp_path: Path) -> None:
    run(question(pruner="none", trials=4), tmp_path)
    assert {trial.state for trial in trials(tmp_path)} == {State.COMPLETE}


# Checkpoints


def plain_accuracy(weights: dict[str, torch.Tensor], study: Study) -> float:
    """The validation accuracy of these weights in a network written down here."""
    model = nn.Sequential()
    for name, layer in (("flatten", nn.Flatten()), ("layer1", nn.Linear(4, 8)), ("relu1", nn.ReLU())):
        model.add_module(name, layer)
    model.add_module("head", nn.Linear(8, 3))
    model.load_state_dict(weights, strict=True)
    validation = data_room.load("iris", {}, base=study.base, seed=study.seed).validation
    with torch.no_grad():
        hits = model(validation.inputs).argmax(1) == validation.targets
    return int(hits.sum()) / len(hits)


def test_the_best_complete_trials_are_kept_and_are_worth_what_was_measured(either: tuple[Study, Path]) -> None:
    study, folder = either
    complete = [trial for trial in trials(folder) if trial.state is State.COMPLETE]
    best = sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.number))[: study.search.keep]
    assert len(best) == study.search.keep < len(complete)
    _, kept, folders = answer(folder)
    assert kept.keys() == {trial.number for trial in best}
    assert folders == sorted(f"trial-{trial.number}" for trial in best)
    for trial in best:
        weights, manifest = checkpoint.load(folder / "checkpoints" / f"trial-{trial.number}")
        assert plain_accuracy(weights, study) == trial.value
        assert (manifest["trial"], manifest["value"], manifest["fidelity"]) == (
            trial.number,
            trial.value,
            trial.best_tick,
        )
        assert manifest["sha256"] == kept[trial.number]
        assert manifest["hparams"] == json.loads(json.dumps(dict(trial.hparams)))


# Interruptions


def until_done(attempt: Callable[[int], bool], most: int = 200) -> int:
    """Attempts 0, 1, 2... until one says that the study is done; how many it took."""
    for number in range(most):
        if attempt(number):
            return number + 1
    raise AssertionError(f"not done after {most} attempts")


def test_a_search_that_is_stopped_often_is_the_search_that_never_was(
    either: tuple[Study, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, folder = either
    monkeypatch.setattr(search_room, "PAUSE_SECONDS", 0.0005)  # so that a tick is often interrupted, too

    def attempt(number: int) -> bool:
        calls = iter(range(10_000))
        ended = ending(study, tmp_path, stop=lambda: next(calls) >= 3 * number)
        assert ended.how in ("stopped", "done")
        return ended.how == "done"

    assert until_done(attempt) > 3
    assert answer(tmp_path) == answer(folder)


def test_a_search_whose_reader_goes_away_often_is_the_same_search(finished: tuple[Study, Path], tmp_path: Path) -> None:
    study, folder = finished

    def attempt(number: int) -> bool:
        events = search(study, tmp_path)
        for _, event in zip(range(number + 1), events, strict=False):
            if isinstance(event, Ended):
                return True
        events.close()  # type: ignore[attr-defined]  # a generator's own
        return False

    assert until_done(attempt) > 3
    assert answer(tmp_path) == answer(folder)


@pytest.mark.parametrize(("when", "group_seconds"), [("before", 0.0), ("after", 0.02)])
def test_a_crash_around_any_write_changes_nothing(
    either: tuple[Study, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, group_seconds: float
) -> None:
    """Each attempt crashes one write later than the one before: a commit, a checkpoint, a checkpoint's removal."""
    study, folder = either
    monkeypatch.setattr(writer, "GROUP_SECONDS", group_seconds)
    left = [0]

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def write(*args: Any, **keys: Any) -> Any:
            left[0] -= 1
            if left[0] < 0 and when == "before":
                raise Crash
            result = real(*args, **keys)
            if left[0] < 0:
                raise Crash
            return result

        return write

    monkeypatch.setattr(Store, "flush", wrap(Store.flush))
    monkeypatch.setattr(checkpoint, "save", wrap(checkpoint.save))
    monkeypatch.setattr(checkpoint, "remove", wrap(checkpoint.remove))

    def attempt(number: int) -> bool:
        left[0] = number
        try:
            return ending(study, tmp_path).how == "done"
        except Crash:
            left[0] = 99
            for kept, sha256 in read(tmp_path / "study.db").kept.items():
                assert checkpoint.load(tmp_path / "checkpoints" / f"trial-{kept}")[1]["sha256"] == sha256
            return False

    assert until_done(attempt) > 3
    assert answer(tmp_path) == answer(folder)


def test_a_time_limit_ends_at_a_tick_and_a_later_call_goes_on(finished: tuple[Study, Path], tmp_path: Path) -> None:
    study, folder = finished
    hows = []

    def attempt(number: int) -> bool:
        hows.append(ending(study, tmp_path, timeout_seconds=0.01 * 2**number).how)
        found = trials(tmp_path)
        # Whole ticks only: whatever is in flight has arrived at the same one.
        assert len({t.start_tick + t.fidelity - 1 for t in found if t.state is State.RUNNING}) <= 1
        return hows[-1] == "done"

    assert until_done(attempt) > 1
    assert set(hows[:-1]) == {"timeout"}
    assert answer(tmp_path) == answer(folder)


def test_no_time_at_all_is_no_tick(question: Question, tmp_path: Path) -> None:
    assert ending(question(), tmp_path, timeout_seconds=0).how == "timeout"
    assert {trial.state for trial in trials(tmp_path)} == {State.WAITING}


# Going on


def test_more_trials_go_on_from_those_there(question: Question, tmp_path: Path) -> None:
    run(question(trials=8), tmp_path)
    before = trials(tmp_path)
    first, *_ = run(question(trials=12), tmp_path)
    assert isinstance(first, Opened)
    assert first.done == 8
    # Whoever asks without a number from now on means these.
    assert read(tmp_path / "study.db").document["search"]["trials"] == 12
    assert read_study(tmp_path / "study.toml").search.trials == 12
    after = trials(tmp_path)
    assert after[:8] == before
    assert [trial.number for trial in after] == list(range(12))
    assert all(trial.state.ended for trial in after)
    assert min(trial.start_tick for trial in after[8:]) == max(trial.end_tick or 0 for trial in before) + 1
    complete = [trial for trial in after if trial.state is State.COMPLETE]
    best = sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.number))[:2]
    assert answer(tmp_path)[1].keys() == {trial.number for trial in best}


def test_a_finished_study_does_nothing_and_loads_nothing(finished: tuple[Study, Path], tmp_path: Path) -> None:
    study, folder = finished
    shutil.copytree(folder, tmp_path / "tiny")
    (tmp_path / "tiny.toml").write_text(study.toml())
    before = (tmp_path / "tiny" / "study.db").read_bytes()
    script = """
        import sys
        from pathlib import Path
        from tunecli.search import search
        from tunecli.study import read_study
        (event,) = search(read_study(Path("tiny.toml")), Path("tiny"))
        print(event.how, event.progress.best.number, "torch" in sys.modules, "optuna" in sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    best = max(
        (trial for trial in trials(folder) if trial.state is State.COMPLETE),
        key=lambda trial: (trial.value or 0.0, -trial.number),
    )
    assert done.stdout.split() == ["done", str(best.number), "False", "False"]
    assert (tmp_path / "tiny" / "study.db").read_bytes() == before


def test_a_study_that_another_process_holds_is_left_alone(finished: tuple[Study, Path], tmp_path: Path) -> None:
    study, folder = finished
    shutil.copytree(folder, tmp_path / "tiny")
    with hold(tmp_path / "tiny"), pytest.raises(StorageError, match=f"process {os.getpid()}"):
        run(replace(study, search=study.search.model_copy(update={"trials": 99})), tmp_path / "tiny")


OTHER_QUESTIONS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "metric": ({"train": {"metric": "f1"}}, ["train.metric", "accuracy", "f1"]),
    "epochs": ({"train": {"epochs": 5}}, ["train.epochs", "4", "5"]),
    "data": ({"data": {"source": "wine"}}, ["data.source", "iris", "wine"]),
    "split": ({"data": {"source": "iris", "split": [6, 2, 2]}}, ["data.split", "[8.0, 1.0, 1.0]", "[6.0, 2.0, 2.0]"]),
    "model": ({"model": {"source": "linear"}}, ["model.source", "mlp", "linear", "model.hidden"]),
    "model keys": ({"model": {"source": "mlp", "hidden": [9]}}, ["model.hidden", "[8]", "[9]"]),
    "window": ({"window": 4}, ["search.window", "3", "4"]),
    "seed": ({"seed": 1}, ["seed", "0", "1"]),
    "several": ({"seed": 7, "train": {"metric": "loss"}}, ["seed", "7", "train.metric", "loss"]),
}


@pytest.mark.parametrize(("change", "named"), OTHER_QUESTIONS.values(), ids=OTHER_QUESTIONS)
def test_another_question_is_refused_and_the_study_left_as_it_is(
    question: Question, tmp_path: Path, half: Path, change: dict[str, Any], named: list[str]
) -> None:
    folder = shutil.copytree(half, tmp_path / "tiny")
    before = (folder / "study.db").read_bytes(), (folder / "study.toml").read_bytes()
    with pytest.raises(InputError, match="another question") as caught:
        run(question(**change), folder)
    for word in named:
        assert word in caught.value.message
    assert "--fresh" in (caught.value.hint or "")
    assert ((folder / "study.db").read_bytes(), (folder / "study.toml").read_bytes()) == before
    if "seed" not in change:
        assert "seed" not in caught.value.message


@pytest.fixture(scope="module")
def half(question: Question, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study in the middle of which a signal came."""
    folder = tmp_path_factory.mktemp("half") / "tiny"
    calls = iter(range(100))
    assert ending(question(), folder, stop=lambda: next(calls) > 5).how == "stopped"
    assert any(trial.state is State.RUNNING for trial in trials(folder))
    return folder


def test_what_is_free_to_change_is_no_other_question(question: Question, half: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(half, tmp_path / "tiny")
    assert ending(question(trials=11, keep=3), folder).how == "done"
    # A window left out is the one that the study has, not the one that so many trials would get.
    other = question(trials=18)
    assert ending(replace(other, search=other.search.model_copy(update={"window": None})), folder).how == "done"
    assert most_in_flight(trials(folder)) == 3


# Changing one's mind

ASKED_FIRST: dict[str, Any] = {
    "learning_rate": {"low": 1e-3, "high": 1e-2, "log": True},
    "batch_size": [16, 32, "full"],
}


def rates(low: float, high: float) -> dict[str, Any]:
    return {"space": {**ASKED_FIRST, "learning_rate": {"low": low, "high": high, "log": True}}}


MINDS: dict[str, tuple[dict[str, Any], str]] = {
    "wider": (rates(1e-4, 1.0), "learning_rate.high: 0.01 -> 1.0"),
    "narrower": (rates(2e-3, 5e-3), "learning_rate.high: 0.01 -> 0.005"),
    "other choices": ({"space": {**ASKED_FIRST, "batch_size": ["full", 64, 32]}}, "batch_size"),
    "fixed": ({"space": {**ASKED_FIRST, "l1": 0, "optimizer": "adam"}}, 'default -> "adam"'),
    "one more": ({"space": {**ASKED_FIRST, "clip_norm": {"low": 0.0, "high": 1.0}}}, "clip_norm"),
    "sampler": ({"space": ASKED_FIRST, "sampler": "nsga2"}, '"tpe" -> "nsga2"'),
    "pruner": ({"space": ASKED_FIRST, "pruner": "none"}, '"asha" -> "none"'),
}


@pytest.fixture(scope="module")
def begun(question: Question, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of another mind, in the middle of which a signal came."""
    folder = tmp_path_factory.mktemp("begun") / "tiny"
    calls = iter(range(100))
    assert ending(question(space=ASKED_FIRST, trials=16), folder, stop=lambda: next(calls) > 20).how == "stopped"
    assert any(trial.state is State.RUNNING for trial in trials(folder))
    return folder


@pytest.mark.parametrize(("mind", "said"), MINDS.values(), ids=MINDS)
def test_a_changed_mind_goes_on_and_what_was_tried_stays(
    question: Question, begun: Path, tmp_path: Path, mind: dict[str, Any], said: str
) -> None:
    study = question(trials=16, **mind)
    whole, often = (shutil.copytree(begun, tmp_path / name) for name in ("whole", "often"))
    before = trials(whole)
    changed, *_ = run(study, whole)
    assert isinstance(changed, Changed)
    assert any(said in line for line in changed.lines)
    assert changed.trials == len(before)
    after = trials(whole)
    for then, now in zip(before, after, strict=False):
        assert (now.hparams, now.curve[: then.fidelity]) == (then.hparams, then.curve)
        assert now.state.ended
        assert not then.state.ended or now == then
    record = read(whole / "study.db")
    for trial in after[len(before) :]:
        assert shown(record.space, trial, {}) == trial
    (earlier,) = record.earlier
    assert (earlier.until, earlier.document["space"]) == (len(before), ASKED_FIRST)
    # The same again is no change; and interrupted after the change, a search goes on to the same trials.
    assert not any(isinstance(event, Changed) for event in run(study, whole))

    def attempt(number: int) -> bool:
        calls = iter(range(10_000))
        return ending(study, often, stop=lambda: next(calls) >= 6 * number).how == "done"

    assert until_done(attempt) > 2
    assert answer(often) == answer(whole)


def test_trials_outside_todays_space_are_hidden_from_the_sampler_and_from_nobody_else(
    question: Question, begun: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(begun, tmp_path / "tiny")
    before = trials(folder)
    high = sorted(float(str(trial.hparams["learning_rate"])) for trial in before)[2]
    changed, *_ = run(question(trials=16, **rates(1e-3, high)), folder)
    assert isinstance(changed, Changed)
    assert (changed.shown, changed.trials) == (3, len(before))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    theirs = optuna.load_study(storage=f"sqlite:///{folder}/study.db", study_name="tiny").trials
    for own, trial in zip(theirs, trials(folder), strict=True):
        assert own.value == trial.value
        assert own.params["learning_rate"] == trial.hparams["learning_rate"]
        asked = own.distributions["learning_rate"]
        assert isinstance(asked, optuna.distributions.FloatDistribution)
        assert asked.high == (1e-2 if trial.number < len(before) else high)


def test_a_mind_can_change_often(question: Question, begun: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(begun, tmp_path / "tiny")
    asked = len(trials(folder))
    # By the first nothing is asked: the second takes its place.
    for sizes, until in (([32], 0), ([32, 64], asked + 3), (["full", 8], asked + 6)):
        study = question(space={**ASKED_FIRST, "batch_size": sizes}, trials=until or asked)
        ending(study, folder, timeout_seconds=None if until else 0)
    record = read(folder / "study.db")
    assert [own.until for own in record.earlier] == [asked, asked + 3]
    assert [own.document["space"]["batch_size"] for own in record.earlier] == [[16, 32, "full"], [32, 64]]
    assert {trial.hparams["batch_size"] for trial in record.trials[asked : asked + 3]} <= {32, 64}
    assert {trial.hparams["batch_size"] for trial in record.trials[asked + 3 :]} <= {"full", 8}


def test_a_study_that_is_done_says_what_changed_and_stays_as_it_is(
    question: Question, finished: tuple[Study, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(finished[1], tmp_path / "tiny")
    before = (folder / "study.db").read_bytes()
    changed, ended = run(question(space={"batch_size": 32}), folder)
    assert isinstance(changed, Changed)
    assert isinstance(ended, Ended)
    assert (folder / "study.db").read_bytes() == before


def table(path: Path, shift: float = 0.0) -> None:
    # In quarters: whole numbers in a row would be taken for a counter and left out.
    rows = [f"{x / 4},{(x * 7) % 5},{'ab'[x % 2]}" for x in range(60)]
    rows[30] = f"{30 / 4 + shift},{(30 * 7) % 5},a"
    path.write_text("\n".join(["x,z,y", *rows]) + "\n")


def test_other_data_under_the_same_name_are_refused(question: Question, tmp_path: Path) -> None:
    table(tmp_path / "t.csv")
    study = question(base=tmp_path, data={"source": "t.csv", "target": "y"}, trials=4)
    calls = iter(range(100))
    run(study, tmp_path / "tiny", stop=lambda: next(calls) > 3)
    before = (tmp_path / "tiny" / "study.db").read_bytes()
    table(tmp_path / "t.csv", shift=0.5)
    with pytest.raises(InputError, match=r"data\.source") as caught:
        run(study, tmp_path / "tiny")
    assert caught.value.hint
    assert (tmp_path / "tiny" / "study.db").read_bytes() == before
    table(tmp_path / "t.csv")
    assert ending(study, tmp_path / "tiny").how == "done"


def test_a_study_set_aside_stays_readable(finished: tuple[Study, Path], tmp_path: Path) -> None:
    study, folder = finished
    shutil.copytree(folder, tmp_path / "tiny")
    run(replace(study, seed=3), tmp_path / "tiny", fresh=True)
    (aside,) = tmp_path.glob("tiny-*")
    assert trials(tmp_path / "tiny")[1].hparams != trials(aside)[1].hparams
    assert answer(aside) == answer(folder)


def test_the_new_study_is_held_and_the_one_set_aside_is_not(finished: tuple[Study, Path], tmp_path: Path) -> None:
    study, folder = finished
    shutil.copytree(folder, tmp_path / "tiny")
    for _ in search(study, tmp_path / "tiny", fresh=True):
        (aside,) = tmp_path.glob("tiny-*")
        assert (is_held(tmp_path / "tiny"), is_held(aside)) == (True, False)
        with pytest.raises(StorageError, match="held by another"):
            next(search(study, tmp_path / "tiny"))
    assert not is_held(tmp_path / "tiny")


def test_a_stop_before_the_new_study_has_begun_leaves_the_old_one(finished: tuple[Study, Path], tmp_path: Path) -> None:
    study, folder = finished
    shutil.copytree(folder, tmp_path / "tiny")
    ended = ending(study, tmp_path / "tiny", fresh=True, stop=lambda: True)
    assert (ended.how, ended.progress.ended, ended.progress.total) == ("stopped", 0, 10)
    assert list(tmp_path.iterdir()) == [tmp_path / "tiny"]
    assert answer(tmp_path / "tiny") == answer(folder)


def test_a_kill_between_the_old_study_and_the_new_one_loses_neither(
    finished: tuple[Study, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        pass

    def crash(*given: object) -> None:
        raise Crash

    study, folder = finished
    shutil.copytree(folder, tmp_path / "tiny")
    with monkeypatch.context() as patch:
        patch.setattr("tunecli.search.begin.write_question", crash)
        patch.setattr("tunecli.search.aside.Held._put_back", lambda _: None)  # a kill puts nothing back
        with pytest.raises(Crash):
            run(study, tmp_path / "tiny", fresh=True)
    (aside,) = tmp_path.iterdir()
    assert answer(aside) == answer(folder)
    run(study, tmp_path / "tiny", fresh=True)
    assert list(tmp_path.glob("tiny-*")) == [aside]
    assert answer(tmp_path / "tiny") == answer(folder)


# What goes wrong


def test_a_trial_that_diverges_fails_alone(question: Question, tmp_path: Path) -> None:
    space = {"optimizer": "sgd", "momentum": 0.0, "l1": 0, "l2": 0, "learning_rate": [0.1, 1e30]}
    for window in (3, 8):
        folder = tmp_path / str(window)
        ended = ending(question(space=space, window=window), folder)
        found = trials(folder)
        wild = [trial for trial in found if trial.hparams["learning_rate"] == 1e30]
        assert 0 < len(wild) < len(found)
        for trial in wild:
            assert trial.state is State.FAILED
            assert trial.reason is not None
            assert trial.reason.startswith("diverged: ")
            assert (trial.value, trial.best_tick) == (None, None)
            assert trial.curve[-1].failure == trial.reason
            assert trial.end_tick == trial.start_tick + trial.fidelity - 1
        tame = [trial for trial in found if trial not in wild]
        assert {trial.state for trial in tame} <= {State.COMPLETE, State.PRUNED}
        assert ended.how == "done"
        assert ended.progress.best in tame
        assert answer(folder)[1].keys() <= {trial.number for trial in tame}
        theirs = optuna.load_study(storage=f"sqlite:///{folder}/study.db", study_name="tiny").trials
        assert [t.number for t in theirs if t.state is optuna.trial.TrialState.FAIL] == [t.number for t in wild]


def test_a_study_of_failures_ends_without_a_best(question: Question, tmp_path: Path) -> None:
    space = {"optimizer": "sgd", "momentum": 0.0, "l1": 0, "l2": 0, "learning_rate": 1e30}
    ended = ending(question(space=space, trials=4), tmp_path)
    assert ended.how == "done"
    assert ended.progress.best is None
    assert ended.progress.counts[State.FAILED] == 4
    assert read(tmp_path / "study.db").kept == {}


MODEL = """
from pathlib import Path
from torch import nn

def make(width):
    if width == 3:
        raise ValueError("three is no width")
    if width == 5 and Path(__file__).with_name("broken").exists():
        raise RuntimeError("broken since")
    inputs = 7 if width == 6 else 4
    model = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, 3))
    if Path(__file__).with_name("other").exists():
        nn.init.normal_(model[0].weight)
    if width == 1:
        nn.init.zeros_(model[2].weight)
        nn.init.zeros_(model[2].bias)
    return model
"""


@pytest.fixture
def own(question: Question, tmp_path: Path) -> Question:
    """Questions about a user's own model, with some widths of it."""
    (tmp_path / "own.py").write_text(MODEL)

    def make(*widths: int, **keys: Any) -> Study:
        space = {"optimizer": "sgd", "model": {"width": list(widths)}}
        return question(base=tmp_path, model={"source": "own.py:make"}, space=space, **keys)

    return make


@pytest.mark.parametrize(
    ("widths", "faulty", "says", "window"),
    [
        ((4, 3, 8), 3, "ValueError: three is no width", 3),
        ((3, 4, 8), 3, "ValueError: three is no width", 8),
        ((4, 6, 8), 6, "cannot read samples of shape (4,)", 8),
        ((6, 4, 8), 6, "cannot read samples of shape (4,)", 3),
    ],
)
def test_a_model_that_fails_for_one_choice_fails_those_trials_alone(
    own: Question, tmp_path: Path, widths: tuple[int, ...], faulty: int, says: str, window: int
) -> None:
    ended = ending(own(*widths, window=window, sampler="random"), tmp_path / "tiny")
    found = trials(tmp_path / "tiny")
    failed = [trial for trial in found if trial.state is State.FAILED]
    assert failed
    assert failed == [trial for trial in found if trial.hparams["model.width"] == faulty]
    for trial in failed:
        assert says in (trial.reason or "")
        assert trial.curve == ()
        assert trial.end_tick == trial.start_tick - 1
    assert ended.how == "done"
    assert ended.progress.best is not None


@pytest.mark.parametrize("workers", [1, 2])
def test_no_trial_is_begun_once_so_many_have_failed_in_a_row(
    own: Question, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(child, "CONTEXT", multiprocessing.get_context("fork"))
    study = own(4, 3, window=6, trials=40, max_failures=3, pruner="none")
    widths = [3, 3, 4, 3, 3, 4, 4]  # after torch's defaults, of width 4
    tries = [{"model.width": width, "learning_rate": 0.01 * (1 + place)} for place, width in enumerate(widths)]
    events = run(study, tmp_path / "tiny", workers=workers, tries=tries)
    assert isinstance(events[-1], Ended)
    assert events[-1].how == "hopeless"
    begun = [trial for trial in trials(tmp_path / "tiny") if trial.state is not State.WAITING]
    assert [trial.state is State.FAILED for trial in begun] == [False, True, True, False, True]


@pytest.mark.parametrize(("width", "error"), [(3, SourceError), (6, ModelError)])
def test_a_model_that_never_works_leaves_no_study_behind(
    own: Question, tmp_path: Path, width: int, error: type[InputError]
) -> None:
    with pytest.raises(error) as caught:
        run(own(width), tmp_path / "tiny")
    assert caught.value.message
    # So that the mended question is no other one.
    assert ending(own(8, trials=2), tmp_path / "tiny").how == "done"


def test_a_model_that_no_longer_works_fails_the_trials_in_flight(own: Question, tmp_path: Path) -> None:
    study = own(4, 5, sampler="random", pruner="none")
    calls = iter(range(100))
    run(study, tmp_path / "tiny", stop=lambda: next(calls) > 4)
    before = trials(tmp_path / "tiny")
    hit = [t.number for t in before if t.state is State.RUNNING and t.hparams["model.width"] == 5 and t.curve]
    assert hit
    (tmp_path / "broken").touch()
    assert ending(study, tmp_path / "tiny").how == "done"
    for number in hit:
        trial = trials(tmp_path / "tiny")[number]
        assert trial.state is State.FAILED
        assert "broken since" in (trial.reason or "")
        assert (trial.value, trial.best_tick, trial.curve) == (None, None, before[number].curve)
        assert trial.end_tick is not None
        # Its end cannot lie before what it showed: later proposals were made without it.
        assert trial.end_tick >= trial.start_tick + trial.fidelity - 1


REFUSING = """
class Refusing(nn.Sequential):
    def forward(self, inputs):
        if self.training and len(inputs) > 8 and Path({flag!r}).exists():  # more than it is tried with
            raise ValueError("refused since")
        return super().forward(inputs)
"""


@pytest.mark.parametrize("window", [3, 8], ids=["one by one", "in blocks"])
def test_a_trial_that_fails_while_it_is_trained_again_ends_and_its_neighbours_go_on(
    own: Question, tmp_path: Path, window: int
) -> None:
    study = own(4, 5, window=window, sampler="random", pruner="none")
    file, flag = tmp_path / "own.py", tmp_path / "flag"
    refusing = MODEL.replace("return model\n", "return Refusing(*model) if width == 5 else model\n")
    file.write_text(refusing + REFUSING.format(flag=str(flag)))
    calls = iter(range(100))
    run(study, tmp_path / "tiny", stop=lambda: next(calls) > 3)
    before = {trial.number: trial for trial in trials(tmp_path / "tiny")}
    hit = [trial for trial in before.values() if trial.hparams["model.width"] == 5 and trial.curve]
    assert hit
    assert {trial.state for trial in before.values()} == {State.RUNNING}
    flag.touch()
    file.write_text(file.read_text() + "# mended")  # or it went on from snapshots, and nothing were trained again
    assert ending(study, tmp_path / "tiny").how == "done"
    for trial in trials(tmp_path / "tiny"):
        assert trial.state is (State.FAILED if trial.hparams["model.width"] == 5 else State.COMPLETE)
        assert trial.state is State.COMPLETE or "ValueError: refused since" in (trial.reason or "")
    assert [trials(tmp_path / "tiny")[trial.number].curve for trial in hit] == [trial.curve for trial in hit]


def test_a_model_that_learns_otherwise_than_it_did_is_told_and_what_is_stored_stays(
    own: Question, tmp_path: Path
) -> None:
    study = own(4, 8, pruner="none")
    calls = iter(range(100))
    run(study, tmp_path / "tiny", stop=lambda: next(calls) > 4)
    before = {trial.number: trial for trial in trials(tmp_path / "tiny") if trial.state is State.RUNNING}
    (tmp_path / "other").touch()
    (tmp_path / "own.py").write_text(MODEL + "# mended")  # or it went on from snapshots, and nothing were replayed
    told = [event for event in run(study, tmp_path / "tiny") if isinstance(event, Differed)]
    assert told
    for event in told:
        recorded = before[event.trial].curve[event.fidelity - 1]
        assert event.stored == (recorded.metric if event.of == "value" else recorded.train_loss) != event.replayed
    for trial in trials(tmp_path / "tiny"):
        assert trial.state is State.COMPLETE
        assert trial.number not in before or trial.curve[: before[trial.number].fidelity] == before[trial.number].curve


def test_of_equal_trials_the_lower_numbers_are_kept(own: Question, tmp_path: Path) -> None:
    """Nothing is learned, so that all trials and all ticks are equal."""
    study = own(1, pruner="none", trials=6)
    space = {"optimizer": "sgd", "learning_rate": 0.0, "l1": 0.0, "l2": 0.0, "model": {"width": 1}}
    still = build_space(space)
    ended = ending(replace(study, space=still, space_keys=space), tmp_path / "tiny")
    found = trials(tmp_path / "tiny")
    assert len({trial.value for trial in found}) == 1
    assert {trial.best_tick for trial in found} == {1}
    assert answer(tmp_path / "tiny")[1].keys() == {0, 1}
    assert ended.progress.best == found[0]


def test_an_unknown_device_is_a_usage_error(question: Question, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nonsense") as caught:
        run(question(), tmp_path / "tiny", device="nonsense")
    assert "cpu" in (caught.value.hint or "")
    assert not (tmp_path / "tiny" / "study.db").exists()


# What a review found


def test_another_file_of_the_same_name_is_not_the_study_that_was_searched(tmp_path: Path) -> None:
    def table(folder: str, shift: int) -> Study:
        (tmp_path / folder).mkdir()
        rows = "".join(f"{place / 4},{(place * shift) % 2}\n" for place in range(60))
        (tmp_path / folder / "t.csv").write_text("x,y\n" + rows)
        document = {"data": {"source": "t.csv", "target": "y"}, "train": {"epochs": 1}, "search": {"trials": 2}}
        return make_study(document, tmp_path / folder, "t", where="t.csv")

    first, second = table("a", 1), table("b", 3)
    (tmp_path / "b" / "t.csv").write_text((tmp_path / "b" / "t.csv").read_text().replace("14.75,", "15.25,"))
    assert ending(first, tmp_path / "t").how == "done"
    with pytest.raises(InputError, match="other samples"):
        run(second, tmp_path / "t")
    assert ending(first, tmp_path / "t").progress.ended_now == 0
    (tmp_path / "a" / "t.csv").write_text((tmp_path / "b" / "t.csv").read_text())
    with pytest.raises(InputError, match="other samples"):
        run(first, tmp_path / "t")


def test_a_buffer_outside_the_state_dict_is_outside_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        textwrap.dedent("""
        import torch
        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("scale", torch.ones(4), persistent=False)
                self.layer = torch.nn.Linear(4, 3)
                self.dropout = torch.nn.Dropout(0.1)
            def forward(self, x):
                return self.layer(self.dropout(x * self.scale))
        """)
    )
    document = {"data": {"source": "iris"}, "model": {"source": "own.py:Model"}, "train": {"epochs": 1}}
    study = make_study(document | {"search": {"trials": 2}}, tmp_path, "own", where="own")
    assert ending(study, tmp_path / "own").how == "done"
    best = next((tmp_path / "own" / "checkpoints").iterdir())
    assert set(checkpoint.load(best)[0]) == {"layer.weight", "layer.bias"}


# Points given by hand, and spaces that end


TORCH = {"optimizer": "adam", "learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "batch_size": 32}
FINITE: dict[str, Any] = {
    "optimizer": "sgd",
    "learning_rate": [0.01, 0.1],
    "momentum": [0.0, 0.9],
    "batch_size": {"low": 8, "high": 10},
    "l1": 0,
    "l2": 0,
}
"""Twelve points."""


def hparams_of(found: Sequence[Trial]) -> list[dict[str, Any]]:
    return [dict(trial.hparams) for trial in found]


def test_the_first_trial_is_torchs_defaults(finished: tuple[Study, Path]) -> None:
    first = trials(finished[1])[0]
    assert first.hparams == {**TORCH, "l1": 1e-8, "l2": 1e-8}


def test_what_is_asked_for_by_hand_is_tried_next_and_once(question: Question, tmp_path: Path) -> None:
    study = question()
    wanted = [{"optimizer": "sgd", "learning_rate": 0.5}, {"batch_size": "full"}, {"batch_size": "full"}]
    run(study, tmp_path, tries=wanted)
    found = trials(tmp_path)
    assert len(found) == study.search.trials
    assert [trial.given for trial in found[:4]] == [found[0].hparams, *wanted[:2], {}]
    for trial in found[1:3]:
        assert trial.hparams.items() >= trial.given.items()
    # The same again does nothing.
    assert ending(study, tmp_path, tries=wanted).progress.ended_now == 0
    assert trials(tmp_path) == found
    # A study that is done grows by what is new, and only by that.
    more = {"learning_rate": 0.02}
    for _ in range(2):
        assert ending(study, tmp_path, tries=[*wanted, more]).progress.total == study.search.trials + 1
        assert trials(tmp_path)[:-1] == found
        assert trials(tmp_path)[-1].given == more
    # What was tried by the sampler need not be tried again.
    assert ending(study, tmp_path, tries=[found[5].hparams]).progress.ended_now == 0


@pytest.mark.parametrize("sampler", ["tpe", "qmc", "nsga2"])
def test_points_by_hand_survive_being_stopped_often(question: Question, tmp_path: Path, sampler: str) -> None:
    study, wanted = question(sampler=sampler), [{"learning_rate": 0.01}, {"optimizer": "nadam", "batch_size": 32}]
    run(study, tmp_path / "whole", tries=wanted)

    def attempt(number: int) -> bool:
        calls = iter(range(10_000))
        # Asked for once: what is recorded need not be asked for again.
        again = wanted if number == 0 else []
        return ending(study, tmp_path / "often", tries=again, stop=lambda: next(calls) >= 4 * number).how == "done"

    assert until_done(attempt) > 3
    assert answer(tmp_path / "often") == answer(tmp_path / "whole")


def test_a_point_tried_beyond_the_trials_of_a_study_is_finished_after_a_stop(
    question: Question, tmp_path: Path
) -> None:
    study, wanted = question(trials=4), [{"learning_rate": 0.01}]
    run(study, tmp_path)
    stops = iter([False])
    assert ending(study, tmp_path, tries=wanted, stop=lambda: next(stops, True)).how == "stopped"
    assert trials(tmp_path)[-1].state is State.RUNNING
    assert ending(study, tmp_path).progress.total == 5
    assert all(trial.state.ended for trial in trials(tmp_path))


@pytest.mark.parametrize("fewer", [2, 4, 6])
def test_a_total_below_what_has_begun_finishes_what_is_in_flight_and_says_so(
    question: Question, tmp_path: Path, fewer: int
) -> None:
    study = question(trials=8, window=3, pruner="none")
    half: list[Progress] = []
    for event in search(study, tmp_path, stop=lambda: bool(half)):
        if isinstance(event, Progress) and event.counts[State.COMPLETE] == event.counts[State.RUNNING] == 3:
            half.append(event)
    found = run(study.with_trials(fewer), tmp_path)
    said = [event.text for event in found if isinstance(event, Noticed)]
    asked = f"{fewer} trials are asked for, and 6 have begun: those in flight go on to their end"
    assert said == ([asked] if fewer < 6 else [])
    last = found[-1]
    assert isinstance(last, Ended)
    assert (last.how, last.progress.total, last.progress.ended_now) == ("done", 6, 3)
    assert [trial.state for trial in trials(tmp_path)] == [State.COMPLETE] * 6
    # And they are what they would have been.
    run(study, tmp_path)
    run(study, tmp_path / "whole")
    assert answer(tmp_path) == answer(tmp_path / "whole")


def test_optuna_shows_what_waits_and_what_it_enqueues_in_a_study_at_rest_is_tried(
    question: Question, tmp_path: Path
) -> None:
    study = question(trials=4)
    ending(study, tmp_path, timeout_seconds=0, tries=[{"learning_rate": 0.01, "batch_size": "full"}])
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    theirs = optuna.load_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="tiny")
    assert [trial.state.name for trial in theirs.trials] == ["WAITING", "WAITING"]
    fixed = theirs.trials[1].system_attrs["fixed_params"]
    rates = ["learning_rate_sgd", "learning_rate_adagrad", "learning_rate_adaptive"]
    assert fixed == {"batch_size": "full", **dict.fromkeys(rates, 0.01)}
    theirs.enqueue_trial({"optimizer": "sgd", "momentum": 0.5})
    run(study, tmp_path)
    found = trials(tmp_path)
    assert len(found) == 4
    assert found[2].given == {"optimizer": "sgd", "momentum": 0.5}
    assert found[2].hparams.items() >= found[2].given.items()
    theirs = optuna.load_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="tiny")
    assert [trial.params for trial in theirs.trials][2]["momentum"] == 0.5
    assert all(trial.datetime_start is not None for trial in theirs.trials)


@pytest.mark.parametrize("sampler", ["qmc", "tpe", "grid"])
def test_what_waits_and_lies_outside_todays_space_is_left_out_and_said(
    question: Question, tmp_path: Path, sampler: str
) -> None:
    """Narrowed since, or enqueued by Optuna, which knows no space."""
    finite = {"optimizer": "sgd", "momentum": 0.5, "l1": 0, "l2": 0, "batch_size": [16, 32]}
    rates = [0.01, 0.1, 0.9] if sampler == "grid" else {"low": 0.01, "high": 0.9}
    study = question(sampler=sampler, trials=3, window=1, train={"epochs": 1}, space={**finite, "learning_rate": rates})
    given = {"learning_rate": 0.9, "batch_size": 32}
    ending(study, tmp_path, timeout_seconds=0, tries=[given])
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    theirs = optuna.load_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="tiny")
    theirs.enqueue_trial({"learning_rate": 77.0, "batch_size": 16, "lr": 3})
    assert trials(tmp_path)[-2].given == given
    narrow = rates[:-1] if isinstance(rates, list) else {**rates, "high": 0.1}
    study = question(
        sampler=sampler, trials=3, window=1, train={"epochs": 1}, space={**finite, "learning_rate": narrow}
    )
    rule = "learning_rate is one of 0.01, 0.1" if sampler == "grid" else "learning_rate is 0.01 to 0.1"
    last = len(trials(tmp_path)) - 1
    said = [
        f"learning_rate 0.9, given for trial {last - 1}, is left out: {rule} in this study",
        f"learning_rate 77.0, given for trial {last}, is left out: {rule} in this study",
        f"lr 3, given for trial {last}, is left out: this study has no such hyperparameter",
    ]
    whole = shutil.copytree(tmp_path, tmp_path / "whole")
    assert [event.text for event in run(study, whole) if isinstance(event, Noticed)] == said
    found = trials(whole)
    assert {trial.hparams["batch_size"] for trial in found[last - 1 : last + 1]} == {16, 32}
    assert all(0.01 <= float(trial.hparams["learning_rate"]) <= 0.1 for trial in found)  # type: ignore[arg-type]
    # Stopped before they start and gone on with, they are the same trials.
    part = shutil.copytree(tmp_path, tmp_path / "part", ignore=shutil.ignore_patterns("whole"))
    run(study, part, timeout_seconds=0)
    run(study, part)
    assert hparams_of(trials(part)) == hparams_of(found)


@pytest.mark.parametrize("sampler", ["grid", "brute_force"])
def test_a_space_that_was_tried_to_its_end_ends_the_search_well(
    question: Question, tmp_path: Path, sampler: str
) -> None:
    study = question(sampler=sampler, trials=100, space=FINITE, pruner="none", train={"epochs": 1})
    by_hand = {"learning_rate": 0.1, "momentum": 0.9, "batch_size": 9}
    assert ending(study, tmp_path / "whole", tries=[by_hand]).how == "done"
    found = trials(tmp_path / "whole")
    assert found[0].given == by_hand
    assert len(found) == len({tuple(point.items()) for point in hparams_of(found)}) == 12
    again = ending(study, tmp_path / "whole")
    assert (again.how, again.progress.total, again.progress.ended_now) == ("done", 12, 0)
    # Fewer trials than points are as good a search, and more of them go on where it ended.
    run(study.with_trials(5), tmp_path / "part")
    assert len(trials(tmp_path / "part")) == 5
    run(study, tmp_path / "part")
    assert {tuple(p.items()) for p in hparams_of(trials(tmp_path / "part"))} == {
        tuple(p.items()) for p in hparams_of(found)
    }
