"""`tunecli ls`: every study of a home in a line, whatever state it is in."""

import os
import re
import shutil
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.conftest import Command, Question
from tunecli.report.console import VisibleConsole
from tunecli.report.studies import Listed, age, draw_studies
from tunecli.search import search
from tunecli.store import hold, overview, read
from tunecli.trial import State, best_trial


def written(folder: Path, seconds_ago: float) -> None:
    when = datetime.now(UTC).timestamp() - seconds_ago
    for name in ("study.db", "study.toml"):
        os.utime(folder / name, (when, when))


def test_studies_are_listed_with_trials_best_and_age_the_latest_first(tunecli: Command, home: Path) -> None:
    for name, seconds in (("older", 3 * 86_400 + 60), ("tiny", 130), ("newest", 5)):
        if name != "tiny":
            shutil.copytree(home / "tiny", home / name)
        written(home / name, seconds)
    done = tunecli("ls")
    assert (done.code, done.err) == (0, "")
    best = tunecli("report", "tiny", "--format", "json").document["best"]
    head, *lines = (line.rstrip() for line in done.out.splitlines())
    assert head.split() == ["study", "trials", "state", "best", "on", "validation", "age"]
    assert [line.split()[0] for line in lines] == ["newest", "tiny", "older"]
    for line, own_age in zip(lines, ("5 s", "2 min", "3 d"), strict=True):
        assert f"10 of 10  done   accuracy {best['value']:.4f} (trial {best['number']})" in line
        assert line.endswith(own_age)
    assert all(len(line) <= 80 for line in done.out.splitlines())


NOW = datetime.now(UTC)
LISTED = [
    Listed("diabetes-regression", "done", NOW, 30, 30, "balanced_accuracy", "validation", "maximize", 4, 0.5),
    Listed("broken", "unreadable", NOW, reason="cannot read studies/broken/study.db: file is not a database"),
]


@pytest.mark.parametrize(
    ("columns", "lines"),
    [
        (
            83,
            [
                "study                  trials  state       best on validation                  age",
                "diabetes-regression  30 of 30  done        balanced_accuracy 0.5000 (trial 4)  0 s",
                "broken                         unreadable                                      0 s",
                "broken: cannot read studies/broken/study.db: file is not a database",
            ],
        ),
        (
            72,
            [
                "study                  trials  state       best on validation        age",
                "diabetes-regression  30 of 30  done        balanced_accuracy 0.5000  0 s",
                "broken                         unreadable                            0 s",
                "broken: cannot read studies/broken/study.db: file is not a database",
            ],
        ),
        (
            66,
            [
                "study     trials  state       best on validation        age",
                "diabetes-regression",
                "        30 of 30  done        balanced_accuracy 0.5000  0 s",
                "broken            unreadable                            0 s",
                "broken: cannot read studies/broken/study.db: file is not a",
                "  database",
            ],
        ),
        (
            60,
            [
                "diabetes-regression",
                "  30 of 30  done  balanced_accuracy 0.5000 on validation",
                "  (trial 4)  0 s",
                "broken",
                "  unreadable  0 s",
                "broken: cannot read studies/broken/study.db: file is not a",
                "  database",
            ],
        ),
    ],
)
def test_names_and_values_stay_whole_in_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int, lines: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.setenv(name, "1")
    draw_studies(LISTED, NOW, VisibleConsole())
    out = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out)
    assert [line.rstrip() for line in out.splitlines()] == lines


def test_in_a_pipe_each_study_has_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    draw_studies(LISTED, NOW, VisibleConsole())
    _, first, *more = capsys.readouterr().out.splitlines()
    assert first == "diabetes-regression  30 of 30  done        balanced_accuracy 0.5000 (trial 4)  0 s"
    assert len(more) == 2


