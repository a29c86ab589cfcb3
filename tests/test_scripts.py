"""Scripts as they are: a user's Optuna objective, and any program, under this tool's store, resume and report."""

import json
import os
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from tunecli.command import Command
from tunecli.errors import InputError, SourceError, StudyFileError
from tunecli.search import Changed, Differed, Ended, Event, search
from tunecli.store import read
from tunecli.study import ProgramStudy, make_program
from tunecli.study.program import stated_direction
from tunecli.trial import State, Trial

Typed = Callable[..., Any]

OBJECTIVE = """
import random

import optuna


def objective(trial):
    x = trial.suggest_float("x", -10, 10)
    rate = trial.suggest_float("rate", 1e-5, 1, log=True)
    layers = trial.suggest_int("layers", 1, 3)
    widths = [trial.suggest_int(f"width{layer}", 4, 64, step=4) for layer in range(layers)]
    kind = trial.suggest_categorical("kind", ["plain", "deep", None])
    value = (x - 2) ** 2 + rate + random.random() / 100
    for epoch in range(6):
        trial.report(value + 1 / (epoch + 1), epoch)
        if trial.should_prune():
            raise optuna.TrialPruned()
    return value + sum(widths) / 1000 + (kind is None)
"""

PROGRAM = """
import argparse, json

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("--bs", type=int)
given = parser.parse_args()
print("epochs follow")
for epoch in range(1, 7):
    print(json.dumps({"epoch": epoch, "loss": (given.lr - 0.1) ** 2 + 1 / epoch}))
"""


