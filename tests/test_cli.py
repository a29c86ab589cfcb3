"""The command line: what a user types, what comes back on which stream, and the exit code.

Most tests call `main` in this process; those about signals, pipes and imports start a process of their own.
"""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from tunecli import __version__, live
from tunecli.cli.search import _seconds
from tunecli.errors import UsageError
from tunecli.finetune import Epoch
from tunecli.live.progress import LineView
from tunecli.search import Differed, Ended, Progress
from tunecli.store import hold, read
from tunecli.trial import State

ENVIRONMENT = {"PYTHONPATH": str(Path(__file__).parent.parent), "COLUMNS": "80"}


Command = Callable[..., Any]


def process(*arguments: str, cwd: Path, **options: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tunecli", *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen(command, cwd=cwd, env=os.environ | ENVIRONMENT, text=True, **streams)  # type: ignore[no-any-return]


FLOWERS = """
import torch
from sklearn.datasets import load_iris

def load():
    flowers = load_iris()
    return flowers.data, flowers.target

def make_model(width):
    return torch.nn.Sequential(
        torch.nn.Linear(4, width), torch.nn.Tanh(), torch.nn.Linear(width, 3)
    )
"""

STUDY = """
[data]
source = "flowers.py:load"

[model]
source = "flowers.py:make_model"
width = 32

[train]
epochs = 3
metric = "accuracy"

[space]
optimizer     = ["sgd", "adamw"]
learning_rate = { low = 1e-4, high = 1.0, log = true }
batch_size    = [16, 64, "full"]
l1            = 0
model.width   = [4, 8]

[search]
trials = 6
"""


def write_flowers(folder: Path) -> None:
    (folder / "flowers.py").write_text(FLOWERS)
    (folder / "flowers.toml").write_text(STUDY)


# The whole way


def test_from_an_empty_folder_to_a_model_of_ones_own(tunecli: Command, tmp_path: Path) -> None:
    write_flowers(tmp_path)
    done = tunecli("search", "flowers.toml")
    assert done.code == 0
    assert re.match(r"Best: trial \d+, accuracy \d\.\d{4} on validation", done.out)
    assert "data   flowers.py:load: 150 samples of 4, 3 classes" in done.err
    assert "6 of 6 done" in done.err
    assert done.err.endswith("next:\n  tunecli report flowers\n  tunecli finetune flowers --best\n")
    # Nothing but results and what Python itself leaves.
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == [
        "flowers.py",
        "flowers.toml",
        "studies",
    ]

    report = tunecli("report", "flowers")
    assert report.code == 0
    assert report.err == ""
    assert report.out.startswith("flowers  accuracy on validation, higher is better\n6 of 6 trials: ")

    done = tunecli("finetune", "flowers", "--best", "--save", "model.pth")
    assert done.code == 0
    assert re.match(r"accuracy (rose by|fell by|stayed the same).* on the test split of flowers.py:load", done.out)
    assert "(test, 1st reading)" in done.out
    for words in ("before (trial", "after", "from scratch", "checkpoint: studies/flowers/finetuned/1"):
        assert words in done.out
    assert "fine-tuning: epoch 1 of 1" in done.err
    again = tunecli("finetune", "flowers", "--best")
    assert again.out + "state dict: model.pth\n" == done.out
    assert again.err.endswith(
        "done already: nothing is trained or read again; to train it anew:\n  tunecli finetune flowers --best --fresh\n"
    )
    again = tunecli("finetune", "flowers", "--best", "--fresh")
    assert "(test, 2nd reading)" in again.out

    # The weights are the user's, without tunecli.
    scope: dict[str, Any] = {}
    exec(FLOWERS, scope)
    best = tunecli("report", "flowers", "--format", "json").document["best"]
    model = scope["make_model"](best["hparams"]["model.width"])
    model.load_state_dict(torch.load("model.pth", weights_only=True), strict=True)


def write_table(path: Path) -> None:
    rows = [f"{x},{'ab'[x % 2]},{(x * 7) % 11},{'yes' if x % 3 else 'no'}" for x in range(90)]
    path.write_text("\n".join(["x,kind,z,answer", *rows]) + "\n")


def test_a_table_needs_no_more_than_its_target(tunecli: Command, tmp_path: Path) -> None:
    write_table(tmp_path / "my answers.csv")
    quick = ("--trials", "3", "--set", "train.epochs=2", "--set", "model.hidden=[4]")
    message, hint = tunecli("search", "my answers.csv", *quick).complaint
    assert "which column" in message
    assert "--target" in hint
    assert not (tmp_path / "studies" / "my-answers" / "study.db").exists()
    message, hint = tunecli("search", "my answers.csv", "--target", "anwser", *quick).complaint
    assert "'anwser'" in message
    assert "'answer'" in hint
    done = tunecli("search", "my answers.csv", "--target", "answer", *quick)
    assert done.code == 0
    assert "mlp, hidden [4]" in done.err
    for name in ("my-answers", "my answers.csv"):
        assert tunecli("report", name, "--format", "json").document["study"] == "my-answers"
    assert tunecli("finetune", "--best").code == 0


def test_a_bundled_study_runs_from_an_empty_folder(tunecli: Command, tmp_path: Path) -> None:
    # Without a name, where there is no study yet, it is the digits.
    done = tunecli("search", "--timeout", "0s")
    assert done.code == 0
    assert "digits: 1,797 samples of 64, 10 classes" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["studies"]
    assert tunecli("search", "breast_cancer", "--trials", "2", "--set", "train.epochs=1").code == 0
    assert tunecli("report", "breast_cancer", "--format", "json").document["counts"]["complete"] >= 1


# What is asked for reaches the study


def test_options_reach_the_study(tunecli: Command, tmp_path: Path) -> None:
    write_flowers(tmp_path)
    options = ["--seed", "7", "--trials", "4", "--window", "2", "--sampler", "random", "--pruner", "none"]
    settings = ["--set", "space.learning_rate.high=0.1", "--set", "train.epochs=2", "--set", "space.optimizer=[sgd]"]
    done = tunecli("search", "flowers.toml", "--home", "elsewhere", *options, *settings)
    assert done.code == 0
    assert "tunecli report flowers --home elsewhere" in done.err
    record = read(tmp_path / "elsewhere" / "flowers" / "study.db")
    assert record.document["seed"] == 7
    section = record.document["search"]
    assert (section["trials"], section["window"], section["sampler"], section["pruner"]) == (4, 2, "random", "none")
    assert len(record.trials) == 4
    for trial in record.trials:
        assert trial.hparams["optimizer"] == "sgd"
        assert 1e-4 <= float(trial.hparams["learning_rate"]) <= 0.1  # type: ignore[arg-type]
        assert (trial.state, trial.fidelity) == (State.COMPLETE, 2)
    # Two in flight: the third begins after the first ends.
    assert [trial.start_tick for trial in record.trials] == [1, 1, 3, 3]
    same = tunecli("search", "flowers.toml", "--home", "other", *options, *settings)
    assert same.out == done.out
    assert not (tmp_path / "studies").exists()


def test_what_is_done_is_shown_where_nothing_may_be_written(
    tunecli: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = home / "tiny"
    (folder / "lock").unlink(missing_ok=True)
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # permissions do not bind root
    done = tunecli("search", "tiny")
    assert (done.code, done.out.startswith("Best: trial ")) == (0, True)
    assert "all 10 trials were done already" in done.err
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before


def test_the_total_can_grow_and_what_is_done_is_not_done_again(tunecli: Command, home: Path) -> None:
    done = tunecli("search", "tiny")
    assert done.code == 0
    assert "all 10 trials were done already" in done.err
    assert done.out.startswith("Best: trial ")
    before = read(home / "tiny" / "study.db").trials
    done = tunecli("search", "tiny", "--trials", "12")
    assert "10 of 12 done, 2 to go" in done.err
    after = read(home / "tiny" / "study.db").trials
    assert (after[:10], len(after)) == (before, 12)


def test_another_question_is_refused(tunecli: Command, home: Path) -> None:
    done = tunecli("search", "tiny", "--seed", "1")
    message, hint = done.complaint
    assert done.code == 3
    assert "seed: 0 -> 1" in message
    assert "--fresh" in hint


def test_fresh_sets_the_old_study_aside(tunecli: Command, home: Path) -> None:
    before = (home / "tiny" / "study.db").read_bytes()
    # What is wrong with the command line is said before anything is moved.
    assert tunecli("search", "tiny", "--fresh", "--timeout", "soon").code == 2
    assert [path.name for path in home.iterdir()] == ["tiny"]
    done = tunecli("search", "tiny", "--fresh", "--seed", "1", "--trials", "3")
    assert done.code == 0
    (aside,) = (path for path in home.iterdir() if path.name != "tiny")
    assert f"the earlier study is now studies/{aside.name}" in done.err
    assert (aside / "study.db").read_bytes() == before
    assert len(read(home / "tiny" / "study.db").trials) == 3


def test_fresh_leaves_the_old_study_where_the_new_one_cannot_begin(tunecli: Command, home: Path) -> None:
    """A model that does not fit, a script that does not load: nothing is lost by trying."""
    before = {path: path.read_bytes() for path in home.rglob("*.*") if path.is_file()}
    Path("own.py").write_text(
        "import torch\ndef make(): return torch.nn.Linear(7, 3)\ndef objective(trial): return 1\n"
    )
    Path("broken.py").write_text("nothing\ndef objective(trial): return 1\n")
    for arguments in (("iris", "--set", "model.source=own.py:make"), ("broken.py:objective",)):
        done = tunecli("search", *arguments, "--fresh", "--set", "name=tiny")
        assert (done.code, "earlier" in done.err) == (3, False)
        assert {path: path.read_bytes() for path in home.rglob("*.*") if path.is_file()} == before
    done = tunecli("search", "own.py:objective", "--fresh", "--set", "name=tiny", "--trials", "2")
    assert done.code == 0
    (aside,) = (path for path in home.iterdir() if path.name != "tiny")
    assert f"note: the earlier study is now studies/{aside.name}\n" in done.err
    assert {aside / path.relative_to(home / "tiny"): own for path, own in before.items()}.items() <= {
        path: path.read_bytes() for path in aside.rglob("*.*") if path.is_file()
    }.items()
    assert sorted(path.name for path in (home / "tiny" / "logs").iterdir()) == ["trial-0.txt", "trial-1.txt"]


def test_a_stop_says_how_to_go_on_with_what_has_begun(
    tunecli: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("tunecli.live.Interrupt.__call__", lambda self: True)
        done = tunecli("search", "tiny", "--fresh")
    assert done.err.endswith("to go on:\n  tunecli search tiny --fresh\n")
    calls = iter([False] * 4)
    with monkeypatch.context() as patch:
        patch.setattr("tunecli.live.Interrupt.__call__", lambda self: next(calls, True))
        done = tunecli("search", "tiny", "--fresh")
    assert done.err.endswith("to go on:\n  tunecli search tiny\n")
    assert len(list(home.iterdir())) == 2


def test_what_is_set_aside_is_never_the_latest_nor_a_hint(tunecli: Command, home: Path) -> None:
    aside = home / "tiny-20260102-030405"
    shutil.copytree(home / "tiny", aside)
    os.utime(aside / "study.toml", (2e9, 2e9))
    assert tunecli("report").out.startswith("tiny  ")
    assert tunecli("report", "tiny-2026").complaint[1] == "known: tiny"
    assert tunecli("report", aside.name).code == 0
    # One that is named like that is what it is called.
    named = ("--set", "name=iris-20260102-030405", "--trials", "1", "--set", "train.epochs=1")
    assert tunecli("search", "iris", *named).code == 0
    listed = tunecli("ls", "--format", "json").document["studies"]
    assert [own["study"] for own in listed] == ["iris-20260102-030405", "tiny"]
    assert tunecli("report").out.startswith("iris-20260102-030405  ")
    for name in ("tiny", "iris-20260102-030405"):
        shutil.rmtree(home / name)
    assert tunecli("report").code == 0  # there is no other


def test_a_database_that_cannot_be_read_is_told_with_what_to_do(tunecli: Command, home: Path) -> None:
    (home / "tiny" / "study.db").write_bytes(b"no database")
    for command in (("report", "tiny"), ("search", "tiny")):
        done = tunecli(*command)
        assert done.code == 3
        assert done.complaint == (
            "cannot read studies/tiny/study.db: file is not a database",
            "it is damaged, or another program's: put a copy back, or begin anew with --fresh, which sets it aside",
        )
    done = tunecli("search", "tiny", "--fresh", "--trials", "2")
    assert done.code == 0
    (aside,) = (path for path in home.iterdir() if path.name != "tiny")
    assert (aside / "study.db").read_bytes() == b"no database"
    (home / "tiny" / "study.db").unlink()
    (home / "tiny" / "study.db").mkdir()
    assert tunecli("report", "tiny").complaint[1] == "it has to be a file that you may read"


def test_a_study_that_cannot_be_written_goes_on_as_a_copy(
    tunecli: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def refuse(path: Any, *more: Any, **options: Any) -> int:
        if str(path).endswith("lock"):
            raise OSError(30, "Read-only file system")
        return opened(path, *more, **options)

    monkeypatch.setattr(os, "open", refuse)
    done = tunecli("search", "tiny", "--trials", "20")
    assert done.code == 5
    copied = "mend that, or copy studies/tiny to a folder of studies that is yours, and name that with --home"
    assert done.complaint == ("cannot write studies/tiny/lock: Read-only file system", copied)
    assert tunecli("search", "iris", "--trials", "1").complaint[1] == "choose another folder with --home"


@pytest.mark.parametrize("study", ["iris", "digits"])
def test_a_file_set_for_a_bundled_study_lies_where_it_was_typed(
    tunecli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, study: str
) -> None:
    features = {"iris": 4, "digits": 64}[study]
    (tmp_path / "own.py").write_text(f"import torch\ndef make(channels=None): return torch.nn.Linear({features}, 10)\n")
    own = ("--set", "model.source=own.py:make", "--set", "train.epochs=1")
    done = tunecli("search", study, *own, "--trials", "1")
    assert done.code == 0
    assert "model  own.py:make" in done.err
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert "2 of 2 done" in tunecli("search", study, "--trials", "2", "--home", "../studies").err


def test_a_study_goes_on_with_another_pruner(tunecli: Command, home: Path) -> None:
    """Its own keys stand in study.toml; the other pruner does not read them."""
    for trials, pruner in enumerate(("median", "patient", "hyperband", "none"), start=11):
        done = tunecli("search", "tiny", "--pruner", pruner, "--trials", f"{trials}")
        assert done.code == 0
        assert read(home / "tiny" / "study.db").document["search"]["pruner"] == pruner
    assert tunecli("search", "tiny", "--set", "search.pruner=[1]").code == 2
    done = tunecli("search", "tiny", "--pruner", "median", "--set", "search.reduction_factor=2")
    assert "'reduction_factor' in [search] is no key of the pruner 'median'" in done.complaint[0]


def test_the_latest_study_is_meant_where_none_is_named(tunecli: Command, home: Path) -> None:
    shutil.copytree(home / "tiny", home / "older")
    os.utime(home / "older" / "study.db", (1, 1))
    assert tunecli("report", "--format", "json").document["study"] == "tiny"
    assert tunecli("search").code == 0
    os.utime(home / "tiny" / "study.db", (0, 0))
    (home / "older" / "study.db").unlink()
    shutil.copytree(home / "tiny", home / "empty", ignore=shutil.ignore_patterns("study.toml"))
    assert tunecli("finetune", "--best", "--format", "json").document["study"] == "tiny"


def test_the_bundled_study_is_taken_with_a_word_where_there_is_none(tunecli: Command) -> None:
    taken = "no study is named, and none is in new yet: searching the bundled digits\n"
    nothing = ("search", "--home", "new", "--timeout", "0s")
    assert tunecli(*nothing).err.startswith(taken)
    assert taken not in tunecli(*nothing).err


# What comes back


def test_json_is_one_document_and_nothing_else(tunecli: Command, home: Path) -> None:
    search = tunecli("search", "tiny", "--trials", "11", "--format", "json")
    report = tunecli("report", "tiny", "--format", "json", "--top", "1")
    assert report.err == ""
    assert search.document == report.document
    document = report.document
    assert document.keys() >= {"study", "metric", "direction", "counts", "best", "trials"}
    assert len(document["trials"]) == 11
    assert sum(document["counts"].values()) == 11
    found = tunecli("finetune", "tiny", "--best", "--format", "json").document
    assert found.keys() >= {"metric", "before", "after", "scratch", "checkpoint"}
    assert (found["metric"], found["split"], found["reading"]) == ("accuracy", "test", 1)
    assert Path(found["checkpoint"], "weights.safetensors").is_file()


def test_every_value_is_the_one_that_optuna_reads(tunecli: Command, home: Path) -> None:
    ours = tunecli("report", "--format", "json").document
    theirs = optuna.load_study(storage=f"sqlite:///{home}/tiny/study.db", study_name="tiny")
    assert len(ours["trials"]) == len(theirs.trials)
    for own, other in zip(ours["trials"], theirs.trials, strict=True):
        assert own["number"] == other.number
        assert own["value"] == other.value
        assert own["state"] == other.state.name.lower()
        assert own["fidelity"] == len(other.intermediate_values)
        assert own["hparams"]["optimizer"] == other.params["optimizer"]
        assert own["hparams"]["learning_rate"] in other.params.values()
        assert own["hparams"]["batch_size"] == other.params["batch_size"]
    best = max((own for own in ours["trials"] if own["state"] == "complete"), key=lambda own: own["value"])
    assert ours["best"] == best
    assert ours["best"]["value"] == theirs.best_value or theirs.best_trial.state.name == "PRUNED"


def test_the_formats_tell_the_same(tunecli: Command, home: Path) -> None:
    document = tunecli("report", "tiny", "--format", "json").document
    rows = list(csv.DictReader(io.StringIO(tunecli("report", "tiny", "--format", "csv").out)))
    assert [float(row["value"]) for row in rows] == [own["value"] for own in document["trials"]]
    assert [row["state"] for row in rows] == [own["state"] for own in document["trials"]]
    best = document["best"]["number"]
    markdown = tunecli("report", "tiny", "--format", "markdown", "--top", "1").out
    assert markdown.splitlines()[-1].startswith(f"| {best} | ")
    text = tunecli("report", "tiny", "--top", "1").out
    assert f"Best: trial {best}, accuracy {document['best']['value']:.4f}" in text


def test_where_the_metric_fell_the_first_line_says_so(tunecli: Command, home: Path) -> None:
    better = ["--set", "optimizer=adam", "--set", "learning_rate=0.05", "--set", "l1=0", "--set", "l2=0"]
    good = tunecli("finetune", "--best", *better, "--epochs", "8", "--format", "json").document
    start = f"{good['checkpoint']}/weights.safetensors"
    worse = ["--checkpoint", start, *better, "--set", "learning_rate=30"]
    done = tunecli("finetune", "--best", *worse)
    assert done.code == 0
    first = done.out.splitlines()[0]
    assert re.fullmatch(
        r"accuracy fell by \d\.\d{4} on the test split of iris: predict stays with the fine-tuned model 1, .+", first
    )
    assert tunecli("finetune", "--best", *worse, "--format", "json").document["used"] is False


def test_where_less_is_better_a_worse_metric_rose(
    tunecli: Command, tmp_path: Path, question: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write_flowers(tmp_path)
    quick = ["--set", "train.metric=loss", "--trials", "2", "--set", "space.optimizer=sgd"]
    assert tunecli("search", "flowers.toml", *quick).code == 0
    done = tunecli("finetune", "--best", "--set", "learning_rate=50", "--set", "l2=0", "--set", "momentum=0")
    assert done.code == 0
    said = r"loss rose by [\d.]+ on the test split of flowers.py:load: predict stays with the best trial \d \(loss"
    assert re.match(said, done.out)


def test_a_pipe_gets_no_escape_codes(tunecli: Command, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for no_color in (False, True):
        if no_color:
            monkeypatch.setenv("NO_COLOR", "1")
        for arguments in (
            ("report",),
            ("search", "tiny", "--trials", "11"),
            ("finetune", "--best"),
            ("search", "--help"),
            ("search", "--bad"),
        ):
            done = tunecli(*arguments)
            assert "\x1b" not in done.out + done.err


def test_what_was_typed_is_printed_as_it_was(tunecli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_flowers(tmp_path)
    typed = ["search", "flowers.toml", "--set", "space.optimizer=[sgd]", "--home", "[old] :smile:", "--timeout", "0s"]
    done = tunecli(*typed)
    assert done.code == 0
    assert "the time is up: 0 of 6 trials done" in done.err
    assert "tunecli search flowers.toml --set 'space.optimizer=[sgd]' --home '[old] :smile:' --timeout 0s" in done.err


# Help


@pytest.mark.parametrize("command", ["search", "report", "finetune"])
def test_help_fits_a_terminal_and_names_every_option(tunecli: Command, command: str) -> None:
    done = tunecli(command, "--help")
    assert "<bool>" not in done.out
    assert done.code == 0
    assert all(len(line) <= 80 for line in done.out.splitlines())
    assert f"Usage: tunecli {command} [OPTIONS] [STUDY]" in done.out
    for option in OPTIONS[command]:
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", done.out), option
    assert "…" not in done.out
    assert tunecli(command, "-h").out == done.out


OPTIONS = {
    "search": "--trials --timeout --seed --sampler --pruner --try --window --target --device --home --set --fresh "
    "--format",
    "report": "--top --home --format",
    "finetune": "--best --trial --data --target --layers --epochs --checkpoint --save --device --home --set --format",
}
OPTIONS = {command: names.split() for command, names in OPTIONS.items()}  # type: ignore[misc]


def test_help_names_the_commands(tunecli: Command) -> None:
    done = tunecli("--help")
    assert done.code == 0
    assert all(len(line) <= 80 for line in done.out.splitlines())
    for word in (*OPTIONS, "--debug"):
        assert word in done.out
    # Nothing typed is a question, not a mistake.
    assert tunecli() == done


# What goes wrong


@pytest.mark.parametrize(
    ("arguments", "code", "says", "hint"),
    [
        (("serach",), 2, "serach", "tunecli"),
        (("search", "--trails", "3"), 2, "no such option: --trails", "did you mean --trials?"),
        (("search", "tiny", "--lr", "0.1"), 2, "no such option: --lr", "--set space.learning_rate=0.1"),
        (("search", "tiny", "--hidden", "9"), 2, "no such option: --hidden", "--set model.hidden=9"),
        (("search", "tiny", "--model", "cnn"), 2, "no such option: --model", "--set model.source=cnn"),
        (("search", "tiny", "--name", "mine"), 2, "no such option: --name", "--set name=mine"),
        (("finetune", "tiny", "--lr", "1"), 2, "no such option: --lr", "--set learning_rate=1"),
        (("report", "tiny", "--formt", "csv"), 2, "no such option: --formt", "did you mean --format?"),
        (("search", "tiny", "--epochs", "5"), 2, "no such option: --epochs", "--set train.epochs=5"),
        (("search", "tiny", "--epochs=5"), 2, "no such option: --epochs", "--set train.epochs=5"),
        (("search", "tiny", "--epochs"), 2, "no such option: --epochs", "--set train.epochs=..."),
        (("search", "tiny", "--batch-size", "5"), 2, "no such option: --batch-size", "--set space.batch_size=5"),
        (("finetune", "tiny", "--metric", "f1"), 2, "no such option: --metric", "tunecli finetune --help"),
        (("search", "--trials", "many"), 2, "--trials", "tunecli search --help"),
        (("search", "--trials", "0"), 2, "--trials", "tunecli search --help"),
        (("search", "tiny", "--timeout", "soon"), 2, "'soon'", "10m"),
        (("search", "tiny", "--trials", "11", "--device", "gpu"), 2, "'gpu'", "cuda"),
        (("search", "tiny", "--device", "gpu"), 2, "'gpu'", "cuda"),
        (("search", "tiny", "--set", "epochs"), 2, "'epochs'", "--set train.epochs=5"),
        (("search", "tiny", "--set", "train.epoch=5"), 2, "did you mean 'epochs'", None),
        (("search", "tiny", "--sampler", "tpee"), 2, "--sampler takes tpe", "'tpe'"),
        (
            ("search", "tiny", "--try", "learning_rate=5"),
            2,
            "learning_rate is 0.0001 to 1 where optimizer is sgd",
            "--set space.learning_rate=... changes what this study searches",
        ),
        (("search", "tiny", "--try", "optimizer=foo"), 2, "unknown optimizer 'foo'", "known: adadelta, adagrad"),
        (
            ("search", "tiny", "--try", "l1=0", "--set", "space.l1=0"),
            2,
            "l1 is fixed in this study, so there is nothing to try",
            "name what is searched: optimizer, learning_rate",
        ),
        (("search", "tiny", "--try", "momentum"), 2, "--try takes KEY=VALUE,KEY=VALUE", "--try learning_rate=0.01"),
        (("search", "tiny", "--sampler", "grid"), 2, "ranges of real numbers", "--set space.learning_rate=[...]"),
        (("search", "tiny", "--pruner", "halving"), 2, "--pruner takes asha, hyperband", None),
        (("search", "iris", "--direction", "maximize"), 2, "scripts and programs", "--set train.direction=maximize"),
        (("search", "digtis"), 3, "'digtis'", "'digits'"),
        (("search", "iris", "net.py:Net"), 2, "net.py:Net", "--set model.source=net.py:Net"),
        (("search", "--data", "houses.csv"), 2, "no such option: --data", "without an option: tunecli search FILE"),
        (("search", "iris", "--set", "model=net.py:Net"), 2, "expected a table", "did you mean model.source?"),
        (("search", "none.toml"), 3, "none.toml", None),
        (("search", "none.csv", "--target", "y"), 3, "none.csv", "path"),
        (("report", "tniy"), 3, "'tniy'", "'tiny'"),
        (("report", "../tiny"), 3, "'../tiny'", "name"),
        (("report", "tiny", "--home", "nowhere"), 3, "nowhere", "search"),
        (("report", "--format", "yaml"), 2, "'yaml'", "tunecli report --help"),
        (("finetune", "tiny"), 2, "choose the trial", "--best"),
        (("finetune", "tiny", "--best", "--trial", "1"), 2, "both name the trial", "--best"),
        (("finetune", "tiny", "--best", "--layers", "nope"), 2, "'nope'", "layer1, head"),
        (("finetune", "tiny", "--best", "--set", "lr=1"), 2, "'lr'", "learning_rate"),
        (("finetune", "tiny", "--best", "--set", "train.epochs=5"), 2, "an option of its own", "--epochs 5"),
        (("finetune", "tiny", "--best", "--set", "epochs=5"), 2, "an option of its own", "--epochs 5"),
        (("finetune", "tiny", "--best", "--set", "finetune.layers=head"), 2, "its own", "--layers head"),
        (("finetune", "tiny", "--best", "--set", "data.source=new.csv"), 2, "its own", "--data new.csv"),
        (("finetune", "tiny", "--best", "--set", "train.clip_nrm=1"), 2, "'clip_nrm'", "'clip_norm'"),
        (("finetune", "tiny", "--best", "--set", "model.hidden=[9]"), 2, "model.hidden", None),
        (("finetune", "tiny", "--best", "--target", "y"), 2, "--target", "--data"),
        (("finetune", "tiny", "--best", "--set", "data.seed=1"), 2, "data.seed", "--data"),
        (("finetune", "tiny", "--best", "--data", "nope.csv"), 3, "nope.csv", None),
        (("finetune", "tiny", "--best", "--checkpoint", "nope.pth"), 3, "nope.pth", "torch.save"),
        (("finetune", "tiny", "--best", "--save", "nowhere/model.pth"), 2, "nowhere", "--save"),
        (("finetune", "tiny", "--trial", "99"), 3, "99", "report"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_a_message_and_a_hint(
    tunecli: Command, home: Path, arguments: tuple[str, ...], code: int, says: str, hint: str | None
) -> None:
    before = (home / "tiny" / "study.db").read_bytes()
    done = tunecli(*arguments)
    assert done.code == code
    assert done.out == ""
    assert says in done.err
    assert re.search(r"^error: \S", done.err, re.MULTILINE)
    if hint is not None:
        assert hint in done.complaint[1]
    assert (home / "tiny" / "study.db").read_bytes() == before


def test_nothing_searched_yet(tunecli: Command) -> None:
    for arguments in (("report",), ("finetune", "--best"), ("report", "digits")):
        done = tunecli(*arguments)
        assert done.code == 3
        assert "tunecli search" in done.complaint[1]


def test_what_is_no_database_of_ours(tunecli: Command, home: Path) -> None:
    (home / "tiny" / "study.db").write_text("text")
    for arguments in (("report", "tiny"), ("search", "tiny"), ("finetune", "tiny", "--best")):
        done = tunecli(*arguments)
        assert done.code == 3
        assert "study.db" in done.complaint[0]


def test_a_study_held_by_another_search(tunecli: Command, home: Path) -> None:
    with hold(home / "tiny"):
        for arguments in (("search", "tiny", "--trials", "11"), ("finetune", "--best"), ("search", "tiny", "--fresh")):
            done = tunecli(*arguments)
            assert done.code == 5
            assert "held by another" in done.complaint[0]
        # Reading waits for nobody.
        assert tunecli("report").code == 0


def test_no_usable_trial(tunecli: Command, tmp_path: Path) -> None:
    write_flowers(tmp_path)
    wild = ["--set", "space.learning_rate=1e30", "--set", "space.optimizer=sgd", "--trials", "2", "--home", "h"]
    done = tunecli("search", "flowers.toml", *wild)
    assert done.code == 4
    message, hint = done.complaint
    assert message.startswith("all 2 trials failed")
    assert ": diverged: " in message
    assert "tunecli report flowers --home h" in hint
    done = tunecli("report", "flowers", "--home", "h")
    assert done.code == 0
    assert " x diverged" in done.out
    done = tunecli("finetune", "flowers", "--best", "--home", "h")
    assert done.code == 4
    assert done.complaint[0] == "none of the 2 trials of flowers is complete"


def test_debug_shows_the_traceback(tunecli: Command, home: Path) -> None:
    for arguments in (("--debug", "report", "tniy"), ("report", "tniy", "--debug")):
        done = tunecli(*arguments)
        assert done.code == 3
        assert "Traceback (most recent call last)" in done.err
        assert done.err.splitlines()[-1] == "hint: did you mean 'tiny'?"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90.0),
        ("90s", 90.0),
        ("1.5", 1.5),
        ("10m", 600.0),
        ("0.5h", 1800.0),
        ("1h30m", 5400.0),
        ("1h30m10s", 5410.0),
        (" 2m ", 120.0),
        ("0", 0.0),
        (None, None),
    ],
)
def test_a_time_is_read_as_people_write_it(text: str | None, seconds: float | None) -> None:
    assert _seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5", "10x", "m", "1d", "5s10m", "inf", "nan", "1e3"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(repr(text))):
        _seconds(text)


# Signals and pipes


def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(tunecli: Command, tmp_path: Path) -> None:
    write_flowers(tmp_path)
    arguments = ["search", "flowers.toml", "--trials", "60", "--set", "train.epochs=6"]
    with process(*arguments, cwd=tmp_path) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if line.startswith("device"):
                break
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    stopped = re.search(
        r"stopped: (\d+) of 60 trials done(?:, \d+ in flight)?; all is recorded\nto go on:\n  tunecli (.+)\n\Z", err
    )
    assert stopped is not None, err
    assert stopped[2].split() == arguments
    trials = read(tmp_path / "studies" / "flowers" / "study.db").trials
    assert sum(trial.state.ended for trial in trials) == int(stopped[1]) < 60
    done = tunecli(*arguments)
    assert done.code == 0
    document = tunecli("report", "--format", "json").document
    assert len(document["trials"]) == 60
    assert document["counts"]["running"] == 0
    assert f"{stopped[1]} of 60 done" in done.err or stopped[1] == "0"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_signal_stops_a_search_at_once_and_it_goes_on(
    tunecli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    write_flowers(tmp_path)
    monkeypatch.setattr(LineView, "update", lambda *ignored: signal.raise_signal(number))
    done = tunecli("search", "flowers.toml", "--format", "json", "--fresh")
    assert done.code == code
    assert done.out == ""
    assert "to go on:\n  tunecli search flowers.toml --format json\n" in done.err
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", ["ls", "report"])
def test_ctrl_c_in_any_command_is_said(tunecli: Command, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background has not
    monkeypatch.setattr(Path, "glob", lambda *ignored: signal.raise_signal(signal.SIGINT))
    done = tunecli(command)
    assert (done.code, done.out) == (130, "")
    assert done.err == "interrupted: what was recorded is kept, and the same command goes on\n"


@pytest.mark.parametrize("command", ["ls", "report"])
def test_a_folder_that_may_not_be_read_is_named(
    tunecli: Command, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def refuses(path: Path, *ignored: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "glob", refuses)
    done = tunecli(command)
    assert (done.code, done.out) == (5, "")
    hint = "mend its permissions, or name another folder with --home"
    assert done.complaint == ("no access to studies: Permission denied", hint)


@pytest.mark.parametrize(("tick", "said"), [(1, "epoch 1"), (3, "epoch 3")])
def test_an_interrupted_search_says_where_its_trials_in_flight_go_on(
    tunecli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tick: int, said: str
) -> None:
    write_flowers(tmp_path)
    command = ("search", "flowers.toml", "--window", "4", "--pruner", "none", "--set", "train.epochs=9", "--verbose")

    def stops(view: LineView, progress: Progress) -> None:
        if progress.tick == tick:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(LineView, "update", stops)
        first = tunecli(*command)
    assert first.code == 75
    assert (
        "plan   by rule, as its plans take about the same time:\n"
        "       compiled code trains all of its layers" in first.err
    )
    again = tunecli(*command)
    assert f"0 of 6 done, 6 to go, 4 of them in flight at {said}\n" in again.err
    assert "plan   kept from when the study began\n       compiled code trains all of its layers\n" in again.err


def test_a_replay_that_shows_other_values_is_told_once_with_digits_enough(capsys: pytest.CaptureFixture[str]) -> None:
    """Another version of torch may change the last bits of all ticks of all trials in flight."""

    def progress(tick: int) -> Progress:
        return Progress(8, dict.fromkeys(State, 0), None, tick, 0, 0.0)

    first = Differed(3, 2, stored=0.91234567, replayed=0.91234568)
    others = [Differed(trial, 3, stored=0.5, replayed=0.6) for trial in (3, 4, 5)]
    loss = Differed(1, 7, stored=1.0, replayed=1.0 + 2**-52, of="training loss")
    ended = Ended("done", progress(10))
    live.show([progress(9), first, progress(9), *others, progress(9), progress(10), ended], live.progress_console())
    live.show([loss, ended], live.progress_console())
    replay, alone = capsys.readouterr().err.splitlines()
    assert replay.startswith(
        "note: replaying trial 3 gave 0.91234568 at epoch 2 where 0.91234567 is recorded, "
        "and so on in 3 more epochs of 3 trials; what is recorded stays"
    )
    assert "gave a training loss of 1.0000000000000002 at epoch 7 where 1 is recorded; what is" in alone


@pytest.mark.parametrize("command", [("search", "tiny", "--trials", "11"), ("finetune", "tiny", "--best")])
def test_a_signal_after_the_last_line_changes_no_exit_code(home: Path, command: tuple[str, ...]) -> None:
    with process(*command, cwd=home.parent) as running:
        assert running.stderr is not None
        assert running.stdout is not None
        last = running.stderr if command[0] == "search" else running.stdout
        for line in last:
            if "tunecli finetune tiny --best" in line or line.startswith("checkpoint: "):
                break
        running.send_signal(signal.SIGTERM)
        running.communicate(timeout=60)
    assert running.returncode == 0


def test_a_signal_stops_fine_tuning_before_anything_is_written(
    tunecli: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (home / "tiny" / "study.db").read_bytes()
    show = live.show_finetune

    def first_epoch_then_signal(events: Any, console: Any) -> Any:
        def watched() -> Any:
            for event in events:
                yield event
                signal.raise_signal(signal.SIGTERM)

        return show(watched(), console)

    monkeypatch.setattr(live, "show_finetune", first_epoch_then_signal)
    done = tunecli("finetune", "--best", "--epochs", "5")
    assert (done.code, done.out) == (75, "")
    assert "what was trained is kept; the model is written" in done.err
    assert "tunecli finetune --best --epochs 5" in done.err
    assert (home / "tiny" / "study.db").read_bytes() == before
    assert not (home / "tiny" / "finetuned").exists()


@pytest.mark.parametrize("arguments", [("report",), ("report", "--format", "json"), ("--help",)])
def test_a_reader_that_has_gone_is_no_error(home: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with process(*arguments, cwd=tmp_path, stdout=writing) as running:
        os.close(writing)
        _, err = running.communicate(timeout=60)
    assert err == ""
    assert running.returncode == 0


def test_a_search_whose_progress_nobody_reads_goes_on(home: Path, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with process("search", "tiny", "--trials", "12", cwd=tmp_path, stderr=writing) as running:
        os.close(writing)
        out, _ = running.communicate(timeout=60)
    assert running.returncode == 0
    assert out.startswith("Best: trial ")
    assert len(read(home / "tiny" / "study.db").trials) == 12


# What is loaded


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["--help"], {"torch", "optuna", "pandas", "sklearn", "numpy"}),
        (["search", "--help"], {"torch", "optuna", "pandas", "sklearn"}),
        (["report"], {"torch", "optuna", "pandas", "sklearn"}),
        (["ls"], {"torch", "optuna", "pandas", "sklearn", "numpy"}),
        (["search", "tiny"], {"torch", "optuna", "pandas"}),
        # The first search of all, once some search has left an empty database to begin the next one with; with trials
        # enough to tell in the end which hparams mattered.
        (["search", "digits", "--trials=24", "--set=train.epochs=1"], {"optuna", "pandas", "sklearn", "scipy"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_not_needed_is_not_loaded(home: Path, tmp_path: Path, arguments: list[str], absent: set[str]) -> None:
    script = f"""
import sys
from tunecli.cli import main
sys.argv = ["tunecli", *{arguments!r}]
try:
    main()
except SystemExit as end:
    print("\\n", end.code, *sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    code, *modules = done.stdout.splitlines()[-1].split()
    assert code == "0", done.stderr
    assert not absent & set(modules)


# Points by hand, and a space that ends

GRID = ["--sampler", "grid", "--window", "4", "--set", "train.epochs=1", "--set", "space.optimizer=sgd"]
for setting in ("learning_rate=[0.01,0.1]", "momentum=[0,0.9]", "l1=0", "l2=0", "batch_size=32"):
    GRID += ["--set", f"space.{setting}"]


def test_a_grid_ends_the_search_well_and_report_says_so(tunecli: Command) -> None:
    for _ in range(2):
        done = tunecli("search", "iris", *GRID)
        assert done.code == 0
        assert "all 4 points of the space were tried\n" in done.err
    assert "grid tries every point of the space once" in tunecli("search", "iris", "--fresh", *GRID).err
    report = tunecli("report", "iris")
    assert "All 4 points of the space were tried.\n" in report.out
    assert tunecli("report", "iris", "--format", "json").document["asked"] == 4


def test_a_point_by_hand_is_tried(tunecli: Command, home: Path) -> None:
    typed = ("search", "tiny", "--try", "optimizer=sgd,learning_rate=0.5,momentum=0.25")
    for _ in range(2):
        assert tunecli(*typed).code == 0
        trials = tunecli("report", "tiny", "--format", "json").document["trials"]
        assert len(trials) == 11
        assert trials[-1]["hparams"].items() >= {"optimizer": "sgd", "learning_rate": 0.5, "momentum": 0.25}.items()


def test_what_a_point_by_hand_came_to_is_said(tunecli: Command, home: Path) -> None:
    """Done already or not; and of one that cannot be had, how it can."""
    for _ in range(2):
        done = tunecli("search", "tiny", "--try", "optimizer=sgd,learning_rate=0.5,momentum=0.25")
        trial = tunecli("report", "tiny", "--format", "json").document["trials"][-1]
        after = f"on validation, after epoch {trial['best_tick']} of "
        assert f"\nTried: trial 10, accuracy {trial['value']:.4f} {after}" in done.out
        assert "\n  optimizer sgd, learning_rate 0.5, momentum 0.25," in done.out
    assert "Tried" not in tunecli("search", "tiny").out


def test_importance_is_in_report_after_a_search(tunecli: Command) -> None:
    assert tunecli("search", "iris", "--trials", "20", "--sampler", "random", "--set", "train.epochs=2").code == 0
    shares = tunecli("report", "iris", "--format", "json").document["importance"]
    assert shares.keys() >= {"optimizer", "learning_rate", "batch_size"}
    assert sum(shares.values()) == pytest.approx(1)
    report = tunecli("report", "iris").out
    assert re.search(r"\nImportance of hparams\nWhat sets the best \d+ of 20 complete and pruned trials apart", report)


def test_a_search_that_goes_on_says_in_short_what_it_is(tunecli: Command) -> None:
    widths = ["--set", "model.source=mlp", "--set", "space.model.hidden=[[8],[16]]", "--set", "train.epochs=1"]
    first = tunecli("search", "iris", "--trials", "2", *widths)
    assert "\nmodel  mlp, hidden searched, 67 weights in the first tried\n" in first.err
    goes_on = tunecli("search", "iris", "--trials", "3").err.splitlines()
    assert goes_on[0] == "study  iris: mlp on iris"
    assert not any(line.startswith(("data", "model", "space")) for line in goes_on)
    whole = tunecli("search", "iris", "--trials", "4", "--verbose").err
    assert "\nmodel  mlp, hidden searched" in whole


def test_what_a_search_and_fine_tuning_say_fits_the_terminal(tunecli: Command) -> None:
    said = tunecli("search", "digits", "--timeout", "0s", "--set", "model.channels=[512, 512]").err
    assert "such convolutions are faster one by one" in said
    assert max(map(len, said.splitlines())) <= 80
    assert tunecli("search", "iris", "--trials", "1", "--set", "train.epochs=1", "--home", "h").code == 0
    said = tunecli("finetune", "iris", "--best", "--home", "h").out
    assert max(map(len, said.splitlines())) <= 80


def test_a_changed_question_is_said_and_reported(tunecli: Command, home: Path) -> None:
    question = (home / "tiny" / "study.toml").read_text()
    (home.parent / "tiny.toml").write_text(question)
    options = ["--set", "space.batch_size=[32]", "--trials", "12", "--sampler", "random"]
    done = tunecli("search", "tiny.toml", *options)
    assert done.code == 0
    assert 'changed  search.sampler: "tpe" -> "random",' in done.err
    assert 'space.batch_size: [32, "full"] -> [32]' in done.err
    assert "the 10 trials so far stay" in done.err
    assert "today's space" not in done.err, "random looks at no trial"
    said = done.err[: done.err.index("study  ")].splitlines()
    assert max(map(len, said)) <= 80
    (change,) = tunecli("report", "tiny", "--format", "json").document["changes"]
    assert change == {
        "from_trial": 10,
        "changes": ['search.sampler: "tpe" -> "random"', 'space.batch_size: [32, "full"] -> [32]'],
    }
    assert 'From trial 10 on: search.sampler: "tpe" -> "random"' in tunecli("report", "tiny").out
    # What is asked last is what a later command without options asks.
    assert tunecli("search", "--home", "studies", "--trials", "13").code == 0
    assert len(tunecli("report", "tiny", "--format", "json").document["changes"]) == 1
    done = tunecli("search", "tiny", "--sampler", "tpe", "--trials", "13")
    assert "outside today's space and are hidden from tpe" in " ".join(done.err.split())


def test_a_best_trial_outside_of_todays_space_is_told(tunecli: Command, home: Path) -> None:
    best = tunecli("report", "tiny", "--format", "json").document["best"]
    assert "outside of" not in tunecli("report", "tiny").out
    other = [size for size in (32, "full") if size != best["hparams"]["batch_size"]]
    assert tunecli("search", "tiny", "--trials", "10", "--set", f"space.batch_size={json.dumps(other)}").code == 0
    assert "outside of" not in tunecli("report", "tiny").out, "nothing was asked by the new space yet"
    narrow = ["--set", f"space.batch_size={json.dumps(other)}", "--set", "space.learning_rate={low=5e-9,high=6e-9}"]
    done = tunecli("search", "tiny", "--trials", "11", *narrow)
    assert done.code == 0, done.err
    for said in (done.out, tunecli("report", "tiny").out):
        assert "  outside of today's space: learning_rate, batch_size\n" in said


def test_the_version_is_shown(tunecli: Command) -> None:
    done = tunecli("--version")
    assert (done.code, done.out, done.err) == (0, f"tunecli {__version__}\n", "")


def test_the_progress_of_fine_tuning_is_whole_in_a_terminal_of_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("COLUMNS", "80"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    live.show_finetune([Epoch("fine-tuning", 45, 60, 0.12345)], live.progress_console())
    assert "epoch 45 of 60, training loss 0.1235" in capsys.readouterr().err


def test_a_line_of_progress_is_not_said_twice(tunecli: Command, tmp_path: Path) -> None:
    done = tunecli("search", "iris", "--trials", "2", "--timeout", "0s")
    assert "search 2 trials of up to 30 epochs, 2 in flight," in done.err
    lines = done.err.splitlines()
    assert len(lines) == len(set(lines))


def test_what_others_began_is_ended_as_python_would(tmp_path: Path) -> None:
    """Threads that a user's code has begun, and what it has asked to be called at the end."""
    program = """
import atexit, sys, threading, time
from tunecli.cli import run
atexit.register(print, "last")
threading.Thread(target=lambda: (time.sleep(0.1), print("a thread"))).start()
sys.argv[1:] = ["ls", "--nonsense"]
run()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == "a thread\nlast\n"