def test_the_split_is_said_of_each_value_where_it_is_not_the_same_of_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a program measures on, it alone knows."""
    monkeypatch.setenv("COLUMNS", "80")
    now = datetime.now(UTC)
    model = Listed("digits-20261123-030", "done", now, 9, 9, "accuracy", "validation", "maximize", 4, 0.5)
    program = Listed("script", "done", now, 9, 9, "value", None, "minimize", 2, 0.25)
    draw_studies([model, Listed("begun", "unfinished", now, 0, 9)], now, VisibleConsole())
    assert "best on validation" in (out := capsys.readouterr().out)
    assert "\ndigits-20261123-030  9 of 9  done        accuracy 0.5000 (trial 4)  0 s\n" in out
    draw_studies([model, program], now, VisibleConsole())
    out = capsys.readouterr().out
    assert "best on validation" not in out
    assert "accuracy 0.5000 on validation (trial 4)" in out
    assert "value 0.2500 (trial 2)" in out


def test_the_list_as_json_tells_what_report_tells(tunecli: Command, home: Path) -> None:
    report = tunecli("report", "tiny", "--format", "json").document
    document = tunecli("ls", "--format", "json").document
    (own,) = document["studies"]
    assert (own["study"], own["state"], own["done"], own["asked"]) == ("tiny", "done", 10, 10)
    assert (own["metric"], own["direction"], own["split"]) == (report["metric"], report["direction"], "validation")
    assert (own["best"], own["value"]) == (report["best"]["number"], report["best"]["value"])
    seconds = (datetime.now(UTC) - datetime.fromisoformat(own["written"])).total_seconds()
    assert 0 <= seconds < 3600


def test_each_state_has_its_word(tunecli: Command, home: Path, question: Question) -> None:
    def state_of(name: str) -> str:
        (own,) = (own for own in tunecli("ls", "--format", "json").document["studies"] if own["study"] == name)
        return str(own["state"])

    assert state_of("tiny") == "done"
    with hold(home / "tiny"):
        assert state_of("tiny") == "running"
    # The lock of a process that is gone is nobody's.
    (home / "tiny" / "lock").write_text("999999999")
    assert state_of("tiny") == "done"
    asked = iter([False] * 3 + [True] * 99)
    list(search(question(name="begun", trials=12), home / "begun", stop=lambda: next(asked)))
    assert state_of("begun") == "unfinished"
    (home / "planned.toml").write_text('[data]\nsource = "iris"\n[search]\ntrials = 7\n')
    assert state_of("planned") == "not begun"
    assert "0 of 7" in tunecli("ls").out
    # Once it has results it is listed once.
    assert tunecli("search", "planned", "--trials", "1", "--set", "train.epochs=1").code == 0
    assert state_of("planned") == "done"


def test_a_study_all_of_whose_trials_failed_is_not_done(tunecli: Command, tmp_path: Path, question: Question) -> None:
    wild = question(name="wild", trials=2, space={"learning_rate": 1e30, "optimizer": "sgd"})
    list(search(wild, tmp_path / "studies" / "wild"))
    line = tunecli("ls").out.splitlines()[1].split()
    assert line[:5] == ["wild", "2", "of", "2", "failed"]


def test_a_study_without_a_complete_trial_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    draw_studies([Listed("pruned", "done", NOW, 9, 9, "accuracy", "validation", "maximize")], NOW, VisibleConsole())
    assert "pruned  9 of 9  done   none complete  0 s\n" in capsys.readouterr().out


def test_the_value_of_a_program_is_from_no_split_that_is_known(tunecli: Command, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("def objective(trial):\n    return trial.suggest_float('x', 1, 2)\n")
    assert tunecli("search", "script.py:objective", "--trials", "1").code == 0
    (own,) = tunecli("ls", "--format", "json").document["studies"]
    assert (own["study"], own["state"], own["split"]) == ("script", "done", None)
    assert "validation" not in tunecli("ls").out


def test_what_cannot_be_read_is_one_line_and_the_others_are_listed(tunecli: Command, home: Path) -> None:
    for name, content in (("garbage", b"no database"), ("empty", b"")):
        (home / name).mkdir()
        (home / name / "study.db").write_bytes(content)
    (home / "other").mkdir()
    sqlite3.connect(home / "other" / "study.db").execute("CREATE TABLE mine (x)").connection.close()
    (home / "faulty.toml").write_text('[data]\nsource = "irsi"\n')
    (home / "neither").mkdir()
    done = tunecli("ls", "--format", "json")
    assert done.code == 0
    states = {own["study"]: (own["state"], own["reason"]) for own in done.document["studies"]}
    assert states["tiny"] == ("done", None)
    assert states["empty"] == ("not begun", None)
    for name in ("garbage", "other", "faulty"):
        assert states[name][0] == "unreadable"
        assert states[name][1]
    assert states.keys() == {"tiny", "empty", "garbage", "other", "faulty"}
    text = tunecli("ls")
    assert text.code == 0
    assert "Traceback" not in text.err


def test_where_there_is_no_study_yet_it_says_how_one_begins(tunecli: Command, tmp_path: Path) -> None:
    for _ in range(2):
        done = tunecli("ls")
        assert (done.code, done.out) == (0, "")
        assert done.err == "no study in studies yet; tunecli search begins one\n"
        (tmp_path / "studies").mkdir(exist_ok=True)
    assert tunecli("ls", "--format", "json").document["studies"] == []
    mistyped = tunecli("ls", "--home", "mine").err
    assert mistyped == "no study in mine, which is not there yet; tunecli search --home mine begins one\n"
    (tmp_path / "file").touch()
    done = tunecli("ls", "--home", "file")
    assert done.code == 3
    assert "file is no folder" in done.complaint[0]


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_a_glance_agrees_with_the_whole_record(question: Question, tmp_path: Path, metric: str) -> None:
    list(search(question(train={"metric": metric}), tmp_path / "tiny"))
    record, glance = read(tmp_path / "tiny" / "study.db"), overview(tmp_path / "tiny" / "study.db")
    best = best_trial(list(record.trials), record.direction)
    assert best is not None
    assert (glance.best, glance.value) == (best.number, best.value)
    assert (glance.metric, glance.direction, glance.ended) == (record.metric, record.direction, 10)
    for state, count in glance.counts.items():
        assert count == sum(trial.state is state for trial in record.trials)
    assert glance.counts[State.COMPLETE] >= 1


def test_nothing_is_written(tunecli: Command, home: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    tunecli("ls")
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (3600, "1 h"), (90_000, "1 d"), (8e7, "925 d")],
)
def test_an_age_is_told_in_the_unit_that_matters(seconds: float, text: str) -> None:
    assert age(seconds) == text