def script(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return path


def objective(folder: Path, text: str = OBJECTIVE, *, seed: int = 0, **keys: Any) -> ProgramStudy:
    script(folder, text)
    program = {"objective": "mine.py:objective"} | keys.pop("program", {})
    document = {"seed": seed, "program": program, "search": {"trials": 8, "window": 1} | keys}
    return make_program(document, folder, "mine", where="a test")


def command(folder: Path, arguments: str, **keys: Any) -> ProgramStudy:
    sections = {key: keys.pop(key) for key in ("space", "train") if key in keys}
    program = {"command": f"{sys.executable} {arguments}"} | keys.pop("program", {})
    document = {"program": program, "search": {"trials": 6, "window": 1} | keys} | sections
    return make_program(document, folder, "mine", where="a test")


def run(study: ProgramStudy, **options: Any) -> list[Event]:
    return list(search(study, study.base / "study", **options))


def trials(study: ProgramStudy) -> list[Trial]:
    """What the study has to show, less its clocks."""
    return [
        replace(trial, seconds=0.0, curve=tuple((own.fidelity, own.metric, own.step) for own in trial.curve))  # type: ignore[arg-type]
        for trial in read(study.base / "study" / "study.db").trials
    ]


def in_optuna(study: ProgramStudy) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.load_study(storage=f"sqlite:///{study.base}/study/study.db", study_name=study.name)


def one(folder: Path, text: str, **keys: Any) -> Trial:
    """The only trial of an objective."""
    study = objective(folder, text, trials=1, **keys)
    run(study)
    (trial,) = trials(study)
    return trial


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> ProgramStudy:
    """A search of `OBJECTIVE` in one go, to be looked at."""
    study = objective(tmp_path_factory.mktemp("finished"), min_ticks=1)
    ended = run(study)[-1]
    assert isinstance(ended, Ended)
    assert ended.how == "done"
    return study


# An objective


def test_what_an_objective_suggests_reports_and_returns_is_what_optuna_reads(finished: ProgramStudy) -> None:
    found, theirs = trials(finished), in_optuna(finished).trials
    assert {trial.state for trial in found} == {State.COMPLETE, State.PRUNED}
    for ours, optunas in zip(found, theirs, strict=True):
        assert dict(ours.hparams) == optunas.params
        assert ours.value == optunas.value
        assert {own[2] if own[2] is not None else own[0]: own[1] for own in ours.curve} == optunas.intermediate_values  # type: ignore[index]
        assert isinstance(optunas.distributions["layers"], optuna.distributions.IntDistribution)
        assert len([name for name in ours.hparams if name.startswith("width")]) == ours.hparams["layers"]
        if ours.state is State.COMPLETE:
            assert ours.fidelity == 6
            assert ours.value != min(own[1] for own in ours.curve)  # type: ignore[index]  # what it returns, not its best report
        else:
            assert ours.reason is not None
            assert ours.value == ours.curve[-1][1]  # type: ignore[index]


def test_an_objective_is_pruned_where_optuna_prunes_it(finished: ProgramStudy) -> None:
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    theirs = optuna.create_study(pruner=pruner)
    for ours in trials(finished):
        trial = theirs.ask()
        for fidelity, value, _ in ours.curve:  # type: ignore[misc]
            trial.report(value, fidelity)
            assert trial.should_prune() == (ours.state is State.PRUNED and fidelity == ours.fidelity)
        theirs.tell(trial, state=optuna.trial.TrialState.FAIL)


def test_the_trial_is_optunas_own(tmp_path: Path) -> None:
    trial = one(
        tmp_path,
        """
        import optuna

        def objective(trial):
            assert isinstance(trial, optuna.Trial)
            assert trial.number == 0
            x = trial.suggest_float("x", 0, 1)
            assert trial.suggest_float("x", 0, 1) == x == trial.params["x"]
            assert trial.suggest_int("fixed", 3, 3) == 3
            step = trial.suggest_float("step", 0, 1, step=0.25)
            assert step in (0, 0.25, 0.5, 0.75, 1)
            function = trial.suggest_categorical("function", [abs, max])
            assert function in (abs, max)
            assert not trial.should_prune()
            trial.set_user_attr("note", {"a": [1, 2]})
            assert trial.user_attrs == {"note": {"a": [1, 2]}}
            trial.report(1.0, 5)
            trial.report(2.0, 5)  # Optuna ignores a step that is reported again
            trial.report(0.5, 10)
            return x
        """,
    )
    assert trial.state is State.COMPLETE, trial.reason
    assert trial.curve == ((1, 1.0, 5), (2, 0.5, 10))
    assert trial.hparams["function"] in ("abs", "max")
    (theirs,) = in_optuna(objective(tmp_path, (tmp_path / "mine.py").read_text(), trials=1)).trials
    assert theirs.user_attrs == {"note": {"a": [1, 2]}}
    assert theirs.params == dict(trial.hparams)


FAILURES = {
    "raise ValueError('too  bad\\x1b[31m')": "ValueError: too bad (mine.py, line 8)",
    "return None": "the objective returned None, which is no number",
    "return 'much'": "the objective returned 'much', which is no number",
    "return float('nan')": "its value is nan",
    "import sys; sys.exit('enough')": "SystemExit: enough (mine.py, line 16)",
    "import os; os._exit(3)": "its process ended with exit code 3 before a value was returned",
    "import os; os.kill(os.getpid(), 11)": "its process was killed by SIGSEGV",
    "return trial.suggest_categorical('c', range(trial.number))": None,
    "return trial.suggest_categorical('c', range(trial.number)) ": "ValueError: CategoricalDistribution does not",
}
"""What an objective may do, trial after trial, and what is recorded of it."""


def test_whatever_an_objective_does_is_one_failed_trial(tmp_path: Path) -> None:
    text = "\n\ndef objective(trial):\n    trial.suggest_float('x', 0, 1)\n    print('here')\n    if False: pass\n"
    for number, body in enumerate(FAILURES):
        text += f"    elif trial.number == {number}:\n        {body}\n"
    study = objective(tmp_path, text, trials=len(FAILURES))
    run(study)
    for trial, reason in zip(trials(study), FAILURES.values(), strict=True):
        if reason is None:
            assert trial.state is State.COMPLETE
            continue
        assert trial.reason is not None
        assert (trial.state, trial.reason[: len(reason)], trial.value) == (State.FAILED, reason, None)
        assert "x" in trial.hparams
        assert (tmp_path / "study" / "logs" / f"trial-{trial.number}.txt").read_text().startswith("here\n")


def test_a_pruned_trial_without_a_report_has_no_value(tmp_path: Path) -> None:
    trial = one(tmp_path, "\nimport optuna\ndef objective(trial):\n    raise optuna.TrialPruned()\n")
    assert (trial.state, trial.value, trial.fidelity) == (State.PRUNED, None, 0)


def test_a_nan_that_is_reported_prunes_where_there_is_a_pruner(tmp_path: Path) -> None:
    text = """
    import optuna

    def objective(trial):
        trial.report(1.0, 1)
        trial.report(float("nan"), 2)
        if trial.should_prune():
            raise optuna.TrialPruned()
        return 1.0
    """
    (tmp_path / "asha").mkdir()
    assert one(tmp_path / "asha", text).reason == "report 2 is nan"
    (tmp_path / "none").mkdir()
    assert one(tmp_path / "none", text, pruner="none").state is State.COMPLETE


def test_a_script_is_read_as_far_as_the_search_of_its_own_and_its_direction_is_taken_up(tmp_path: Path) -> None:
    text = """
    import optuna

    def objective(trial):
        return trial.suggest_float("x", 0, 1)

    study = optuna.create_study(direction="maximize")
    study.optimize(objective, n_trials=1000)
    raise AssertionError("its own search was run")
    """
    study = objective(tmp_path, text, trials=3)
    assert study.direction == "maximize"
    run(study)
    ended = run(study)[-1]
    assert isinstance(ended, Ended)
    assert ended.progress.best is not None
    assert ended.progress.best.value == max(trial.value or 0 for trial in trials(study)) == in_optuna(study).best_value
    stated = objective(tmp_path, text, program={"direction": "minimize"})
    assert stated.direction == "minimize"


@pytest.mark.parametrize(
    ("text", "direction"),
    [
        ("optuna.create_study(direction='minimize')", "minimize"),
        ("from optuna import create_study\ncreate_study(direction='maximize')", "maximize"),
        ("create_study(direction=way)", None),
        ("create_study(direction='maximize'); create_study(direction='minimize')", None),
        ("create_study()", None),
        ("no python at all", None),
    ],
)
def test_a_direction_is_read_only_where_it_is_stated(tmp_path: Path, text: str, direction: str | None) -> None:
    assert stated_direction(script(tmp_path, text)) == direction


def test_unseeded_randomness_comes_from_the_seed_of_the_study(tmp_path: Path) -> None:
    text = """
    import random
    import numpy as np

    def objective(trial):
        return random.random() + np.random.rand()
    """
    check_seeds(tmp_path, text)


@pytest.mark.parametrize("where", ["import torch\n", "def objective(trial):\n    import torch\n"])
def test_unseeded_torch_is_seeded_wherever_it_is_imported(tmp_path: Path, where: str) -> None:
    body = "" if "def" in where else "def objective(trial):\n"
    check_seeds(tmp_path, f"{where}{body}    return torch.rand(()).item()\n")


def test_a_seed_of_the_script_itself_stands(tmp_path: Path) -> None:
    text = "import torch\ntorch.manual_seed(3)\ndef objective(trial):\n    return torch.rand(()).item()\n"
    (tmp_path / "own").mkdir()
    study = objective(tmp_path / "own", text, trials=1)
    run(study)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        assert trials(study)[0].value == torch.rand(()).item()


def check_seeds(tmp_path: Path, text: str) -> None:
    """One seed gives the same values again, another one others."""
    values = []
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        study = objective(tmp_path / name, text, seed=seed, trials=2)
        run(study)
        values.append([trial.value for trial in trials(study)])
    assert values[0] == values[1]
    assert len({*values[0], *values[2]}) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def other(trial): pass", "mine.py has no function 'objective'"),
        (
            "import nowhere",
            "mine.py cannot be loaded: ModuleNotFoundError: No module named 'nowhere' (mine.py, line 1)",
        ),
        ("def objective(:", "mine.py cannot be loaded: SyntaxError: invalid syntax (line 1)"),
        (
            "print('so far')\nimport os; os._exit(9)",
            "mine.py:objective cannot be loaded: its process ended with exit code 9",
        ),
    ],
)
def test_a_script_that_cannot_be_loaded_is_no_study(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SourceError) as caught:
        run(objective(tmp_path, text))
    assert caught.value.message.startswith(message)
    assert caught.value.hint
    assert not (tmp_path / "study").exists()


# A program


def test_a_program_is_given_what_is_recorded_and_its_last_line_is_its_value(tmp_path: Path) -> None:
    script(tmp_path, PROGRAM, "train.py")
    study = command(tmp_path, "train.py --lr {learning_rate} --bs {batch_size}")
    run(study)
    found = trials(study)
    assert {trial.state for trial in found} == {State.COMPLETE, State.PRUNED}
    for trial in found:
        rate = trial.hparams["learning_rate"]
        assert isinstance(rate, float)
        assert 1e-5 <= rate <= 1
        assert trial.hparams["batch_size"] in (16, 32, 64, 128, 256)
        expected = [(rate - 0.1) ** 2 + 1 / epoch for epoch in range(1, 7)]
        assert [own[1] for own in trial.curve] == expected[: trial.fidelity]  # type: ignore[index]
        assert trial.value == expected[trial.fidelity - 1]
        assert (trial.fidelity == 6) == (trial.state is State.COMPLETE)


def test_the_ranges_of_a_program_can_change_and_its_trials_stay(tmp_path: Path) -> None:
    script(tmp_path, PROGRAM, "train.py")
    text = "train.py --lr {learning_rate} --bs {batch_size}"
    narrow = {"learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}, "batch_size": [16, 32]}
    run(command(tmp_path, text, space=narrow, pruner="none", trials=12))
    before = trials(command(tmp_path, text))
    wide = {"learning_rate": {"low": 1e-5, "high": 1.0, "log": True}, "batch_size": [64, 32]}
    changed, *_ = run(command(tmp_path, text, space=wide, pruner="none", trials=30))
    assert isinstance(changed, Changed)
    assert (changed.shown, changed.trials) == (sum(t.hparams["batch_size"] == 32 for t in before), 12)
    found = trials(command(tmp_path, text))
    assert found[:12] == before
    assert all(trial.state is State.COMPLETE for trial in found)
    assert {trial.hparams["batch_size"] for trial in found[12:]} <= {32, 64}
    # The best rate, 0.1, lies in what was added.
    assert max(float(str(trial.hparams["learning_rate"])) for trial in found[12:]) > 1e-3


PRINTS = [
    ('print(\'{"value": 1, "accuracy": 2, "loss": 3}\')', 1.0),
    ('print(\'{"accuracy": 2, "loss": 3}\')', 2.0),
    ("print('{\"loss\": 3}')\nprint('{\"loss\": 2, \"more\": [1]}')\nprint('bye')\nprint('{\"saved\": true}')", 2.0),
    ("import sys\nsys.stdout.write('{\"loss\": 0.5}')", 0.5),
    ("print('\\r 5%')\nprint('[1]')\nprint('{\"value\": true}')\nprint('{\"value\": \"1\", \"loss\": 4e-3}')", 0.004),
    ("print('done')", "it printed no line of JSON with a number under 'value' or 'accuracy' or 'loss'"),
    ("print('{\"loss\": NaN}')", "its value is nan"),
    ("import sys\nprint('{\"loss\": 1}')\nsys.exit('out of \\x1b[1mmemory')", "exit code 1: out of memory"),
    ("import sys\nsys.exit(7)", "exit code 7"),
    ("import os\nos.kill(os.getpid(), 9)", "killed by SIGKILL"),
]
"""What a program may print, trial after trial, and its value or the reason of its failure."""


def test_what_a_program_prints_is_its_value_or_its_failure(tmp_path: Path) -> None:
    for number, (printing, _) in enumerate(PRINTS):
        script(tmp_path, printing, f"prints{number}.py")
    script(tmp_path, "import os, runpy\nrunpy.run_path(f\"prints{os.environ['TUNECLI_TRIAL']}.py\")", "prints.py")
    study = command(tmp_path, "prints.py {l1}", trials=len(PRINTS), pruner="none", train={"metric": "accuracy"})
    run(study)
    for trial, (_, expected) in zip(trials(study), PRINTS, strict=True):
        if isinstance(expected, float):
            assert (trial.state, trial.value, trial.reason) == (State.COMPLETE, expected, None)
        else:
            assert (trial.state, trial.value, trial.reason) == (State.FAILED, None, expected)


def test_a_traceback_is_told_by_what_was_raised_and_the_line_of_the_users_own_file(tmp_path: Path) -> None:
    script(tmp_path, "def train():\n    int('no\\n7')\ntry:\n    {}['a']\nexcept KeyError:\n    train()", "prints.py")
    study = command(tmp_path, "prints.py {l1}", trials=1)
    run(study)
    (trial,) = trials(study)
    assert trial.reason == (
        "exit code 1: ValueError: invalid literal for int() with base 10: 'no\\n7' (prints.py, line 2)"
    )


def test_a_command_is_split_as_a_shell_would_and_run_by_none() -> None:
    parsed = Command.parse(
        "python 'my train.py' --lr={learning_rate} --name \"a b\" --json '{{\"k\": {k}}}' {learning_rate}"
    )
    assert parsed.placeholders == ("learning_rate", "k")
    filled = parsed.filled({"learning_rate": 1e-05, "k": "$(rm -rf /); *"})
    assert filled == [
        "python",
        "my train.py",
        "--lr=1e-05",
        "--name",
        "a b",
        "--json",
        '{"k": $(rm -rf /); *}',
        "1e-05",
    ]
    assert Command.parse("x {a} {b}").filled({"a": True, "b": 3}) == ["x", "true", "3"]


@pytest.mark.parametrize("text", ["", "x 'y", "x {a:.3f}", "x {a!r}", "x {}", "x {0}", "x {a", "x '{\"k\": 1}'"])
def test_a_command_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(StudyFileError) as caught:
        Command.parse(text)
    assert caught.value.hint


def test_the_ranges_of_placeholders(tmp_path: Path) -> None:
    study = command(
        tmp_path,
        "-c 0 {learning_rate} {optimizer} {depth} {momentum} {l2}",
        space={"optimizer": ["SGD", "LBFGS"], "depth": {"low": 1, "high": 8}, "momentum": 0.5},
    )
    ranges = {dimension.hparam: dimension.range for dimension in study.space.dimensions}
    assert {name: getattr(own, "low", own) for name, own in ranges.items() if name != "optimizer"} == {
        "learning_rate": 1e-5,
        "depth": 1,
        "momentum": 0.5,
        "l2": 1e-8,
    }
    assert getattr(ranges["learning_rate"], "high", None) == 1.0
    assert getattr(ranges["optimizer"], "values", None) == ("SGD", "LBFGS")


@pytest.mark.parametrize(
    ("arguments", "space", "message", "hint"),
    [
        ("x {lr}", {}, "{lr} has no default range", "call it {learning_rate}"),
        ("x {depth}", {}, "{depth} has no default range", "--set 'space.depth={low=0.0, high=1.0}'"),
        ("x {learning_rate}", {"depth": [1, 2]}, "the command has no placeholder {depth}", "{learning_rate}"),
        ("x", {}, "the command has no placeholder to search", "--lr {learning_rate}"),
        ("x {learning_rate}", {"learning_rate": {"low": 1, "high": 0}}, "low below high", "a range is"),
    ],
)
def test_a_space_that_does_not_fit_its_command(
    tmp_path: Path, arguments: str, space: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(InputError) as caught:
        command(tmp_path, arguments, space=space)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


# Many at once, and none that outlives the search


def alive(folder: Path) -> list[int]:
    """The processes that run in this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z" and (process / "cwd").resolve() == folder.resolve():
                found.append(int(process.name))
        except OSError:
            continue
    return [number for number in found if number != os.getpid()]


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


SLEEPER = """
import json, subprocess, time

subprocess.Popen(["sleep", "1000"])
for epoch in range(1000):
    print(json.dumps({"loss": epoch}))
    time.sleep(0.01)
"""


def test_a_pruned_program_ends_with_all_that_it_began(tmp_path: Path) -> None:
    script(tmp_path, SLEEPER)
    study = command(tmp_path, "mine.py {l1}", trials=2, pruner="patient", patience=2)
    run(study)
    assert {(trial.state, trial.fidelity) for trial in trials(study)} == {(State.PRUNED, 4)}
    assert alive(tmp_path) == []


def test_a_window_of_programs_runs_at_once_and_ends_with_the_search(tmp_path: Path) -> None:
    script(tmp_path, SLEEPER)
    study = command(tmp_path, "mine.py {l1}", trials=5, window=3, pruner="none")
    events = search(study, tmp_path / "study")
    wait_until(lambda: next(events) is not None and len(alive(tmp_path)) == 3 * 3)
    events.close()  # type: ignore[attr-defined]  # a generator's own
    assert alive(tmp_path) == []
    assert [trial.state for trial in trials(study)] == [State.RUNNING] * 3


LATE = "it took more than {}, the search.trial_timeout"

SLOW = """
import json, subprocess, sys, time

print(json.dumps({"loss": 1.0}), flush=True)
if float(sys.argv[1]) < 0.5:
    subprocess.Popen(["sleep", "1000"])
    time.sleep(1000)
"""


def test_a_program_that_takes_longer_than_a_trial_may_fails_with_all_that_it_began(tmp_path: Path) -> None:
    script(tmp_path, SLOW)
    more = {"trials": 3, "window": 3, "sampler": "random", "trial_timeout": "2s"}
    study = command(tmp_path, "mine.py {pace}", space={"pace": {"low": 0, "high": 1}}, **more)
    ended = run(study)[-1]
    assert isinstance(ended, Ended)
    assert ended.how == "done"
    assert {trial.state for trial in trials(study)} == {State.COMPLETE, State.FAILED}
    for trial in trials(study):
        late = (State.FAILED, None, LATE.format("2 seconds"))
        expected = late if trial.hparams["pace"] < 0.5 else (State.COMPLETE, 1.0, None)
        assert (trial.state, trial.value, trial.reason) == expected
        assert trial.fidelity == 1, "what it reported stays"
    assert alive(tmp_path) == []


def test_an_objective_that_takes_longer_than_a_trial_may_has_failed(tmp_path: Path) -> None:
    slow = (
        "\nimport time\n\ndef objective(trial):\n    while trial.number == 1:\n        time.sleep(0.01)\n    return 1\n"
    )
    study = objective(tmp_path, slow, trials=2, trial_timeout="1s")
    run(study)
    quick, slow_one = trials(study)
    assert quick.state is State.COMPLETE
    assert (slow_one.state, slow_one.reason) == (State.FAILED, LATE.format("1 second"))


def test_a_search_that_is_stopped_or_out_of_time_goes_on_later(tmp_path: Path) -> None:
    script(tmp_path, SLEEPER.replace("range(1000)", "range(40)"))
    study = command(tmp_path, "mine.py {l1}", trials=2, pruner="none")
    calls = iter(range(1000))
    stopped = run(study, stop=lambda: next(calls) > 8)[-1]
    assert isinstance(stopped, Ended)
    assert stopped.how == "stopped"
    late = run(study, timeout_seconds=0.3)[-1]
    assert isinstance(late, Ended)
    assert late.how == "timeout"
    assert trials(study)[0].state is State.RUNNING
    assert alive(tmp_path) == []
    ended = run(study)[-1]
    assert isinstance(ended, Ended)
    assert ended.how == "done"
    assert [(trial.state, trial.fidelity) for trial in trials(study)] == [(State.COMPLETE, 40)] * 2


def test_a_keyboard_interrupt_in_the_objective_stops_the_search(tmp_path: Path) -> None:
    study = objective(
        tmp_path, "\ndef objective(trial):\n    if trial.number:\n        raise KeyboardInterrupt\n    return 1\n"
    )
    with pytest.raises(KeyboardInterrupt):
        run(study)
    assert [trial.state for trial in trials(study)] == [State.COMPLETE, State.RUNNING]


# Interruptions


def test_an_interrupted_search_of_a_program_is_the_search_that_never_was(tmp_path: Path) -> None:
    script(tmp_path, PROGRAM, "train.py")
    study = command(tmp_path, "train.py --lr {learning_rate} --bs {batch_size}", trials=4, min_ticks=1)
    run(study)
    expected = trials(study)
    (tmp_path / "study").rename(tmp_path / "finished")
    for number in range(1, 200):
        events = search(study, tmp_path / "study")
        seen = [event for event, _ in zip(events, range(number), strict=False)]
        events.close()  # type: ignore[attr-defined]  # a generator's own
        assert not any(isinstance(event, Differed) for event in seen)
        if any(isinstance(event, Ended) for event in seen):
            break
    assert number > 3
    assert trials(study) == expected


def test_a_program_that_answers_otherwise_the_second_time_is_told_of_and_what_is_recorded_stays(tmp_path: Path) -> None:
    text = "import json, pathlib, time\nplace = pathlib.Path('count')\nplace.touch()\n"
    text += "place.write_text(place.read_text() + 'x')\n"
    text += "for epoch in range(3):\n    print(json.dumps({'loss': len(place.read_text())}))\n    time.sleep(0.3)\n"
    script(tmp_path, text)
    study = command(tmp_path, "mine.py {l1}", trials=1)
    events = search(study, tmp_path / "study")
    wait_until(lambda: next(events) is not None and (tmp_path / "count").exists() and len(trials(study)[0].curve) > 0)
    events.close()  # type: ignore[attr-defined]  # a generator's own
    told = [event for event in run(study) if isinstance(event, Differed)]
    assert (told[0].trial, told[0].fidelity, told[0].stored, told[0].replayed) == (0, 1, 1.0, 2.0)
    (trial,) = trials(study)
    assert trial.curve[0][1] == 1.0  # type: ignore[index]
    assert (trial.state, trial.value) == (State.COMPLETE, 2.0)


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
# Loaded once, for all the processes to come.
import alembic.command, optuna, sqlalchemy.orm
from tunecli.search import programs, search
from tunecli.store import writer
from tunecli.study import read_question

writer.GROUP_SECONDS = 0.01
chance = random.Random(7)
folder = Path(sys.argv[1])
for rounds in range(100):
    shown, show = os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        for _ in search(read_question(folder / "question.toml"), folder / "study"):
            os.write(show, b".")
        os._exit(0)
    os.close(show)
    for _ in range(chance.randrange(5, 40)):
        os.read(shown, 1)
    time.sleep(chance.uniform(0.0, 0.2))
    ended, status = os.waitpid(child, os.WNOHANG)
    if ended:
        print(rounds, os.waitstatus_to_exitcode(status))
        break
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(shown)
"""


def test_a_search_of_an_objective_that_is_killed_often_is_the_search_that_never_was(
    finished: ProgramStudy, tmp_path: Path
) -> None:
    study = objective(tmp_path, min_ticks=1)
    (tmp_path / "question.toml").write_text(study.toml())
    killer = script(tmp_path, KILLED, "killer.py")
    done = subprocess.run([sys.executable, killer, tmp_path], cwd="/", capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    rounds, code = map(int, done.stdout.split())
    assert code == 0, done.stderr
    assert rounds >= 2
    assert trials(study) == trials(finished)
    wait_until(lambda: alive(tmp_path) == [])
    statuses = {trial.state for trial in in_optuna(study).trials}
    assert statuses <= {optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED}


# On the command line


def test_a_script_on_the_command_line(tunecli: Typed, tmp_path: Path) -> None:
    script(tmp_path, OBJECTIVE)
    search_it = ["search", "mine.py:objective", "--trials", "3", "--window", "1"]
    first = tunecli(*search_it)
    assert first.code == 0
    assert first.out.startswith("Best: trial ")
    assert "validation" not in first.out + first.err
    assert "finetune" not in first.err
    document = tunecli("report", "mine", "--format", "json").document
    assert (document["study"], document["metric"], document["direction"]) == ("mine", "value", "minimize")
    assert document["split"] is None
    assert sum(document["counts"].values()) == 3
    assert tunecli("report", "mine.py:objective", "--format", "json").document == document
    again = tunecli("search")
    assert again.code == 0
    assert "all 3 trials were done already" in again.err
    more = tunecli("search", "--trials", "4", "--format", "json")
    assert more.document["trials"][:3] == document["trials"]
    assert len(more.document["trials"]) == 4
    listed = tunecli("ls", "--format", "json").document["studies"][0]
    assert (listed["study"], listed["done"], listed["split"]) == ("mine", 4, None)
    text = tunecli("report").out
    assert "report by report" in text
    assert "epoch" not in text
    for command_line in (["finetune", "mine", "--best"], ["predict", "mine", "new.csv"]):
        refused = tunecli(*command_line)
        assert refused.code == 3
        assert "keeps its weights itself" in refused.complaint[0]
    assert tunecli("search", "mine.py:objective", "--direction", "maximize").code == 3


def test_a_study_goes_on_where_it_began(tunecli: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    script(tmp_path, "import os\ndef objective(trial):\n    return float(os.path.exists('mine.py'))\n")
    home = ["--home", str(tmp_path / "studies"), "--direction", "maximize", "--trials"]
    assert tunecli("search", "mine.py:objective", *home, "1").code == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = tunecli("search", "../mine.py:objective", *home, "2", "--format", "json")
    assert [trial["value"] for trial in done.document["trials"]] == [1.0, 1.0]


def test_a_command_on_the_command_line(tunecli: Typed, tmp_path: Path) -> None:
    script(tmp_path, PROGRAM, "my train.py")
    typed = f"{sys.executable} 'my train.py' --lr {{learning_rate}} --bs {{bs}}"
    refused = tunecli("search", "--command", typed)
    assert refused.code == 3
    assert not (tmp_path / "studies").exists()
    done = tunecli("search", "--command", typed, "--set", "space.bs=[8, 16]", "--trials", "2", "--format", "json")
    assert done.document["study"] == "my-train"
    assert {trial["hparams"]["bs"] for trial in done.document["trials"]} <= {8, 16}
    best = done.document["best"]
    again = subprocess.run(done.document["command"], shell=True, capture_output=True, text=True, check=True)
    assert json.loads(again.stdout.splitlines()[-1])["loss"] == best["value"]
    shown = re.search(r"^  (.+python.*(?:\n    .+)*)", tunecli("report").out, re.MULTILINE)
    assert shown is not None
    again = subprocess.run(shown[1], shell=True, capture_output=True, text=True, check=True)
    assert json.loads(again.stdout.splitlines()[-1])["loss"] == best["value"]
    lost = tunecli("search", "--command", "no-such-program {l1}")
    assert (lost.code, lost.complaint[0]) == (3, "no program 'no-such-program'")


def test_every_trial_failing_is_the_scripts_fault(tunecli: Typed, tmp_path: Path) -> None:
    script(tmp_path, "def objective(trial):\n    trial.suggest_int('n', 5, 5)\n    return undefined\n")
    failed = tunecli("search", "mine.py:objective", "--trials", "2")
    assert failed.code == 3
    message, hint = failed.complaint
    assert "NameError: name 'undefined' is not defined (mine.py, line 3)" in message
    assert "n 5" in hint


@pytest.mark.parametrize(
    ("typed", "code", "words"),
    [
        (["search", "mine.py"], 3, "which function of it?"),
        (["search", "no.py:objective"], 3, "no such file"),
        (["search", "mine.py:objective", "--set", "space.x=1"], 2, "an objective names its own ranges"),
        (["search", "mine.py:objective", "--target", "y"], 2, "a study of a program has no [data]"),
        (["search", "mine.py:objective", "--pruner", "hyperband"], 2, "has to know how long a trial is"),
        (["search", "mine.py:objective", "--set", "search.keep=3"], 2, "about checkpoints"),
        (["search", "mine.py:objective", "--set", "program.command=ls {l1}"], 2, "[program] has one of two keys"),
        (["search", "mine.py:objective", "--command", "ls {l1}"], 2, "both say what to search"),
        (["search", "mine.py:objective", "--device", "cpu"], 2, "is for a study of a model"),
        (["search", "digits", "--direction", "maximize"], 2, "--direction is for scripts and programs"),
        (["search", "--command", "ls 'x"], 3, "a quote is not closed"),
    ],
)
def test_a_mistake_is_answered_and_nothing_is_written(
    tunecli: Typed, tmp_path: Path, typed: list[str], code: int, words: str
) -> None:
    script(tmp_path, OBJECTIVE)
    done = tunecli(*typed)
    assert done.code == code
    message, hint = done.complaint
    assert words in message
    assert hint.strip()
    assert not (tmp_path / "studies").exists()


def test_a_name_that_an_objective_has_is_refused_to_a_model(tunecli: Any, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def objective(trial):\n    return trial.suggest_float('x', 0, 1)\n")
    assert tunecli("search", "own.py:objective", "--trials", "1", "--direction", "minimize").code == 0
    (tmp_path / "own.csv").write_text("x,y\n" + "".join(f"{number},{number % 2}\n" for number in range(40)))
    done = tunecli("search", "own.csv", "--target", "y", "--trials", "1")
    assert done.code == 3
    assert "was begun with another question" in done.err
